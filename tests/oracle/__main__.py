"""``python -m tests.oracle``: put the cases to QEMU and to both loaders of our machine; keep QEMU's answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from kodojo.report.progress import Bar
from kodojo.report.table import drawn_table, plain_table
from tests.conftest import image_of
from tests.oracle import records
from tests.oracle.cases import Case
from tests.oracle.catalogue import GROUPS, catalogue
from tests.oracle.emulated import LOADERS
from tests.oracle.judge import ACCEPTED, judged
from tests.oracle.qemu import Qemu, QemuError
from tests.oracle.runner import Asked, ask
from tests.support.accepted import accepted, judge
from tests.support.distribution import SERIES, DistributionError, cache_directory
from tests.support.figures import counted, record
from tests.sweep.plan import ARCHITECTURES, kernel_names

LINES = 4


@click.command()
@click.option("--series", type=click.Choice(SERIES), multiple=True, default=SERIES, help="Which kernel.")
@click.option("--arch", type=click.Choice(ARCHITECTURES), default=ARCHITECTURES[0], help="For which processor.")
@click.option("--group", "groups", type=click.Choice(GROUPS), multiple=True, default=GROUPS, help="Which cases.")
@click.option("--case", "names", multiple=True, help="Only the case of this name.")
@click.option(
    "--kept",
    is_flag=True,
    help="Ask QEMU only what it has not answered yet, by the kept answers.",
)
@click.option("--loader", "loaders", type=click.Choice(list(LOADERS)), multiple=True, default=list(LOADERS))
@click.option("--record", "keep", is_flag=True, help="Write what comes of it all into results/reliability.json.")
@click.option("--jobs", type=int, default=lambda: os.cpu_count() or 1, help="Processes at a time (all cores).")
def main(
    series: tuple[str, ...],
    arch: str,
    groups: tuple[str, ...],
    names: tuple[str, ...],
    kept: bool,
    loaders: tuple[str, ...],
    keep: bool,
    jobs: int,
) -> None:
    """Compare our machine with QEMU, and keep QEMU's answers for `make test`."""
    if keep and (names or len(loaders) < len(LOADERS)):
        raise click.UsageError("only whole groups are recorded, by both loaders")
    everything: list[dict[str, Any]] = []
    for one in kernel_names(arch, series):
        cases = catalogue(image_of(one), one)
        wanted = [case for case in cases if case.group in groups and (not names or case.name in names)]
        try:
            everything += _run(one, cases, wanted, loaders, jobs, kept=kept)
        except (QemuError, DistributionError) as error:
            raise click.ClickException(str(error)) from error
    unused = judge(everything, accepted(ACCEPTED))
    if keep:
        _record(everything)
    _print_differences(everything)
    _print_table(everything)
    for entry in unused:
        click.echo(f"{ACCEPTED.name}: superfluous: {entry.module}: {entry.difference}")
    sys.exit(1 if unused or any(entry["status"] == "disagreed" for entry in everything) else 0)


def _run(
    series: str, every: Sequence[Case], cases: Sequence[Case], loaders: Sequence[str], jobs: int, *, kept: bool
) -> list[dict[str, Any]]:
    """Try these cases; keep QEMU's answers to them with those to others."""
    image = image_of(series)
    directory = cache_directory() / "oracle" / series
    qemu = Qemu(image, directory)
    booted = qemu.boot()
    old = records.read(image.release)
    with Bar(sys.stderr) as bar:
        answers = ask(
            Asked(series, qemu, booted, old.answers if old and kept else {}, loaders),
            cases,
            directory / "answers.jsonl",
            jobs,
            lambda done, total: bar.update(done, total, f"{series}: {done} of {total} cases"),
        )
    new = dict(old.answers) if old else {}
    new |= {digest: one.qemu for digest, one in answers.items() if one.qemu}
    answered = [case for case in every if case.digest in new]
    if new:
        path = records.write(
            records.Records(image.release, booted.version, booted.processor, qemu.version(), new), answered
        )
        click.echo(f"{path}: {len(answered)} answers to {len(every)} cases")
    return [judged(series, case, answers.get(case.digest)) for case in cases]


def _record(everything: Sequence[dict[str, Any]]) -> None:
    for series, group in dict.fromkeys((one["series"], one["group"]) for one in everything):
        mine = [one for one in everything if (one["series"], one["group"]) == (series, group)]
        record(f"under QEMU: {group}", image_of(series).release, counted(mine))


def _print_differences(everything: Sequence[dict[str, Any]]) -> None:
    for entry in everything:
        if entry["status"] == "disagreed":
            click.echo(f"{entry['series']} {entry['group']} {entry['module']}: {entry['count']} differences")
            for line in entry["lines"][:LINES]:
                click.echo(f"    {line[:600]}")


def _print_table(everything: Sequence[dict[str, Any]]) -> None:
    columns = ("kernel", "cases", "", "agreed", "accepted", "disagreed", "ours other", "native other")
    cells = []
    for series in dict.fromkeys(entry["series"] for entry in everything):
        for group in (*GROUPS, "all"):
            mine = [e for e in everything if e["series"] == series and group in {e["group"], "all"}]
            if mine:
                counts = [sum(e["status"] == status for e in mine) for status in columns[3:6]]
                for loader in ("ours", "native"):
                    counts.append(sum(any(line.startswith(f"{loader}:") for line in e["lines"]) for e in mine))
                cells.append((series, group, str(len(mine)), *map(str, counts)))
    if sys.stdout.isatty():
        click.echo(drawn_table(columns, cells, os.get_terminal_size().columns))
    else:
        click.echo("\n".join(plain_table(columns, cells)))


main()
