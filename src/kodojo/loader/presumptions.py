"""What a verdict is worth that rests on presumptions: they are tried the other way, and what differs is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from kodojo.image.described.presumed import PresumedImage
    from kodojo.image.image import Image
    from kodojo.loader.verdict import Verdict

__all__ = ["settle"]

# Slugs of refusals that rest on a fact which has more than two answers -> that fact, and what was not checked.
_RESTING = {
    "elf-architecture": ("architecture", "architecture: the description does not say for which one it is"),
    "relocation-overflow": (
        "symbols",
        "ranges of relocations: the addresses of the kernel's symbols are not known, and one may be out of reach",
    ),
}

# Slugs of refusals whose log shows the value of a symbol.
_SHOWS_VALUE = frozenset({"relocation-target-nonzero"})


def settle(verdict: Verdict, image: Image, again: Callable[[Image], Verdict]) -> Verdict:
    """Make of a dry load into a described kernel what can be said for sure.

    :param image: that the verdict is about; it knows what it presumed.
    :param again: does the same dry load into another image.
    """
    presumed = cast("PresumedImage", image)
    verdict = _without_guesses(verdict, presumed)
    others = {fact: _without_guesses(again(presumed.otherwise(fact)), presumed) for fact in list(presumed.asked)}
    differing = {fact: other for fact, other in others.items() if _answer(other) != _answer(verdict)}
    doubts = tuple(_doubt(fact, verdict, other) for fact, other in differing.items())
    if not verdict.ok and any(other.ok for other in differing.values()):
        verdict = _open_end(verdict)  # one that is refused either way is refused, and the doubt says how else
    return replace(verdict, unmade=tuple(dict.fromkeys((*verdict.unmade, *doubts))))


def _without_guesses(verdict: Verdict, image: PresumedImage) -> Verdict:
    """A refusal that rests on a value which was invented is none; a value in the log that may be so is said to be."""
    if verdict.slug in _SHOWS_VALUE and "symbols" not in image.describes:
        what = "the value in the log: the addresses of the kernel's symbols are not known"
        return replace(verdict, unmade=(*verdict.unmade, what))
    fact, what = _RESTING.get(verdict.slug, ("", ""))
    if not fact or fact in image.describes:
        certain = tuple(one for one in verdict.problems if _rests_on_nothing(one.slug, image))
        return replace(verdict, problems=certain)
    return replace(_open_end(verdict), unmade=(*verdict.unmade, what))


def _rests_on_nothing(slug: str, image: PresumedImage) -> bool:
    """Whether a refusal behind the first does not rest on what was invented either."""
    fact, _what = _RESTING.get(slug, ("", ""))
    return not fact or fact in image.describes


def _open_end(verdict: Verdict) -> Verdict:
    """Where a refusal is not certain: nothing was found, up to the step where it would have been."""
    return replace(verdict, ok=True, errno=0, slug="ok", log=(), why="", hint="", problems=())


def _answer(verdict: Verdict) -> tuple[object, ...]:
    """What the kernel would say."""
    return verdict.errno, verdict.slug, [(record.level, record.text) for record in verdict.log]


def _doubt(fact: str, verdict: Verdict, other: Verdict) -> str:
    if other.ok and verdict.ok:
        consequence = "the log would have other lines"
    elif other.ok:
        consequence = f"it may be refused (errno {verdict.errno}: {verdict.why}) or not"
    elif verdict.ok:
        consequence = f"it would be refused (errno {other.errno}: {other.why})"
    elif other.errno == verdict.errno:
        consequence = f"the same errno would have other words: {other.why}"
    else:
        consequence = f"the errno would be {other.errno}: {other.why}"
    return f"{fact} is not known; if it is otherwise than usual, {consequence}"
