"""Kernel packages (.deb, .rpm) unpacked, without the package manager and without trust in the archive.

Only what a kernel image needs is written: the members below ``boot/``, ``lib/modules/`` and
``usr/lib/modules/`` (written to ``lib/modules/``, so that every package looks alike), and of headers those
few that describe the kernel. What is in a package is recognised by content, never by name, and these are
refused, each with the member's name:

- a member with an absolute path or with ``..`` in its path, wherever it would go;
- a symbolic or hard link that leaves the package, devices, FIFOs and sockets;
- an archive that is truncated, damaged, or larger than any kernel (a decompression bomb).

Symbolic links are never written, so nothing can be written or read through one. Real packages have a
few: ``lib/modules/RELEASE/build`` and ``source``, mostly absolute, and links of documentation and
headers below ``usr/``; they are left out. A link inside the tree to a file that is unpacked becomes
a hard link to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from kodojo.durable import Progress, disk_error, part_directory
from kodojo.errors import InputError, PackageError
from kodojo.image import rpm
from kodojo.image.archive import Member, Window, decompressed
from kodojo.image.bounds import Account
from kodojo.image.described.files import BUILD_FILES
from kodojo.image.tar import tar_members

__all__ = ["is_package", "package_members", "packages_in", "unpack"]

_FLAVOUR = re.compile(r"linux-headers-(?P<release>[^_]+)-[^-_]+_(?P<version>[^_]+)_[^_]+\.deb")
_AR_MAGIC = b"!<arch>\n"
_SUFFIXES = (".deb", ".rpm")
_LONGEST_NAME = 1024
# What the system says to a path that is impossible rather than unlucky: the archive's fault.
_BAD_PATH = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ})


def is_package(path: Path) -> bool:
    """Say whether this file is a .deb or .rpm, or claims to be one by its name.

    :raises InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_AR_MAGIC))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return start == _AR_MAGIC or start[:4] == rpm.MAGIC or path.suffix in _SUFFIXES


def packages_in(source: Path) -> list[Path]:
    """The packages that ``source`` stands for: itself, or those in a directory of packages; else none.

    Distributions split a kernel: ``linux-image``, ``linux-modules``; ``kernel-core``, ``kernel-modules``.
    """
    if not source.is_dir():
        return [source, *_other_halves(source)] if is_package(source) else []
    if (source / "boot").is_dir() or (source / "lib").is_dir():  # an unpacked tree, whatever else is in it
        return []
    return sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def _other_halves(package: Path) -> list[Path]:
    """The package beside this one with what the headers of all flavours of a kernel share (Debian, Ubuntu)."""
    found = _FLAVOUR.fullmatch(package.name)
    if found is None:
        return []
    release, version = found["release"], found["version"]
    names = (f"linux-headers-{release}-common_{version}_all.deb", f"linux-headers-{release}_{version}_all.deb")
    return [path for path in (package.with_name(name) for name in names) if path.is_file()]


def unpack(source: Path, destination: Path, progress: Progress | None = None) -> str:
    """Unpack a package, or all packages in a directory, to the new directory ``destination``.

    ``destination`` appears when everything has been written, with ``boot`` and ``lib/modules`` as in the
    package; after a failure there is nothing. Compressed modules stay compressed.

    :return: a hexadecimal digest of the names and contents that were written.
    :raises PackageError: an archive is damaged, hostile, of an unknown kind, or holds nothing of a kernel.
    :raises StoreError: the disk is full or not writable.
    :raises InputError: ``source`` cannot be read or is not a package.
    """
    packages = packages_in(source)
    if not packages:
        raise InputError(f"{source}: neither a .deb nor an .rpm package, nor a directory of packages")
    with _staging(destination) as root:
        try:
            total = sum(package.stat().st_size for package in packages)
        except OSError as error:
            raise InputError(f"{source}: cannot be read: {error.strerror}") from error
        report = _Report(progress, total)
        contents: dict[str, str] = {}
        for package in packages:
            tree = _Tree(root, package)
            account = Account(str(package), report.for_package(package))
            for member in package_members(package, account):
                tree.add(member)
            tree.link()
            contents |= tree.contents
        if not contents:
            raise PackageError(
                f"{source}: holds no kernel: nothing below boot/ or lib/modules/, and no headers with Module.symvers",
                hint="take the package with the kernel itself: linux-image-... or kernel-core-...",
            )
    listing = "".join(f"{name}\0{digest}\n" for name, digest in sorted(contents.items()))
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A directory beside ``destination`` that takes its name on success and goes away on failure."""
    if os.path.lexists(destination):
        raise InputError(f"{destination}: exists already")
    try:
        with part_directory(destination) as root:
            yield root
            root.rename(destination)
    except OSError as error:
        raise disk_error(destination, error) from error


class _Report:
    """Adds up what is read of several packages, for the progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def for_package(self, package: Path) -> Callable[[int], None]:
        what = f"unpacking {package.name}"

        def on_read(size: int) -> None:
            self._done += size
            if self._progress is not None:
                self._progress(self._done, self._total, what)

        return on_read


