"""Modules in packages and in initramfs images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kodojo.check.build.recognition import build_hint, dkms_directory, title_of
from kodojo.check.sources import GivenModule, Spool, unreadable
from kodojo.errors import ImageError, PackageError
from kodojo.image import cpio, rpm
from kodojo.image.archive import Member, Window, decompressed
from kodojo.image.bounds import Account
from kodojo.image.compression import compression_of
from kodojo.image.package import package_members
from kodojo.image.tree import module_name

__all__ = ["modules_in_archive"]

_AR_MAGIC = b"!<arch>\n"
_PACKAGES = (".deb", ".rpm")
_MOST_SOURCES = 20  # that are named


def modules_in_archive(path: Path, spool: Spool) -> Iterator[GivenModule] | None:
    """The modules in a .deb, .rpm or initramfs image, in its order; None if the file is none of these.

    :raises OSError: it cannot be read.
    :raises KodojoError: the spool is full.
    """
    account = Account(str(path))
    with path.open("rb") as file:
        start = file.read(8)
        if start == _AR_MAGIC or start[:4] == rpm.MAGIC or path.suffix in _PACKAGES:
            return _unpacked(path, package_members(path, account), account, spool)
        if start.startswith(cpio.MAGICS) or _compressed_cpio(file, str(path)):
            return _initramfs(path, account, spool)
    return None


def _initramfs(path: Path, account: Account, spool: Spool) -> Iterator[GivenModule]:
    with path.open("rb") as file:
        yield from _unpacked(path, cpio.initramfs_members(file, account), account, spool)


def _compressed_cpio(file: BinaryIO, name: str) -> bool:
    """Whether this is a compressed archive rather than a compressed module."""
    file.seek(0)
    if compression_of(file.read(8)) is None:
        return False
    file.seek(0)
    account = Account(name)
    try:
        return decompressed(Window(file, account.size_of(file), account)).read(6).startswith(cpio.MAGICS)
    except ImageError:
        return False


def _unpacked(path: Path, members: Iterator[Member], account: Account, spool: Spool) -> Iterator[GivenModule]:
    """The modules in an archive; those before its damage, if it has one, too, but none of what means harm."""
    found = _Found(path, account, spool)
    try:
        for member in members:
            found.add(member)
    except PackageError as error:
        if account.exceeded:
            found.drop()
        yield from found.modules.values()
        yield GivenModule(str(path), path, problem=error.message, hint=error.hint)
        return
    yield from found.modules.values()
    if not found.files and found.sources:
        named = [*found.sources][:_MOST_SOURCES]
        more = len(found.sources) - len(named)
        names = ", ".join(named) + (f" and {more} more" if more else "")
        problem = f"{path}: source for DKMS ({names}), which has no modules in it"
        yield GivenModule(str(path), path, problem=problem, hint=build_hint(str(path)))
    elif not found.files:
        yield unreadable(path, "has no modules in it")


class _Found:
    """The modules of one archive, by label: of a name that is there twice the last one counts, as for the kernel.

    :attr files: where those are that were written. :attr sources: of DKMS modules: their titles.
    """

    def __init__(self, path: Path, account: Account, spool: Spool) -> None:
        self.modules: dict[str, GivenModule] = {}
        self.files: dict[str, Path] = {}
        self.sources: dict[str, None] = {}
        self._path, self._account, self._spool = path, account, spool
        self._linked: set[Path] = set()
        self._number = 0

    def add(self, member: Member) -> None:
        source = dkms_directory(member.name)
        if source is not None:
            self._account.remember(source)
            self.sources[title_of(source)] = None
        if module_name(member.name) is None:
            return
        self._number += 1
        self._account.modules(self._number)
        label = f"{self._path}:{member.name.removeprefix('./')}"
        if member.kind == "hardlink" and member.target in self.files:
            self._linked.add(self.files[member.target])
            self.modules[label] = GivenModule(label, self.files[member.target])
        elif member.kind == "file":
            self.modules.pop(label, None)
            old = self.files.pop(member.name, None)
            if old is not None and old not in self._linked:
                self._spool.remove(old)
            self._write(member, label)

    def _write(self, member: Member, label: str) -> None:
        try:
            place = self._spool.write(member.chunks)
        except PackageError:
            raise
        except ImageError as error:
            self.modules[label] = GivenModule(label, self._path, problem=f"{label}: {error.message}", hint=error.hint)
        else:
            self.files[member.name] = place
            self.modules[label] = GivenModule(label, place)

    def drop(self) -> None:
        """Forget all, and remove what was written."""
        for place in self.files.values():
            self._spool.remove(place)
        self.files.clear()
        self.modules.clear()
