"""Decompressing a module as the kernel does it (``kernel/module/decompress.c``), for a dry load."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from kodojo.loader.target import Errno, KernelErrno

if TYPE_CHECKING:
    from kodojo.loader.target import Target

__all__ = ["module_decompress"]

XZ_MAGIC = b"\xfd7zXZ\0"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_DATA_ERROR = 7  # XZ_BUF_ERROR is 8: include/linux/xz.h


def module_decompress(target: Target, data: bytes, limit: int) -> bytes:
    """The image in a compressed file; KernelErrno, after the kernel's line, if it cannot be had.

    Only the one algorithm that the kernel was built with; it never guesses.

    :param limit: bytes; a larger image does not fit into the kernel's memory (ENOMEM).
    """
    config = target.image.config
    if not config.enabled("MODULE_DECOMPRESS"):
        raise KernelErrno(Errno.EOPNOTSUPP)
    if config.enabled("MODULE_COMPRESS_XZ"):
        return _xz(target, data, limit)
    if config.enabled("MODULE_COMPRESS_ZSTD"):
        return _zstd(target, data, limit)
    return _gzip(target, data, limit)


def _fail(target: Target, text: str) -> KernelErrno:
    target.printk(3, text)
    return KernelErrno(Errno.EINVAL)


def _xz(target: Target, data: bytes, limit: int) -> bytes:
    import lzma  # noqa: PLC0415

    if not data.startswith(XZ_MAGIC):
        raise _fail(target, "not an xz compressed module")
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limit)
    try:
        content = stream.decompress(data, limit + 1)
    except (lzma.LZMAError, EOFError):
        raise _fail(target, f"decompression failed with status {XZ_DATA_ERROR}") from None
    if len(content) > limit:
        raise KernelErrno(Errno.ENOMEM)
    if not stream.eof:
        raise _fail(target, f"decompression failed with status {XZ_DATA_ERROR + 1}")
    return content


def _gzip(target: Target, data: bytes, limit: int) -> bytes:
    if len(data) < 10 or not data.startswith(b"\x1f\x8b\x08"):
        raise _fail(target, "not a gzip compressed module")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    start = 10
    if data[3] & 8:  # a file name
        start = data.find(b"\0", 10) + 1
        if not start:
            raise _fail(target, "not a gzip compressed module")
    try:
        content = stream.decompress(data[start:], limit + 1)
    except zlib.error:
        raise _fail(target, "decompression failed with status -3") from None
    if len(content) > limit:
        raise KernelErrno(Errno.ENOMEM)
    if not stream.eof:
        raise _fail(target, "decompression failed with status -5")
    return content


def _zstd(target: Target, data: bytes, limit: int) -> bytes:
    import zstandard  # noqa: PLC0415

    if not data.startswith(ZSTD_MAGIC):
        raise _fail(target, "not a zstd compressed module")
    decompressor = zstandard.ZstdDecompressor(max_window_size=limit)
    try:
        with decompressor.stream_reader(data) as stream:
            content: bytes = stream.read(limit + 1)
    except zstandard.ZstdError:
        raise _fail(target, "ZSTD-decompression failed with status 20") from None
    if len(content) > limit:
        raise KernelErrno(Errno.ENOMEM)
    return content
