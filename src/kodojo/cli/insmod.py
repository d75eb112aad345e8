"""``kodojo insmod``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import syslog_option, verbose_option, version_option
from kodojo.errors import KodojoError, LoadError
from kodojo.report.kmod import error_line, insmod_text, not_inserted, not_loaded

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.loader.steps import Step

__all__ = ["insmod"]


@click.command(short_help="Load a module.")
@click.argument("file", required=False)
@click.argument("parameters", nargs=-1, metavar="[PARAM=VALUE]...")
@click.option("-f", "--force", is_flag=True, help="Load it though it is for another kernel: both of the following.")
@click.option("--force-modversion", is_flag=True, help="Ignore its symbol versions: this taints the kernel.")
@click.option("--force-vermagic", is_flag=True, help="Ignore its version magic: this taints the kernel.")
@click.option("--with-dependencies", is_flag=True, help="Load first what it needs, from the tree and beside FILE.")
@click.option("--steps", is_flag=True, help="Print what the loader did, step by step.")
@syslog_option
@verbose_option
@version_option
@machine_options
@pass_app
def insmod(
    app: App,
    /,
    file: str | None,
    parameters: tuple[str, ...],
    with_dependencies: bool,
    steps: bool,
    **forcing: bool,
) -> None:
    """Load the module in FILE (.ko, also compressed), as insmod does: nothing is printed if all is well.

    A refusal is printed in insmod's words, with the kernel's log lines, the reason, and what to do about it.
    """
    if file is None or file == "-":
        said = "this tool does not support loading from stdin!" if file else "missing filename."
        app.say(error_line("insmod", said, app.error_paint))
        raise click.exceptions.Exit(1)
    forced = {name: forcing["force"] or forcing[name] for name in ("force_modversion", "force_vermagic")}
    arguments = " ".join(parameters)
    problem = _unreadable(app, file)
    if problem is not None:
        _not_read(app, file, arguments, *problem)
        raise click.exceptions.Exit(1)
    shown: dict[str, Any] | None = None
    failure: LoadError | None = None
    done: Sequence[Step] = ()
    notes: Sequence[str] = ()
    with app.machine() as kernel:
        try:
            module = kernel.insmod(file, *parameters, with_dependencies=with_dependencies, **forced)
        except LoadError as error:
            failure, done, notes = error, error.steps, error.warnings
            _name_suitable_kernels(app, error, kernel.image, error.file or file)
        else:
            done, notes = module.steps, module.warnings
            if app.json:
                from kodojo.report import json  # noqa: PLC0415

                shown = json.module(module)
    if app.json:
        _print_json(app, file, arguments, done, shown, failure, notes)
    else:
        _print_text(app, file, done if steps else None, failure, notes)
    if failure is not None:
        raise click.exceptions.Exit(1)


def _name_suitable_kernels(app: App, error: LoadError, image: Image, file: str) -> None:
    """Add to the hint which kernels of the store would suit, if the module is for another one."""
    from kodojo.check.suitable import Origin, StoreKernels  # noqa: PLC0415  only now
    from kodojo.image.payload import read_module  # noqa: PLC0415

    suitable = StoreKernels(app.store).suitable(lambda: Origin.of(read_module(file).content), image, [error.slug])
    error.refusal = suitable.told_in(error.refusal)
    error.hint = error.refusal.hint


def _print_text(
    app: App, file: str, steps: Sequence[Step] | None, failure: LoadError | None, notes: Sequence[str]
) -> None:
    if steps is not None:
        from kodojo.report.steps import STEP_COLUMNS, STEP_STYLES, step_rows  # noqa: PLC0415

        app.table(STEP_COLUMNS, step_rows(steps, failure.step if failure else ""), STEP_STYLES)
    if failure is None:
        app.mention_warnings()
    else:
        _print_refusal(app, file, failure)
    if notes:
        from kodojo.report.explain import file_warnings  # noqa: PLC0415

        app.say(file_warnings(notes, app.error_paint))


def _print_refusal(app: App, file: str, failure: LoadError) -> None:
    from kodojo.report.refusal import refusal_lines  # noqa: PLC0415

    # A file that would have damaged the kernel may have no errno: the kernel would not have lived to give one.
    message = not_inserted(failure.file or file, insmod_text(failure.errno or 8))
    app.say(refusal_lines(message, failure.log, failure.why, failure.slug, failure.hint, app.error_paint))


def _print_json(
    app: App,
    file: str,
    arguments: str,
    steps: Sequence[Step],
    module: dict[str, Any] | None,
    failure: LoadError | None,
    notes: Sequence[str],
) -> None:
    from kodojo.report import json  # noqa: PLC0415

    shape = json.insmod(file, arguments, log=app.log, steps=steps, loaded=module, warnings=app.warnings, notes=notes)
    if failure is not None:
        shape = json.refused(shape, errno=failure.errno, why=failure.why, hint=failure.hint, refusal=failure)
    app.out_json(shape)


def _unreadable(app: App, file: str) -> tuple[str, int, str, str] | None:
    """Message, errno, text and hint for a file that cannot be read; found out before a machine is started.

    As kmod has it: a file that is not there cannot be loaded, one that cannot be read cannot be inserted.
    """
    from kodojo.image.payload import without_waiting  # noqa: PLC0415

    try:
        os.stat(file)  # noqa: PTH116  the name as it was typed, "" too
    except OSError as error:
        text = error.strerror or str(error)
        return not_loaded(file, text), error.errno or 0, text, _hint_for_missing(app, file)
    try:
        with open(file, "rb", opener=without_waiting):
            return None
    except OSError as error:
        text = error.strerror or str(error)
        return not_inserted(file, text), error.errno or 0, text, "give the path of a .ko file that you may read"


def _hint_for_missing(app: App, file: str) -> str:
    """Where the kernel's own module of that name is, if there is one."""
    from kodojo.image.tree import module_name  # noqa: PLC0415

    name = module_name(file) or Path(file).name
    with suppress(KodojoError, OSError):
        image = app.kernel_image()
        if name in image.builtin:
            return f"{name} is built into the kernel {image.release}: there is nothing to load"
        if name in image.modules:
            return f"the module {name} of {image.release} is {image.modules[name].path}"
    return "give the path of a .ko file"


def _not_read(app: App, file: str, arguments: str, message: str, errno: int, why: str, hint: str) -> None:
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json(json.refused(json.insmod(file, arguments), errno=errno, why=why, hint=hint))
        return
    from kodojo.report.refusal import refusal_lines  # noqa: PLC0415

    app.say(refusal_lines(message, (), "", "", hint, app.error_paint))
