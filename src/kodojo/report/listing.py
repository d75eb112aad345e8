"""Directories of the guest."""

from __future__ import annotations

from collections.abc import Iterable
from shutil import get_terminal_size

from kodojo.report.paint import Paint, clean

__all__ = ["listing"]

_LETTERS = {"directory": "d", "link": "l", "character device": "c", "block device": "b", "fifo": "p", "socket": "s"}
_STYLES = {
    "directory": ("bold", "blue"),
    "link": ("cyan",),
    "character device": ("yellow",),
    "block device": ("yellow",),
}
_GAP = 2


def listing(names: Iterable[tuple[str, str]], paint: Paint, *, long: bool = False) -> list[str]:
    """Lines for (name, kind) pairs: one each, or in columns on a terminal.

    :param long: put the letter of its kind before each, as ``ls -l`` does.
    """
    pairs = [(clean(name), kind) for name, kind in names]
    if long:
        return [f"{_LETTERS.get(kind, '-')} {paint(name, *_STYLES.get(kind, ()))}" for name, kind in pairs]
    if not paint.enabled or not pairs:
        return [name for name, _ in pairs]
    width = max(len(name) for name, _ in pairs) + _GAP
    rows = -(-len(pairs) // max(1, get_terminal_size().columns // width))  # as ls: down, then right
    return [
        "".join(
            paint(name, *_STYLES.get(kind, ())) + " " * (width - len(name)) for name, kind in pairs[row::rows]
        ).rstrip()
        for row in range(rows)
    ]
