"""``kodojo modinfo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.errors import ImageError, InputError
from kodojo.report.kmod import error_line

if TYPE_CHECKING:
    from kodojo.image.image import Image
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
@kernel_option
@json_option
@pass_app
def modinfo(app: App, modules: tuple[str, ...], field: str | None) -> None:
    """Show what the module in FILE, or the kernel's module NAME (or alias), says about itself, as modinfo does."""
    if not modules:
        app.say(error_line("modinfo", "missing module or filename.", app.error_paint))
        raise click.exceptions.Exit(1)
    shapes: list[dict[str, Any]] = []
    failed = False
    for name in modules:
        found, problems = _find(app, name)
        failed |= bool(problems)
        if app.json:
            shapes += [_shape(info) for info in found]
            shapes += [{"module": name, "ok": False, "message": problem} for problem in problems]
            continue
        for info in found:
            _print(app, info, field)
        for problem in problems:
            app.say(error_line("modinfo", problem, app.error_paint))
    if app.json:
        app.out_json(shapes)
    if failed:
        raise click.exceptions.Exit(1)


def _print(app: App, info: Modinfo, field: str | None) -> None:
    from kodojo.report.modinfo import field_lines, modinfo_lines  # noqa: PLC0415

    app.out(modinfo_lines(info) if field is None else field_lines(info, field))
    if field in (None, "parm"):
        for key, value in info.bad_parameters:
            app.say(error_line("modinfo", f"Found invalid \"{key}={value}\": missing ':'", app.error_paint))


def _find(app: App, name: str) -> tuple[list[Modinfo], list[str]]:
    """What is known by a file's name, a module's name or an alias; and what kmod would say of the rest."""
    from kodojo.kmod.modinfo import builtin_modinfo, is_module_filename  # noqa: PLC0415

    if is_module_filename(name):
        return _read(name)
    from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415
    from kodojo.kmod.modprobe import lookup  # noqa: PLC0415

    index = _index(app)
    found: list[Modinfo] = []
    problems: list[str] = []
    for candidate in lookup(index, ModprobeConfig(), name):
        path = index.path(candidate.name)
        if path is None:
            found.append(builtin_modinfo(index, candidate.name))
            continue
        infos, troubles = _read(str(path))
        found += infos
        problems += troubles
    return found, problems if found or problems else [f"Module {name} not found."]


def _read(path: str) -> tuple[list[Modinfo], list[str]]:
    from kodojo.kmod.modinfo import modname, read_modinfo  # noqa: PLC0415

    try:
        return [read_modinfo(path)], []
    except InputError as error:
        return [], [f"could not get modinfo from '{modname(path)}': {error.message.rpartition(': ')[2]}"]
    except ImageError as error:
        return [], [f"could not get modinfo from '{modname(path)}': Invalid argument ({error.message})"]


def _index(app: App) -> ModuleIndex:
    from kodojo.kmod.index import ModuleIndex  # noqa: PLC0415

    with app.bar() as bar:
        return ModuleIndex.of(_image(app), progress=bar.update)


def _image(app: App) -> Image:
    """The kernel that is named, else the one that the machine runs, else the current one."""
    image = app.chosen_image()
    if image is None:
        description = app.session.describe()
        image = app.store.open(description.release if description else None)
    return image


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
