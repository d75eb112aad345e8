"""``kodojo rmmod``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import syslog_option, verbose_option, version_option
from kodojo.errors import UnloadError
from kodojo.image.tree import fold
from kodojo.report.kmod import error_line, unload_text
from kodojo.report.refusal import advice_lines

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel

__all__ = ["rmmod"]

_ENOENT, _EBUSY = 2, 16


@click.command(short_help="Remove modules.")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("-f", "--force", is_flag=True, help="Remove them though they are in use: this may crash the kernel.")
@syslog_option
@verbose_option
@version_option
@machine_options
@pass_app
def rmmod(app: App, names: tuple[str, ...], force: bool) -> None:
    """Remove the modules NAME, one after the other, as rmmod does; a refusal does not keep it from the rest."""
    if not names:
        app.say(error_line("rmmod", "missing module name.", app.error_paint))
        raise click.exceptions.Exit(1)
    answers: list[tuple[str, UnloadError | None]] = []
    with app.machine() as kernel:
        answers.extend((name, _remove(kernel, name, force=force)) for name in names)
    failures = [error for _, error in answers if error is not None]
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json(
            {
                "ok": not failures,
                "modules": [json.removal(name, error) for name, error in answers],
                "log": json.record_list(app.log),
                "warnings": [report.cause for report in app.warnings],
            }
        )
    else:
        for error in failures:
            app.say(error_line("rmmod", error.message, app.error_paint))
            app.say(advice_lines("", "", error.hint, app.error_paint))
        app.mention_warnings()
    if failures:
        raise click.exceptions.Exit(1)


def _remove(kernel: Kernel, typed: str, *, force: bool) -> UnloadError | None:
    """Remove a module; the error has rmmod's text. Who forces it leaves all questions to the kernel."""
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine has imported by now

    # A file is taken for the module in it, whatever comes after the first dot (libkmod: path_to_modname).
    name = fold(Path(typed).name.partition(".")[0] if Path(typed).exists() else typed)
    builtin = name in kernel.image.builtin
    module = next((module for module in kernel.modules if module.name == name), None)
    text = None if force else unload_text(name, builtin=builtin, module=module)
    if text is not None:
        hint = "" if builtin or module is None else _how_to_free(module.users)
        return UnloadError(text, _ENOENT if builtin or module is None else _EBUSY, hint=hint)
    try:
        kernel.rmmod(name, force=force)
    except UnloadError as error:
        text = f"could not remove module {typed}: {errno_text(error.errno)}"
        return UnloadError(text, error.errno, hint=error.hint or error.message)
    return None


def _how_to_free(users: tuple[str, ...]) -> str:
    if users:
        return f"remove first: {' '.join(users)}"
    return "close what uses it: open files, network interfaces, mounted file systems"
