"""A module's file in every state that it may be met in: packed in many ways, damaged in many ways."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable

import zstandard

__all__ = ["FORMATS", "files_of", "xz_as_kbuild"]

SIGNATURE = b"\x30\x82" + bytes(range(200)) + bytes(12) + b"~Module signature appended~\n"


def xz_as_kbuild(data: bytes) -> bytes:
    """``xz --check=crc32 --lzma2=dict=1MiB``."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def _xz_for_x86(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def _gzip_with_comment(data: bytes) -> bytes:
    packed = gzip.compress(data)
    return packed[:3] + b"\x10" + packed[4:10] + b"a comment\0" + packed[10:]


def _zstd_of_unknown_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def _zstd_with_checksum(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def _gzip_as_program(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile("module.ko", "wb", fileobj=buffer) as file:
        file.write(data)
    return buffer.getvalue()


FORMATS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (".ko", bytes),
    "gzip": (".ko.gz", gzip.compress),
    "gzip-name": (".ko.gz", _gzip_as_program),
    "gzip-comment": (".ko.gz", _gzip_with_comment),
    "xz-kbuild": (".ko.xz", xz_as_kbuild),
    "xz-crc64": (".ko.xz", lzma.compress),
    "xz-x86": (".ko.xz", _xz_for_x86),
    "zstd": (".ko.zst", zstandard.compress),
    "zstd-checksum": (".ko.zst", _zstd_with_checksum),
    "zstd-stream": (".ko.zst", _zstd_of_unknown_size),
    "bzip2": (".ko.bz2", bz2.compress),
    "lzma": (".ko.lzma", lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE)),
    "zlib": (".ko.zz", zlib.compress),
}
"""Name -> suffix, and what packs."""

_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "whole": bytes,
    "cut": lambda data: data[:-1],
    "cut-checksum": lambda data: data[:-5],
    "cut-half": lambda data: data[: len(data) // 2],
    "start": lambda data: data[:12],
    "magic": lambda data: data[:6],
    "garbage": lambda data: data + b"garbage behind",
    "signature": lambda data: data + SIGNATURE,
    "zeros-4": lambda data: data + bytes(4),
    "zeros-512": lambda data: data + bytes(512),
    "zeros-7": lambda data: data + bytes(7),
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x55]) + data[len(data) // 2 + 1 :]
    ),
}


def files_of(module: bytes) -> dict[str, bytes]:
    """Name of a file, of which the part up to the first dot is unique -> its content."""
    found = {}
    for form, (suffix, pack) in FORMATS.items():
        for damage, change in _DAMAGES.items():
            found[f"{form}-{damage}{suffix}"] = change(pack(module))
        half = len(module) // 2
        found[f"{form}-two{suffix}"] = pack(module[:half]) + pack(module[half:])
        found[f"{form}-apart{suffix}"] = pack(module[:half]) + bytes(8) + pack(module[half:])
        found[f"{form}-twice{suffix}"] = pack(module) + pack(module)
        found[f"{form}-mixed{suffix}"] = pack(module) + gzip.compress(module) + xz_as_kbuild(module)
        found[f"{form}-nothing{suffix}"] = pack(b"")
        found[f"{form}-short{suffix}"] = pack(module[:40])
        if suffix != ".ko":
            found[f"{form}-named-plain.ko"] = pack(module)
            found[f"plain-named-{form}{suffix}"] = module
    found |= {f"bytes-{size}.ko": bytes(range(size)) for size in (0, 1, 3, 5, 6, 63)}
    found["empty-xz.ko.xz"] = b""
    return found
