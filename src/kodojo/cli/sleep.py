"""``kodojo sleep``."""

from __future__ import annotations

import click

from kodojo.cli.app import App, machine_options, pass_app

__all__ = ["sleep"]

_LONGEST = 86_400.0  # a day


@click.command(short_help="Let time pass in the machine.")
@click.argument("seconds", type=click.FloatRange(0, _LONGEST), metavar="SECONDS")
@machine_options
@pass_app
def sleep(app: App, seconds: float) -> None:
    """Let SECONDS of the machine's own time pass: its timers, threads and delayed work run meanwhile.

    Between two commands no time passes. `kodojo dmesg -w` lets it pass, too, and prints what the kernel says.
    --limit does not end a sleep, however long it is.
    """
    with app.machine() as kernel:
        kernel.sleep(seconds)
        time = kernel.time
    if app.json:
        from kodojo.report import json  # noqa: PLC0415  only with --json

        app.out_json(
            {"time": time, "log": json.record_list(app.log), "warnings": [each.cause for each in app.warnings]}
        )
    app.mention_warnings()
