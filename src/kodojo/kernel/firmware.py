"""Firmware that was installed for a kernel, in the machine's ``/lib/firmware``, where its firmware loader looks.

The files are written when a module is about to be loaded: boots and their snapshots are the same with and without.
What is there already is noted in a file beside them, so that it is true for forks and saved machines, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kodojo.errors import GuestOSError, InputError, decode, encode
from kodojo.kernel.tasks import CAPABILITIES, Tasks
from kodojo.kernel.user import UserSpace, errno_text

if TYPE_CHECKING:
    from kodojo.image.additions import Addition
    from kodojo.kernel.files import Files

__all__ = ["bring_firmware"]

_DIRECTORY = "/lib/firmware"
_LIST = f"{_DIRECTORY}/.installed"  # one line a file: its SHA-256, a blank, its name
_ENOENT, _EEXIST = 2, 17


def bring_firmware(files: Files, user: UserSpace, tasks: Tasks, installed: Iterable[Addition]) -> None:
    """Write what is new or has changed since the last time. What was uninstalled stays until the machine is booted.

    :raises InputError: a file cannot be read. GuestOSError: the machine's memory is full.
    """
    wanted = {addition.name: _content(addition) for addition in installed}
    if not wanted:
        return
    there = _listed(files)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
    changed = sorted(name for name in wanted if there.get(name) != digests[name])
    if not changed:
        return
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted({**there, **digests}.items()))
    with tasks.credentials(0, 0, CAPABILITIES):  # whoever loads the module need not be one who may write there
        for name in changed:
            path = f"{_DIRECTORY}/{name}"
            _make_directories(user, path)
            files.write(path, wanted[name])
        files.write(_LIST, encode(lines))


def _content(addition: Addition) -> bytes:
    try:
        return addition.path.read_bytes()
    except OSError as error:
        raise InputError(f"{addition.path}: cannot be read: {error.strerror or error}") from error


def _listed(files: Files) -> dict[str, str]:
    """Name -> SHA-256 of what is there."""
    try:
        lines = decode(files.read(_LIST)).splitlines()
    except GuestOSError as error:
        if error.errno != _ENOENT:
            raise
        return {}
    return {name: digest for digest, _, name in (line.partition(" ") for line in lines)}


def _make_directories(user: UserSpace, path: str) -> None:
    """All directories above a path, as far as they are not there yet."""
    parts = path.split("/")[1:-1]
    for length in range(1, len(parts) + 1):
        directory = "/" + "/".join(parts[:length])
        value = user.syscall("mkdir", user.path(directory), 0o755)
        if value < 0 and value != -_EEXIST:
            raise GuestOSError(f"{directory}: {errno_text(-value)}", -value)