def package_members(package: Path, account: Account | None = None) -> Iterator[Member]:
    """Everything in a .deb or .rpm, in its order; nobody vouches for any of it.

    :param account: of this input; None: a new one.
    :raises PackageError: it is damaged, truncated, no package, or too much.
    :raises InputError: it cannot be read.
    """
    try:
        file = package.open("rb")
    except OSError as error:
        raise InputError(f"{package}: cannot be read: {error.strerror}") from error
    with file:
        account = account or Account(str(package))
        size = account.size_of(file)
        start = file.read(len(_AR_MAGIC))
        file.seek(0)
        if start == _AR_MAGIC:
            yield from _deb_members(file, size, account)
        elif start[:4] == rpm.MAGIC:
            yield from rpm.rpm_members(Window(file, size, account))
        else:
            raise PackageError(
                f"{package}: neither a .deb nor an .rpm package (it begins with {start!r})",
                hint="fetch it again, or give the vmlinuz itself",
            )


def _deb_members(file: BinaryIO, size: int, account: Account) -> Iterator[Member]:
    """The members of ``data.tar`` in the ar archive that a .deb is (deb(5))."""
    name = account.name
    position = len(_AR_MAGIC)
    first = True
    while position < size:
        account.member()
        file.seek(position)
        header = file.read(60)
        digits = header[48:58].strip()
        if len(header) < 60:
            raise PackageError(f"{name}: truncated", hint="fetch it again")
        if header[58:] != b"`\n" or not digits.isdigit():
            raise PackageError(f"{name}: damaged: no ar header at byte {position}", hint="fetch it again")
        member, length = header[:16].rstrip(b" /"), int(digits)
        if position + 60 + length > size:
            raise PackageError(
                f"{name}: truncated in its member {member.decode('ascii', 'replace')}", hint="fetch it again"
            )
        if first and member != b"debian-binary":
            raise PackageError(f"{name}: an ar archive, but no Debian package", hint="give a .deb file")
        first = False
        if member == b"data.tar" or member.startswith(b"data.tar."):
            yield from tar_members(decompressed(Window(file, length, account)), account)
            return
        position += 60 + length + length % 2
    raise PackageError(f"{name}: truncated: it has no data.tar", hint="fetch it again")


