"""What is kept of a kernel's description: read, compared and parsed once, then opened in milliseconds.

The directory holds ``facts`` and two tables of exports: the kernel's, and those of the modules of its tree. It
belongs to the content of the description's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kodojo.errors import CorruptError, ImageError, InputError, MissingInformationError, encode
from kodojo.image.arrays import read_arrays, write_arrays
from kodojo.image.config import config_lines, parse_config
from kodojo.image.contradictions import contradictions
from kodojo.image.description import COMPLETE, LARGEST_TEXT, LARGEST_VMLINUX, DescriptionFiles, read_small
from kodojo.image.evidence import evidence
from kodojo.image.exports import VMLINUX, Exports
from kodojo.image.index import Shelf, data_directory, fact_arrays, keep, make_directory
from kodojo.image.release import Release, release_of
from kodojo.image.symvers import parse_symvers, read_symvers
from kodojo.image.vermagic import architecture_of, compose_vermagic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kodojo.image.arrays import Arrays
    from kodojo.image.config import Config

__all__ = ["make_export_tables", "open_described"]

_FORMAT = b"1"  # of the facts; to be raised whenever what they mean changes
_FACTS = frozenset(
    {"source", "release", "architecture", "vermagic", "config", "warnings", "present", "absent", "sources", "oids"}
)
_RANDSTRUCT = re.compile(rb'RANDSTRUCT_HASHED_SEED\s+"(\w+)"')

# Addresses are not known, but each export needs one of its own, where relocations reach it.
_ADDRESS = 0xFFFFFFFF81000000
_ADDRESS_STEP = 16


def open_described(files: DescriptionFiles, directory: Path | None) -> Shelf:
    """Open what is kept of a description, made if it is absent, damaged, or of other content.

    :param directory: as :func:`kodojo.image.index.open_index` has it.
    :raises InputError: a file cannot be read.
    :raises ImageError: a file is damaged.
    :raises StoreError: the index cannot be written.
    """
    parts = files.parts()
    if directory is None:
        root = data_directory() / "index"
        record = root / "by-path" / f"{zlib.crc32(encode(str(files.symvers))):08x}"
        source, note = _content(parts, record)
        directory = root / f"described-{source[:32]}"
    else:
        record = directory / "source"
        source, note = _content(parts, record)
    shelf = _read(directory, source)
    if shelf is None:
        _make(files, directory, source)
        shelf = _read(directory, source)
        if shelf is None:
            raise CorruptError(f"{directory}: cannot be read back", hint=f"remove it (rm -r {directory})")
    if note:
        keep(record, lambda file: file.write(note))
    return shelf


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
    tables = make_export_tables(files)
    exports, module_exports = tables["exports"], tables["module_exports"]
    lines = config_lines(read_small(files.config)) if files.config else b""
    generated = config_lines(read_small(files.auto_conf)) if files.auto_conf else b""
    config = parse_config((lines or generated).decode("utf-8", "replace"))
    release = release_of(files)
    architecture = architecture_of(config)
    found = evidence(files)
    warnings = contradictions(
        files, release, config, parse_config(generated.decode("utf-8", "replace")), exports, module_exports
    )
    facts = {
        "format": _FORMAT,
        "source": source.encode(),
        "release": encode(release.name),
        "architecture": architecture.name.encode() if architecture else b"",
        "vermagic": encode(_vermagic(files, release, config)),
        "config": lines or generated,
        "warnings": encode("\n".join(warnings)),
        "present": b"\0".join(found.present),
        "absent": b"\0".join(found.absent),
        "sources": found.sources,
        "oids": "\n".join(found.oids).encode(),
    }
    contents = {name: table.index_arrays() for name, table in tables.items()} | {"facts": fact_arrays(facts)}
    make_directory(
        directory,
        {name: partial(_write_arrays, arrays) for name, arrays in contents.items()},
        lambda: _read(directory, source) is not None,
    )


def _write_arrays(arrays: Arrays, file: BinaryIO) -> None:
    write_arrays(file, arrays)


def make_export_tables(files: DescriptionFiles) -> dict[str, Exports]:
    """Parse Module.symvers: ``exports`` of the kernel, ``module_exports`` of the modules of its tree.

    :raises InputError: it cannot be read.
    :raises ImageError: it is damaged.
    """
    entries = [
        replace(export, address=_ADDRESS + _ADDRESS_STEP * number)
        for number, export in enumerate(parse_symvers(read_symvers(files.symvers), str(files.symvers)))
    ]
    return {
        "exports": Exports.of(export for export in entries if export.owner == VMLINUX),
        "module_exports": Exports.of(export for export in entries if export.owner != VMLINUX),
    }


def _vermagic(files: DescriptionFiles, release: Release, config: Config) -> str:
    """Composed from what the build generated; empty if a part of it is not known."""
    seed = _RANDSTRUCT.search(read_small(files.directory / "include/generated/randstruct_hash.h"))
    if not release.certain or not config:
        return ""
    try:
        return compose_vermagic(release.name, config, seed[1].decode() if seed else "")
    except MissingInformationError:
        return ""
