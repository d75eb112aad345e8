"""Decompression of a whole file into memory, never beyond a given size.

What stands behind the end of the stream is ignored: kernels have a length there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from kodojo.errors import ImageError

__all__ = ["compression_of", "decompress", "end_of_lz4", "find_compressed"]

_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO\x00": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_LZ4_BLOCK = 8 << 20  # of the legacy frame, decompressed
_LZ4_LARGEST = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16  # of one that does not get smaller (LZ4_compressBound)
_ZSTD_BITE = 1 << 10
_MAX_DICTIONARY = 256 << 20  # kernels are compressed with xz dictionaries of up to 128 MiB
_MAX_WINDOW = 1 << 27  # the kernel is compressed with zstd --ultra -22


class _TooLarge(Exception):  # noqa: N818
    pass


def compression_of(data: bytes | memoryview) -> str | None:
    """Return how the data is compressed, by its first bytes: ``gzip``, ``xz``, ...; None if it is not."""
    head = bytes(data[:8])
    return next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)


def find_compressed(data: bytes | memoryview) -> Iterator[tuple[int, str]]:
    """Where something compressed may begin, and how it may be compressed."""
    starts = {magic + b"\x08" if kind == "gzip" else magic: kind for magic, kind in _MAGICS.items()}
    for found in re.finditer(b"|".join(map(re.escape, starts)), data):
        yield found.start(), starts[found[0]]


def decompress(data: bytes | memoryview, kind: str, limit: int, name: str) -> bytes:
    """Decompress one stream.

    :param kind: what :func:`compression_of` said.
    :param limit: the largest size that the result may have, in bytes.
    :param name: what messages call the data.
    :raises ImageError: damaged, truncated, larger than ``limit``, or no decoder for this kind.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise ImageError(
            f"{name}: compressed with {kind}, for which kodojo has no decoder",
            hint=f"decompress it first (for a kernel: extract-vmlinux {name} > vmlinux)",
        )
    try:
        return decoder(data, limit)
    except _TooLarge:
        raise ImageError(f"{name}: refused: more than {limit >> 20} MiB when decompressed") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decompress it") from None
    except Exception as error:  # each library has exceptions of its own
        raise ImageError(
            f"{name}: the {kind} data is damaged or truncated: {error}", hint="get the file again"
        ) from error


def _stream(decompressor: Any, data: bytes | memoryview, limit: int) -> bytes:
    result: bytes = decompressor.decompress(data, limit + 1)
    if len(result) > limit:
        raise _TooLarge
    if not decompressor.eof:
        raise EOFError("the end is missing")
    return result


def _gzip(data: bytes | memoryview, limit: int) -> bytes:
    import zlib  # noqa: PLC0415

    return _stream(zlib.decompressobj(31), data, limit)


def _bzip2(data: bytes | memoryview, limit: int) -> bytes:
    import bz2  # noqa: PLC0415

    return _stream(bz2.BZ2Decompressor(), data, limit)


def _xz(data: bytes | memoryview, limit: int) -> bytes:
    import lzma  # noqa: PLC0415

    return _stream(lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_DICTIONARY), data, limit)


def _zstd(data: bytes | memoryview, limit: int) -> bytes:
    import zstandard  # noqa: PLC0415

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    view = memoryview(data)
    parts = []
    size = 0
    # In small bites: a block of four bytes can stand for 128 KiB, and the output is checked after each bite.
    for start in range(0, len(view), _ZSTD_BITE):
        parts.append(decompressor.decompress(view[start : start + _ZSTD_BITE]))
        size += len(parts[-1])
        if size > limit:
            raise _TooLarge
        if decompressor.eof:
            return b"".join(parts)
    raise EOFError("the end is missing")


def _lz4(data: bytes | memoryview, limit: int) -> bytes:
    """The legacy frame of ``lz4 -l``: blocks with their compressed size in front."""
    source = bytes(data)
    out = bytearray()
    position = 4
    while position + 4 <= len(source):
        (size,) = struct.unpack_from("<I", source, position)
        position += 4
        if position == len(source) or (out and size > _LZ4_LARGEST):
            break  # the kernel's build puts the length of the whole behind the last block
        if size > len(source) - position:
            raise EOFError("the end is missing")
        out += _lz4_block(source[position : position + size])
        position += size
        if len(out) > limit:
            raise _TooLarge
    return bytes(out)


def end_of_lz4(data: bytes | memoryview) -> int:
    """Where the blocks of a legacy frame end: with what has no size of a block in front, or at the end of all."""
    position = 4
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        if size > _LZ4_LARGEST:
            return position
        position += 4 + size
    return len(data)


def _lz4_block(block: bytes) -> bytes:
    out = bytearray()
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        length = token >> 4
        if length == 15:
            length, position = _lz4_length(block, position, length)
        if length > end - position:
            raise EOFError("literals reach beyond the block")
        out += block[position : position + length]
        position += length
        if position == end:
            break
        distance = block[position] | block[position + 1] << 8
        position += 2
        length = token & 15
        if length == 15:
            length, position = _lz4_length(block, position, length)
        length += 4
        start = len(out) - distance
        if start < 0 or not distance or len(out) + length > _LZ4_BLOCK:
            raise ValueError("a match reaches outside the block")
        if distance >= length:
            out += out[start : start + length]
        else:
            out += (out[start:] * (length // distance + 1))[:length]
    return bytes(out)


def _lz4_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    while True:
        more = block[position]
        position += 1
        length += more
        if more != 255:
            return length, position


_DECODERS: dict[str, Callable[[bytes | memoryview, int], bytes]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "lzma": _xz,
    "xz": _xz,
    "lz4": _lz4,
    "zstd": _zstd,
}
