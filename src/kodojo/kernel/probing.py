"""modprobe for a machine: as its user asks for it, and as the kernel itself does (``request_module()``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import InputError, KodojoError, LoadError, Refusal
from kodojo.image.tree import module_name
from kodojo.kernel.user import errno_text
from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.index import ModuleIndex
from kodojo.kmod.modprobe import Modprobe, Outcome, join_options, lookup, modprobe_quietly
from kodojo.kmod.providers import with_providers
from kodojo.kmod.siblings import Siblings, modules_at, modules_beside, named_as_path
from kodojo.loader.steps import Step, Steps
from kodojo.loader.target import Module, ModuleState

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.kmod.known import KnownModules

__all__ = ["Insmod", "Probe", "advised", "answer", "known_modules", "places_of"]

Insmod = Callable[[Path, str, Steps], Module]
"""Loads a file with options into a machine, noting the steps; raises LoadError when the kernel refuses."""

AnyPath = str | os.PathLike[str]


def known_modules(image: Image, places: Sequence[AnyPath] = ()) -> KnownModules:
    """The modules of an image's tree, and before them these files, and those below these directories."""
    index = ModuleIndex.of(image)
    paths = map(Path, places)
    files = [file for path in paths for file in (modules_at(path) if path.is_dir() else [path])]
    return Siblings(index, files, image.release) if files else index


def places_of(name: AnyPath, path: AnyPath | None = None) -> list[Path]:
    """The files that a load looks at besides the tree: beside a module that is named by its file, and at a path.

    :raises InputError: there are none.
    """
    files = modules_beside(Path(name)) if named_as_path(name) else []
    return files + (modules_at(Path(path)) if path is not None else [])


def answer(
    known: KnownModules, config: ModprobeConfig, name: str, loaded: Callable[[], Iterable[Module]], insmod: Insmod
) -> int:
    """``modprobe -q -- NAME``, as the kernel runs it: its exit status."""
    loader = _Loader(known, loaded, insmod, advise=False)
    return modprobe_quietly(known, config, name, loader.loaded, loader.insmod)


@dataclass
class Probe:
    """One run of modprobe for the user of a machine.

    :param loaded: the modules of the kernel's list.
    """

    known: KnownModules
    config: ModprobeConfig
    loaded: Callable[[], Iterable[Module]]
    insmod: Insmod

    def load(self, name: AnyPath, parameters: Sequence[str]) -> tuple[Module, tuple[Step, ...]]:
        """Load what a name, an alias or a file stands for, with what it needs; the module, and the steps of its load.

        :raises LoadError: the kernel refuses one of them. InputError: nothing is called so, or it is built in.
        """
        loader = _Loader(self.known, self.loaded, self.insmod)
        run = Modprobe(self.known, self.config, errno_text=errno_text)
        options = join_options(tuple(parameters))
        if named_as_path(name):
            wanted = [module_name(Path(name)) or ""]
            run.insert_file(loader, os.fspath(name), options)
        else:
            wanted = [candidate.name for candidate in lookup(self.known, self.config, os.fspath(name))]
            run.insert(loader, os.fspath(name), options)
        _raise_failure(os.fspath(name), run.outcome)
        return self._found(os.fspath(name), wanted, loader)

    def load_needed(self, file: AnyPath) -> None:
        """Load what a file depends on. Raises as :meth:`load`."""
        loader = _Loader(self.known, self.loaded, self.insmod)
        for name in self.known.dependencies(module_name(Path(file)) or ""):
            run = Modprobe(self.known, self.config, errno_text=errno_text)
            run.insert_module(loader, name)
            _raise_failure(name, run.outcome)

    def _found(self, name: str, wanted: list[str], loader: _Loader) -> tuple[Module, tuple[Step, ...]]:
        there = {mod.name: mod for mod in self.loaded()}
        for each in reversed(wanted):
            path = self.known.path(each)
            if path in loader.done:
                return loader.done[path]
            if each in there:
                return there[each], ()
        if any(self.known.is_builtin(each) for each in wanted):
            raise InputError(f"{name}: is built into this kernel: there is no module to load")
        raise InputError(f"{name}: was not loaded, and nothing refused it", hint="see modprobe.d: blacklist, install")


@dataclass
class _Loader:
    """A machine as :mod:`kodojo.kmod.modprobe` wants it (its ``Loader``), which keeps what it has loaded."""

    known: KnownModules
    modules: Callable[[], Iterable[Module]]
    enter: Insmod
    advise: bool = True
    done: dict[Path | None, tuple[Module, tuple[Step, ...]]] = field(default_factory=dict)

    def loaded(self, name: str) -> bool:
        return any(mod.name == name and mod.state is ModuleState.LIVE for mod in self.modules())

    def insmod(self, path: Path, options: str) -> None:
        steps = Steps()
        try:
            mod = self.enter(path, options, steps)
        except LoadError as error:
            refusal = with_providers(error.refusal, self.known, module_name(path)) if self.advise else error.refusal
            raise type(error)(f"{path}: {error.message}", refusal, tuple(steps), file=str(path)) from error
        self.done[path] = mod, tuple(steps)


def _raise_failure(name: str, outcome: Outcome) -> None:
    if outcome.status == 0:
        return
    for _, error in outcome.failures:
        raise error
    texts = [text for _, text in outcome.messages]
    hint = ""
    if Path(name).is_file():
        hint = f"a file is given as a path: ./{name}"
    raise InputError(f"{name}: {'; '.join(texts)}", hint=hint or "see `kodojo modprobe -R NAME` and `kodojo modinfo`")


def advised(image: Image, known: KnownModules | None, refusal: Refusal, file: AnyPath | bytes) -> Refusal:
    """A refusal for symbols that nobody has exported yet, with who would; another one as it is.

    :param known: where modules are looked for; None: in the image's tree, and beside the file.
    :param file: the refused module, as the user gave it.
    """
    path = Path(file) if not isinstance(file, bytes) and module_name(Path(file)) is not None else None
    with suppress(KodojoError):  # the tree cannot be read; the refusal is the same
        if known is None:
            known = known_modules(image, modules_beside(path) if path is not None else ())
        return with_providers(refusal, known, module_name(path) if path is not None else None, path)
    return refusal
