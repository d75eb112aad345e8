"""What is kept of an image so that its second opening takes milliseconds.

A directory holds the decompressed ``vmlinux``, ``facts`` about it, and ``kallsyms`` and ``btf``, which are
made when they are first asked for. All are mapped. The directory belongs to the content of one ``vmlinuz``;
whatever in it is absent or damaged is made anew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from kodojo.errors import CorruptError, ImageError, InputError, StoreError
from kodojo.image.arrays import read_arrays, write_arrays
from kodojo.image.elf import ElfFile

# What only writing needs is imported there: it takes longer to import than an index takes to open.
if TYPE_CHECKING:
    from kodojo.image.arrays import Arrays

__all__ = ["Index", "Shelf", "data_directory", "fact_arrays", "keep", "make_directory", "open_index", "open_shelf"]

_FORMAT = b"6"  # of the facts; to be raised whenever what they mean changes
_FACTS = frozenset({"source", "size", "identity", "release", "banner", "vermagic", "build_id", "setup_header"})
_BANNER = re.compile(rb"Linux version (\d[\w.+~-]*) [^\0\n]*\n")
_LARGEST_FILE = 1 << 30
_NT_GNU_BUILD_ID = 3


S = TypeVar("S", bound="Shelf")


@dataclass(frozen=True)
class Shelf:
    """A directory of the index, and the facts that were written into it when it was made."""

    directory: Path
    facts: dict[str, bytes]

    def arrays(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays kept under a name, made and (if possible) kept if they are absent or damaged."""
        path = self.directory / name
        try:
            return read_arrays(path)
        except (OSError, CorruptError):
            made = make()
            keep(path, lambda file: write_arrays(file, made))
            return made

    def forget(self, name: str) -> None:
        """Remove arrays that turned out to be useless."""
        (self.directory / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Index(Shelf):
    """An open index of a kernel.

    The facts: ``release``, ``banner``, ``vermagic``, ``build_id``, ``identity``, ...

    :param vmlinux: the mapped file.
    """

    vmlinux: mmap.mmap


def data_directory() -> Path:
    """Where images and what is known of them live: ``$KODOJO_STORE``, else ``$XDG_DATA_HOME/kodojo``."""
    if store := os.environ.get("KODOJO_STORE"):
        return Path(store).absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    if data.startswith("/"):  # the XDG specification has relative ones ignored
        return Path(data, "kodojo")
    try:
        return Path.home() / ".local/share/kodojo"
    except RuntimeError:
        raise InputError("this user has no home directory", hint="set KODOJO_STORE to a directory") from None


def open_index(vmlinuz: Path, directory: Path | None) -> Index:
    """Open the index of a kernel, made if it is absent or damaged or belongs to other content.

    :param directory: where it is kept; it is created, and belongs to the index alone. None: in
        :func:`data_directory`, by content.
    :raises InputError: ``vmlinuz`` cannot be read.
    :raises ImageError: it is no kernel that kodojo can use.
    :raises StoreError: the index cannot be written.
    """
    return open_shelf(
        os.fsencode(vmlinuz.absolute()),
        directory,
        "",
        lambda record: _content_hash(vmlinuz, record),
        _read,
        lambda place, source: _make(vmlinuz, place, source),
    )


def open_shelf(
    key: bytes,
    directory: Path | None,
    prefix: str,
    content_hash: Callable[[Path], tuple[str, bytes]],
    read: Callable[[Path, str], S | None],
    make: Callable[[Path, str], None],
) -> S:
    """Open a directory of the index, made if it is absent, damaged, or of other content.

    :param key: names what it is about, for the record of what its content was the last time.
    :param directory: where it is kept; None: in :func:`data_directory`, by content.
    :param prefix: of its name there.
    :param content_hash: given the record: the hash of the content, and a new record, empty if the old one is right.
    :param read: given directory and hash: what is there, None if it is not of that content. :param make: likewise.
    """
    if directory is None:
        root = data_directory() / "index"
        record = root / "by-path" / f"{zlib.crc32(key):08x}"
        source, note = content_hash(record)
        directory = root / f"{prefix}{source[:32]}"
    else:
        record = directory / "source"
        source, note = content_hash(record)
    shelf = read(directory, source)
    if shelf is None:
        make(directory, source)
        shelf = read(directory, source)
        if shelf is None:
            raise CorruptError(f"{directory}: cannot be read back", hint=f"remove it (rm -r {directory})")
    if note:
        keep(record, lambda file: file.write(note))
    return shelf


def keep(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write what saves time later; where that cannot be written, time is not saved."""
    from kodojo.durable import write_atomically  # noqa: PLC0415

    with contextlib.suppress(StoreError):
        write_atomically(path, write)


def _content_hash(vmlinuz: Path, record: Path) -> tuple[str, bytes]:
    """Return the SHA-256 of a file, from a record of the last time if size, inode and time are the same.

    The second value is what should be recorded; empty if that is what the record says.
    """
    try:
        status = vmlinuz.stat()
        if status.st_size > _LARGEST_FILE:
            raise InputError(f"{vmlinuz}: too large for a kernel", hint="give a vmlinuz")
        key = f"{status.st_size} {status.st_dev}:{status.st_ino} {status.st_mtime_ns} "
        with contextlib.suppress(OSError, UnicodeDecodeError):
            noted = record.read_text("ascii")
            if noted.startswith(key) and re.fullmatch(r"[0-9a-f]{64}", noted[len(key) :]):
                return noted[len(key) :], b""
        import hashlib  # noqa: PLC0415

        with vmlinuz.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{vmlinuz}: cannot be read: {error.strerror or error}") from error
    return digest, f"{key}{digest}".encode()


def _read(directory: Path, source: str) -> Index | None:
    try:
        facts = {name: bytes(array) for name, array in read_arrays(directory / "facts").items()}
        if facts.get("format") != _FORMAT or not facts.keys() >= _FACTS or facts["source"] != source.encode():
            return None
        with (directory / "vmlinux").open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, CorruptError, ValueError):  # an empty file cannot be mapped
        return None
    return Index(directory, facts, mapping) if facts["size"] == b"%d" % len(mapping) else None


def _make(vmlinuz: Path, directory: Path, source: str) -> None:
    from kodojo.image.vmlinuz import extract  # noqa: PLC0415

    with vmlinuz.open("rb") as file:
        kernel = extract(file.read(), str(vmlinuz))
    facts = _facts(kernel.elf, str(vmlinuz))
    facts |= {"source": source.encode(), "setup_header": kernel.setup_header}
    files: dict[str, Callable[[BinaryIO], object]] = {
        "vmlinux": lambda file: file.write(kernel.elf),
        "facts": lambda file: write_arrays(file, fact_arrays(facts)),
    }
    make_directory(directory, files, lambda: _read(directory, source) is not None)


def fact_arrays(facts: Mapping[str, bytes]) -> Arrays:
    """Facts as they are written."""
    return {name: np.frombuffer(value, np.uint8) for name, value in facts.items()}


def make_directory(
    directory: Path, files: Mapping[str, Callable[[BinaryIO], object]], there: Callable[[], bool]
) -> None:
    """Write a directory of the index as a whole, unless it is there by then: another process may be faster.

    :raises StoreError: it cannot be written.
    """
    from kodojo.durable import disk_error, part_directory  # noqa: PLC0415

    try:
        with part_directory(directory) as temporary:
            for name, write in files.items():
                _write(temporary / name, write)
            if not there():
                _put_in_place(temporary, directory)
    except OSError as error:
        raise disk_error(directory, error) from error


def _put_in_place(temporary: Path, directory: Path) -> None:
    """Rename a complete directory to its place; what is there is damaged or of other content, and goes."""
    import tempfile  # noqa: PLC0415

    for _ in range(10):  # other processes may be doing the same
        if directory.exists():
            with (
                tempfile.TemporaryDirectory(
                    prefix=f".{directory.name}.",
                    suffix=".old",
                    dir=directory.parent,
                    ignore_cleanup_errors=True,
                ) as old,
                contextlib.suppress(FileNotFoundError),
            ):
                directory.rename(Path(old) / "index")
        try:
            temporary.rename(directory)
        except OSError:
            if not directory.exists():
                raise
        else:
            return


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _facts(elf: bytes, name: str) -> dict[str, bytes]:
    import hashlib  # noqa: PLC0415

    banners = list(_BANNER.finditer(elf))
    if not banners:
        raise ImageError(f"{name}: not a Linux kernel: it has no text that begins with 'Linux version'")
    # The build has a template of it, too, without the number of the build.
    found = next((banner for banner in banners if b" # " not in banner[0]), banners[0])
    release = found[1]
    return {
        "format": _FORMAT,
        "size": b"%d" % len(elf),
        "identity": hashlib.sha256(elf).hexdigest().encode(),
        "release": release,
        "banner": found[0].rstrip(b"\n"),
        "vermagic": _vermagic(elf, release),
        "build_id": _build_id(ElfFile(elf, name)),
    }


def _vermagic(elf: bytes, release: bytes) -> bytes:
    """Find the string that ``same_magic()`` compares (include/linux/vermagic.h); empty if there is none."""
    pattern = re.escape(release) + (
        rb" (?:SMP )?(?:preempt |preempt_rt )?(?:mod_unload )?(?:modversions )?"
        # MODULE_ARCH_VERMAGIC: arm64, riscv, arm, powerpc, 32-bit x86
        rb"(?:aarch64|riscv|ARMv\d+ (?:thumb2 )?(?:p2v8 )?"
        rb"|(?:mprofile-kernel |patchable-function-entry )?(?:relocatable )?|[\dA-Z][\dA-Z-]+ )?"
        rb"(?:RANDSTRUCT\w*)?\0"
    )
    return max((match[0][:-1] for match in re.finditer(pattern, elf)), key=len, default=b"")


def _build_id(elf: ElfFile) -> bytes:
    """Return the GNU build id from the notes, empty if there is none."""
    areas = [elf.section_data(".notes")] if ".notes" in elf.sections else []
    areas += [elf.segment_data(segment) for segment in elf.note_segments]
    for area in areas:
        notes = bytes(area)
        position = 0
        while position + 12 <= len(notes):
            name_size, size, kind = (
                int.from_bytes(notes[position + i : position + i + 4], elf.format.byteorder) for i in (0, 4, 8)
            )
            name_at = position + 12
            data_at = name_at + -(-name_size // 4) * 4
            if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0" and size:
                return notes[data_at : data_at + size]
            position = data_at + -(-size // 4) * 4
    return b""
