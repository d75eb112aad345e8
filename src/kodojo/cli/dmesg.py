"""``kodojo dmesg``."""

from __future__ import annotations

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.errors import InputError
from kodojo.report.log import LEVELS, log_lines, parse_levels

__all__ = ["dmesg"]


def _levels(_ctx: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> set[int] | None:
    try:
        return parse_levels(value) if value else None
    except InputError as error:
        raise click.BadParameter(f"{error.message}; {error.hint}") from error


@click.command(short_help="Print the kernel's log.")
@click.option(
    "-l",
    "--level",
    "levels",
    multiple=True,
    callback=_levels,
    metavar="LIST",
    help=f"Only these levels, separated by commas: {', '.join(LEVELS)}.",
)
@machine_options
@pass_app
def dmesg(app: App, levels: set[int] | None) -> None:
    """Print the kernel's log since it was booted."""
    with app.machine(save=False) as kernel:
        records = [record for record in kernel.log if levels is None or record.level in levels]
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json(json.record_list(records))
    else:
        app.out(log_lines(records, app.paint))
