"""What was measured, and how it is shown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Results", "Row"]


@dataclass
class Row:
    """One thing, measured several times.

    :param kernel: as the tests call it: ``6.1-arm64`` is that of 6.1 for arm64.
    :param values: seconds; ``yardsticks``: seconds of the yardstick, measured beside each of them.
    :param processor: seconds of processor time, what other processes do meanwhile left out.
    :param aim: seconds that the median should not exceed.
    :param spent: for each run, where the time went: seconds by name.
    """

    kernel: str
    what: str
    aim: float | None = None
    values: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    spent: list[dict[str, float]] = field(default_factory=list)

    @property
    def series(self) -> str:
        return self.kernel.partition("-")[0]

    @property
    def architecture(self) -> str:
        return self.kernel.partition("-")[2] or "amd64"

    def cells(self) -> tuple[str, str, str]:
        """Median, processor time, ratio to the yardstick."""
        processor = _shown(statistics.median(self.processor)) if self.processor else ""
        return _shown(self.median), processor, f"{self.ratio:.2f}" if self.yardsticks else ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> float:
        return statistics.median(value / yard for value, yard in zip(self.values, self.yardsticks, strict=True))

    @property
    def missed(self) -> bool:
        return self.aim is not None and self.median > self.aim

    def where_it_went(self) -> dict[str, float]:
        """Of the run in the middle: medians of the parts would be no whole."""
        totals = sorted(range(len(self.spent)), key=lambda run: sum(self.spent[run].values()))
        return self.spent[totals[len(totals) // 2]] if totals else {}


class Results:
    """All rows, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def row(self, kernel: str, what: str, aim: float | None = None) -> Row:
        """The row of that name, made if it is not there."""
        for row in self._rows:
            if (row.kernel, row.what) == (kernel, what):
                return row
        self._rows.append(Row(kernel, what, aim))
        return self._rows[-1]

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows: what was measured, and a group of columns for each architecture."""
        measured = [row for row in self._rows if row.values]
        architectures = list(dict.fromkeys(row.architecture for row in measured))
        found = {(row.series, row.what, row.architecture): row for row in measured}
        rows = []
        for series, what in dict.fromkeys((row.series, row.what) for row in measured):
            here = [found.get((series, what, one)) for one in architectures]
            cells = [cell for row in here for cell in (row.cells() if row else ("", "", ""))]
            rows.append((series, what, *cells, _aim([row for row in here if row])))
        groups = [title for one in architectures for title in (one, "processor", "ratio")]
        return ("kernel", "what", *groups, "aim"), rows

    def breakdowns(self) -> list[tuple[str, dict[str, float]]]:
        """Of everything that missed its aim: where the time goes."""
        return [
            (f"{row.kernel}: {row.what}: where the time goes", row.where_it_went())
            for row in self._rows
            if row.values and row.missed and row.spent
        ]

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {
                "kernel": row.kernel,
                "what": row.what,
                "seconds": row.values,
                "median": row.median,
                "min": min(row.values),
                "processor": statistics.median(row.processor) if row.processor else None,
                "ratio": row.ratio if row.yardsticks else None,
                "aim": row.aim,
                "spent": row.where_it_went(),
            }
            for row in self._rows
            if row.values
        ]


def _aim(rows: list[Row]) -> str:
    """Of all architectures: the aim, and who missed it."""
    if not rows[0].aim:
        return ""
    missed = [row.architecture for row in rows if row.missed]
    return f"{_shown(rows[0].aim)} {'MISSED: ' + ', '.join(missed) if missed else 'met'}"


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
