"""``kodojo lsmod``."""

from __future__ import annotations

from typing import Any

import click

from kodojo.cli.app import App, machine_options, pass_app, readable
from kodojo.cli.habits import syslog_option, verbose_option, version_option
from kodojo.errors import DamagedMemoryError, KodojoError, UnmappedError

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

    damage: list[KodojoError] = []
    shown: list[Any] = []
    with app.machine(save=False) as kernel:
        for module in readable(lambda: kernel.modules, damage):
            try:
                if module.state != "Unformed":  # left out, as in /proc/modules
                    shown.append(json.module(module) if app.json else kmod.lsmod_line(module))
            except (DamagedMemoryError, UnmappedError) as error:
                damage.append(error)
    if app.json:
        app.out_json(shown)
    else:
        app.out([kmod.LSMOD_HEADER, *shown])
    app.complain(damage)
