"""Files of the guest, through its own VFS: procfs, sysfs, devices, whatever a module makes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from kodojo.errors import GuestOSError
from kodojo.kernel.user import SCRATCH_SIZE, UserSpace, errno_text

__all__ = ["DirectoryEntry", "Files", "OpenFile"]

_O_WRONLY, _O_CREAT, _O_TRUNC = 0o1, 0o100, 0o1000
_BUFFER = 1 << 12  # after the page that holds the path
_PIECE = SCRATCH_SIZE // 2 - _BUFFER
_READ_LIMIT = 1 << 28
_TYPES = {
    1: "fifo",
    2: "character device",
    4: "directory",
    6: "block device",
    8: "file",
    10: "link",
    12: "socket",
}


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory; ``kind`` is what ``d_type`` says, in words."""

    name: str
    kind: str


class OpenFile:
    """A descriptor of PID 1, for use in ``with``; errors are GuestOSError that name the path."""

    def __init__(self, user: UserSpace, path: str, flags: int, mode: int = 0o644) -> None:
        self._user = user
        self.path = path
        self.fd = user.checked(path, "open", user.path(path), flags, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._user.calls.stopped is None:
            self._user.syscall("close", self.fd)

    def read(self, size: int = _PIECE) -> bytes:
        """One ``read()`` of at most ``size`` bytes."""
        buffer = self._user.scratch + _BUFFER
        count = self._user.checked(self.path, "read", self.fd, buffer, min(size, _PIECE))
        return self._user.machine.cpu.read(buffer, count)

    def read_all(self) -> bytes:
        """``read()`` until the end."""
        pieces: list[bytes] = []
        total = 0
        while piece := self.read():
            pieces.append(piece)
            total += len(piece)
            if total > _READ_LIMIT:
                raise GuestOSError(f"{self.path}: {errno_text(27)}", 27, hint="read a part of it")
        return b"".join(pieces)

    def write(self, data: bytes) -> int:
        """One ``write()``; the number of bytes it took."""
        piece = data[:_PIECE]
        buffer = self._user.put(piece, _BUFFER)
        return self._user.checked(self.path, "write", self.fd, buffer, len(piece))

    def write_all(self, data: bytes) -> None:
        """``write()`` until everything is written; an empty text is one write of nothing."""
        while True:
            count = self.write(data)
            data = data[count:]
            if not data:
                return
            if not count:
                raise GuestOSError(f"{self.path}: {errno_text(5)}", 5)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._user.checked(self.path, "lseek", self.fd, offset, whence)

    def ioctl(self, request: int, argument: int | bytes = 0) -> tuple[int, bytes]:
        """``ioctl``: its value, and the bytes of the argument afterwards (empty if it was a number)."""
        if isinstance(argument, int):
            return self._user.checked(self.path, "ioctl", self.fd, request, argument), b""
        buffer = self._user.put(argument, _BUFFER)
        value = self._user.checked(self.path, "ioctl", self.fd, request, buffer)
        return value, self._user.machine.cpu.read(buffer, len(argument))


class Files:
    """What a shell would do with ``cat``, ``ls`` and ``>``."""

    def __init__(self, user: UserSpace) -> None:
        self._user = user

    def open(self, path: str, flags: int = 0, mode: int = 0o644) -> OpenFile:
        """``open(2)`` with Linux' O_* flags as the kernel's architecture numbers them."""
        return OpenFile(self._user, path, flags, mode)

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read_all()

    def write(self, path: str, data: bytes) -> None:
        """As the shell's ``>``: the file is created or truncated where that means something."""
        with self.open(path, _O_WRONLY | _O_CREAT | _O_TRUNC) as file:
            file.write_all(data)

    def list(self, path: str) -> tuple[DirectoryEntry, ...]:
        """A directory's names, sorted, without ``.`` and ``..``."""
        found = []
        with self.open(path, self._user.calls.abi.open_directory) as directory:
            buffer = self._user.scratch + _BUFFER
            while count := self._user.checked(path, "getdents64", directory.fd, buffer, _PIECE):
                found.extend(_entries(self._user.machine.cpu.read(buffer, count)))
        return tuple(sorted((entry for entry in found if entry.name not in {".", ".."}), key=lambda e: e.name))


def _entries(raw: bytes) -> list[DirectoryEntry]:
    entries = []
    position = 0
    while position < len(raw):
        _inode, _offset, length, kind = struct.unpack_from("<QqHB", raw, position)
        name = raw[position + 19 : position + length].split(b"\0", 1)[0]
        entries.append(DirectoryEntry(name.decode("utf-8", "surrogateescape"), _TYPES.get(kind, "unknown")))
        position += length
    return entries
