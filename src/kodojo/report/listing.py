"""Directories of the guest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from kodojo.report.paint import Paint, clean

if TYPE_CHECKING:
    from kodojo.kernel.files import FileStatus

__all__ = ["ListedFile", "listing", "long_listing", "mode_text"]

_LETTERS = {"directory": "d", "link": "l", "character device": "c", "block device": "b", "fifo": "p", "socket": "s"}
_DEVICES = ("character device", "block device")
_STYLES = {
    "directory": ("bold", "blue"),
    "link": ("cyan",),
    "character device": ("yellow",),
    "block device": ("yellow",),
}
_GAP = 2
_HALF_A_YEAR = 31556952 // 2  # seconds; older files have their year in place of the time


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A name in a long listing.

    :param status: None if it could not be asked for. :param target: where a link points to.
    """

    name: str
    kind: str
    status: FileStatus | None = None
    target: str = ""


def listing(names: Iterable[tuple[str, str]], paint: Paint) -> list[str]:
    """Lines for (name, kind) pairs: one each, or in columns on a terminal."""
    pairs = [(clean(name), kind) for name, kind in names]
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


def long_listing(files: Sequence[ListedFile], now: float, paint: Paint, *, total: bool) -> list[str]:
    """What ``ls -l`` prints: mode, links, owner, size or device numbers, time, name.

    :param now: the guest's clock. :param total: begin with the sum of the sizes on disk, as for a directory.
    """
    rows = [_columns(file, now) for file in files]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(rows[0]) if rows else 0)]
    lines = []
    for file, row in zip(files, rows, strict=True):
        mode, links, user, group, size, time = (
            text.ljust(width) if at in (0, 2, 3) else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        name = paint(clean(file.name), *_STYLES.get(file.kind, ()))
        arrow = f" -> {clean(file.target)}" if file.target else ""
        lines.append(f"{mode} {links} {user} {group} {size} {time} {name}{arrow}")
    if not total:
        return lines
    blocks = sum(file.status.blocks for file in files if file.status is not None)
    return [f"total {blocks // 2}", *lines]


def mode_text(kind: str, mode: int) -> str:
    """``drwxr-xr-x``, with s, S, t and T as ls has them."""
    text = _LETTERS.get(kind, "-")
    for shift, special, letter in ((6, 0o4000, "s"), (3, 0o2000, "s"), (0, 0o1000, "t")):
        bits = mode >> shift & 7
        last = "x" if bits & 1 else "-"
        if mode & special:
            last = letter if bits & 1 else letter.upper()
        text += ("r" if bits & 4 else "-") + ("w" if bits & 2 else "-") + last
    return text


def _columns(file: ListedFile, now: float) -> tuple[str, ...]:
    status = file.status
    if status is None:
        return (_LETTERS.get(file.kind, "-") + "?" * 9, "?", "?", "?", "?", "?")
    size = f"{status.major}, {status.minor:3d}" if status.kind in _DEVICES else str(status.size)
    owner, group = (("root" if number == 0 else str(number)) for number in (status.uid, status.gid))
    return mode_text(status.kind, status.mode), str(status.links), owner, group, size, _time(status.modified, now)


def _time(seconds: float, now: float) -> str:
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # no year of the calendar
        return "?"
    recent = now - _HALF_A_YEAR < seconds <= now
    return f"{when:%b} {when.day:2d} " + (f"{when:%H:%M}" if recent else f" {when.year}")
