"""A refusal, told by the tool that met it, by the kernel, and by us."""

from __future__ import annotations

from collections.abc import Iterable

from kodojo.errors import KodojoError, LogRecord
from kodojo.report.kmod import error_line
from kodojo.report.log import log_lines
from kodojo.report.paint import Paint, clean

__all__ = ["advice_lines", "error_lines", "refusal_lines"]


def advice_lines(why: str, slug: str, hint: str, paint: Paint) -> list[str]:
    """Why, with the reason's short name, and what to do; each only if there is something to say."""
    lines = []
    if why:
        name = paint(f" ({slug})", "dim") if slug else ""
        lines.append(f"{paint('why:', 'yellow')} {clean(why)}{name}")
    if hint:
        lines.append(f"{paint('hint:', 'cyan')} {clean(hint)}")
    return lines


def refusal_lines(message: str, log: Iterable[LogRecord], why: str, slug: str, hint: str, paint: Paint) -> list[str]:
    """What ``kodojo insmod`` prints when the kernel says no; the first line is insmod's."""
    return [error_line("insmod", message, paint), *log_lines(log, paint), *advice_lines(why, slug, hint, paint)]


def error_lines(error: KodojoError, paint: Paint) -> list[str]:
    """``kodojo: message``, and the hint."""
    return [f"{paint('kodojo:', 'bold', 'red')} {clean(error.message)}", *advice_lines("", "", error.hint, paint)]
