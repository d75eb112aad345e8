"""``kodojo modinfo``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.cli.habits import version_option
from kodojo.cli.index import current_image, module_index
from kodojo.errors import KodojoError, ModuleFileError, encode
from kodojo.report.kmod import error_line

if TYPE_CHECKING:
    from kodojo.kmod.index import ModuleIndex
    from kodojo.kmod.modinfo import Modinfo

__all__ = ["modinfo"]

_FIELDS = {"author": "a", "description": "d", "license": "l", "parm": "p", "filename": "n"}


def _field_options(function: Any) -> Any:
    """-a, -d, -l, -p and -n."""
    for name, letter in _FIELDS.items():
        long = {"parm": "parameters"}.get(name, name)
        function = click.option(f"-{letter}", f"--{long}", "field", flag_value=name, help=f"Print only '{name}'.")(
            function
        )
    return function


@click.command(short_help="Show what a module says about itself.")
@click.argument("modules", nargs=-1, metavar="FILE|NAME...")
@click.option("-F", "--field", "field", metavar="FIELD", help="Print only the values of FIELD.")
@_field_options
@click.option("-0", "--null", "null", is_flag=True, help="End each value with a NUL, not with a newline.")
@click.option("-m", "--modname", "by_name", is_flag=True, help="Take NAME for a module's name: no file, no alias.")
@click.option("-k", "--set-version", "version", metavar="VERSION", help="Use the module tree of this release.")
@click.option("-b", "--basedir", "root", metavar="DIR", help="Use the module tree in DIR/lib/modules.")
@version_option
@kernel_option
@json_option
@pass_app
def modinfo(
    app: App,
    modules: tuple[str, ...],
    field: str | None,
    null: bool,
    by_name: bool,
    version: str | None,
    root: str | None,
) -> None:
    """Show what the module in FILE, or the kernel's module NAME (or alias), says about itself, as modinfo does."""
    if not modules:
        app.say(error_line("modinfo", "missing module or filename.", app.error_paint))
        raise click.exceptions.Exit(1)

    def index() -> ModuleIndex:
        return module_index(app, lambda: current_image(app), root, version)

    shapes: list[dict[str, Any]] = []
    failed = False
    for name in modules:
        found, problems = _find(name, index, by_name=by_name)
        failed |= bool(problems)
        if app.json:
            shapes += [_shape(info) for info in found]
            shapes += [{"module": name, "ok": False, "message": problem} for problem in problems]
            continue
        for info in found:
            _print(app, info, field, null=null)
        for problem in problems:
            app.say(error_line("modinfo", problem, app.error_paint))
    if app.json:
        app.out_json(shapes)
    if failed:
        raise click.exceptions.Exit(1)


def _print(app: App, info: Modinfo, field: str | None, *, null: bool) -> None:
    from kodojo.report.modinfo import field_lines, modinfo_lines, modinfo_values  # noqa: PLC0415

    if null:
        values = modinfo_values(info) if field is None else field_lines(info, field, raw=True)
        app.out_bytes(b"".join(encode(value) + b"\0" for value in values))
    else:
        app.out(modinfo_lines(info) if field is None else field_lines(info, field))
    if field in (None, "parm"):
        for key, value in info.bad_parameters:
            app.say(error_line("modinfo", f"Found invalid \"{key}={value}\": missing ':'", app.error_paint))


def _find(name: str, tree: Callable[[], ModuleIndex], *, by_name: bool) -> tuple[list[Modinfo], list[str]]:
    """What is known by a file's name, a module's name or an alias; and what kmod would say of the rest."""
    from kodojo.kmod.modinfo import builtin_modinfo, is_module_filename  # noqa: PLC0415

    if not by_name and is_module_filename(name):
        return _read(name)
    from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415
    from kodojo.kmod.modprobe import lookup, lookup_name  # noqa: PLC0415

    index = tree()
    found: list[Modinfo] = []
    problems: list[str] = []
    for candidate in lookup_name(index, name) if by_name else lookup(index, ModprobeConfig(), name):
        path = index.path(candidate.name)
        if path is None:
            found.append(builtin_modinfo(index, candidate.name))
            continue
        infos, troubles = _read(str(path))
        found += infos
        problems += troubles
    if not found and not problems:
        problems.append(f"Module name {name} not found." if by_name else f"Module {name} not found.")
    return found, problems


def _read(path: str) -> tuple[list[Modinfo], list[str]]:
    from kodojo.image.tree import modname  # noqa: PLC0415
    from kodojo.kernel.user import errno_text  # noqa: PLC0415
    from kodojo.kmod.modinfo import read_modinfo  # noqa: PLC0415

    try:
        return [read_modinfo(path)], []
    except ModuleFileError as error:
        text = f"{errno_text(error.errno)} ({error.message})"
    except KodojoError as error:
        text = error.message.removeprefix(f"{path}: ").removeprefix("cannot be read: ")
    return [], [f"could not get modinfo from '{modname(path)}': {text}"]


def _shape(info: Modinfo) -> dict[str, Any]:
    """What ``--json`` shows of a module: ``fields`` in the file's order, the parameters taken apart."""
    return {
        "ok": True,
        "name": info.name,
        "filename": info.filename,
        "fields": [
            {"key": key, "value": value.replace("\n\t\t", "")}
            for key, value in info.rows
            if key not in ("parm", "parmtype")
        ],
        "parameters": info.parameters,
    }
