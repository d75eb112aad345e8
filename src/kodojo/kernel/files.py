"""Files of the guest, through its own VFS: procfs, sysfs, devices, whatever a module makes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from kodojo.errors import DamagedMemoryError, GuestOSError, InputError, decode, encode
from kodojo.kernel.bounds import at_most, damaged
from kodojo.kernel.user import SCRATCH_SIZE, UserSpace, errno_text

__all__ = ["DirectoryEntry", "FileStatus", "Files", "OpenFile", "mount_arguments"]

_O_WRONLY, _O_CREAT, _O_TRUNC, _O_APPEND = 0o1, 0o100, 0o1000, 0o2000
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_REMOVEDIR = -100, 0x100, 0x200
_ENOENT, _EEXIST, _ENOTDIR, _EINVAL, _EFBIG, _EIO = 2, 17, 20, 22, 27, 5
_STATX_BASIC_STATS = 0x7FF
_STATX_SIZE = 0x100
CLOCK_REALTIME, CLOCK_BOOTTIME = 0, 7
_PAGE = 1 << 12
_BUFFER = 1 << 12  # after the page that holds the path
_PIECE = SCRATCH_SIZE // 2 - _BUFFER
_READ_LIMIT = 1 << 28
_DIRECTORY_LIMIT = 1 << 24
_DIRENT = struct.Struct("<QqHB")  # include/linux/dirent.h: struct linux_dirent64, without the name
_TYPES = {
    1: "fifo",
    2: "character device",
    4: "directory",
    6: "block device",
    8: "file",
    10: "link",
    12: "socket",
}
_NODES = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}  # as mknod(1) names them
_MOUNT_FLAGS = {
    "ro": (1, True), "rw": (1, False), "nosuid": (2, True), "suid": (2, False), "nodev": (4, True), "dev": (4, False),
    "noexec": (8, True), "exec": (8, False), "sync": (16, True), "async": (16, False), "remount": (32, True),
    "dirsync": (128, True), "noatime": (1024, True), "atime": (1024, False), "nodiratime": (2048, True),
    "diratime": (2048, False), "bind": (4096, True), "move": (8192, True), "rbind": (4096 | 16384, True),
    "silent": (1 << 15, True), "relatime": (1 << 21, True), "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True), "lazytime": (1 << 25, True), "defaults": (0, True),
}  # fmt: skip
"""Options of mount(8) that are flags of mount(2) (include/uapi/linux/mount.h): the bits, and whether they are set."""
_WITHOUT_TYPE = 32 | 4096 | 8192  # remount, bind, move


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory; ``kind`` is what ``d_type`` says, in words."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What ``statx(2)`` knows of a file.

    :param kind: in the words of :class:`DirectoryEntry`. :param mode: permissions, with set-uid, set-gid and sticky.
    :param size: bytes. :param blocks: of 512 bytes. :param major: of a device, else 0; ``minor`` likewise.
    :param modified: seconds since 1970 on the guest's clock.
    """

    kind: str
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    blocks: int
    major: int
    minor: int
    modified: float

    @classmethod
    def unpack(cls, raw: bytes) -> FileStatus:
        """Take a ``struct statx`` apart (include/uapi/linux/stat.h)."""
        links, uid, gid, mode = struct.unpack_from("<IIIH", raw, 16)
        size, blocks = struct.unpack_from("<QQ", raw, 40)
        seconds, nanoseconds = struct.unpack_from("<qI", raw, 112)
        major, minor = struct.unpack_from("<II", raw, 128)
        kind = _TYPES.get(mode >> 12, "unknown")
        return cls(kind, mode & 0o7777, links, uid, gid, size, blocks, major, minor, seconds + nanoseconds / 1e9)