class _Tree:
    """Writes the members of one package below ``root``, and refuses those that no kernel package has."""

    def __init__(self, root: Path, package: Path) -> None:
        self.contents: dict[str, str] = {}  # path below root -> digest of the content
        self._root = root
        self._package = package
        self._links: dict[str, str] = {}
        self._directories: set[str] = set()

    def add(self, member: Member) -> None:
        """Write, leave out or refuse a member."""
        parts = self._parts(member, member.name)
        path = _wanted(parts)
        if member.kind == "special":
            self._refuse(member, "is a device, a FIFO or the like")
        elif member.kind == "symlink":
            self._add_symlink(member, parts, path)
        elif member.kind == "hardlink":
            target = _wanted(self._parts(member, member.target, "is a link to"))
            if path and target not in self.contents:
                self._refuse(member, f"is a link to {member.target!r}, which is not before it in the package")
            elif path and target:
                self._add_link(path, target)
        elif path and member.kind == "directory":
            self._make_directory(path, member)
        elif path:
            self._add_file(path, member)

    def link(self) -> None:
        """Make the links that had to wait for their targets."""
        for path, target in self._links.items():
            if target in self.contents and path not in self.contents:
                self._add_link(path, target)

    def _refuse(self, member: Member, why: str) -> NoReturn:
        raise PackageError(
            f"{self._package}: its member {member.name!r} {why}; nothing was unpacked",
            hint="do not trust this package; fetch it from where your distribution has it",
        )

    def _parts(self, member: Member, name: str, what: str = "has") -> tuple[str, ...]:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/"):
            self._refuse(member, f"{what} an absolute path")
        if ".." in parts:
            self._refuse(member, f"{what} a path with '..'")
        if "\0" in name or len(name) > _LONGEST_NAME:
            self._refuse(member, f"{what} an impossible path")
        return parts

    def _add_symlink(self, member: Member, parts: tuple[str, ...], path: str) -> None:
        if member.target.startswith("/"):
            # Those are where real packages have absolute links; neither kind is written.
            below = parts[parts[:1] == ("usr",) :]
            to_the_source = below[:2] == ("lib", "modules") and below[3:] in (("build",), ("source",))
            outside = not path and len(parts) > 1 and parts[0] == "usr"
            if not to_the_source and not outside:
                self._refuse(member, f"is a link to {member.target!r}, outside the package")
            return
        resolved = list(parts[:-1])
        for part in member.target.split("/"):
            if part == ".." and not resolved:
                self._refuse(member, f"is a link to {member.target!r}, outside the package")
            elif part == "..":
                resolved.pop()
            elif part not in ("", "."):
                resolved.append(part)
        target = _wanted(tuple(resolved))
        if path and target:
            self._links[path] = target

    def _add_link(self, path: str, target: str) -> None:
        with self._writing(path):
            self._make_parents(path)
            os.link(self._root / target, self._root / path)
        self.contents[path] = self.contents[target]

    def _add_file(self, path: str, member: Member) -> None:
        digest = hashlib.sha256()
        with self._writing(path):
            self._make_parents(path)
            if path not in self.contents:  # another package of the same kernel may have it too
                (self._root / path).unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._root / path, flags, 0o600)
        try:
            for chunk in member.chunks:
                digest.update(chunk)
                with self._writing(path):
                    left = memoryview(chunk)
                    while left:
                        left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        self.contents[path] = digest.hexdigest()

    def _make_parents(self, path: str) -> None:
        self._make(path.rpartition("/")[0])

    def _make_directory(self, path: str, member: Member) -> None:
        if path in self.contents:
            self._refuse(member, "is a file and a directory")
        with self._writing(path):
            self._make(path)

    def _make(self, path: str) -> None:
        if not path or path in self._directories:
            return
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):  # not mkdir(parents=True), whose parents get another mode
            directory = "/".join(parts[:depth])
            if directory not in self._directories:
                (self._root / directory).mkdir(mode=0o700, exist_ok=True)
                self._directories.add(directory)

    @contextlib.contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _BAD_PATH:
                message = f"{self._package}: its member {path!r} cannot be: {error.strerror}; nothing was unpacked"
                raise PackageError(message, hint="the package contradicts itself; fetch it again") from error
            raise disk_error(self._root.parent, error, f"write {path}") from error


def _wanted(parts: tuple[str, ...]) -> str:
    """Where a member goes below the root; empty if it is not for us."""
    if parts[:3] == ("usr", "lib", "modules"):
        parts = parts[1:]
    if parts[:1] == ("boot",):
        return "/".join(parts)
    build = parts[:4] if parts[:2] == ("lib", "modules") and parts[3:4] == ("build",) else ()
    if parts[:2] == ("usr", "src"):
        build = parts[:4] if parts[2:3] == ("kernels",) else parts[:3]
    if build:  # there are ten thousand headers
        return "/".join(parts) if "/".join(parts[len(build) :]) in BUILD_FILES else ""
    return "/".join(parts) if parts[:2] == ("lib", "modules") else ""
