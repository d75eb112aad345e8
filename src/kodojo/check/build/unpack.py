"""Files of packages and directories, brought to where a build can work on them. Nobody vouches for any of them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from kodojo.durable import disk_error
from kodojo.errors import InputError, PackageError
from kodojo.image.archive import Member

__all__ = ["copy_directory", "unpack_members"]

_MOST_FILES = 200_000
_MOST_BYTES = 2 << 30
_LEFT_OUT = frozenset({".git", ".hg", ".svn", ".venv", "node_modules"})
_ROOM = "set TMPDIR to a directory with more room"


def unpack_members(
    name: str, members: Iterable[Member], root: Path, wanted: Callable[[tuple[str, ...]], bool]
) -> int:
    """Write members of a package below ``root``; links are made last, so that nothing is written through one.

    :param name: of the package, for messages. :param wanted: asked about a member's path, in parts.
    :return: how many files there are.
    :raises PackageError: it has a path that leads out of it, or contradicts itself.
    :raises StoreError: the disk is full.
    """
    links: dict[str, str] = {}
    count = 0
    for number, member in enumerate(members):
        if number > _MOST_FILES:
            raise PackageError(f"{name}: more than {_MOST_FILES} members")
        parts = tuple(part for part in member.name.split("/") if part not in ("", "."))
        if ".." in parts or "\0" in member.name:
            raise PackageError(
                f"{name}: its member {member.name!r} leads out of it", hint="do not trust this package"
            )
        if not parts or not wanted(parts):
            continue
        path = root.joinpath(*parts)
        try:
            if member.kind == "directory":
                path.mkdir(parents=True, exist_ok=True)
            elif member.kind == "symlink":
                links[str(path)] = member.target
            elif member.kind == "hardlink":
                other = tuple(part for part in member.target.split("/") if part not in ("", "."))
                if ".." not in other and wanted(other) and root.joinpath(*other).is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.link(root.joinpath(*other), path, follow_symlinks=False)
            elif member.kind == "file":
                count += 1
                _write(path, member)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
                raise disk_error(root, error) from error
            raise PackageError(f"{name}: its member {member.name!r} cannot be: {error.strerror}") from error
    for place, target in links.items():
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(path):
            path.symlink_to(target)
    return count


def _write(path: Path, member: Member) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o755 if member.executable else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.writelines(member.chunks)


def copy_directory(source: Path, target: Path) -> None:
    """Copy a directory to the new directory ``target``: files and links, without what version control keeps there.

    :raises InputError: it cannot be read, or there is too much of it.
    :raises StoreError: the disk is full.
    """
    files = size = 0
    for root, directories, names in os.walk(source):
        directories[:] = [name for name in directories if name not in _LEFT_OUT]
        to = target / os.path.relpath(root, source)
        links = [name for name in directories if Path(root, name).is_symlink()]
        directories[:] = [name for name in directories if name not in links]
        try:
            to.mkdir(parents=True, exist_ok=True)
            for name in (*names, *links):
                path = Path(root, name)
                about = path.lstat()
                files, size = files + 1, size + about.st_size
                if files > _MOST_FILES or size > _MOST_BYTES:
                    raise InputError(
                        f"{source}: more than {_MOST_FILES} files or {_MOST_BYTES >> 30} GiB to build from",
                        hint="give the directory that has the module's own sources only",
                    )
                if stat.S_ISLNK(about.st_mode) or stat.S_ISREG(about.st_mode):
                    shutil.copy2(path, to / name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(target, error) from error
            raise InputError(f"{error.filename or source}: cannot be read: {error.strerror or error}") from error
