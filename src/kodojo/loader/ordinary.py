"""Compressed files of which it is plain that every decoder makes the same of them.

Nearly all modules of a distribution are such files. That can be seen without decompressing them a second time; what
is not plain goes to the exact decoder (:mod:`kodojo.loader.decompress`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kodojo.image.payload import Payload

__all__ = ["is_ordinary", "is_whole_frame", "makes_no_difference"]

_LARGEST_WINDOW = 8 << 20  # bytes; any kernel has these
_FILTER_LZMA2 = 0x21
_XZ_HEADER = 12  # bytes of a stream's header, and of its footer
_DICTIONARY = 22  # LZMA2's property for 8 MiB
_CRC32 = 1
_GZIP_NAME, _GZIP_TEXT = 8, 1


def makes_no_difference(payload: Payload) -> bool:
    """Whether no version of kmod and no kernel makes anything else of a file than was made of it here."""
    return is_ordinary(payload) and (payload.compression != "zstd" or is_whole_frame(payload))


def is_ordinary(payload: Payload) -> bool:
    """Whether the kernel's own decoder is sure to make the same of a file as kmod made of it."""
    if payload.problem or payload.streams != 1 or payload.ignored or payload.cut:
        return False
    return _RULES[payload.compression](payload)


def is_whole_frame(payload: Payload) -> bool:
    """Whether a zstd file is what kmod 34 takes: one whole frame with the size of its content in the header."""
    if payload.streams != 1 or payload.ignored:
        return False
    import zstandard  # noqa: PLC0415

    try:
        header = zstandard.get_frame_parameters(payload.packed)
    except zstandard.ZstdError:  # it ends within its header
        return False
    return bool(header.content_size == len(payload.content) > 0) and _is_complete(payload.packed, header.has_checksum)


def _is_complete(frame: bytes, has_checksum: bool) -> bool:
    """Whether a frame has come to its end, by the sizes of its blocks."""
    import zstandard  # noqa: PLC0415

    position = zstandard.frame_header_size(frame)
    last = 0
    while not last:
        if position + 3 > len(frame):
            return False
        block = int.from_bytes(frame[position : position + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == 1 else size)
    return position + 4 * has_checksum == len(frame)


def _xz(payload: Payload) -> bool:
    """One stream without padding, one block, LZMA2 alone with a small dictionary, checked by CRC32 or not at all."""
    data = payload.packed
    index = len(data) - _XZ_HEADER - 4 * (int.from_bytes(data[-8:-4], "little") + 1)
    flags = data[_XZ_HEADER + 1]
    place = _XZ_HEADER + 2
    for bit in (0x40, 0x80):  # the block's sizes, which were right, or kmod would not have taken it
        if flags & bit:
            while data[place] & 0x80:
                place += 1
            place += 1
    return (
        data[7] <= _CRC32
        and not flags & ~0xC0  # no filter before LZMA2
        and data[place : place + 2] == bytes((_FILTER_LZMA2, 1))
        and data[place + 2] <= _DICTIONARY
        and data[-2:] == b"YZ"
        and data[index : index + 2] == b"\0\1"  # an index with one record
    )


def _zstd(payload: Payload) -> bool:
    import zstandard  # noqa: PLC0415

    return is_whole_frame(payload) and bool(
        zstandard.get_frame_parameters(payload.packed).window_size <= _LARGEST_WINDOW
    )


def _gzip(payload: Payload) -> bool:
    """Nothing in the header that the kernel does not know. It does not look at the check at the end."""
    return not payload.packed[3] & ~(_GZIP_NAME | _GZIP_TEXT)


_RULES = {"xz": _xz, "zstd": _zstd, "gzip": _gzip}
