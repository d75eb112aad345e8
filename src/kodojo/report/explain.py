"""A verdict in plain words: what the kernel would say, everything that is wrong, and what to do about it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kodojo.report.errnos import errno_name
from kodojo.report.paint import Paint, clean, clean_line

if TYPE_CHECKING:
    from kodojo.errors import Detail, LogRecord, Refusal
    from kodojo.loader.verdict import Verdict

__all__ = ["file_warnings", "page_text", "problem_lines", "shape", "verdict_lines"]

ERROR = 3  # KERN_ERR
MOST_LINES = 12
"""Log lines, and details of a problem, that are shown; JSON has them all."""


def verdict_lines(file: str, release: str, verdict: Verdict, remarks: Sequence[Detail], paint: Paint) -> list[str]:
    """All of it, for a person."""
    name = clean_line(file)
    if verdict.ok:
        lines = [f"{paint(name, 'bold')}: {paint('loads', 'bold', 'green')} into {release}"]
    else:
        answer = f"{paint('does not load', 'bold', 'red')} into {release}: {errno_name(verdict.errno)}"
        lines = [f"{paint(name, 'bold')}: {answer}"]
    if verdict.log:
        lines += ["", "The kernel would print:", *_log(verdict.log, paint)]
    for number, problem in enumerate(verdict.problems, start=1):
        lines += ["", *problem_lines(number, problem, paint)]
    if verdict.warnings:
        lines += ["", *file_warnings(verdict.warnings, paint)]
    if remarks:
        lines += ["", "To know:"]
        for remark in remarks:
            lines += _detail(remark, paint)
    return lines


def file_warnings(warnings: Iterable[str], paint: Paint) -> list[str]:
    """A line for each of :attr:`~kodojo.loader.verdict.Verdict.warnings`."""
    return [f"{paint('warning:', 'yellow')} {clean_line(warning)}" for warning in warnings]


def problem_lines(number: int, problem: Refusal, paint: Paint) -> list[str]:
    """One problem, with its details."""
    slug = paint(f"({problem.slug})", "dim")
    lines = [f"{number}. {clean(problem.why)} {slug}"]
    for detail in problem.details[:MOST_LINES]:
        lines += _detail(detail, paint)
    if len(problem.details) > MOST_LINES:
        lines.append(f"   ... and {len(problem.details) - MOST_LINES} more; --json has them all")
    if problem.hint:
        lines.append(f"   {paint('What to do:', 'cyan')} {clean(problem.hint)}")
    return lines


def _detail(detail: Detail, paint: Paint) -> list[str]:
    text = f": {clean(detail.text)}" if detail.text else ""
    return [f"   {paint(clean(detail.subject), 'yellow')}{text}", *(f"      {clean(line)}" for line in detail.more)]


def _log(log: Sequence[LogRecord], paint: Paint) -> list[str]:
    shown = [
        f"   {paint(clean(record.text), 'red' if record.level <= 3 else 'yellow')}" for record in log[:MOST_LINES]
    ]
    more = len(log) - MOST_LINES
    return [*shown, f"   ... and {more} more lines"] if more > 0 else shown


def shape(
    file: str, release: str, verdict: Verdict, remarks: Sequence[Detail], suitable: Sequence[str] = ()
) -> dict[str, Any]:
    """The same for programs; see :mod:`kodojo.report.json`."""
    return {
        "file": file,
        "kernel": release,
        "ok": verdict.ok,
        "errno": verdict.errno,
        "errno_name": errno_name(verdict.errno),
        "slug": verdict.slug,
        "why": verdict.why,
        "hint": verdict.hint,
        "log": verdict.log,
        "problems": verdict.problems,
        "warnings": verdict.warnings,
        "notes": tuple(remarks),
        "suitable_kernels": tuple(suitable),
    }


def page_text(page: str, paint: Paint) -> str:
    """A page as it is, or set for a terminal."""
    if not paint.enabled:
        return page.rstrip("\n")
    from rich.console import Console  # noqa: PLC0415  only on terminals
    from rich.markdown import Markdown  # noqa: PLC0415

    buffer = io.StringIO()
    Console(file=buffer, force_terminal=True, width=_width()).print(Markdown(page, hyperlinks=False))
    return buffer.getvalue().rstrip("\n")


def _width() -> int:
    from shutil import get_terminal_size  # noqa: PLC0415

    return min(get_terminal_size().columns, 100)