class OpenFile:
    """A descriptor of PID 1, for use in ``with``; errors are GuestOSError that name the path."""

    def __init__(self, user: UserSpace, path: str, flags: int, mode: int = 0o644) -> None:
        self._user = user
        self.path = path
        self.fd = user.checked(path, "openat", _AT_FDCWD, user.path(path), flags, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._user.calls.stopped is None:
            self._user.syscall("close", self.fd)

    def read(self, size: int = _PIECE) -> bytes:
        """One ``read()`` of at most ``size`` bytes, however many those are."""
        with self._buffer(size) as buffer:
            count = self._user.count(self.path, "read", size, self.fd, buffer, size)
            return self._user.machine.cpu.read(buffer, count)

    @contextmanager
    def _buffer(self, size: int) -> Iterator[int]:
        """Memory for one system call."""
        if size <= _PIECE:
            yield self._user.scratch + _BUFFER
            return
        with self._user.memory(bytes(size)) as address:
            yield address

    def pieces(self, size: int | None = None) -> Iterator[bytes]:
        """``read()`` until the end, or until there are ``size`` bytes, one piece after the other.

        :raises GuestOSError: the error of ``read()``; EFBIG if there is no end in sight.
        """
        left = _READ_LIMIT if size is None else min(size, _READ_LIMIT)
        while left and (piece := self.read(min(left, _PIECE))):
            yield piece
            left -= len(piece)
        if not left and (size is None or size > _READ_LIMIT):
            raise GuestOSError(f"{self.path}: {errno_text(_EFBIG)}", _EFBIG, hint="read a part of it")

    def read_all(self) -> bytes:
        """``read()`` until the end. Raises as :meth:`pieces`."""
        return b"".join(self.pieces())

    def write(self, data: bytes) -> int:
        """One ``write()`` of all of it; the number of bytes it took."""
        with self._buffer(len(data)) as buffer:
            self._user.machine.cpu.write(buffer, data)
            return self._user.count(self.path, "write", len(data), self.fd, buffer, len(data))

    def write_all(self, data: bytes) -> None:
        """``write()`` until everything is written: all at once, and what that did not take in pieces."""
        done, most = 0, len(data)
        while True:
            count = self.write(data[done : done + most])
            done += count
            if done >= len(data):
                return
            if not count:
                raise GuestOSError(f"{self.path}: {errno_text(_EIO)}", _EIO)
            most = max(count, _PIECE)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._user.checked(self.path, "lseek", self.fd, offset, whence)

    def ioctl(self, request: int, argument: int | bytes = 0) -> tuple[int, bytes]:
        """``ioctl``: its value, and the bytes of the argument afterwards (empty if it was a number)."""
        if isinstance(argument, int):
            return self._user.checked(self.path, "ioctl", self.fd, request, argument), b""
        with self._buffer(len(argument)) as buffer:
            self._user.machine.cpu.write(buffer, argument)
            value = self._user.checked(self.path, "ioctl", self.fd, request, buffer)
            return value, self._user.machine.cpu.read(buffer, len(argument))


class Files:
    """What a shell would do with ``cat``, ``ls`` and ``>``."""

    def __init__(self, user: UserSpace) -> None:
        self._user = user

    def open(self, path: str, flags: int = 0, mode: int = 0o644) -> OpenFile:
        """``open(2)`` with Linux' O_* flags as the kernel's architecture numbers them."""
        return OpenFile(self._user, path, flags, mode)

    def read(self, path: str, size: int | None = None) -> bytes:
        """The whole content, or at most ``size`` bytes of it."""
        with self.open(path) as file:
            return b"".join(file.pieces(size))

    def write(self, path: str, data: bytes, *, append: bool = False) -> None:
        """As the shell's ``>`` or ``>>``: the file is created, and truncated or not, where that means something."""
        with self.open(path, _O_WRONLY | _O_CREAT | (_O_APPEND if append else _O_TRUNC)) as file:
            file.write_all(data)

    def list(self, path: str) -> tuple[DirectoryEntry, ...]:
        """A directory's names, sorted, without ``.`` and ``..``.

        :raises GuestOSError: an error of ``getdents64()``, or an answer that is none: ``found`` has what came before.
        """
        found: list[DirectoryEntry] = []
        with self.open(path, self._user.calls.abi.open_directory) as directory:
            try:
                for raw in self._directory_pieces(directory):
                    found.extend(_entries(raw))
            except (GuestOSError, DamagedMemoryError) as error:
                errno = error.errno if isinstance(error, GuestOSError) else _EIO
                message = error.message if isinstance(error, GuestOSError) else f"{path}: {error.message}"
                raise GuestOSError(message, errno, hint=error.hint, found=_sorted(found)) from error
        return _sorted(found)

    def _directory_pieces(self, directory: OpenFile) -> Iterator[bytes]:
        """What each ``getdents64()`` answers."""
        user, buffer = self._user, self._user.scratch + _BUFFER
        total = 0
        while count := user.count(directory.path, "getdents64", _PIECE, directory.fd, buffer, _PIECE):
            total = at_most(total + count, _DIRECTORY_LIMIT, "bytes of a directory")
            yield user.machine.cpu.read(buffer, count)

    # -- what files are -----------------------------------------------------------------------------------
    def status(self, path: str, *, follow: bool = True) -> FileStatus:
        """``statx(2)``. :param follow: a link stands for what it points to."""
        user = self._user
        buffer = user.scratch + _BUFFER
        flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
        user.checked(path, "statx", _AT_FDCWD, user.path(path), flags, _STATX_BASIC_STATS, buffer)
        return FileStatus.unpack(user.machine.cpu.read(buffer, _STATX_SIZE))

    def exists(self, path: str) -> bool:
        """Whether a path leads to something; False for a link that leads nowhere."""
        try:
            self.status(path)
        except GuestOSError as error:
            if error.errno in (_ENOENT, _ENOTDIR):
                return False
            raise
        return True

    def link_target(self, path: str) -> str:
        """``readlink(2)``."""
        user = self._user
        buffer = user.scratch + _BUFFER
        count = user.count(path, "readlinkat", _PAGE, _AT_FDCWD, user.path(path), buffer, _PAGE)
        return decode(user.machine.cpu.read(buffer, count))

    def clock(self, number: int = CLOCK_REALTIME) -> float:
        """``clock_gettime(2)`` in seconds: CLOCK_REALTIME counts since 1970, CLOCK_BOOTTIME since the boot."""
        buffer = self._user.scratch + _BUFFER
        self._user.checked("clock", "clock_gettime", number, buffer)
        seconds, nanoseconds = struct.unpack("<qq", self._user.machine.cpu.read(buffer, 16))
        return float(seconds + nanoseconds / 1e9)

    # -- making and removing ------------------------------------------------------------------------------
    def make_directory(self, path: str, mode: int = 0o777, *, parents: bool = False) -> None:
        """``mkdirat(2)``; the process's umask (022) counts.

        :param parents: make what is missing above it, too, and do not mind if it is there, as ``mkdir -p``.
        """
        user = self._user
        if parents:
            parts = path.rstrip("/").split("/")
            for end in range(1, len(parts)):
                above = "/".join(parts[:end])
                if above and not self.exists(above):
                    user.checked(above, "mkdirat", _AT_FDCWD, user.path(above), 0o777)
        try:
            user.checked(path, "mkdirat", _AT_FDCWD, user.path(path), mode)
        except GuestOSError as error:
            if not (parents and error.errno == _EEXIST and self.status(path).kind == "directory"):
                raise

    def make_node(self, path: str, kind: str, major: int = 0, minor: int = 0, mode: int = 0o666) -> None:
        """``mknodat(2)``; the process's umask (022) counts.

        :param kind: ``c`` (or ``u``) a character device, ``b`` a block device, ``p`` a fifo.
        """
        if kind not in _NODES:
            raise InputError(f"{kind!r}: no kind of device file", hint="the kinds are c, b and p")
        device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12  # include/linux/kdev_t.h: new_encode_dev
        user = self._user
        user.checked(path, "mknodat", _AT_FDCWD, user.path(path), _NODES[kind] | mode, device)

    def change_mode(self, path: str, mode: int) -> None:
        """``fchmodat(2)``: permissions, with set-uid, set-gid and sticky."""
        self._user.checked(path, "fchmodat", _AT_FDCWD, self._user.path(path), mode)

    def remove(self, path: str, *, directory: bool = False) -> None:
        """``unlinkat(2)`` of a file, or of an empty directory."""
        flags = _AT_REMOVEDIR if directory else 0
        self._user.checked(path, "unlinkat", _AT_FDCWD, self._user.path(path), flags)

    # -- mounts ---------------------------------------------------------------------------------------------
    def mount(self, source: str, target: str, filesystem: str | None = None, options: str = "") -> None:
        """Mount a file system; the options are those of ``mount -o``.

        :param filesystem: None: those of ``/proc/filesystems`` that want a device are tried, one after the other.
        """
        flags, data = mount_arguments(options)
        if filesystem is not None or flags & _WITHOUT_TYPE:
            self._mount(source, target, filesystem or "none", flags, data)
            return
        refused = GuestOSError(f"{target}: {errno_text(_EINVAL)}", _EINVAL)
        for line in decode(self.read("/proc/filesystems")).splitlines():
            if line.startswith("nodev"):
                continue
            try:
                self._mount(source, target, line.strip(), flags, data)
            except GuestOSError as error:
                if error.errno != _EINVAL:
                    raise
                refused = error
            else:
                return
        raise refused

    def _mount(self, source: str, target: str, filesystem: str, flags: int, data: str) -> None:
        user = self._user
        texts = (source, target, filesystem, data)
        if any(len(encode(text)) >= _PAGE or "\0" in text for text in texts):
            raise GuestOSError(f"{target}: {errno_text(_EINVAL)}", _EINVAL)
        where = [user.put(encode(text) + b"\0", number * _PAGE) for number, text in enumerate(texts)]
        user.checked(target, "mount", where[0], where[1], where[2], flags, where[3])

    def unmount(self, target: str, flags: int = 0) -> None:
        """``umount2(2)``. :param flags: 1 (force), 2 (detach), 4 (expire), 8 (do not follow a link)."""
        self._user.checked(target, "umount2", self._user.path(target), flags)


def mount_arguments(options: str) -> tuple[int, str]:
    """The flags and the file system's own options that a list like ``ro,noexec,data=journal`` stands for."""
    flags = 0
    rest = []
    for word in options.split(","):
        if word in _MOUNT_FLAGS:
            bits, wanted = _MOUNT_FLAGS[word]
            flags = flags | bits if wanted else flags & ~bits
        elif word:
            rest.append(word)
    return flags, ",".join(rest)


def _sorted(entries: list[DirectoryEntry]) -> tuple[DirectoryEntry, ...]:
    return tuple(sorted((entry for entry in entries if entry.name not in {".", ".."}), key=lambda e: e.name))


def _entries(raw: bytes) -> Iterator[DirectoryEntry]:
    """What is in the answer of ``getdents64()``. Raises DamagedMemoryError where it has no whole entry."""
    position = 0
    while position < len(raw):
        left = len(raw) - position
        length = int.from_bytes(raw[position + 16 : position + 18], "little")
        if not _DIRENT.size < length <= left:
            raise damaged(f"an entry of {length} bytes in a directory, where {left} are left")
        _inode, _offset, _length, kind = _DIRENT.unpack_from(raw, position)
        name = decode(raw[position + _DIRENT.size : position + length].split(b"\0", 1)[0])
        yield DirectoryEntry(name, _TYPES.get(kind, "unknown"))
        position += length
