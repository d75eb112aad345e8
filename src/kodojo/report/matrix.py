"""The answers of ``kodojo check`` for people: one verdict at length, or a table of many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kodojo.check.results import NOT_BUILT, UNCHECKED, Matrix, Result, Status
from kodojo.report.errnos import errno_name
from kodojo.report.explain import file_warnings, problem_lines
from kodojo.report.paint import Paint, clean, clean_line
from kodojo.report.refusal import advice_lines

if TYPE_CHECKING:
    from kodojo.errors import LogRecord
    from kodojo.loader.verdict import Problem

__all__ = ["drawn_matrix", "kernel_lines", "matrix_rows", "reason_lines", "short_names", "summary", "verdict_lines"]

_FEW = 24
"""Modules that are listed one by one on a terminal; more are put together by their answers."""
_NAMES_SHOWN = 8
_MARKS = {
    Status.OK: ("✓", "green"),
    Status.REFUSED: ("✗", "red"),
    Status.NOT_BUILT: ("✗", "magenta"),
    Status.UNCHECKED: ("?", "yellow"),
}


# -- one module, one kernel -------------------------------------------------------------------------------


def verdict_lines(result: Result, release: str, paint: Paint) -> list[str]:
    """All that is known of one module and one kernel; the kernel's own answer comes first."""
    name, kernel = clean_line(result.module), clean_line(release)
    if result.not_built is not None:
        head = f"{paint('✗', 'bold', 'magenta')} {name} does not build for {kernel}"
        lines = [f"{paint('|', 'dim')} {clean_line(line)}" for line in result.not_built.complaints]
        why = "" if lines else result.why
        return [head, *lines, *advice_lines(why, "", result.hint, paint), *_notes(result, paint)]
    if result.verdict is None:
        head = f"{paint('?', 'bold', 'yellow')} {name} could not be checked against {kernel}"
        return [head, *advice_lines(result.failure, "", result.advice, paint), *_notes(result, paint)]
    if result.verdict.ok:
        head = f"{paint('✓', 'bold', 'green')} {name} loads into {kernel}"
        return [head, *_log(result.verdict.log, paint), *_notes(result, paint)]
    head = f"{paint('✗', 'bold', 'red')} {name} would not load into {kernel}"
    first, *others = result.verdict.problems
    lines = [f"{head}: {_answer(first)}", *_log(first.log, paint), *problem_lines(1, first, paint)]
    if others:
        lines += ["", paint("What else is wrong, and would be next:", "bold")]
    for number, other in enumerate(others, 2):
        lines += problem_lines(number, other, paint)
    return lines + _notes(result, paint)


def _answer(problem: Problem) -> str:
    """``ENOEXEC from check_modinfo``."""
    step = f" from {problem.step}" if problem.step else ""
    return f"{errno_name(problem.errno) or 'no answer'}{step}"


def _log(records: Iterable[LogRecord], paint: Paint) -> list[str]:
    return [f"{paint('|', 'dim')} {clean(record.text)}" for record in records]


def _notes(result: Result, paint: Paint) -> list[str]:
    notes = [f"not checked: {sentence}" for sentence in result.unmade] + list(result.notes)
    if result.verdict and result.verdict.unchecked:
        names = ", ".join(result.verdict.unchecked)
        notes.append(f"only the module's own code can judge the values of: {names}")
    if result.first:
        notes.append(f"loaded first: {' '.join(os.path.basename(label) for label in result.first)}")  # noqa: PTH119
    return [
        *file_warnings(result.warnings, paint),
        *(f"{paint('note:', 'blue')} {clean_line(note)}" for note in notes),
    ]


# -- many ---------------------------------------------------------------------------------------------------


def summary(matrix: Matrix) -> str:
    """``4 modules, 2 kernels: 6 load, 1 would not, 1 could not be checked``."""
    counts = matrix.counts()
    words = [f"{counts[Status.OK]} load" if counts[Status.OK] != 1 else "1 loads"]
    if counts[Status.REFUSED]:
        words.append(f"{counts[Status.REFUSED]} would not")
    if counts[Status.NOT_BUILT]:
        words.append(f"{counts[Status.NOT_BUILT]} {'does' if counts[Status.NOT_BUILT] == 1 else 'do'} not build")
    if counts[Status.UNCHECKED]:
        words.append(f"{counts[Status.UNCHECKED]} could not be checked")
    return f"{_many(len(matrix.modules), 'module')}, {_many(len(matrix.kernels), 'kernel')}: {', '.join(words)}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def short_names(labels: Sequence[str]) -> list[str]:
    """The labels without the directories that all of them are in."""
    if len(labels) < 2:
        return [os.path.basename(label) for label in labels]  # noqa: PTH119
    common = os.path.commonprefix([label.split("/")[:-1] for label in labels])  # noqa: RUF071  of lists: whole names
    return [label.removeprefix("/".join([*common, ""])) if any(common) else label for label in labels]


def cell_text(result: Result | None) -> str:
    """``ok``, or errno and reason, or what there is instead."""
    if result is None:
        return "-"
    if result.status is Status.NOT_BUILT:
        return "does not build"
    if result.status is Status.OK:
        return "ok"
    name = errno_name(result.errno)
    return f"{name} {result.slug}" if name else result.slug


def matrix_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """A row for each module, in their order: the whole label, then a cell for each kernel."""
    return [(label, *map(cell_text, matrix.row(label))) for label in matrix.modules]


