"""Measure what a user waits for, on both kernels for each architecture, and print a table.

Machines are noisy, and differ. So everything is measured several times, each time together with a yardstick:
for whole commands a Python process that imports numpy and unicorn, for everything else a fixed
loop in Python. The ratio to the yardstick says more than the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from kodojo.report.table import drawn_table, plain_table
from tests.bench.bench import Bench
from tests.bench.results import Results
from tests.support import distribution

KERNELS = (*distribution.SERIES, *distribution.ARM64)


def main() -> None:
    options = parsed()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=distribution.cache_directory()) as directory:
        for series in options.series or KERNELS:
            bench = Bench(distribution.kernel_of(series), Path(directory), results, options.runs, options.large)
            bench.measure(options.boots)
    report(results)
    if options.json:
        facts = {"python": platform.python_version(), "machine": platform.machine(), "processors": os.cpu_count()}
        Path(options.json).write_text(json.dumps({**facts, "results": results.as_json()}, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("series", nargs="*", choices=[*KERNELS, []], help="which kernels [all]")
    parser.add_argument("--runs", type=int, default=7, help="how often everything but booting is measured [7]")
    parser.add_argument("--boots", type=int, default=1, help="how often each kernel is booted from nothing [1]")
    parser.add_argument("--large", default="xfs", help="the large module; its dependencies are in already [xfs]")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE as well")
    return parser.parse_args()


def report(results: Results) -> None:
    columns, rows = results.table()
    if sys.stdout.isatty():
        styles = ("", "", *("bold", "", "dim") * ((len(columns) - 3) // 3), "")
        lines = [drawn_table(columns, rows, os.get_terminal_size().columns, styles)]
    else:
        lines = plain_table(columns, rows)
    for title, spent in results.breakdowns():
        total = sum(spent.values())
        shown = sorted(spent.items(), key=lambda item: -item[1])
        parts = [(f"  {name}", f"{seconds * 1e3:.1f} ms", f"{seconds / total:.0%}") for name, seconds in shown]
        lines += ["", title, *plain_table(("", "", ""), parts)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
