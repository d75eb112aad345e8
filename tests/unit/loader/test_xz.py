from __future__ import annotations

import lzma
import random
import struct
import zlib

import pytest

from kodojo.image.config import parse_config
from kodojo.loader.xz import XzError, XzStatus, xz_decompress

CONTENT = random.Random(3).randbytes(300) + b"text" * 500 + bytes(1000)
LZMA2 = {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 16}
X86 = {"id": lzma.FILTER_X86}
DELTA = {"id": lzma.FILTER_DELTA, "dist": 1}
KERNEL = parse_config("CONFIG_XZ_DEC_X86=y\n# CONFIG_XZ_DEC_ARM is not set\n")
LIMIT = 1 << 20


def packed(*filters: dict[str, int], check: int = lzma.CHECK_CRC32) -> bytes:
    return lzma.compress(CONTENT, check=check, filters=[*filters, LZMA2])


def unpacked(data: bytes, limit: int = LIMIT) -> bytes:
    return xz_decompress(data, KERNEL, limit, lambda _size: None)


def status(data: bytes) -> XzStatus:
    with pytest.raises(XzError) as caught:
        unpacked(data)
    return caught.value.status


def with_header(data: bytes, place: int, value: int) -> bytes:
    """The block's header changed, its checksum right."""
    changed = bytearray(data)
    changed[place] = value
    end = 12 + (data[12] + 1) * 4
    changed[end - 4 : end] = struct.pack("<I", zlib.crc32(changed[12 : end - 4]))
    return bytes(changed)


@pytest.mark.parametrize("data", [packed(), packed(check=lzma.CHECK_NONE), packed(X86), packed() + b"more"])
def test_what_the_kernel_takes(data):
    """No check or CRC32, a filter that it has, and whatever follows the first stream."""
    assert unpacked(data) == CONTENT


def test_stream_of_nothing():
    """A stream need not have blocks."""
    assert unpacked(lzma.compress(b"", check=lzma.CHECK_CRC32)) == b""


@pytest.mark.parametrize(
    "data",
    [
        packed(check=lzma.CHECK_CRC64),
        packed(check=lzma.CHECK_SHA256),
        packed(DELTA),
        packed({"id": lzma.FILTER_ARM}),
        packed(X86, DELTA),
        with_header(packed(), 16, 40),  # a dictionary of 4 GiB
        with_header(packed(), 19, 1),  # padding
    ],
)
def test_what_the_kernel_has_no_code_for(data):
    """Other checks, filters that it lacks, more than two filters, and what is reserved."""
    assert status(data) is XzStatus.OPTIONS_ERROR


@pytest.mark.parametrize("length", [6, 11, 12, 13, 23, 24, 25, 100, -40, -13, -1])
def test_cut_off(length):
    """A stream that ends too early leaves the decoder content but unfinished."""
    assert status(packed()[:length]) is XzStatus.OK


@pytest.mark.parametrize("place", [8, 20, 31, 200, -1, -6, -10, -12, -15, -20])
def test_damaged(place):
    """A bit that is wrong is found by a checksum, or by what is compared with it."""
    data = bytearray(packed())
    data[place] ^= 4
    assert status(bytes(data)) is XzStatus.DATA_ERROR


def test_dictionary_that_cannot_be_had():
    """The dictionary's size is what the header says; if there is no memory, that is the status."""

    def refuse(size: int) -> None:
        sizes.append(size)
        raise MemoryError

    sizes: list[int] = []
    with pytest.raises(XzError) as caught:
        xz_decompress(packed(), KERNEL, LIMIT, refuse)
    assert (caught.value.status, sizes) == (XzStatus.MEM_ERROR, [1 << 16])


def test_limit():
    """More content than the limit is never produced."""
    assert unpacked(packed(), len(CONTENT)) == CONTENT
    with pytest.raises(MemoryError):
        unpacked(packed(), len(CONTENT) - 1)


def test_first_byte_of_a_chunk():
    """The kernel's range coder does not look at its first byte."""
    data = bytearray(packed(check=lzma.CHECK_NONE))
    assert data[24] >= 0xC0  # an LZMA chunk, five bytes of sizes and one of properties before its data
    data[30] ^= 0xFF
    assert unpacked(bytes(data)) == CONTENT
