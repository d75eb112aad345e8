"""Do our loader and the kernel's give the same answer to a damaged module?

A file that makes the kernel read or write outside of it, our loader refuses with DamageError. That is
right if the kernel faults, or if it is seen to read behind the file (see :mod:`tests.damage.outside`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from kodojo.kernel.kernel import Kernel
from tests.damage.mutations import Case
from tests.damage.outcomes import Result, in_children, native_load, our_load
from tests.damage.outside import native_load_watched
from tests.differential.compare import TIMED, differences

__all__ = ["GOOD", "Judgement", "Verdict", "judge"]

BATCH = 24
_NOTES = ("ours: ", "native: ", "step ")
MEMORY_LIMIT = 192 << 10  # KiB more than the native load takes


class Verdict(Enum):
    """How the two answers relate."""

    REFUSED = "refused alike"
    LOADED = "loaded alike"
    FAULT = "both fault"
    DAMAGE_FAULT = "damage, native faults"
    DAMAGE_SEEN = "damage, native read outside"
    DAMAGE_SAID = "damage, not seen"
    DIFFERENT = "different"
    BROKEN = "broken"


GOOD = (Verdict.REFUSED, Verdict.LOADED, Verdict.FAULT, Verdict.DAMAGE_FAULT, Verdict.DAMAGE_SEEN)


@dataclass
class Judgement:
    """The verdict on a case, and what makes it so."""

    number: int
    kind: str
    verdict: Verdict
    text: str
    details: list[str]


def judge(kernel: Kernel, cases: Sequence[Case]) -> Iterator[Judgement]:
    """Judgements on some cases, in order.

    One process serves many cases as long as they are refused early. What disagrees in company is tried
    again alone, in fresh copies of the machine.

    :param kernel: never used itself, only in children.
    """
    start = 0
    while start < len(cases):
        batch = cases[start : start + BATCH]
        ours = list(in_children(kernel, our_load, batch, early=False))
        natives = list(in_children(kernel, native_load, batch[: len(ours)], early=True))
        pairs = list(zip(batch, ours, natives, strict=False))
        for case, our, native in pairs:
            judgement = _compare(kernel, case, our, native)
            if judgement.verdict not in GOOD:
                judgement = _alone(kernel, case)
            yield judgement
        if not pairs:
            yield Judgement(batch[0].number, batch[0].kind, Verdict.BROKEN, batch[0].text, ["a process died"])
        start += max(1, len(pairs))


def _alone(kernel: Kernel, case: Case) -> Judgement:
    (our,) = list(in_children(kernel, our_load, [case], early=False)) or [None]
    (native,) = list(in_children(kernel, native_load, [case], early=False)) or [None]
    if our is None or native is None:
        return Judgement(case.number, case.kind, Verdict.BROKEN, case.text, ["the process died"])
    judgement = _compare(kernel, case, our, native)
    if judgement.verdict is Verdict.DIFFERENT and any(line.startswith(TIMED) for line in judgement.details):
        unstable = _unstable(kernel, case, native)
        judgement.details = [line for line in judgement.details if _place(line) not in unstable]
        if all(line.startswith(_NOTES) for line in judgement.details):
            judgement.verdict = Verdict.LOADED
    if judgement.verdict is Verdict.DAMAGE_SAID:
        for watched in in_children(kernel, native_load_watched, [case], early=False):
            if watched.damage:
                judgement.verdict = Verdict.DAMAGE_SEEN
                judgement.details.append(watched.damage)
    return judgement


def _unstable(kernel: Kernel, case: Case, native: Result) -> set[str]:
    """What differs between native loads at two moments: clocks, random numbers."""
    found: set[str] = set()
    for moment in (0.1, 0.2):

        def later(copy: Kernel, image: bytes, arguments: str, moment: float = moment) -> Result:
            copy.sleep(moment)
            return native_load(copy, image, arguments)

        for other in in_children(kernel, later, [case], early=False):
            found |= {_place(line) for line in differences(kernel, other.outcome, native.outcome)}
    return found


def _place(line: str) -> str:
    return line.split(": ours", 1)[0]


def _compare(kernel: Kernel, case: Case, our: Result, native: Result) -> Judgement:
    verdict, details = _verdict(kernel, our, native)
    extra = our.memory - native.memory
    if extra > MEMORY_LIMIT + len(case.data) // 64:
        verdict, details = Verdict.BROKEN, [*details, f"our loader took {extra >> 10} MiB more than the kernel"]
    return Judgement(case.number, case.kind, verdict, f"{case.base}: {case.text}", details)


def _verdict(kernel: Kernel, our: Result, native: Result) -> tuple[Verdict, list[str]]:
    if our.broken or native.broken:
        return Verdict.BROKEN, [our.broken and f"ours: {our.broken}", native.broken and f"native: {native.broken}"]
    if our.damage:
        if native.outcome.fault:
            return Verdict.DAMAGE_FAULT, [our.damage, native.cause]
        last = native.outcome.log[-3:]
        return Verdict.DAMAGE_SAID, [our.damage, f"native: {native.outcome.value}, {last}"]
    if our.outcome.fault and our.outcome.fault == native.outcome.fault:
        if our.cause != native.cause:
            return Verdict.DIFFERENT, [f"cause: ours {our.cause}, native {native.cause}"]
        return Verdict.FAULT, [our.step, our.cause]
    found = differences(kernel, our.outcome, native.outcome)
    if found:
        notes = [f"{who}: {one.cause}" for who, one in (("ours", our), ("native", native)) if one.cause]
        return Verdict.DIFFERENT, [*found, *notes, f"step {our.step}"]
    return (Verdict.REFUSED if our.outcome.value else Verdict.LOADED), []
