"""``kodojo lsmod``."""

from __future__ import annotations

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import syslog_option, verbose_option, version_option

__all__ = ["lsmod"]


@click.command(short_help="List the loaded modules.")
@syslog_option
@verbose_option
@version_option
@machine_options
@pass_app
def lsmod(app: App) -> None:
    """List the loaded modules, newest first, in lsmod's format: from the kernel's own list."""
    from kodojo.report import json, kmod  # noqa: PLC0415

    with app.machine(save=False) as kernel:
        modules = kernel.modules
        if app.json:
            shown = [json.module(module) for module in modules if module.state != "Unformed"]
        else:
            lines = kmod.lsmod_lines(modules)
    if app.json:
        app.out_json(shown)
    else:
        app.out(lines)