def drawn_matrix(matrix: Matrix, width: int) -> str:
    """A table for a terminal: failures first; of many modules those with the same answers together."""
    import io  # noqa: PLC0415

    from rich import box  # noqa: PLC0415  rich takes longer to import than most commands to run
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("modules", overflow="fold", style="cyan")
    for kernel in matrix.kernels:
        table.add_column(clean_line(kernel.name), overflow="fold")
    for names, row in _groups(matrix):
        cells = []
        for result in row:
            mark, style = _MARKS[result.status] if result else ("-", "dim")
            text = cell_text(result)
            cells.append(Text(mark if text in ("ok", "-") else f"{mark} {text}", style))
        table.add_row(Text(_together([clean_line(name) for name in names])), *cells)
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=True, width=width, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _groups(matrix: Matrix) -> list[tuple[list[str], list[Result | None]]]:
    """Names with the answers they have in common; first those with most failures, then the largest groups."""
    few = len(matrix.modules) <= _FEW
    groups: dict[tuple[str, ...], tuple[list[str], list[Result | None]]] = {}
    for label, name in zip(matrix.modules, short_names(matrix.modules), strict=True):
        row = matrix.row(label)
        key = (*map(cell_text, row), *([label] if few else []))
        groups.setdefault(key, ([], row))[0].append(name)

    def order(group: tuple[list[str], list[Result | None]]) -> tuple[int, int]:
        bad = sum(1 for result in group[1] if result is not None and result.status is not Status.OK)
        return -bad, -len(group[0])

    return sorted(groups.values(), key=order)


def _together(names: Sequence[str]) -> str:
    if len(names) <= _NAMES_SHOWN:
        return "\n".join(names)
    return "\n".join(
        [f"{len(names)} modules:", *names[: _NAMES_SHOWN - 2], f"and {len(names) - _NAMES_SHOWN + 2} more"]
    )


def kernel_lines(matrix: Matrix, paint: Paint) -> list[str]:
    """What is wrong with the descriptions of kernels. Why one cannot be used is the reason of its results."""
    said = ((kernel.name, text) for kernel in matrix.kernels for text in kernel.warnings)
    return [f"{paint('note:', 'blue')} {clean_line(name)}: {clean_line(text)}" for name, text in said]


def reason_lines(matrix: Matrix, paint: Paint) -> list[str]:
    """What is behind the reasons in the table: for each one how often, and one module's case in plain words."""
    counts: Counter[str] = Counter()
    examples: dict[str, Result] = {}
    for result in matrix:
        if result.status is not Status.OK:
            counts[result.slug] += 1
            examples.setdefault(result.slug, result)
    lines: list[str] = []
    for slug, count in counts.most_common():
        example = examples[slug]
        name = os.path.basename(example.module)  # noqa: PTH119
        times = f" ({count} times)" if count > 1 else ""
        if slug == UNCHECKED:
            lines += [f"{paint(slug, 'bold')}{times}:", *_failures(matrix, paint)]
            continue
        if slug == NOT_BUILT:
            lines += [f"{paint('does not build', 'bold')}{times}:", *_builds(matrix, paint)]
            continue
        lines.append(f"{paint(slug, 'bold')}{times}, as in {clean_line(name)}: {clean_line(example.why)}")
        if example.hint:
            lines.append(f"  {paint('hint:', 'cyan')} {clean(example.hint)}")
    return lines + _warnings(matrix, paint)


def _warnings(matrix: Matrix, paint: Paint) -> list[str]:
    """What to know of the files, each sentence once."""
    named: dict[str, dict[str, None]] = {}
    for result in matrix:
        for sentence in result.warnings:
            named.setdefault(sentence, {})[os.path.basename(result.module)] = None  # noqa: PTH119
    lines = []
    for sentence, names in named.items():
        first, *others = names
        more = f" and {_many(len(others), 'other module')}" if others else ""
        lines.append(f"{paint('warning:', 'yellow')} {clean_line(first)}{more}: {clean_line(sentence)}")
    return lines


def _failures(matrix: Matrix, paint: Paint) -> list[str]:
    """Why something could not be checked: that has a reason of its own each time."""
    hints: dict[str, dict[str, None]] = {}
    for result in matrix:
        if result.status is Status.UNCHECKED:
            hints.setdefault(result.hint, {})[result.why] = None
    lines = []
    for hint, failures in hints.items():
        lines += [f"  {clean_line(why)}" for why in list(failures)[:_NAMES_SHOWN]]
        if len(failures) > _NAMES_SHOWN:
            lines.append(f"  ... and {len(failures) - _NAMES_SHOWN} more; --json has them all")
        if hint:
            lines.append(f"  {paint('hint:', 'cyan')} {clean(hint)}")
    return lines


def _builds(matrix: Matrix, paint: Paint) -> list[str]:
    """What the compiler complains about first, for each source and kernel."""
    said: dict[tuple[str, str], Result] = {}
    for result in matrix:
        if result.not_built is not None:
            said.setdefault((result.not_built.source, result.kernel), result)
    lines = [
        f"  {clean_line(os.path.basename(source))} for {clean_line(kernel)}: {clean_line(result.why)}"  # noqa: PTH119
        for (source, kernel), result in said.items()
    ]
    return [*lines, f"  {paint('hint:', 'cyan')} {clean(next(iter(said.values())).hint)}"]
