"""Will it load? A dry load of a file into a kernel image, with an answer instead of an exception."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kodojo.errors import (
    ImageError,
    LoadError,
    MissingInformationError,
    Refusal,
    UnmodelledError,
    decode,
)
from kodojo.image.payload import Payload, read_module
from kodojo.loader.dry import DryTarget
from kodojo.loader.enter import insmod, other_answers
from kodojo.loader.steps import Step, Steps
from kodojo.loader.survey import Survey
from kodojo.loader.target import ModuleState

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kodojo.errors import LogRecord
    from kodojo.image.image import Image
    from kodojo.loader.target import Module

__all__ = ["Problem", "Verdict", "check", "judge"]

_DEPENDS = re.compile(rb"\0depends=([^\0]{1,65536})\0")


Problem = Refusal
"""One reason for which the kernel refuses a module, or would as soon as the reasons before it are gone."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a kernel would say to a module.

    :param errno: positive; 0 if it would load.
    :param log: the lines that the kernel would print while it loads this module.
    :param why: plain words: what is wrong; empty if nothing is. ``hint``: what to do about it.
    :param steps: what the loader did, in order; the last one is where it stopped.
    :param slug: kebab-case name of the reason; ``ok`` if there is none.
    :param unchecked: parameters whose values only the module's own code can judge.
    :param unmade: checks that could not be made with what is known about the kernel, each with the reason. An
        ``errno`` never comes from one of them; ``ok`` says that nothing else speaks against it.
    :param taints: mask of the flags that a kernel gets that loads it (bits of ``kernel/panic.c: taint_flags``).
    :param problems: everything that is wrong. The first one is the kernel's own answer, and what ``errno``,
        ``log``, ``slug``, ``why`` and ``hint`` say; the others would be next, were the earlier ones mended.
    :param warnings: sentences about the file: how other versions of kmod, or the kernel's own decoder, would answer.
    """

    ok: bool
    errno: int = 0
    log: tuple[LogRecord, ...] = ()
    why: str = ""
    hint: str = ""
    steps: tuple[Step, ...] = ()
    slug: str = "ok"
    unchecked: tuple[str, ...] = ()
    unmade: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    taints: int = 0
    warnings: tuple[str, ...] = ()


def check(
    image: Image, file: str | os.PathLike[str] | bytes | Payload, *args: str, dependencies: bool = True
) -> Verdict:
    """Would the kernel load this file with these arguments? Everything but running its init is tried.

    A refusal is an answer, not an exception, whether it is the kernel's or kmod's, which does not get to the module
    in a damaged file. InputError if the file cannot be read, ImageError if it is larger than any module.
    MissingInformationError if the kernel is only described, and the module depends on one that the description does
    not know.

    :param file: a path or the bytes of a module, or what was read of it; compressed ones are unpacked as kmod does
        (:mod:`kodojo.image.payload`).
    :param args: ``NAME=VALUE`` each, joined with blanks as insmod does.
    :param dependencies: load the modules that it names in ``depends=`` from the image's tree first.
    """
    payload = file if isinstance(file, Payload) else read_module(file)

    def prepare(target: DryTarget) -> None:
        if dependencies:
            load_dependencies(target, payload.content)

    return judge(image, payload, args, prepare)[0]


def judge(
    image: Image, payload: Payload, args: Sequence[str], prepare: Callable[[DryTarget], None]
) -> tuple[Verdict, DryTarget]:
    """What :func:`check` says, about a kernel in which somebody has loaded other modules.

    :param prepare: loads them.
    :return: the verdict, and the kernel on paper; the module is the newest of its ``modules()`` if it would load.
    :raises MissingInformationError: the kernel is only described, and the module needs one that is not known there.
    """
    target = DryTarget(image)
    verdict = _dry_load(target, payload, args, prepare)
    if target.image is not image:
        from kodojo.loader.presumptions import settle  # noqa: PLC0415  (only for kernels that are described)

        verdict = settle(verdict, target.image, lambda other: _dry_load(DryTarget(other), payload, args, prepare))
    if verdict.ok and target.unlisted:
        names = ", ".join(target.unlisted)
        raise MissingInformationError(
            f"it depends on {names}: not in this kernel's Module.symvers, and so no module of its own;"
            " nothing else speaks against it",
            hint="Check it together with the modules that it needs (kodojo check A.ko B.ko).",
        )
    warnings = other_answers(image, payload)
    return (replace(verdict, warnings=warnings) if warnings else verdict), target


def _dry_load(
    target: DryTarget, payload: Payload, args: Sequence[str], prepare: Callable[[DryTarget], None]
) -> Verdict:
    prepare(target)
    target.unchecked.clear()
    taints = target.taints
    mark = target.log_mark()
    survey = Survey(target)
    try:
        load(target, payload, " ".join(args), survey)
    except LoadError as error:
        survey.ended(error)
    except (ImageError, UnmodelledError):
        if not survey.refusals:
            raise  # else it was met behind a refusal, which does not depend on it
    problems = survey.refusals
    if not problems:
        return Verdict(
            ok=True,
            log=target.log_since(mark),
            steps=tuple(survey),
            unchecked=tuple(target.unchecked),
            unmade=target.image.unmade,
            taints=target.taints & ~taints,
        )
    first = problems[0]
    return Verdict(
        ok=False,
        errno=first.errno,
        log=first.log,
        why=first.why,
        hint=first.hint,
        steps=tuple(survey.taken),
        slug=first.slug,
        unchecked=tuple(target.unchecked),
        unmade=target.image.unmade,
        problems=problems,
    )


def load(target: DryTarget, payload: Payload, args: str = "", steps: Steps | None = None) -> Module:
    """Load a module dry. It then counts as LIVE for those that come after it."""
    mod = insmod(target, _Process(target), payload, args, Steps() if steps is None else steps)
    target.set_state(mod, ModuleState.LIVE)
    return mod


class _Process:
    """The process on paper that loads a module."""

    def __init__(self, target: DryTarget) -> None:
        self._target = target

    def string(self, text: bytes) -> AbstractContextManager[int]:
        return self.memory(text + b"\0")

    def memory(self, data: bytes) -> AbstractContextManager[int]:
        return nullcontext(self._target.user_copy(data))

    def file(self, payload: Payload) -> AbstractContextManager[int]:
        return nullcontext(self._target.open_file(payload.content))


def load_dependencies(target: DryTarget, content: bytes) -> None:
    """Load what the module depends on, as far as the image's tree has it.

    What cannot be loaded is missing afterwards, and the symbols that it exports are reported then.
    """
    loaded: set[str] = set()
    for name in _dependencies(target.image, content):
        if name in loaded:
            continue
        loaded.add(name)
        try:
            load(target, target.image.modules[name].payload())
        except LoadError:
            continue
    target.stand_in([name for name in _depends(content) if name not in target.image.modules])


def _depends(content: bytes) -> list[str]:
    """The names that ``depends=`` has."""
    found = _DEPENDS.search(content)
    return [name for name in decode(found.group(1)).split(",") if name] if found else []


def _dependencies(image: Image, content: bytes) -> Iterator[str]:
    """Names of modules in an order in which they can be loaded."""
    for name in _depends(content):
        module = image.modules.get(name)
        if module is None:
            continue
        with suppress(MissingInformationError):  # the rest of the chain may still be there
            yield from module.depends
        yield name
