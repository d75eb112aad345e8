"""``kodojo lsmod``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import syslog_option, verbose_option, version_option
from kodojo.errors import DamagedMemoryError, KodojoError, UnmappedError

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel
    from kodojo.kernel.module import Module

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
        for module in _modules(kernel, damage):
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


def _modules(kernel: Kernel, damage: list[KodojoError]) -> Sequence[Module]:
    """Those that can be found; what is the matter with the others is noted."""
    try:
        return kernel.modules
    except DamagedMemoryError as error:
        damage.append(error)
        return error.found
