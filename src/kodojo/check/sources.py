"""Where modules come from: files, directories, patterns, packages, initramfs images, and kernels' own trees.

Whatever is given becomes an ordered list of :class:`GivenModule`; what cannot be read becomes one with a
``problem`` and never stops the rest. What is in an archive is written, under a number for a name, to a temporary
directory that the caller has made.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from kodojo.check.build.recognition import build_hint, kind_of
from kodojo.errors import ImageError, InputError, KodojoError
from kodojo.image import bounds
from kodojo.image.payload import MODULE_SIZE_LIMIT, Payload, read_stored, unpacked
from kodojo.image.tree import module_name

if TYPE_CHECKING:
    from typing import Self

    from kodojo.image.image import Image

__all__ = ["GivenModule", "Key", "Packing", "Spool", "find_modules", "own_module", "own_modules", "unreadable"]

_KEEP_FREE = 128 << 20  # bytes of the disk with temporary files

Key = tuple[bool, str]
"""Whether a module is the kernel's own, and its label."""


class Packing(NamedTuple):
    """How a file is packed whose module has been unpacked already.

    :param payload: what was found in it, the content left out.
    :param file: where the file is, or its content; None if nothing can depend on it any more.
    """

    payload: Payload
    file: Path | bytes | None = None

    @classmethod
    def of(cls, payload: Payload, file: Path | None) -> Packing:
        """That of a payload."""
        return cls(replace(payload, content=b"", packed=b""), file)


class GivenModule(NamedTuple):
    """A file that should be checked.

    :param label: what it is called in reports: its path as it was given; for what is in an archive, the
        archive's path, a colon, and the path in it.
    :param path: where its content is now.
    :param own: it belongs to the tree of the kernel that it is checked against.
    :param content: the file's content, where it has to travel to another computer.
    :param packing: of the file, where ``path`` and ``content`` are the module that came out of it.
    :param problem: why it cannot be read; empty if nothing is known against it. ``hint``: what to do about it.
    :param unused: why modprobe would not load this file of a kernel's own tree; empty if it would.
    """

    label: str
    path: Path
    own: bool = False
    content: bytes | None = None
    packing: Packing | None = None
    problem: str = ""
    hint: str = ""
    unused: str = ""

    @property
    def key(self) -> Key:
        """What tells it from the others that are checked against a kernel."""
        return self.own, self.label

    def read(self) -> Payload:
        """The module, as kmod reads its file.

        :raises InputError: it cannot be read.
        :raises ImageError: it is larger than any module.
        """
        content = self._stored()
        if self.packing is None:
            return unpacked(content, self.label)
        payload, file = self.packing
        packed = read_stored(file, self.label) if isinstance(file, Path) else file or b""
        return replace(payload, content=content, packed=packed)

    def _stored(self) -> bytes:
        if self.problem:
            raise InputError(self.problem, hint=self.hint)
        return read_stored(self.path, self.label) if self.content is None else self.content

    def travelling(self) -> GivenModule:
        """The same, with its content, for a computer that does not see the file."""
        packing = self.packing
        try:
            if packing is not None and isinstance(packing.file, Path):
                packing = packing._replace(file=read_stored(packing.file, self.label))
            return self._replace(content=self._stored(), packing=packing)
        except KodojoError as error:
            return self._replace(problem=error.message, hint=error.hint)


