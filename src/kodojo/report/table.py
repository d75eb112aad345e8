"""Tables: drawn by rich on a terminal, aligned columns where a program or a file reads them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from kodojo.report.paint import clean, clean_line

__all__ = ["drawn_table", "plain_table"]

Rows = Sequence[Sequence[str]]


def plain_table(columns: Sequence[str], rows: Rows) -> list[str]:
    """Lines with aligned columns, never wrapped; no header if all its names are empty."""
    lines = [[clean_line(cell) for cell in row] for row in rows]
    if any(columns):
        lines.insert(0, list(columns))
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def drawn_table(columns: Sequence[str], rows: Rows, width: int, styles: Sequence[str] = ()) -> str:
    """A table with lines and colours, wrapped to the terminal's width.

    :param styles: one rich style for each column.
    """
    from rich import box  # noqa: PLC0415  rich takes longer to import than most commands to run
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns), header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, style=styles[index] if styles else "", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=True, width=width, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
