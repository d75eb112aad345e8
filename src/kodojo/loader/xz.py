"""The kernel's XZ decoder (``lib/xz``): what it takes, what it refuses, and its name for what is wrong.

It takes less than ``xz`` makes: no integrity check but CRC32, at most one filter before LZMA2, and only filters that
the kernel was built with. The container is read here, in the kernel's order; what is inside an LZMA2 block is left
to liblzma.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from kodojo.errors import UnmodelledError

if TYPE_CHECKING:
    from kodojo.image.config import Config

__all__ = ["XzError", "XzStatus", "xz_decompress"]

FOOTER_MAGIC = b"YZ"
STREAM_HEADER_SIZE = 12
CHECK_NONE, CHECK_CRC32 = 0, 1
FILTER_LZMA2 = 0x21
LARGEST_DICTIONARY = 39  # 3 GiB, as the filter's property has it
VLI_BYTES = 9
RANGE_CODER_SIZE = 5  # bytes with which an LZMA chunk begins
LOOKAHEAD = 20  # bytes at the end of an LZMA chunk that is cut off which the kernel does not decode

BCJ_FILTERS = {
    4: "X86", 5: "POWERPC", 6: "IA64", 7: "ARM", 8: "ARMTHUMB", 9: "SPARC", 10: "ARM64", 11: "RISCV",
}  # fmt: skip
"""Filter number -> end of the option CONFIG_XZ_DEC_*."""


class XzStatus(IntEnum):
    """``enum xz_ret`` (include/linux/xz.h), which the kernel prints as a number."""

    OK = 0
    MEM_ERROR = 3
    OPTIONS_ERROR = 6
    DATA_ERROR = 7


class XzError(Exception):
    """The kernel's decoder stops. OK where the input has come to its end too early.

    :param status: what it stops with.
    """

    def __init__(self, status: XzStatus) -> None:
        super().__init__(status)
        self.status = status


def xz_decompress(data: bytes, config: Config, limit: int, allocate: Callable[[int], None]) -> bytes:
    """The content of the first stream in ``data``; what follows it is not looked at.

    :param config: of the kernel: which filters it has.
    :param limit: MemoryError if the content is longer than that many bytes.
    :param allocate: called with the size of each dictionary that is larger than those before; may raise MemoryError.
    :raises XzError: the kernel would stop.
    """
    source = _Input(data)
    check = _stream_header(source)
    content = bytearray()
    blocks: list[tuple[int, int]] = []
    dictionary = 0
    while source.peek():
        start = source.position
        block = _block_header(source, config)
        if block.dictionary > dictionary:
            dictionary = block.dictionary
            _allocate(allocate, dictionary)
        _padding_of_header(block)
        piece = _block(source, block, limit - len(content))
        unpadded = source.position - start
        _zeros(source, -(source.position - block.start) % 4)
        if check == CHECK_CRC32 and source.take(4) != struct.pack("<I", zlib.crc32(piece)):
            raise XzError(XzStatus.DATA_ERROR)
        blocks.append((unpadded + 4 * check, len(piece)))
        content += piece
    size = _index(source, blocks)
    _footer(source, size, check)
    return bytes(content)


def _allocate(allocate: Callable[[int], None], size: int) -> None:
    try:
        allocate(size)
    except MemoryError:
        raise XzError(XzStatus.MEM_ERROR) from None


class _Input:
    """The compressed bytes, and how far they have been read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def peek(self) -> int:
        if self.position >= len(self.data):
            raise XzError(XzStatus.OK)
        return self.data[self.position]

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise XzError(XzStatus.OK)
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def vli(self) -> int:
        """A number of variable length (``dec_vli``)."""
        value = 0
        for index in range(VLI_BYTES):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << (7 * index)
            if not byte & 0x80:
                if not byte and index:
                    break
                return value
        raise XzError(XzStatus.DATA_ERROR)


def _zeros(source: _Input, count: int) -> None:
    for _ in range(count):
        if source.take(1) != b"\0":
            raise XzError(XzStatus.DATA_ERROR)


def _stream_header(source: _Input) -> int:
    """The kind of integrity check (``dec_stream_header``; the magic has been looked at)."""
    header = source.take(STREAM_HEADER_SIZE)
    if struct.pack("<I", zlib.crc32(header[6:8])) != header[8:]:
        raise XzError(XzStatus.DATA_ERROR)
    if header[6] or header[7] > CHECK_CRC32:
        raise XzError(XzStatus.OPTIONS_ERROR)
    return header[7]


@dataclass(slots=True)
class _Block:
    """A block's header: sizes (None where not told), filter before LZMA2 (0: none), where its data starts."""

    compressed: int | None
    uncompressed: int | None
    bcj: int
    dictionary: int
    padding: bytes
    start: int


def _block_header(source: _Input, config: Config) -> _Block:
    """The header up to its padding (``dec_block_header``)."""
    raw = source.take((source.peek() + 1) * 4)
    if struct.pack("<I", zlib.crc32(raw[:-4])) != raw[-4:]:
        raise XzError(XzStatus.DATA_ERROR)
    flags = raw[1]
    if flags & 0x3E:
        raise XzError(XzStatus.OPTIONS_ERROR)
    fields = _Input(raw[2:-4])
    try:
        compressed = fields.vli() if flags & 0x40 else None
        uncompressed = fields.vli() if flags & 0x80 else None
        bcj = _bcj(fields, config) if flags & 1 else 0
        dictionary = _lzma2(fields)
    except XzError as error:
        raise XzError(error.status or XzStatus.DATA_ERROR) from None  # it ends within a header that is whole
    padding = fields.data[fields.position :]
    return _Block(compressed, uncompressed, bcj, dictionary, padding, source.position)