class Spool:
    """A temporary directory's files, which are named by number: no name from an archive is ever a path here.

    Nothing is written that would fill the disk, nor what was packed so small that it can only mean harm. A directory
    that a killed process left is removed by the next one.

    :param directory: which one; None: one of its own, made for the first file and gone after the ``with`` block.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._numbers = count(1)
        self._end = ExitStack()
        self._making = Lock()
        self._unpacked = self._packed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _place(self) -> Path:
        with self._making:
            if self._directory is None:
                from kodojo.durable import temporary_directory  # noqa: PLC0415  most modules need no copy

                self._directory = self._end.enter_context(temporary_directory("spool"))
        return self._directory

    def unpack(self, content: bytes, packed: int) -> Path:
        """Write a file with what came out of ``packed`` bytes. Raises as :meth:`write`, ImageError for bombs, too."""
        with self._making:
            if bounds.LIMITS.is_bomb(self._unpacked + len(content), self._packed + packed):
                ratio = bounds.LIMITS.ratio
                raise ImageError(f"refused: with others, more than {ratio} times its size when decompressed")
            self._unpacked += len(content)
            self._packed += packed
        return self.write([content])

    def write(self, chunks: Iterable[bytes]) -> Path:
        """Write a file of its own.

        :raises ImageError: it is larger than any module; it is gone then.
        :raises KodojoError: the directory is full, or would be.
        """
        name = f"{next(self._numbers)}.ko"
        left = MODULE_SIZE_LIMIT
        try:
            path = self._place() / name
            with path.open("wb") as file:
                for chunk in chunks:
                    left -= len(chunk)
                    if left < 0:
                        break
                    _leave_room(file.fileno(), len(chunk))
                    file.write(chunk)
            if left < 0:
                path.unlink()
                raise ImageError(f"refused: more than {MODULE_SIZE_LIMIT >> 20} MiB")
        except OSError as error:
            hint = "set TMPDIR to a directory with more room"
            where = error.filename or self._directory or "a temporary directory"
            raise KodojoError(f"{where}: cannot be written: {error.strerror or error}", hint=hint) from error
        return path

    def remove(self, path: Path) -> None:
        """Remove a file that :meth:`write` has written."""
        path.unlink(missing_ok=True)


def _leave_room(descriptor: int, size: int) -> None:
    """No file is worth that others find the disk full."""
    disk = os.statvfs(descriptor)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if total and free - size < min(_KEEP_FREE, total // 64):
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} but for {free >> 20} MiB, which are left to others")


def find_modules(words: Iterable[str], spool: Spool) -> list[GivenModule]:
    """The modules that the words stand for, in their order; those of a directory or a pattern sorted by path.

    :raises KodojoError: the spool is full.
    """
    found: dict[str, GivenModule] = {}
    for word in words:
        for module in _modules_of(word, spool):
            found[module.label] = module  # in an initramfs the last one of a name is what is there in the end
    return list(found.values())


def own_modules(image: Image) -> list[GivenModule]:
    """All that is in a kernel's own tree; labels are paths below ``lib/modules/RELEASE``.

    That is more than modprobe would load: files that are not the module of their name, which say so in ``unused``,
    and whatever could not be looked at, which has a ``problem``.
    """
    root = image.modules.root
    try:
        contents = image.modules.contents()
    except KodojoError as error:
        return [_no_modules(image, error.message, error.hint)]
    if root is None or not (contents.modules or contents.others or contents.passed_over):
        problem = f"{image.release}: this kernel came without a tree of modules"
        return [_no_modules(image, problem, "give the package with its modules")]
    found = {
        path: GivenModule(_label(path, root), path, own=True, unused=why) for path, why in contents.others.items()
    }
    found |= {
        file.path: GivenModule(_label(file.path, root), file.path, own=True) for file in contents.modules.values()
    }
    for over in contents.passed_over:
        path = root / over.path
        hint = "put what belongs there in its place, or remove it from the tree"
        found[path] = GivenModule(over.path, path, own=True, problem=f"{path}: not looked at: {over.why}", hint=hint)
    return sorted(found.values(), key=lambda module: module.label)


def own_module(image: Image, name: str) -> GivenModule:
    """One module of a kernel's own tree, which has it."""
    path = image.modules[name].path
    return GivenModule(_label(path, image.modules.root), path, own=True)


def _label(path: Path, root: Path | None) -> str:
    return str(path).removeprefix(f"{root}/")  # an external module's path is not below the tree


def _no_modules(image: Image, problem: str, hint: str) -> GivenModule:
    return GivenModule("its own modules", image.path, own=True, problem=problem, hint=hint)


def _modules_of(word: str, spool: Spool) -> Iterator[GivenModule]:
    if not os.path.lexists(word) and glob.has_magic(word):
        for path in sorted(glob.iglob(word, recursive=True)):  # noqa: PTH207  absolute ones, too
            yield from _modules_at(Path(path), spool)
            word = ""
        if word:
            yield unreadable(Path(word), "no file is like that")
    else:
        yield from _modules_at(Path(word), spool)


def _modules_at(path: Path, spool: Spool) -> Iterator[GivenModule]:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield from _in_directory(path)
        elif not stat.S_ISREG(mode):
            yield unreadable(path, "is neither a file nor a directory")
        else:
            yield from _in_file(path, spool)
    except (OSError, ValueError) as error:
        yield unreadable(path, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    except (ImageError, InputError) as error:
        yield GivenModule(str(path), path, problem=error.message, hint=error.hint)


def unreadable(path: Path, what: str) -> GivenModule:
    """A path that gives no module.

    :param what: the rest of a sentence that begins with the path.
    """
    hint = "give a .ko file, a directory, a package or an initramfs image"
    return GivenModule(str(path), path, problem=f"{path}: {what}", hint=hint)


def _in_directory(root: Path) -> Iterator[GivenModule]:
    empty = True
    for directory, files in _walk(root):
        for name in sorted(files):
            if module_name(name) is not None:
                empty = False
                path = directory / name
                yield GivenModule(str(path), path) if path.is_file() else unreadable(path, "is not a regular file")
    if empty:
        kind = kind_of(root)
        if kind is None:
            yield unreadable(root, "has no modules in it")
        else:
            what = "the source of a module for DKMS" if kind == "dkms" else "the source of a module"
            yield GivenModule(str(root), root, problem=f"{root}: {what}", hint=build_hint(str(root)))


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Directories and the names of their files, through links to directories, too, unless these lead back up.

    ``build`` and ``source`` of a kernel's tree lead to what modules are built with: depmod does not look there.
    """
    real = root.resolve()
    above = {root: frozenset(_identity(path) for path in (real, *real.parents))}
    for name, directories, files in os.walk(root, followlinks=True):
        directory = Path(name)
        yield directory, files
        mine = above.pop(directory)
        found = []
        for each in sorted(directories):
            path = directory / each
            identity = _identity(path)
            if identity is None or identity in mine or (each in {"build", "source"} and path.is_symlink()):
                continue
            above[path] = mine | {identity}
            found.append(each)
        directories[:] = found


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _in_file(path: Path, spool: Spool) -> Iterator[GivenModule]:
    with path.open("rb") as file:
        if file.read(4) == b"\x7fELF":
            yield GivenModule(str(path), path)
            return
    from kodojo.check.archives import modules_in_archive  # noqa: PLC0415  many imports, for what is seldom given

    found = modules_in_archive(path, spool)
    yield from [GivenModule(str(path), path)] if found is None else found
