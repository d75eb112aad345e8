"""``kodojo cat``, ``ls`` and ``write``: files of the guest, through its own VFS."""

from __future__ import annotations

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.errors import GuestOSError, encode
from kodojo.report.refusal import error_lines

__all__ = ["cat", "ls", "write"]

_ENOTDIR = 20


@click.command(short_help="Print files.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@machine_options
@pass_app
def cat(app: App, paths: tuple[str, ...]) -> None:
    """Print the files PATH of the machine, byte for byte: /proc/modules, /sys/module/NAME/parameters/X, ..."""
    answers: list[tuple[str, bytes, GuestOSError | None]] = []
    with app.machine() as kernel:
        for path in paths:
            try:
                answers.append((path, kernel.read_file(path), None))
            except GuestOSError as error:
                answers.append((path, b"", error))
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json([{"path": path, **json.answer(error), **json.content(data)} for path, data, error in answers])
    else:
        for _, data, failure in answers:
            app.out_bytes(data)
            if failure is not None:
                app.say(error_lines(failure, app.error_paint))
        app.mention_warnings()
    if any(error for _, _, error in answers):
        raise click.exceptions.Exit(1)


@click.command(short_help="List a directory.")
@click.option("-l", "long", is_flag=True, help="Say what each name is: d directory, l link, c and b device, - file.")
@click.argument("path", default="/")
@machine_options
@pass_app
def ls(app: App, long: bool, path: str) -> None:
    """List the directory PATH of the machine: /sys/class/net, /proc, ..."""
    failure: GuestOSError | None = None
    names: list[tuple[str, str]] = []
    with app.machine() as kernel:
        try:
            names = [(entry.name, entry.kind) for entry in kernel.list_directory(path)]
        except GuestOSError as error:
            if error.errno == _ENOTDIR and not path.endswith("/"):
                names = [(path, "file")]  # as ls does, also for devices; there is no stat() to ask
            else:
                failure = error
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        entries = [{"name": name, "kind": kind} for name, kind in names]
        app.out_json({"path": path, **json.answer(failure), "entries": entries})
    elif failure is None:
        from kodojo.report.listing import listing  # noqa: PLC0415

        app.out(listing(names, app.paint, long=long))
        app.mention_warnings()
    else:
        app.say(error_lines(failure, app.error_paint))
    if failure is not None:
        raise click.exceptions.Exit(1)


@click.command(
    short_help="Write a text to a file.",
    context_settings={"ignore_unknown_options": True},  # TEXT may be -1
)
@click.argument("path")
@click.argument("text")
@click.option("--newline", is_flag=True, help="Append a newline, as echo does.")
@machine_options
@pass_app
def write(app: App, path: str, text: str, newline: bool) -> None:
    """Write exactly TEXT to the file PATH of the machine, as the shell's > does."""
    data = encode(text) + (b"\n" if newline else b"")
    failure: GuestOSError | None = None
    with app.machine() as kernel:
        try:
            kernel.write_file(path, data)
        except GuestOSError as error:
            failure = error
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json({"path": path, **json.answer(failure), "size": len(data)})
    elif failure is not None:
        app.say(error_lines(failure, app.error_paint))
    else:
        app.mention_warnings()
    if failure is not None:
        raise click.exceptions.Exit(1)
