"""tar archives, read strictly: every header is whole and its checksum right, and the archive ends as one ends.

:mod:`tarfile` takes a damaged header for the archive's end, calls itself for each long name, searches records of pax
in quadratic time (CVE-2024-6232) and skips what a size says, whatever it is; only its names of types are used here.

Formats: ustar, pax (POSIX.1-2008 "pax Interchange Format") and GNU tar's long names. Sparse files are "special".
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

from kodojo.errors import PackageError, decode
from kodojo.image.archive import CHUNK, Member, Readable, damaged, exactly
from kodojo.image.bounds import LONGEST_NAME, Account

__all__ = ["tar_members"]

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records, which are kept in memory
_MAXIMUM_EXTENSIONS = 16  # before one member; real archives have two or three

_Kind = Literal["file", "directory", "symlink", "hardlink", "special"]
_KINDS: dict[bytes, _Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
}
# What stands for a member's name, target or size where the header's own fields are too short.
_LONG_FIELDS = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_KEYWORDS = (b"path", b"linkpath", b"size")  # of pax records: what is looked at, and so all that is kept
_SPARSE = "GNU.sparse"
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# These have no content, whatever their size is said to be (POSIX: pax).
_WITHOUT_CONTENT = (
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
)  # fmt: skip


def tar_members(stream: Readable, account: Account) -> Iterator[Member]:
    """The members of an archive; what pads it after its end is read, too.

    :raises PackageError: it is damaged, ends without the block of zeroes that ends an archive, or is too much.
    """
    name = account.name
    shared: dict[str, str] = {}  # for all members that follow
    own: dict[str, str] = {}  # for the next one
    extensions = 0
    while any(block := exactly(stream, _BLOCK, name)):
        account.member()
        header = _decoded(block, name)
        extension = header.type in _LONG_FIELDS or header.type in _PAX or header.type == tarfile.XGLTYPE
        if extension and header.size > _LONGEST_EXTENSION:
            raise damaged(name, f"a header of type {header.type!r} and {header.size} bytes")
        if extension:
            extensions += 1
            if extensions > _MAXIMUM_EXTENSIONS:
                raise damaged(name, "too many headers before one member")
            data = exactly(stream, header.size + -header.size % _BLOCK, name)[: header.size]
            _extend(header.type, data, shared, own, name)
            continue
        yield from _member(stream, header, shared | own, name)
        own, extensions = {}, 0
    if own:
        raise damaged(name, "a long name without a member")
    while stream.read(CHUNK):
        pass


class _Header(NamedTuple):
    """What is looked at of a header. The name is that of the header's own fields."""

    type: bytes
    name: str
    target: str
    size: int
    mode: int


def _decoded(block: bytes, name: str) -> _Header:
    """Decode a block that is not zero.

    :raises PackageError: it is no header: its checksum, or a number in it, is wrong.
    """
    if not _is_checksum(block, _number(block[148:156], name)):
        raise damaged(name, "the checksum of a header is wrong")
    kind = block[156:157]
    path = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and kind not in tarfile.GNU_TYPES:
        path = prefix + b"/" + path
    target = block[157:257].partition(b"\0")[0]
    size, mode = _number(block[124:136], name), _number(block[100:108], name)
    return _Header(kind, decode(path), decode(target), size, mode)


def _is_checksum(block: bytes, number: int) -> bool:
    """Of all bytes, with blanks for the checksum itself; old writers took bytes for signed."""
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    if total == number:
        return True
    negative = sum(1 for byte in block[:148] + block[156:] if byte > 0x7F)
    return total - 256 * negative == number


def _number(field: bytes, name: str) -> int:
    """Octal digits, or a binary number of any size behind a byte of 0x80 (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise damaged(name, f"the number {digits!r} in a header")


def _extend(kind: bytes, data: bytes, shared: dict[str, str], own: dict[str, str], name: str) -> None:
    if kind in _LONG_FIELDS:
        own[_LONG_FIELDS[kind]] = decode(data.partition(b"\0")[0])
        return
    records = shared if kind == tarfile.XGLTYPE else own
    position = 0
    while position < len(data) and data[position]:
        digits = data[position : position + 20].partition(b" ")[0]
        end = position + int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[position + len(digits) + 1 : end - 1].partition(b"=")
        if not position < end <= len(data) or data[end - 1 : end] != b"\n" or not keyword or not equals:
            raise damaged(name, f"a pax record at byte {position} of its header")
        if keyword in _KEYWORDS:
            records[decode(keyword)] = decode(value)
        elif keyword.startswith(b"GNU.sparse."):
            records[_SPARSE] = "1"
        position = end


def _member(stream: Readable, header: _Header, extended: dict[str, str], name: str) -> Iterator[Member]:
    path = extended.get("path") or header.name
    digits = extended.get("size") or str(header.size)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise damaged(name, f"the size {digits!r} of {path!r}")
    size = 0 if header.type in _WITHOUT_CONTENT else int(digits)
    kind = _KINDS.get(header.type, "special")
    if header.type == tarfile.AREGTYPE and path.endswith("/"):  # a directory, before there was a type for it
        kind = "directory"
    if _SPARSE in extended:
        kind = "special"
    content = _Content(stream, size, name)
    target = extended.get("linkpath") or header.target
    if len(path) > LONGEST_NAME or len(target) > LONGEST_NAME:
        raise damaged(name, f"a name of {max(len(path), len(target))} characters")
    executable = bool(header.mode & stat.S_IXUSR)
    yield Member(path.rstrip("/") if kind == "directory" else path, kind, target, content.chunks(), executable)
    for _ in content.chunks():  # what nobody wanted
        pass
    exactly(stream, -size % _BLOCK, name)


class _Content:
    """The content of one member, which lies in the stream where it stands."""

    def __init__(self, stream: Readable, size: int, name: str) -> None:
        self._stream = stream
        self._left = size
        self._name = name

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            data = self._stream.read(min(self._left, CHUNK))
            if not data:
                raise PackageError(f"{self._name}: truncated", hint="fetch it again")
            self._left -= len(data)
            yield data
