"""``kodojo mkdir``, ``mknod``, ``chmod`` and ``rm``: they print and exit as coreutils' do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import c_number
from kodojo.cli.modes import changed_mode
from kodojo.errors import GuestOSError
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel

__all__ = ["chmod", "mkdir", "mknod", "rm"]

_ENOENT, _EISDIR = 2, 21
_MOST_BELOW = 1 << 18  # files that one rm removes
_mode_option = click.option("-m", "--mode", "mode", metavar="MODE", help="Its permissions: 0755, u=rwx,go=.")
_verbose_option = click.option("-v", "--verbose", is_flag=True, help="Print what is done.")


@click.command(short_help="Make directories.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@_mode_option
@click.option("-p", "--parents", is_flag=True, help="Make what is missing above it, too; no error if it is there.")
@_verbose_option
@machine_options
@pass_app
def mkdir(app: App, paths: tuple[str, ...], mode: str | None, parents: bool, verbose: bool) -> None:
    """Make the directories PATH in the machine."""
    _need(app, "mkdir", paths)
    wanted = _checked_mode(app, "mkdir", mode, 0o777)

    def make(kernel: Kernel, path: str) -> str:
        made = not (parents and kernel.exists(path))
        kernel.mkdir(path, parents=parents)
        if made and wanted is not None:
            kernel.chmod(path, wanted)
        return f"mkdir: created directory '{path}'" if made else ""

    _for_each(app, paths, make, lambda path, why: f"mkdir: cannot create directory '{path}': {why}", verbose=verbose)


@click.command(short_help="Make a device file or a fifo.")
@click.argument("words", nargs=-1, metavar="PATH TYPE [MAJOR MINOR]")
@_mode_option
@machine_options
@pass_app
def mknod(app: App, words: tuple[str, ...], mode: str | None) -> None:
    """Make PATH in the machine: TYPE is b (block device), c or u (character device), p (fifo)."""
    problem = _node_problem(words)
    if problem:
        _fail(app, "mknod", problem)
    wanted = _checked_mode(app, "mknod", mode, 0o666)
    path, kind, *numbers = words
    major, minor = (c_number(number) for number in numbers or ("0", "0"))

    def make(kernel: Kernel, path: str) -> str:
        kernel.mknod(path, kind, major, minor)
        if wanted is not None:
            kernel.chmod(path, wanted)
        return ""

    _for_each(app, [path], make, lambda path, why: f"mknod: {path}: {why}")


def _node_problem(words: tuple[str, ...]) -> str:
    """What is wrong with the words of mknod, in its own words."""
    kind = words[1][:1] if len(words) > 1 else ""
    needed = 2 if kind == "p" or len(words) < 2 else 4
    if len(words) < needed:
        text = f"missing operand after '{words[-1]}'" if words else "missing operand"
        return text + ("\nSpecial files require major and minor device numbers." if len(words) == 2 else "")
    if len(words) > needed:
        text = f"extra operand '{words[needed]}'"
        return text + (
            "\nFifos do not have major and minor device numbers." if needed == 2 and len(words) == 4 else ""
        )
    if words[1] not in ("b", "c", "u", "p"):
        return f"invalid device type '{words[1]}'"
    for name, number in zip(("major", "minor"), words[2:], strict=False):
        try:
            valid = c_number(number) < 1 << (12 if name == "major" else 20)
        except ValueError:
            valid = False
        if not valid:
            return f"invalid {name} device number '{number}'"
    return ""


@click.command(
    short_help="Change the permissions of files.",
    context_settings={"ignore_unknown_options": True},  # MODE may be -x
)
@click.argument("words", nargs=-1, metavar="MODE PATH...")
@click.option("-R", "--recursive", is_flag=True, help="Also of all that is in directories.")
@machine_options
@pass_app
def chmod(app: App, words: tuple[str, ...], recursive: bool) -> None:
    """Change the permissions of the files PATH of the machine: MODE is 0644, u+x, go-w, a=r, ..."""
    if len(words) < 2:
        _need(app, "chmod", (), after=words)
    mode, *paths = words
    _checked_mode(app, "chmod", mode, 0)

    known: set[str] = set()

    def change(kernel: Kernel, path: str) -> str:
        for each in _below(kernel, path) if recursive else [path]:
            if each != path and kernel.stat(each, follow=False).kind == "link":
                continue  # its mode is of no use, and what it leads to may be elsewhere
            status = kernel.stat(each)
            known.add(path)
            kernel.chmod(each, changed_mode(mode, status.mode, directory=status.kind == "directory") or 0)
        return ""

    def said(path: str, why: str) -> str:
        return f"chmod: {'changing permissions of' if path in known else 'cannot access'} '{path}': {why}"

    _for_each(app, paths, change, said)


@click.command(short_help="Remove files and directories.")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("-f", "--force", is_flag=True, help="No error if it is not there.")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories with all that is in them.")
@click.option("-d", "--dir", "empty", is_flag=True, help="Also empty directories.")
@_verbose_option
@machine_options
@pass_app
def rm(app: App, paths: tuple[str, ...], force: bool, recursive: bool, empty: bool, verbose: bool) -> None:
    """Remove the files PATH of the machine."""
    if not force:
        _need(app, "rm", paths)
    if recursive and any(not path.strip("/") for path in paths):
        _fail(app, "rm", "it is dangerous to operate recursively on '/'", hint=False)

    def remove(kernel: Kernel, path: str) -> str:
        try:
            kind = kernel.stat(path, follow=False).kind
        except GuestOSError as error:
            if force and error.errno == _ENOENT:
                return ""
            raise
        if kind != "directory":
            kernel.unlink(path)
            return f"removed '{path}'"
        if not (recursive or empty):
            raise GuestOSError(path, _EISDIR)
        said = []
        for each in reversed(_below(kernel, path) if recursive else [path]):
            if kernel.stat(each, follow=False).kind == "directory":
                kernel.rmdir(each)
                said.append(f"removed directory '{each}'")
            else:
                kernel.unlink(each)
                said.append(f"removed '{each}'")
        return "\n".join(said)

    _for_each(app, paths, remove, lambda path, why: f"rm: cannot remove '{path}': {why}", verbose=verbose)


def _below(kernel: Kernel, path: str) -> list[str]:
    """A path and all below it, directories before what is in them; links are not followed."""
    from kodojo.kernel.bounds import at_most  # noqa: PLC0415  imports what the machine imports

    found: list[str] = []
    waiting = [path]
    while waiting:
        current = waiting.pop()
        found.append(current)
        at_most(len(found) + len(waiting), _MOST_BELOW, f"files below {path}")
        if kernel.stat(current, follow=False).kind == "directory":
            waiting += [f"{current.rstrip('/')}/{entry.name}" for entry in reversed(kernel.list_directory(current))]
    return found


def _for_each(
    app: App,
    paths: Iterable[str],
    work: Callable[[Kernel, str], str],
    said: Callable[[str, str], str],
    *,
    verbose: bool = False,
) -> None:
    """Do it to every path, whatever became of the others; report the results, and exit.

    :param work: what is done: gives what ``-v`` prints.
    :param said: the message for a path, of its name and of what the errno means.
    """
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine imports

    answers: list[tuple[str, str, GuestOSError | None]] = []
    with app.machine() as kernel:
        for path in paths:
            try:
                answers.append((path, work(kernel, path), None))
            except GuestOSError as error:
                answers.append((path, "", error))
    failures = [(path, error) for path, _, error in answers if error is not None]
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json([{"path": path, **json.answer(error)} for path, _, error in answers])
    else:
        if verbose:
            app.out([clean(line) for _, text, _ in answers for line in text.splitlines()])
        app.say([clean(said(path, errno_text(error.errno))) for path, error in failures])
        app.mention_warnings()
    if failures:
        raise click.exceptions.Exit(1)


def _checked_mode(app: App, tool: str, mode: str | None, of: int) -> int | None:
    if mode is None:
        return None
    found = changed_mode(mode, of)
    if found is None:
        _fail(app, tool, f"invalid mode: '{mode}'" if tool == "chmod" else f"invalid mode '{mode}'", hint=False)
    return found


def _need(app: App, tool: str, paths: tuple[str, ...], after: tuple[str, ...] = ()) -> None:
    if not paths:
        _fail(app, tool, f"missing operand after '{after[-1]}'" if after else "missing operand")


def _fail(app: App, tool: str, text: str, *, hint: bool = True) -> NoReturn:
    app.say(_clean_lines(f"{tool}: {text}"))
    if hint:
        app.say(f"Try 'kodojo {tool} --help' for more information.")
    raise click.exceptions.Exit(1)


def _clean_lines(text: str) -> list[str]:
    return [clean(line) for line in text.splitlines()]
