"""``kodojo mount`` and ``umount``: they print and exit as util-linux' do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.errors import GuestOSError, decode
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel

__all__ = ["mount", "umount"]

_USAGE, _FAILURE = 1, 32  # MNT_EX_USAGE, MNT_EX_FAIL
_EPERM, _ENOENT, _EIO, _ENXIO, _EACCES, _ENOTBLK, _EBUSY, _ENODEV = 1, 2, 5, 6, 13, 15, 16, 19
_ENOTDIR, _EINVAL, _EROFS = 20, 22, 30


@click.command(short_help="Mount a file system, or list what is mounted.")
@click.argument("words", nargs=-1, metavar="[SOURCE TARGET]")
@click.option(
    "-t", "--types", "kind", metavar="TYPE", help="The file system; without it those of the kernel are tried."
)
@click.option("-o", "--options", "options", multiple=True, metavar="LIST", help="ro, noexec, remount, size=1m, ...")
@click.option("-r", "--read-only", "option", flag_value="ro", help="As -o ro.")
@click.option("-w", "--rw", "--read-write", "option", flag_value="rw", help="As -o rw.")
@click.option("-B", "--bind", "option", flag_value="bind", help="Show the directory SOURCE at TARGET, too.")
@click.option("-R", "--rbind", "option", flag_value="rbind", help="Likewise, with what is mounted below it.")
@click.option("-M", "--move", "option", flag_value="move", help="Move what is mounted at SOURCE.")
@machine_options
@pass_app
def mount(app: App, words: tuple[str, ...], kind: str | None, options: tuple[str, ...], option: str | None) -> None:
    """Mount SOURCE (a block device of the machine, or a name) at the directory TARGET.

    The machine has no fstab: both are needed, but for -o remount.
    """
    listed = ",".join([*([option] if option else []), *options])
    if not words:
        _list(app, kind)
        return
    if len(words) == 1 and "remount" in listed.split(","):
        words = ("none", words[0])
    if len(words) != 2:
        said = "bad usage" if len(words) > 2 else f"{words[0]}: can't find in /etc/fstab."
        _fail(app, [f"mount: {said}", "Try 'kodojo mount --help' for more information."], _USAGE)
    source, target = words
    lines: list[str] = []
    failure: GuestOSError | None = None
    with app.machine() as kernel:
        try:
            kernel.mount(source, target, kind, listed)
        except GuestOSError as error:
            failure = error
            lines = [f"mount: {target}: {_why(kernel, error.errno, source, target, kind, listed)}."]
    _report(app, [(target, failure)], lines)


def _list(app: App, kind: str | None) -> None:
    """``mount`` alone, or with ``-t``: what is mounted."""
    with app.machine(save=False) as kernel:
        rows = _mounts(kernel)
    rows = [row for row in rows if len(row) >= 4 and kind in (None, row[2])]
    if app.json:
        names = ("source", "target", "type", "options")
        app.out_json([dict(zip(names, row, strict=False)) for row in rows])
    else:
        app.out([clean(f"{row[0]} on {row[1]} type {row[2]} ({row[3]})") for row in rows])


def _why(kernel: Kernel, errno: int, source: str, target: str, kind: str | None, options: str) -> str:
    """The cause of a failure (``libmount/src/context_mount.c: mnt_context_get_mount_excode``)."""
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine imports

    words = options.split(",")
    if errno in (_ENOENT, _ENOTDIR, _EPERM, _EINVAL) and not kernel.exists(target):
        return "mount point does not exist"
    if errno in (_ENOTDIR, _EPERM) and kernel.stat(target).kind != "directory":
        return "mount point is not a directory"
    # A driver may have answered with EINVAL when all of them were tried.
    if errno in (_ENOENT, _EINVAL) and source.startswith("/") and not kernel.exists(source):
        return f"special device {source} does not exist"
    if errno == _EINVAL and "remount" in words:
        return "mount point not mounted or bad option"
    simple = {
        _EPERM: "permission denied",
        _EBUSY: "mount point is busy" if "remount" in words else f"{source} already mounted or mount point busy",
        _EINVAL: f"wrong fs type, bad option, bad superblock on {source}, missing codepage or helper program, "
        "or other error",
        _EIO: f"can't read superblock on {source}",
        _ENODEV: f"unknown filesystem type '{kind}'" if kind else "unknown filesystem type",
        _ENOTBLK: f"{source} is not a block device",
        _ENXIO: f"{source} is not a valid block device",
    }
    if errno in (_EACCES, _EROFS):
        if "ro" in words:
            return f"cannot mount {source} read-only"
        if "remount" in words:
            return f"cannot remount {source} read-write, is write-protected"
    return simple.get(errno, f"mount(2) system call failed: {errno_text(errno)}")


@click.command(short_help="Take mounted file systems away.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("-l", "--lazy", is_flag=True, help="Detach it now, clean up when it is no longer in use.")
@click.option("-f", "--force", is_flag=True, help="Give up what is under way.")
@machine_options
@pass_app
def umount(app: App, targets: tuple[str, ...], lazy: bool, force: bool) -> None:
    """Take away what is mounted at the directories TARGET, or from the devices TARGET."""
    if not targets:
        _fail(app, ["umount: bad usage", "Try 'kodojo umount --help' for more information."], _USAGE)
    answers: list[tuple[str, GuestOSError | None]] = []
    with app.machine() as kernel:
        for target in targets:
            failure = None
            try:
                kernel.umount(_mount_point(kernel, target), lazy=lazy, force=force)
            except GuestOSError as error:
                failure = error
            answers.append((target, failure))
    lines = [f"umount: {target}: {_why_not(error.errno)}." for target, error in answers if error is not None]
    _report(app, answers, lines)


def _mounts(kernel: Kernel) -> list[list[str]]:
    """The fields of each line of ``/proc/mounts``."""
    return [line.split(" ") for line in decode(kernel.read_file("/proc/mounts")).splitlines()]


def _mount_point(kernel: Kernel, name: str) -> str:
    """Where a device is mounted, the last time if it is several times; another name stands for itself."""
    rows = [row for row in _mounts(kernel) if len(row) > 1]
    if any(row[1] == name for row in rows):
        return name
    return next((row[1] for row in reversed(rows) if row[0] == name), name)


def _why_not(errno: int) -> str:
    """``libmount/src/context_umount.c: mnt_context_get_umount_excode``."""
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine imports

    texts = {
        _ENXIO: "invalid block device",
        _EINVAL: "not mounted",
        _EIO: "can't write superblock",
        _EBUSY: "target is busy",
        _ENOENT: "no mount point specified",
        _EPERM: "must be superuser to unmount",
        _EACCES: "block devices are not permitted on filesystem",
    }
    return texts.get(errno, f"umount(2) system call failed: {errno_text(errno)}")


def _report(app: App, answers: list[tuple[str, GuestOSError | None]], lines: list[str]) -> None:
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json([{"path": path, **json.answer(error)} for path, error in answers])
        lines = []
    else:
        app.mention_warnings()
    if any(error is not None for _, error in answers):
        _fail(app, lines, _FAILURE)


def _fail(app: App, lines: list[str], status: int) -> NoReturn:
    app.say([clean(line) for line in lines])
    raise click.exceptions.Exit(status)
