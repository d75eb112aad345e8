"""Decompressing a module as the kernel does it (``kernel/module/decompress.c``)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from kodojo.image.compression import MAGICS
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno, KernelErrno

if TYPE_CHECKING:
    from kodojo.errors import LoadError
    from kodojo.image.config import Config
    from kodojo.loader.target import Target

__all__ = ["kernel_compression", "module_decompress"]

ZSTD_LARGEST_WINDOW = 1 << 31
ZSTD_BLOCK = 128 << 10
ZSTD_STATUS = {"checksum": 22}  # a word of the library's text -> number of the kernel's; corruption is 20
HINT = "Compress it as the kernel's build does (xz --check=crc32 --lzma2=dict=1MiB), or let user space decompress it."
LIMIT = 1 << 28
"""Bytes that a module may grow to. The kernel has no limit but its memory: it dies of what does not fit."""


def kernel_compression(config: Config) -> str:
    """How the files are compressed that a kernel unpacks itself (``/sys/module/compression``); empty: it cannot."""
    if not config.enabled("MODULE_DECOMPRESS"):
        return ""
    for kind in ("xz", "zstd"):
        if config.enabled(f"MODULE_COMPRESS_{kind.upper()}"):
            return kind
    return "gzip"


def module_decompress(target: Target, data: bytes) -> bytes:
    """The image in a compressed file: by the one algorithm that the kernel was built with; it never guesses.

    :raises LoadError: after the kernel's line, if the file is damaged, or packed as the kernel cannot unpack it.
    :raises KernelErrno: EOPNOTSUPP where the kernel cannot do it, ENOMEM.
    """
    decode = _DECODERS.get(kernel_compression(target.image.config))
    if decode is None:
        raise KernelErrno(Errno.EOPNOTSUPP)
    try:
        return decode(target, data)
    except MemoryError:
        raise KernelErrno(Errno.ENOMEM) from None


def _fail(target: Target, text: str) -> LoadError:
    target.printk(3, text)
    return refuse("module", Errno.EINVAL, "bad-compression", f"the file cannot be decompressed: {text}", HINT)


def _xz(target: Target, data: bytes) -> bytes:
    from kodojo.loader.xz import XzError, xz_decompress  # noqa: PLC0415

    if not data.startswith(MAGICS["xz"]):
        raise _fail(target, "not an xz compressed module")

    def dictionary(size: int) -> None:
        try:
            target.vfree(target.vmalloc(size, warn=True))
        except KernelErrno:
            raise MemoryError from None

    try:
        return xz_decompress(data, target.image.config, LIMIT, dictionary)
    except XzError as error:
        raise _fail(target, f"decompression failed with status {error.status}") from None


def _gzip(target: Target, data: bytes) -> bytes:
    if len(data) < 10 or not data.startswith(MAGICS["gzip"] + b"\x08"):
        raise _fail(target, "not a gzip compressed module")
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    start = 10
    if data[3] & 8:  # a file name
        start = data.find(b"\0", 10) + 1
        if not start:
            raise _fail(target, "not a gzip compressed module")
    try:
        content = stream.decompress(data[start:], LIMIT + 1)
    except zlib.error:
        raise _fail(target, "decompression failed with status -3") from None
    if len(content) > LIMIT:
        raise MemoryError
    if not stream.eof:
        raise _fail(target, "decompression failed with status -5")
    return content


def _zstd(target: Target, data: bytes) -> bytes:
    import zstandard  # noqa: PLC0415

    if not data.startswith(MAGICS["zstd"]):
        raise _fail(target, "not a zstd compressed module")
    try:
        header = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError:
        raise _fail(target, "ZSTD-compressed data has an incomplete frame header") from None
    # The kernel compares with (1 << 31) as an int, which no size exceeds; its memory is the limit.
    workspace = header.window_size + 2 * min(header.window_size, ZSTD_BLOCK)
    target.vfree(target.vmalloc(workspace, warn=True))
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_LARGEST_WINDOW)
    try:
        with decompressor.stream_reader(data) as stream:
            content: bytes = stream.read(LIMIT + 1)  # as much as there is of a frame that is cut off
    except zstandard.ZstdError as error:
        status = next((number for word, number in ZSTD_STATUS.items() if word in str(error)), 20)
        raise _fail(target, f"ZSTD-decompression failed with status {status}") from None
    if len(content) > LIMIT:
        raise MemoryError
    return content


_DECODERS = {"xz": _xz, "zstd": _zstd, "gzip": _gzip}
