"""Compression: how data is packed, by its first bytes, and decoders that never exceed a given size.

:func:`decompress` takes a whole file, of which what stands behind the end of the stream is ignored: kernels have a
length there. Archives (:mod:`kodojo.image.archive`) and modules (:mod:`kodojo.image.payload`) have rules of their own
for what follows a stream, and share the decoders.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from kodojo.errors import ImageError

__all__ = ["MAGICS", "Decoder", "Lz4Blocks", "compression_of", "decoder", "decompress", "find_compressed"]

MAGICS = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "lzma": b"\x5d\x00\x00",
    "xz": b"\xfd7zXZ\x00",
    "lzo": b"\x89LZO\x00",
    "lz4": b"\x02\x21\x4c\x18",
    "zstd": b"\x28\xb5\x2f\xfd",
}
"""Compression -> the bytes with which its files begin."""

_LZ4_BLOCK = 8 << 20  # of the legacy frame, decompressed
_LZ4_LARGEST = _LZ4_BLOCK + _LZ4_BLOCK // 255 + 16  # of one that does not get smaller (LZ4_compressBound)
_ZSTD_BITE = 1 << 10  # a block of four bytes can stand for 128 KiB
_BITE = 1 << 18
_MAX_DICTIONARY = 256 << 20  # kernels are compressed with xz dictionaries of up to 128 MiB
_MAX_WINDOW = 1 << 27  # the kernel is compressed with zstd --ultra -22


class _TooLarge(Exception):  # noqa: N818
    pass


def compression_of(data: bytes | memoryview) -> str | None:
    """Return how the data is compressed, by its first bytes: ``gzip``, ``xz``, ...; None if it is not."""
    head = bytes(data[:8])
    return next((kind for kind, magic in MAGICS.items() if head.startswith(magic)), None)


def find_compressed(data: bytes | memoryview) -> Iterator[tuple[int, str]]:
    """Where something compressed may begin, and how it may be compressed."""
    starts = {magic + b"\x08" if kind == "gzip" else magic: kind for kind, magic in MAGICS.items()}
    for found in re.finditer(b"|".join(map(re.escape, starts)), data):
        yield found.start(), starts[found[0]]


def decompress(data: bytes | memoryview, kind: str, limit: int, name: str) -> bytes:
    """Decompress one stream.

    :param kind: what :func:`compression_of` said.
    :param limit: the largest size that the result may have, in bytes.
    :param name: what messages call the data.
    :raises ImageError: damaged, truncated, larger than ``limit``, or no decoder for this kind.
    """
    if kind not in _DECODERS and kind != "lz4":
        raise ImageError(
            f"{name}: compressed with {kind}, for which kodojo has no decoder",
            hint=f"decompress it first (for a kernel: extract-vmlinux {name} > vmlinux)",
        )
    try:
        return _lz4(data, limit) if kind == "lz4" else _stream(decoder(kind), memoryview(data), limit)
    except _TooLarge:
        raise ImageError(f"{name}: refused: more than {limit >> 20} MiB when decompressed") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decompress it") from None
    except Exception as error:  # each library has exceptions of its own
        raise ImageError(
            f"{name}: the {kind} data is damaged or truncated: {error}", hint="get the file again"
        ) from error


class Decoder(Protocol):
    """What decodes one stream, piece by piece (as :class:`lzma.LZMADecompressor` does).

    ``eof``: the stream has ended, and ``unused_data`` is what was given beyond its end. ``needs_input``: nothing more
    comes out before more is put in. What is wrong with the data is an exception of the library.
    """

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """About ``max_length`` bytes at most: zstd may give 128 KiB more for each KiB of its input."""
        ...


def decoder(kind: str) -> Decoder:
    """A decoder for one stream of gzip, bzip2, lzma, xz or zstd, with a bound to the memory that it takes."""
    return _DECODERS[kind]()


def _stream(worker: Decoder, data: memoryview, limit: int) -> bytes:
    parts = []
    size = 0
    position = 0
    while not worker.eof:
        piece = data[position : position + _BITE] if worker.needs_input else b""
        if worker.needs_input and not piece:
            raise EOFError("the end is missing")
        position += len(piece)
        parts.append(worker.decompress(piece, limit + 1 - size))
        size += len(parts[-1])
        if size > limit:
            raise _TooLarge
    return b"".join(parts)


class _Gunzip:
    """zlib's decompressor as a :class:`Decoder`."""

    def __init__(self) -> None:
        import zlib  # noqa: PLC0415

        self._worker = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._worker.eof

    @property
    def needs_input(self) -> bool:
        return not self._worker.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._worker.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        tail = self._worker.unconsumed_tail
        return self._worker.decompress(b"".join((tail, data)) if tail else data, max_length)


