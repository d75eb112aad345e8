"""The kernel's log as dmesg prints it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kodojo.errors import InputError, LogRecord
from kodojo.report.paint import Paint, clean

__all__ = ["LEVELS", "log_line", "log_lines", "parse_levels", "parse_time"]

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
"""The names that dmesg has for levels 0 to 7."""

_STYLES: tuple[tuple[str, ...], ...] = (
    ("bold", "red"), ("bold", "red"), ("bold", "red"), ("red",), ("yellow",), ("bold",), (), ("dim",),
)  # fmt: skip


def log_line(record: LogRecord, paint: Paint) -> str:
    """``[    3.016149] text``."""
    microseconds = round(record.time * 1_000_000)
    stamp = f"[{microseconds // 1_000_000:5d}.{microseconds % 1_000_000:06d}]"
    text = paint(clean(record.text), *_STYLES[record.level & 7])
    return f"{paint(stamp, 'green')} {text}".rstrip(" ")


def log_lines(records: Iterable[LogRecord], paint: Paint) -> list[str]:
    """One line for each record."""
    return [log_line(record, paint) for record in records]


def parse_levels(words: Iterable[str]) -> set[int]:
    """The levels that ``--level err,warn`` means; every word is a comma-separated list of names or numbers.

    As newer dmesg has it, ``err+`` is that level and all that are more severe, ``+err`` and all that are less.

    :raises InputError: there is no such level.
    """
    found: set[int] = set()
    for part in (part.strip() for word in words for part in word.split(",")):
        name = part.strip("+").lower()
        if name in LEVELS:
            level = LEVELS.index(name)
        elif len(name) == 1 and name in "01234567":
            level = int(name)
        else:
            raise InputError(f"{part!r}: there is no such level", hint=f"the levels are {', '.join(LEVELS)}")
        first = 0 if part.endswith("+") else level
        last = len(LEVELS) - 1 if part.startswith("+") else level
        found.update(range(first, last + 1))
    return found


_UNITS = {"": 1, "us": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600}
_TIME = re.compile(r"(?P<sign>[-+]?)(?P<number>[0-9]+(?:\.[0-9]*)?)\s*(?P<unit>[a-z]*?)s?(?P<ago>\s+ago)?")


def parse_time(text: str, now: float) -> float:
    """The time on the kernel's own clock, in seconds since it was started, that ``--since`` means.

    ``12.5`` is the time as the log shows it, ``-5s``, ``-2min`` or ``5s ago`` are before now, ``now`` is now.

    :param now: seconds since the start.
    :raises InputError: it is another form; the machine knows no time of day.
    """
    if text.strip() == "now":
        return now
    match = _TIME.fullmatch(text.strip())
    unit = match["unit"] if match else ""
    scale = _UNITS.get(unit, _UNITS.get(f"{unit}s"))
    if match is None or scale is None:
        raise InputError(
            f"{text!r}: not a time of this machine's log",
            hint="give seconds as the log shows them (12.5), or a time before now (-5s, -2min)",
        )
    seconds = float(match["number"]) * scale
    if match["sign"] == "-" or match["ago"]:
        return now - seconds
    return now + seconds if match["sign"] else seconds
