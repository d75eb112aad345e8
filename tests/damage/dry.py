"""Damaged modules through the dry load: the answer of the real load, without a machine.

What a dry load cannot know is left out of the comparison: hashed pointers, what the module's own init does and
prints, what sysfs says to names that it has already, and the moment at which a kernel runs out of memory.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from kodojo.check.explain import Case as Explained
from kodojo.check.explain import explain, notes
from kodojo.errors import UnmodelledError
from kodojo.image.elf import EHDR
from kodojo.image.image import Image
from kodojo.image.payload import Payload
from kodojo.kernel.kernel import Kernel
from kodojo.loader.dry import DryTarget
from kodojo.loader.verdict import Verdict, judge, load
from tests.damage.bases import needed
from tests.damage.mutations import Case
from tests.damage.outcomes import Result, in_children, our_load

__all__ = ["Answer", "compare", "dry_answer"]

ENOMEM = 12
POINTER = re.compile(r"loc \S+, val [0-9a-f]+|\(____ptrval____\)|val [0-9a-f]+$")


@dataclass(frozen=True)
class Answer:
    """How the two answers to a case relate; ``lines`` are empty if they agree."""

    case: Case
    lines: tuple[str, ...]


def compare(kernel: Kernel, cases: Sequence[Case]) -> Iterator[Answer]:
    """One answer for each case. Real loads run in children, dry ones here.

    :param kernel: never used itself.
    """
    start = 0
    while start < len(cases):
        results = list(in_children(kernel, our_load, cases[start:], early=False))
        if not results:
            yield Answer(cases[start], ("a process died",))
        for case, result in zip(cases[start:], results, strict=False):
            yield Answer(case, tuple(_differences(kernel.image, case, result)))
        start += max(1, len(results))


def dry_answer(image: Image, case: Case) -> Verdict:
    """The verdict about a case, with all that is said to explain it."""

    def prepare(target: DryTarget) -> None:
        for name in needed(image):
            load(target, image.modules[name].payload())

    verdict, _target = judge(image, Payload("case", case.data), [case.arguments], prepare)
    explained = Explained(image, case.data)
    notes(explained, verdict)
    return explain(explained, verdict)


def _differences(image: Image, case: Case, real: Result) -> Iterator[str]:
    try:
        verdict = dry_answer(image, case)
    except UnmodelledError as gap:
        if not real.broken.endswith(f"{gap}\n"):
            yield f"dry: {gap}"
        return
    except Exception:  # noqa: BLE001  what is looked for
        yield traceback.format_exc(limit=-4)
        return
    if real.broken:
        yield real.broken
    if not verdict.ok and not (verdict.problems and verdict.why):
        yield f"no problem told: {verdict}"
    damaged = verdict.slug == "would-damage-kernel"
    if bool(real.damage) != damaged or (damaged and real.damage != verdict.problems[0].why):
        yield f"damage: dry {verdict.why if damaged else 'none'}, real {real.damage or 'none'}"
    answer = -real.outcome.value
    if real.outcome.fault or ENOMEM in (answer, verdict.errno) or _ran(real) or _too_short(case):
        return
    if answer != verdict.errno:
        yield f"errno: dry {verdict.errno} ({verdict.slug}), real {answer} ({real.step})"
    ours, theirs = _lines([(r.level, r.text) for r in verdict.log]), _lines(real.outcome.log)
    if ours != theirs and not damaged:
        yield f"log: dry {ours}, real {theirs}"


def _too_short(case: Case) -> bool:
    """Whether the file is shorter than an ELF header: of that the system call for memory has its own opinion."""
    return len(case.data) < EHDR.itemsize


def _ran(real: Result) -> bool:
    """Whether code ran that has its own opinion on errno and log: the module's, or that of sysfs."""
    return real.step in ("mod_sysfs_setup", "do_init_module", "live")


def _lines(log: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines that the loader prints; warnings have registers and backtraces, which need a machine."""
    texts = [(level, POINTER.sub("POINTER", text)) for level, text in log]
    return list(takewhile(lambda line: "[ cut here ]" not in line[1], texts))
