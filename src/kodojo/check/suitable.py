"""For a module that is for another kernel than that which refused it: which kernels of the store it is for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from kodojo.errors import KodojoError, decode
from kodojo.image.architecture import architecture_named, architecture_of_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kodojo.check.examine import Examined
    from kodojo.check.matrix import Kernel
    from kodojo.check.results import Matrix
    from kodojo.errors import Refusal
    from kodojo.image.image import Image
    from kodojo.image.store import Store
    from kodojo.loader.verdict import Verdict

__all__ = ["Origin", "StoreKernels", "Suitable", "name_suitable_kernels"]

_FOR_ANOTHER = frozenset(
    {
        "vermagic-mismatch", "module-layout-crc", "symbol-version", "struct-module-size", "unknown-symbol",
        "gpl-only-symbol", "namespace-not-imported", "elf-architecture",
    }
)  # fmt: skip
"""Reasons that a module has no more where it was built for."""


class Origin(NamedTuple):
    """What a module says about the kernel that it is for; empty where it says nothing.

    :param architecture: as :attr:`kodojo.image.architecture.Architecture.name`. :param release: by its version magic.
    """

    architecture: str
    release: str

    @classmethod
    def of(cls, content: bytes) -> Origin:
        """That of a module, decompressed, whatever is wrong with it."""
        from kodojo.kmod.elf_parts import NotElfError, modinfo_section, modinfo_strings  # noqa: PLC0415

        release = b""
        with suppress(NotElfError):
            for entry in modinfo_strings(modinfo_section(content) or b""):
                if not release and entry.startswith(b"vermagic="):
                    release = entry[len(b"vermagic=") :].partition(b" ")[0]
        architecture = architecture_of_module(content)
        return cls(architecture.name if architecture else "", decode(release))


@dataclass(frozen=True, slots=True)
class Suitable:
    """The kernels that a refused module is for.

    :param names: in the store. :param sentence: for the hint; empty if there is nothing to say.
    """

    names: tuple[str, ...] = ()
    sentence: str = ""

    def told(self, verdict: Verdict) -> Verdict:
        """The verdict with the sentence in the hint of the first problem that would be none there."""
        problems = list(verdict.problems)
        for number, problem in enumerate(problems):
            if problem.slug in _FOR_ANOTHER:
                problems[number] = self.told_in(problem)
                return replace(verdict, hint=problems[0].hint, problems=tuple(problems))
        return verdict

    def told_in(self, problem: Refusal) -> Refusal:
        """The problem with the sentence in its hint."""
        return replace(problem, hint=f"{problem.hint} {self.sentence}".strip())


class StoreKernels:
    """The kernels of a store, each looked at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _kernels(self) -> dict[str, tuple[str, Image]]:
        """Name -> architecture, image."""
        found = {}
        for name in self._store.names():
            with suppress(KodojoError):  # a kernel that cannot be opened suits nobody
                image = self._store.open(name)
                found[name] = architecture_named(image.architecture).name, image
        return found

    def of_release(self, release: str) -> Image | None:
        """A kernel of that release; None if there is none, or it cannot be opened."""
        with suppress(KodojoError):
            if release in self._store.names():
                return self._store.open(release)
        return None

    def suitable(self, origin: Callable[[], Origin], image: Image, slugs: Iterable[str]) -> Suitable:
        """Those that suit a module better than the one that refused it, best first.

        :param origin: of the module; asked only if it matters. :param slugs: the reasons of the refusal.
        """
        if _FOR_ANOTHER.isdisjoint(slugs):
            return Suitable()
        return self._suitable(origin(), image)

    def _suitable(self, origin: Origin, image: Image) -> Suitable:
        there = architecture_named(image.architecture).name
        same = [name for name, (architecture, _) in self._kernels.items() if architecture == origin.architecture]
        wanted = origin.release
        of_release = tuple(name for name in same if wanted and _release(self._kernels[name][1]) == wanted)
        if origin.architecture and origin.architecture != there:
            if not same:
                return Suitable((), "No kernel in the store has its architecture: see kodojo kernel add.")
            names = (*of_release, *(name for name in same if name not in of_release))
            return Suitable(names, f"Kernels of its architecture in the store: {', '.join(names)}.")
        if not of_release or wanted == image.release:
            return Suitable()
        return Suitable(of_release, f"The store has the kernel that it was built for: {', '.join(of_release)}.")


def name_suitable_kernels(
    matrix: Matrix, stored: StoreKernels, kernels: Iterable[Kernel], given: Iterable[Examined]
) -> None:
    """Say in the results of given modules that were refused which kernels of the store they are for."""
    origins = {examined.module.label: Origin(examined.architecture, examined.release) for examined in given}
    images = {kernel.name: kernel.image for kernel in kernels}
    told = []
    for result in matrix:
        origin, image, verdict = origins.get(result.module), images[result.kernel], result.verdict
        if origin is None or image is None or verdict is None or verdict.ok:
            continue
        suitable = stored.suitable(partial(Origin, *origin), image, (problem.slug for problem in verdict.problems))
        if suitable.sentence:
            told.append(replace(result, verdict=suitable.told(verdict), suitable=suitable.names))
    matrix.add(told)


def _release(image: Image) -> str:
    try:
        return image.release
    except KodojoError:
        return ""
