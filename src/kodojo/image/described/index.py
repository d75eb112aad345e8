"""What is kept of a kernel's description: read, compared and parsed once, then opened in milliseconds.

The directory holds ``facts`` and two tables of exports: the kernel's, and those of the modules of its tree. It
belongs to the content of the description's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kodojo.errors import CorruptError, ImageError, InputError, encode
from kodojo.image.arrays import read_arrays, write_arrays
from kodojo.image.described.files import COMPLETE, LARGEST_TEXT, LARGEST_VMLINUX, DescriptionFiles
from kodojo.image.index import Shelf, fact_arrays, make_directory, open_shelf

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kodojo.image.arrays import Arrays

__all__ = ["open_described"]

_FORMAT = b"3"  # of the facts; to be raised whenever what they mean changes
_FACTS = frozenset(
    {"source", "release", "architecture", "vermagic", "config", "warnings", "present", "absent", "sources", "oids"}
)


def open_described(files: DescriptionFiles, directory: Path | None) -> Shelf:
    """Open what is kept of a description, made if it is absent, damaged, or of other content.

    :param directory: as :func:`kodojo.image.index.open_index` has it.
    :raises InputError: a file cannot be read.
    :raises ImageError: a file is damaged.
    :raises StoreError: the index cannot be written.
    """
    parts = files.parts()
    return open_shelf(
        encode(str(files.symvers)),
        directory,
        "described-",
        lambda record: _content(parts, record),
        _read,
        lambda place, source: _make(files, place, source),
    )


def _content(parts: Mapping[str, Path], record: Path) -> tuple[str, bytes]:
    """The SHA-256 of all files, from the record of the last time if none of them has changed; a new record."""
    keys = []
    try:
        for name, path in parts.items():
            status = path.stat()
            if status.st_size > (LARGEST_VMLINUX if name == "vmlinux" else LARGEST_TEXT):
                raise ImageError(f"{path}: too large to be what its name says", hint=COMPLETE)
            keys.append(f"{path} {status.st_size} {status.st_dev}:{status.st_ino} {status.st_mtime_ns}")
        key = hashlib.sha256(encode("\0".join(keys))).hexdigest()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            noted = record.read_text("ascii").split()
            if len(noted) == 2 and noted[0] == key and re.fullmatch(r"[0-9a-f]{64}", noted[1]):
                return noted[1], b""
        digest = hashlib.sha256()
        for name, path in parts.items():
            with path.open("rb") as file:
                digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest(), f"{key} {digest.hexdigest()}".encode()


def _read(directory: Path, source: str) -> Shelf | None:
    try:
        facts = {name: bytes(array) for name, array in read_arrays(directory / "facts").items()}
    except (OSError, CorruptError):
        return None
    if facts.get("format") != _FORMAT or not facts.keys() >= _FACTS or facts["source"] != source.encode():
        return None
    return Shelf(directory, facts)


def _make(files: DescriptionFiles, directory: Path, source: str) -> None:
    from kodojo.image.described.reading import describe  # noqa: PLC0415  (once for each description)

    facts, tables = describe(files)
    facts |= {"format": _FORMAT, "source": source.encode()}
    contents = {name: table.index_arrays() for name, table in tables.items()} | {"facts": fact_arrays(facts)}
    make_directory(
        directory,
        {name: partial(_write_arrays, arrays) for name, arrays in contents.items()},
        lambda: _read(directory, source) is not None,
    )


def _write_arrays(arrays: Arrays, file: BinaryIO) -> None:
    write_arrays(file, arrays)
