"""What was measured, and how it is shown."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COLUMNS", "Results", "Row"]

COLUMNS = ("kernel", "what", "median", "min", "processor", "ratio", "aim")


@dataclass
class Row:
    """One thing, measured several times.

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

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                row.kernel,
                row.what,
                _shown(row.median),
                _shown(min(row.values)),
                _shown(statistics.median(row.processor)) if row.processor else "",
                f"{row.ratio:.2f}" if row.yardsticks else "",
                f"{_shown(row.aim)} {'MISSED' if row.missed else 'met'}" if row.aim else "",
            )
            for row in self._rows
            if row.values
        ]

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


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
