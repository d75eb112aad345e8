"""Modules in packages and in initramfs images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kodojo.check.build.recognition import build_hint, dkms_directory, title_of
from kodojo.check.sources import GivenModule, Spool, unreadable
from kodojo.errors import ImageError, PackageError
from kodojo.image import cpio, rpm
from kodojo.image.archive import Member, Window, decompressed
from kodojo.image.compression import compression_of
from kodojo.image.package import package_members
from kodojo.image.tree import module_name

__all__ = ["modules_in_archive"]

_AR_MAGIC = b"!<arch>\n"
_PACKAGES = (".deb", ".rpm")


def modules_in_archive(path: Path, spool: Spool) -> Iterator[GivenModule] | None:
    """The modules in a .deb, .rpm or initramfs image, in its order; None if the file is none of these.

    :raises OSError: it cannot be read.
    :raises KodojoError: the spool is full.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start == _AR_MAGIC or start[:4] == rpm.MAGIC or path.suffix in _PACKAGES:
            return _unpacked(path, package_members(path), spool)
        if start.startswith(cpio.MAGICS) or _compressed_cpio(file, str(path)):
            return _initramfs(path, spool)
    return None


def _initramfs(path: Path, spool: Spool) -> Iterator[GivenModule]:
    with path.open("rb") as file:
        yield from _unpacked(path, cpio.initramfs_members(file, str(path)), spool)


def _compressed_cpio(file: BinaryIO, name: str) -> bool:
    """Whether this is a compressed archive rather than a compressed module."""
    file.seek(0)
    if compression_of(file.read(8)) is None:
        return False
    file.seek(0)
    window = Window(file, os.fstat(file.fileno()).st_size, name, lambda _size: None)
    try:
        return decompressed(window).read(6).startswith(cpio.MAGICS)
    except ImageError:
        return False


def _unpacked(path: Path, members: Iterator[Member], spool: Spool) -> Iterator[GivenModule]:
    """The modules in an archive; those before its damage, if it has one, too."""
    found: dict[str, Path] = {}
    sources: list[str] = []
    try:
        for member in members:
            source = dkms_directory(member.name)
            if source is not None:
                sources.append(title_of(source))
            if module_name(member.name) is None:
                continue
            label = f"{path}:{member.name.removeprefix('./')}"
            if member.kind == "hardlink" and member.target in found:
                yield GivenModule(label, found[member.target])
            elif member.kind == "file":
                try:
                    found[member.name] = spool.write(member.chunks)
                    yield GivenModule(label, found[member.name])
                except PackageError:
                    raise
                except ImageError as error:
                    yield GivenModule(label, path, problem=f"{label}: {error.message}", hint=error.hint)
    except PackageError as error:
        yield GivenModule(str(path), path, problem=error.message, hint=error.hint)
    else:
        if not found and sources:
            problem = f"{path}: source for DKMS ({', '.join(sources)}), which has no modules in it"
            yield GivenModule(str(path), path, problem=problem, hint=build_hint(str(path)))
        elif not found:
            yield unreadable(path, "has no modules in it")
