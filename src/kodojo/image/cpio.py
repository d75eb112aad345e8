"""The members of cpio archives: the "new ASCII" kind (``070701``), which initramfs images and packages have.

The format is described in the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``. An
initramfs (:func:`initramfs_members`) is any number of such archives one after the other, with zeroes between
them, each compressed or not, in whichever way: microcode stands in front uncompressed.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from kodojo.errors import PackageError
from kodojo.image.archive import CHUNK, Member, Prefixed, Readable, Window, damaged, decompressed, exactly
from kodojo.image.bounds import LONGEST_NAME, Account
from kodojo.image.compression import compression_of

__all__ = ["MAGICS", "Entry", "cpio_members", "initramfs_members"]

MAGICS = (b"070701", b"070702")
_NUMBERED = b"07070X"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says. ``links`` counts the names of one file; only its last entry has the data."""

    name: str
    mode: int
    size: int
    file: tuple[int, ...]
    links: int
    chunks: Iterator[bytes]


def cpio_members(
    stream: Readable, account: Account, numbered: Callable[[int], Entry] | None = None
) -> Iterator[Member]:
    """The members of the archive that begins where the stream is; it is read up to its trailer.

    :param numbered: what rpm's variant for large files says of the file with a number; None: there is none.
    :raises PackageError: it is truncated, damaged, or too much.
    """
    return _gather_links(_entries(stream, account, numbered), account)


def initramfs_members(file: BinaryIO, account: Account) -> Iterator[Member]:
    """The members of all archives of an initramfs, in the order in which the kernel unpacks them.

    :param file: at any position; it has to be able to seek.
    :raises PackageError: it is truncated or damaged, compressed in a way that nobody can read here, or too much.
    """
    name = account.name
    size = account.size_of(file)
    position = 0
    while (position := _after_zeroes(file, position)) < size:
        file.seek(position)
        start = file.read(8)
        file.seek(position)
        window = Window(file, size - position, account)
        if start.startswith(MAGICS):
            yield from cpio_members(window, account)
            position += window.taken
        elif compression_of(start) is not None:
            stream = decompressed(window)
            yield from _archives(stream, account)
            position += stream.end
            account.unread(window.taken - stream.end)
        else:
            raise PackageError(f"{name}: damaged: no archive at byte {position}", hint="make it again")


def _after_zeroes(file: BinaryIO, position: int) -> int:
    file.seek(position)
    while (data := file.read(CHUNK)) and not data.strip(b"\0"):
        position += len(data)
    return position + len(data) - len(data.lstrip(b"\0"))


def _archives(stream: Readable, account: Account) -> Iterator[Member]:
    stream = Prefixed(stream)
    while data := stream.read(CHUNK):
        if data := data.lstrip(b"\0"):
            stream.give_back(data)
            yield from cpio_members(stream, account)


def _gather_links(entries: Iterator[Entry], account: Account) -> Iterator[Member]:
    """Entries as members: the names of a file that come before its data become hard links to it."""
    waiting: dict[tuple[int, ...], list[str]] = {}
    for entry in entries:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFDIR:
            yield Member(entry.name, "directory")
        elif kind == stat.S_IFLNK:
            target = b"".join(entry.chunks).decode("utf-8", "surrogateescape")
            yield Member(entry.name, "symlink", target)
        elif kind != stat.S_IFREG:
            yield Member(entry.name, "special")
        elif entry.links > 1 and entry.size == 0:
            account.remember(entry.name)
            waiting.setdefault(entry.file, []).append(entry.name)
        else:
            yield Member(entry.name, "file", chunks=entry.chunks, executable=bool(entry.mode & stat.S_IXUSR))
            for name in waiting.pop(entry.file, ()) if entry.links > 1 else ():
                yield Member(name, "hardlink", entry.name)
    for names in waiting.values():  # empty files with several names
        for name in names:
            yield Member(name, "file")


class _Cursor:
    """A stream with a position, which cpio's padding to four bytes needs."""

    def __init__(self, stream: Readable, name: str) -> None:
        self.name = name
        self._stream = stream
        self._position = 0

    def take(self, size: int) -> bytes:
        self._position += size
        return exactly(self._stream, size, self.name)

    def pad(self) -> None:
        self.take(-self._position % 4)

    def chunks(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.take(min(size, CHUNK))
            size -= len(data)
            yield data


def _entries(stream: Readable, account: Account, numbered: Callable[[int], Entry] | None) -> Iterator[Entry]:
    name = account.name
    cursor = _Cursor(stream, name)
    while True:
        account.member()
        magic = cursor.take(6)
        if magic == _NUMBERED and numbered is not None:
            entry = numbered(_hexadecimal(cursor, 1)[0])
            cursor.pad()
        elif magic in MAGICS:
            entry = _new_ascii_entry(cursor)
        else:
            raise damaged(name, "no cpio header where one belongs")
        if entry.name == "TRAILER!!!":
            return
        if stat.S_ISLNK(entry.mode) and entry.size > LONGEST_NAME:
            raise damaged(name, f"{entry.name!r} is a link of {entry.size} bytes")
        content = cursor.chunks(entry.size)
        yield Entry(entry.name, entry.mode, entry.size, entry.file, entry.links, content)
        for _ in content:  # what the caller has not read
            pass
        cursor.pad()


def _hexadecimal(cursor: _Cursor, count: int) -> tuple[int, ...]:
    digits = cursor.take(8 * count)
    try:
        return struct.unpack(f">{count}I", bytes.fromhex(digits.decode("ascii")))
    except (ValueError, struct.error):
        raise damaged(cursor.name, f"{digits[:8]!r} in a cpio header") from None


def _new_ascii_entry(cursor: _Cursor) -> Entry:
    inode, mode, _, _, links, _, size, major, minor, _, _, length, _ = _hexadecimal(cursor, 13)
    if not 0 < length <= LONGEST_NAME:
        raise damaged(cursor.name, f"a member's name of {length} bytes")
    name = cursor.take(length).rstrip(b"\0").decode("utf-8", "surrogateescape")
    cursor.pad()
    return Entry(name, mode, size, (major, minor, inode), links, iter(()))
