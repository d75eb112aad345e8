"""Names that look like a name: for symbols that were renamed, and for what was mistyped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from heapq import nlargest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = ["nearest", "nearest_word"]

MOST = 3
ALIKE = 0.75
CANDIDATES = 60
SUFFIXES = ("_noprof", "_v2", "_ns", "_locked", "_nolock", "_unlocked")
"""What the kernel's developers append to a name when its meaning changes a little."""


def nearest(image: Image, name: str) -> list[str]:
    """At most three exports of a kernel that a symbol may be called now, the likeliest first.

    Only names that have a word in common with it are looked at, and of them those with the most and rarest.
    """
    index = _words_of(image)
    weights: defaultdict[str, float] = defaultdict(float)
    for word in set(_words(name)):
        owners = index.get(word, ())
        for owner in owners:
            weights[owner] += 1.0 / len(owners)
    likely = nlargest(CANDIDATES, weights, key=weights.__getitem__)
    ranked = sorted(((_likeness(name, other), other) for other in likely), reverse=True)
    return [other for likeness, other in ranked if likeness >= ALIKE][:MOST]


def nearest_word(word: str, words: Iterable[str]) -> str:
    """The word that somebody may have meant, empty if none looks like it."""
    return next(iter(get_close_matches(word, list(words), 1, 0.7)), "")


def _likeness(name: str, other: str) -> float:
    """1.0 for names that differ in what is added to names by habit, else how much of them is the same."""
    return 1.0 if _stem(name) == _stem(other) else SequenceMatcher(None, name, other, autojunk=False).ratio()


def _stem(name: str) -> str:
    name = name.strip("_")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _words(name: str) -> Iterator[str]:
    return (word for word in name.lower().split("_") if word)


@lru_cache(maxsize=2)
def _words_of(image: Image) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for export in image.exports:
        for word in set(_words(export.name)):
            index.setdefault(word, []).append(export.name)
    return index
