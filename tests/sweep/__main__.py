"""``python -m tests.sweep``: load every module of both kernels' trees by our loader and natively; print a table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from kodojo.report.progress import Bar
from kodojo.report.table import drawn_table, plain_table
from tests.conftest import image_of
from tests.support.accepted import ACCEPTED, accepted, judge
from tests.support.distribution import SERIES, cache_directory
from tests.support.figures import counted, record
from tests.sweep.plan import ARCHITECTURES, kernel_names
from tests.sweep.runner import sweep

GOOD = ("agreed", "accepted")
COLUMNS = (*GOOD, "disagreed", "crashed", "timed out")


@click.command()
@click.option("--series", type=click.Choice(SERIES), multiple=True, default=SERIES, help="Which kernel.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), default=ARCHITECTURES[0], help="For which processor.")
@click.option("--sample", type=int, default=0, help="Only this many modules, always the same.")
@click.option("--module", "names", multiple=True, help="Only this module.")
@click.option("--jobs", type=int, default=lambda: os.cpu_count() or 1, help="Processes at a time (all cores).")
@click.option("--native/--no-native", default=True, help="Compare with the native loader, or only run ours.")
@click.option("--resume", is_flag=True, help="Keep the results that this very code had.")
@click.option("--record", "keep", is_flag=True, help="Write what comes of a whole run into results/reliability.json.")
def main(
    series: tuple[str, ...],
    arch: str,
    sample: int,
    names: tuple[str, ...],
    jobs: int,
    native: bool,
    resume: bool,
    keep: bool,
) -> None:
    """Load every module of both kernels' trees with its dependencies by our loader and natively."""
    if keep and (sample or names or not native):
        raise click.UsageError("only a whole run is recorded, and one that compares")
    entries = accepted()
    everything: list[dict[str, Any]] = []
    rows = []
    for one in kernel_names(arch, series):
        path = cache_directory() / "sweep" / (one + ("" if native else "-ours") + ".jsonl")
        with Bar(sys.stderr) as bar:
            records, tested, seconds = sweep(
                one,
                path,
                names=[name.replace("-", "_") for name in names],
                sample=sample,
                jobs=jobs,
                native=native,
                resume=resume,
                progress=lambda done, total, one=one: bar.update(done, total, f"{one}: {done} of {total} modules"),
            )
        everything += records
        rows.append((one, path, records, tested, seconds))
    unused = judge(everything, entries)
    if keep:
        for one, _, records, _, _ in rows:
            record("every module of the tree", image_of(one).release, counted(records))
    _print_failures(everything)
    _print_table(rows)
    for entry in unused:
        click.echo(f"{ACCEPTED.name}: superfluous: {entry.module}: {entry.difference}")
    bad = [one for one in everything if one["status"] not in GOOD]
    sys.exit(1 if bad or unused else 0)


def _print_failures(records: list[dict[str, Any]]) -> None:
    for one in records:
        if one["status"] not in GOOD:
            click.echo(f"{one['series']} {one['module']}: {one['status']}: {one['count']} differences")
            for line in one["lines"][:3]:
                click.echo(f"    {line}")


def _print_table(rows: list[tuple[str, Path, list[dict[str, Any]], int, float]]) -> None:
    columns = ("kernel", "modules", *COLUMNS, "minutes", "modules/minute")
    cells = []
    for one, _, records, tested, seconds in rows:
        counts = [sum(each["status"] == status for each in records) for status in COLUMNS]
        speed = f"{60 * tested / seconds:.0f}" if tested else ""
        cells.append((one, str(len(records)), *(str(count) for count in counts), f"{seconds / 60:.1f}", speed))
    if sys.stdout.isatty():
        click.echo(drawn_table(columns, cells, os.get_terminal_size().columns))
    else:
        click.echo("\n".join(plain_table(columns, cells)))


main()
