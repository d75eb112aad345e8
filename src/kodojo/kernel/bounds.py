"""What the guest's memory says is the word of a stranger: walks that end, and numbers that can be.

A module may have written anything anywhere. Whoever follows a pointer of the guest, or counts, allocates or reads by
a number of its, does so by these functions; tests/unit/test_guest_data.py looks for those who do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kodojo.errors import DamagedMemoryError, UnmappedError

__all__ = ["START_OVER", "at_most", "damaged", "reading", "walk"]

START_OVER = "start over: kodojo boot"
_MOST_NODES = 1 << 16


def damaged(what: str) -> DamagedMemoryError:
    """The error to raise: what cannot be, in a few words."""
    return DamagedMemoryError(f"the kernel's memory is damaged: {what}", hint=START_OVER)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """In the ``with`` block something of the kernel's is read: where there is nothing, its memory is damaged."""
    try:
        yield
    except UnmappedError as error:
        raise damaged(f"{what}: {error.message}") from error


def at_most(value: int, most: int, what: str) -> int:
    """A number of the guest's, if it is from 0 to ``most``.

    :raises DamagedMemoryError: it is not.
    """
    if not 0 <= value <= most:
        raise damaged(f"{what}: {value}, where {most} is the most that can be")
    return value


def walk(start: int, end: int, following: Callable[[int], int], what: str, most: int = _MOST_NODES) -> Iterator[int]:
    """The nodes of a list: ``start``, ``following(start)`` and so on, up to ``end`` and without it.

    What follows a node is read before the node is given, so that it may be freed.

    :raises DamagedMemoryError: it leads in a circle or to where nothing is, or has more than ``most`` nodes.
    """
    seen: set[int] = set()
    node = start
    while node != end:
        if node in seen:
            raise damaged(f"{what} goes in a circle at {node:#x}")
        if len(seen) >= most:
            raise damaged(f"{what} has more than {most} entries")
        seen.add(node)
        with reading(what):
            after = following(node)
        yield node
        node = after
