"""``kodojo cat``, ``ls`` and ``write``: files of the guest, through its own VFS."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.errors import GuestOSError, encode
from kodojo.report.refusal import error_lines

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel
    from kodojo.report.listing import ListedFile

__all__ = ["cat", "ls", "write"]

_ENOTDIR = 20
_O_NONBLOCK = 0o4000


@click.command(short_help="Print files.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-n", "--bytes", "size", type=click.IntRange(min=0), metavar="N", help="At most N bytes of each.")
@click.option("--nonblock", is_flag=True, help="Do not wait for what is not there yet (O_NONBLOCK).")
@machine_options
@pass_app
def cat(app: App, paths: tuple[str, ...], size: int | None, nonblock: bool) -> None:
    """Print the files PATH of the machine, byte for byte: /proc/modules, /sys/module/NAME/parameters/X, ..."""
    with app.machine() as kernel:
        answers = [(path, *_read(kernel, path, size, nonblock=nonblock)) for path in paths]
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


def _read(kernel: Kernel, path: str, size: int | None, *, nonblock: bool) -> tuple[bytes, GuestOSError | None]:
    """What could be read, and what ended it."""
    data = b""
    try:
        with kernel.operation(), kernel.open(path, _O_NONBLOCK if nonblock else 0) as file:
            for piece in file.pieces(size):
                data += piece
    except GuestOSError as error:
        return data, error
    return data, None


@click.command(short_help="List a directory.")
@click.option("-l", "long", is_flag=True, help="With mode, links, owner, size or device numbers, and time (UTC).")
@click.option("-d", "--directory", "itself", is_flag=True, help="List the directory itself, not what is in it.")
@click.argument("path", default="/")
@machine_options
@pass_app
def ls(app: App, long: bool, itself: bool, path: str) -> None:
    """List the directory PATH of the machine: /sys/class/net, /proc, ..."""
    from kodojo.report.listing import ListedFile, listing, long_listing  # noqa: PLC0415

    failure: GuestOSError | None = None
    names: list[ListedFile] = []
    now, is_directory = 0.0, True
    with app.machine() as kernel:
        try:
            is_directory, names = _listed(kernel, path, long=long, itself=itself)
            now = kernel.clock() if long else now
        except GuestOSError as error:
            failure = error
            names = names or [ListedFile(each.name, each.kind) for each in error.found]
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json({"path": path, **json.answer(failure), "entries": [json.listed(each) for each in names]})
    elif long and failure is None:
        app.out(long_listing(names, now, app.paint, total=is_directory))
    else:
        app.out(listing([(each.name, each.kind) for each in names], app.paint))
    if failure is None:
        app.mention_warnings()
        return
    if not app.json:
        app.say(error_lines(failure, app.error_paint))
    raise click.exceptions.Exit(1)


def _listed(kernel: Kernel, path: str, *, long: bool, itself: bool) -> tuple[bool, list[ListedFile]]:
    """Whether it is a directory's content, and the names."""
    if not itself:
        try:
            entries = kernel.list_directory(path)
        except GuestOSError as error:
            if error.errno != _ENOTDIR or path.endswith("/"):
                raise
        else:
            base = path.rstrip("/")
            return True, [_described(kernel, f"{base}/{each.name}", each.name, each.kind, long) for each in entries]
    return False, [_described(kernel, path, path, kernel.stat(path, follow=False).kind, long)]


def _described(kernel: Kernel, path: str, name: str, kind: str, long: bool) -> ListedFile:
    from kodojo.report.listing import ListedFile  # noqa: PLC0415

    if not long:
        return ListedFile(name, kind)
    target = ""
    try:
        status = kernel.stat(path, follow=False)
        if status.kind == "link":
            target = kernel.readlink(path)
    except GuestOSError:  # it has gone, or does not want to be asked: ls prints question marks
        return ListedFile(name, kind)
    return ListedFile(name, status.kind, status, target)


@click.command(
    short_help="Write a text, or standard input, to a file.",
    context_settings={"ignore_unknown_options": True},  # TEXT may be -1
)
@click.argument("path")
@click.argument("text", default="-")
@click.option("--newline", is_flag=True, help="Append a newline to TEXT, as echo does.")
@click.option("--append", is_flag=True, help="Write behind what is in the file, as the shell's >> does.")
@machine_options
@pass_app
def write(app: App, /, path: str, text: str, **switches: bool) -> None:
    """Write exactly TEXT to the file PATH of the machine, as the shell's > does.

    Without TEXT, or if it is -, what comes from standard input is written.
    """
    data = sys.stdin.buffer.read() if text == "-" else encode(text)
    data += b"\n" if switches["newline"] else b""
    failure: GuestOSError | None = None
    with app.machine() as kernel:
        try:
            kernel.write_file(path, data, append=switches["append"])
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
