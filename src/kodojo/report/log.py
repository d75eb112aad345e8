"""The kernel's log as dmesg prints it."""

from __future__ import annotations

from collections.abc import Iterable

from kodojo.errors import InputError, LogRecord
from kodojo.report.paint import Paint, clean

__all__ = ["LEVELS", "log_line", "log_lines", "parse_levels"]

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

    :raises InputError: there is no such level.
    """
    found = set()
    for name in (part.strip() for word in words for part in word.split(",")):
        if name in LEVELS:
            found.add(LEVELS.index(name))
        elif len(name) == 1 and name in "01234567":
            found.add(int(name))
        else:
            raise InputError(f"{name!r}: there is no such level", hint=f"the levels are {', '.join(LEVELS)}")
    return found