class _Unzstd:
    """zstandard's likewise, which knows no bounds: it gets small bites, and the output is counted after each."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415

        self._worker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        self._input, self._position = memoryview(b""), 0

    @property
    def eof(self) -> bool:
        return self._worker.eof

    @property
    def needs_input(self) -> bool:
        return self._position == len(self._input)

    @property
    def unused_data(self) -> bytes:
        return self._worker.unused_data + self._input[self._position :]

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        if data:
            rest = bytes(self._input[self._position :])
            self._input, self._position = memoryview(rest + bytes(data) if rest else data), 0
        produced: list[bytes] = []
        size = 0
        while not self.needs_input and not self.eof and size < max_length:
            bite = self._input[self._position : self._position + _ZSTD_BITE]
            self._position += len(bite)
            produced.append(self._worker.decompress(bite))
            size += len(produced[-1])
        return b"".join(produced)


def _bunzip2() -> Decoder:
    import bz2  # noqa: PLC0415

    return bz2.BZ2Decompressor()


def _unxz() -> Decoder:
    import lzma  # noqa: PLC0415

    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MAX_DICTIONARY)


_DECODERS: dict[str, Callable[[], Decoder]] = {
    "gzip": _Gunzip,
    "bzip2": _bunzip2,
    "lzma": _unxz,
    "xz": _unxz,
    "zstd": _Unzstd,
}


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Lz4Blocks:
    """The legacy frame of ``lz4 -l``, decoded block by block: blocks with their compressed size in front.

    It ends with what is no size of a block: the kernel's build puts the length of the whole behind the last one, and
    archives are padded with zeroes (``lib/decompress_unlz4.c``).

    :param start: what has been read of it, four bytes of magic at least.
    """

    def __init__(self, source: _Readable, start: bytes) -> None:
        self.unread = 0
        self._source = source
        self._size = start[4:]
        self._output, self._position = b"", 0
        self._blocks = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end. ValueError or EOFError if they are damaged."""
        while self._position == len(self._output) and not self._ended:
            self._output, self._position = self.block(), 0
        start, self._position = self._position, min(self._position + size, len(self._output))
        return self._output[start : self._position]

    def block(self) -> bytes:
        """The next block; empty at the end. Raises likewise."""
        word = self._size + self._take(4 - len(self._size))
        self._size = b""
        size = int.from_bytes(word, "little")
        is_size = len(word) == 4 and 0 < size <= _LZ4_LARGEST
        content = self._take(size) if is_size else b""
        if not self._blocks and not is_size:
            raise ValueError(f"a block of {size} bytes") if len(word) == 4 else EOFError("the end is missing")
        if not content:
            self._ended = True
            self.unread = len(word)
            return b""
        if len(content) < size:
            raise EOFError("the end is missing")
        self._blocks += 1
        try:
            return _lz4_block(content)
        except IndexError:
            raise EOFError("a block ends in the middle") from None

    def _take(self, size: int) -> bytes:
        parts = []
        while size and (data := self._source.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _lz4(data: bytes | memoryview, limit: int) -> bytes:
    blocks = Lz4Blocks(io.BytesIO(data[4:]), bytes(data[:4]))
    out = bytearray()
    while block := blocks.block():
        out += block
        if len(out) > limit:
            raise _TooLarge
    return bytes(out)


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
