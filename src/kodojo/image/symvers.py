"""``Module.symvers``: what a kernel and the modules of its tree export, as its build wrote it down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, InputError, decode
from kodojo.image.exports import Export

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["parse_symvers", "read_symvers"]

_LARGEST = 32 << 20  # bytes; a distribution's has about 2 MiB
_MOST_LINES = 200_000  # a distribution's has about 30,000
_LONGEST_NAME = 512  # KSYM_NAME_LEN
_LONGEST_OWNER = 4096  # PATH_MAX
_KINDS = frozenset(
    {
        b"EXPORT_SYMBOL", b"EXPORT_SYMBOL_GPL", b"EXPORT_UNUSED_SYMBOL", b"EXPORT_UNUSED_SYMBOL_GPL",
        b"EXPORT_SYMBOL_GPL_FUTURE",
    }
)  # fmt: skip
_COPY_AGAIN = "copy the whole file again from where the kernel was built, or install the headers package again"


def read_symvers(path: Path) -> bytes:
    """Read a Module.symvers, compressed or not (``symvers.gz`` and the like).

    :raises InputError: it cannot be read.
    :raises ImageError: it is damaged, or larger than any kernel's.
    """
    from kodojo.image.compression import compression_of, decompress  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind = compression_of(data)
    if kind is not None:
        data = decompress(data, kind, _LARGEST, str(path))
    if len(data) > _LARGEST:
        raise ImageError(f"{path}: too large for a Module.symvers", hint=_COPY_AGAIN)
    return data


def parse_symvers(data: bytes, name: str = "Module.symvers") -> Iterator[Export]:
    """Parse as ``scripts/mod/modpost.c: read_dump`` does; of two lines about a symbol of one owner the first counts.

    Addresses are not known: they are 0. A CRC of 0 is none: builds without ``CONFIG_MODVERSIONS`` write that.

    :param name: what messages call the text.
    :raises ImageError: a line has another form.
    """
    seen: set[tuple[bytes, bytes]] = set()
    if data.count(b"\n") > _MOST_LINES:
        raise ImageError(f"{name}: more than {_MOST_LINES} lines; no kernel has so many exports", hint=_COPY_AGAIN)
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line:
            continue
        crc, symbol, owner, kind, namespace = _fields(line) or _refuse(name, number, line, data)
        if (symbol, owner) not in seen:
            seen.add((symbol, owner))
            yield Export(
                decode(symbol), 0, crc or None, kind.endswith(b"_GPL"), decode(namespace) or None, decode(owner)
            )


def _fields(line: bytes) -> tuple[int, bytes, bytes, bytes, bytes] | None:
    """CRC, symbol, owner, kind of export and namespace of a line; None if it is none."""
    fields = line.rstrip(b"\r").split(b"\t", 5)
    namespace = b""
    if len(fields) == 5 and fields[3] in _KINDS:  # from 5.6 on
        namespace = fields.pop()
    elif len(fields) == 5 and fields[4] in _KINDS:  # 5.4 and 5.5
        namespace = fields.pop(2)
    if len(fields) != 4 or fields[3] not in _KINDS or len(namespace) > _LONGEST_NAME:
        return None
    if not 0 < len(fields[1]) <= _LONGEST_NAME or not 0 < len(fields[2]) <= _LONGEST_OWNER:
        return None
    try:
        crc = int(fields[0], 16)
    except ValueError:
        return None
    return (crc, fields[1], fields[2], fields[3], namespace) if 0 <= crc < 1 << 32 else None


def _refuse(name: str, number: int, line: bytes, data: bytes) -> tuple[int, bytes, bytes, bytes, bytes]:
    last = not data.endswith(b"\n") and data.endswith(line)
    raise ImageError(
        f"{name}:{number}: {'cut off' if last else 'not a line of a Module.symvers'}: {decode(line[:80])!r}",
        hint=_COPY_AGAIN,
    )