def _bcj(fields: _Input, config: Config) -> int:
    """A filter for some processor's code (``xz_dec_bcj_reset``)."""
    try:
        number, size = fields.take(2)
    except XzError:
        raise XzError(XzStatus.OPTIONS_ERROR) from None
    if number not in BCJ_FILTERS or not config.enabled(f"XZ_DEC_{BCJ_FILTERS[number]}") or size:
        raise XzError(XzStatus.OPTIONS_ERROR)
    return number


def _lzma2(fields: _Input) -> int:
    """Bytes of the dictionary of the filter LZMA2, which must be the last (``xz_dec_lzma2_reset``)."""
    if tuple(fields.take(2)) != (FILTER_LZMA2, 1):
        raise XzError(XzStatus.OPTIONS_ERROR)
    (properties,) = fields.take(1)
    if properties > LARGEST_DICTIONARY:
        raise XzError(XzStatus.OPTIONS_ERROR)
    return (2 + (properties & 1)) << (properties // 2 + 11)


def _padding_of_header(block: _Block) -> None:
    if any(block.padding):
        raise XzError(XzStatus.OPTIONS_ERROR)


def _block(source: _Input, block: _Block, limit: int) -> bytes:
    """The content of a block; ``source`` stands behind its end marker then (``dec_block``)."""
    chunks = _Chunks(source)
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(block))
    try:
        content = stream.decompress(chunks.read(), limit + 1)
    except lzma.LZMAError:
        raise XzError(XzStatus.DATA_ERROR) from None
    if len(content) > limit:
        raise MemoryError
    whole = chunks.status is None and stream.eof
    for told, found in ((block.compressed, source.position - block.start), (block.uncompressed, len(content))):
        if told is not None and (found > told or (whole and found != told)):
            raise XzError(XzStatus.DATA_ERROR)
    if not whole:
        raise XzError(XzStatus.DATA_ERROR if chunks.status is None else chunks.status)
    return content


def _filters(block: _Block) -> list[dict[str, int]]:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": max(block.dictionary, 4096)}]
    if block.bcj:
        if block.bcj > lzma.FILTER_SPARC:
            raise UnmodelledError(f"Python's lzma has no filter {BCJ_FILTERS[block.bcj]}")
        filters.insert(0, {"id": block.bcj})
    return filters


class _Chunks:
    """The chunks of an LZMA2 block, up to its end marker (``xz_dec_lzma2_run``).

    :attr status: what the walk ended with before the marker.
    """

    def __init__(self, source: _Input) -> None:
        self._source = source
        self.status: XzStatus | None = None
        self._unread = 0

    def read(self) -> bytes:
        """The block's bytes, each chunk's first one made zero: the kernel does not look at it, liblzma does."""
        start = self._source.position
        places: list[int] = []
        try:
            while self._chunk(places):
                pass
        except XzError as error:
            self.status = error.status
            if error.status is XzStatus.OK:
                self._source.position = len(self._source.data)
        data = bytearray(self._source.data[start : self._source.position - self._unread])
        for place in places:
            data[place - start : place - start + 1] = bytes(place - start < len(data))
        return bytes(data)

    def _chunk(self, places: list[int]) -> bool:
        source = self._source
        (control,) = source.take(1)
        if not control:
            return False
        if control >= 0x80:
            source.take(2)
            (size,) = struct.unpack(">H", source.take(2))
            if control >= 0xC0:
                source.take(1)
            if size + 1 < RANGE_CODER_SIZE:
                raise XzError(XzStatus.DATA_ERROR)
            places.append(source.position)
            left = len(source.data) - source.position
            if left <= size:
                self._unread = min(left, LOOKAHEAD)
        elif control > 2:
            raise XzError(XzStatus.DATA_ERROR)
        else:
            (size,) = struct.unpack(">H", source.take(2))
        source.take(size + 1)
        return True


def _index(source: _Input, blocks: list[tuple[int, int]]) -> int:
    """The index must list the blocks; its size in bytes, padding included (``dec_index``)."""
    start = source.position
    source.take(1)
    if source.vli() != len(blocks):
        raise XzError(XzStatus.DATA_ERROR)
    listed = [(source.vli(), source.vli()) for _ in blocks]
    _zeros(source, -(source.position - start) % 4)
    if listed != blocks:
        raise XzError(XzStatus.DATA_ERROR)
    size = source.position - start
    if source.take(4) != struct.pack("<I", zlib.crc32(source.data[start : start + size])):
        raise XzError(XzStatus.DATA_ERROR)
    return size


def _footer(source: _Input, index_size: int, check: int) -> None:
    """The end of the stream (``dec_stream_footer``)."""
    footer = source.take(STREAM_HEADER_SIZE)
    fields = struct.pack("<IBB", index_size // 4, 0, check)
    if footer != struct.pack("<I", zlib.crc32(footer[4:10])) + fields + FOOTER_MAGIC:
        raise XzError(XzStatus.DATA_ERROR)
