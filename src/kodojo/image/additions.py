"""What a person has added to a kernel of the store: modules, modprobe.d and depmod.d of their own, firmware.

::

    images/NAME/
        lib/modules/RELEASE/updates/    modules, which win over those of the same name elsewhere in the tree
        etc/modprobe.d/, etc/depmod.d/  configuration, as below /etc of a machine with this kernel
        lib/firmware/                   what the machine has in /lib/firmware

The kernel's identity is that of its vmlinux: nothing here changes it, or its snapshots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kodojo.durable import disk_error
from kodojo.errors import ImageError, InputError, decode
from kodojo.image.architecture import architecture_named, architecture_of_module
from kodojo.image.elf import ElfFile
from kodojo.image.payload import MODULE_SIZE_LIMIT, read_module
from kodojo.image.tree import fold, module_name

__all__ = ["Addition", "Additions", "Given", "Kind", "given_configuration", "given_firmware", "given_modules"]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+@-]{0,199}")
_DEPMODS = (
    "modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin", "modules.symbols", "modules.symbols.bin",
    "modules.softdep", "modules.weakdep", "modules.devname", "modules.builtin.bin", "modules.builtin.alias.bin",
)  # fmt: skip
_MOST_FIRMWARE = 4096  # files


class Kind(Enum):
    """What a file is to a kernel's user space; the value is where it belongs."""

    MODULE = "updates"
    MODPROBE_D = "modprobe.d"
    DEPMOD_D = "depmod.d"
    FIRMWARE = "firmware"


_LIMITS = {
    Kind.MODULE: MODULE_SIZE_LIMIT,
    Kind.MODPROBE_D: 1 << 20,
    Kind.DEPMOD_D: 1 << 20,
    Kind.FIRMWARE: 64 << 20,  # the machine keeps it in memory
}


class Addition(NamedTuple):
    """A file that was added.

    :param name: below the directory of its kind, with slashes.
    """

    kind: Kind
    name: str
    path: Path

    @property
    def label(self) -> str:
        """What it is called in lists: ``updates/x.ko``."""
        return f"{self.kind.value}/{self.name}"

    def is_called(self, word: str) -> bool:
        """Whether a person means it: by its label or name, a module also by that of the module."""
        if word in (self.label, self.name):
            return True
        base = self.name.rpartition("/")[2]
        return self.kind is Kind.MODULE and (word == base or fold(word) == module_name(base))


class Given(NamedTuple):
    """A file that is to be added, read as far as its kind demands.

    :param name: below the directory of its kind.
    :param warning: what speaks against it; empty if nothing does.
    """

    kind: Kind
    name: str
    source: Path
    warning: str = ""


class Additions:
    """What was added to one kernel.

    :param directory: ``images/NAME`` of the store; None for a kernel from elsewhere, to which nothing is added.
    :param tree: its module tree, if it is the store's own.
    """

    def __init__(self, directory: Path | None, tree: Path | None) -> None:
        self._places: dict[Kind, Path] = {}
        if directory is not None:
            self._places = {
                Kind.MODPROBE_D: directory / "etc/modprobe.d",
                Kind.DEPMOD_D: directory / "etc/depmod.d",
                Kind.FIRMWARE: directory / "lib/firmware",
            }
            if tree is not None and tree.is_relative_to(directory):
                self._places[Kind.MODULE] = tree / "updates"

    @property
    def modprobe_d(self) -> tuple[Path, ...]:
        """The directories of configuration for modprobe: one or none."""
        return self._existing(Kind.MODPROBE_D)

    @property
    def depmod_d(self) -> tuple[Path, ...]:
        """The directories of configuration for depmod: one or none."""
        return self._existing(Kind.DEPMOD_D)

    @property
    def firmware(self) -> tuple[Addition, ...]:
        """The files for the machine's ``/lib/firmware``, sorted by name."""
        return tuple(self._of(Kind.FIRMWARE))

    def listed(self) -> tuple[Addition, ...]:
        """Everything, sorted by kind and name."""
        return tuple(addition for kind in Kind for addition in self._of(kind))

    def _existing(self, kind: Kind) -> tuple[Path, ...]:
        place = self._places.get(kind)
        return (place,) if place is not None and place.is_dir() else ()

    def _of(self, kind: Kind) -> Iterator[Addition]:
        for place in self._existing(kind):
            paths = [Path(where, name) for where, _, names in os.walk(place) for name in names]
            for path in sorted(paths):
                if kind is not Kind.MODULE or module_name(path) is not None:
                    yield Addition(kind, path.relative_to(place).as_posix(), path)

    # -- changing: by the store, under its lock ----------------------------------------------------------
    def install(self, files: Iterable[Given]) -> None:
        """Bring files to their places: all are copied before the first one is seen.

        :raises InputError: a file has gone, or is larger than any of its kind.
        :raises StoreError: the disk is full or not writable; everything is as it was then.
        """
        with ExitStack() as undo:
            ready = []
            for given in files:
                target = self._places[given.kind] / given.name
                try:
                    temporary = _copied(given, target)
                except OSError as error:
                    raise disk_error(target, error) from error
                undo.callback(temporary.unlink, missing_ok=True)
                ready.append((given, temporary, target))
            for given, temporary, target in ready:
                rivals = self._rivals(given, target)
                temporary.replace(target)
                for rival in rivals:
                    rival.unlink(missing_ok=True)
        self._forget_depmod()

    def _forget_depmod(self) -> None:
        """Remove what depmod has written about the tree: it is of another state; without it depmod's rules count."""
        updates = self._places.get(Kind.MODULE)
        if updates is not None:
            for name in _DEPMODS:
                (updates.parent / name).unlink(missing_ok=True)

    def _rivals(self, given: Given, target: Path) -> list[Path]:
        """Files that hold the same module in another form or directory: only one of them could count."""
        if given.kind is not Kind.MODULE:
            return []
        name = module_name(given.name)
        others = (other.path for other in self._of(Kind.MODULE) if module_name(other.path) == name)
        return [path for path in others if path != target]

    def uninstall(self, words: Iterable[str]) -> tuple[Addition, ...]:
        """Remove files by what they are called (:meth:`Addition.is_called`), all of them or none.

        :raises InputError: nothing is called so.
        :raises StoreError: they cannot be removed.
        """
        listed = self.listed()
        chosen: dict[Path, Addition] = {}
        for word in words:
            found = [addition for addition in listed if addition.is_called(word)]
            if not found:
                raise InputError(
                    f"{word}: nothing of that name is installed", hint="kodojo kernel show lists what is"
                )
            chosen |= {addition.path: addition for addition in found}
        for path in chosen:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise disk_error(path, error, "remove") from error
        self._forget_depmod()
        return tuple(chosen.values())


def _copied(given: Given, target: Path) -> Path:
    """A copy beside the target, under a name that means nothing to anybody; on disk when this returns."""
    import shutil  # noqa: PLC0415  (what only writing needs takes long to import, here and below)
    import tempfile  # noqa: PLC0415

    for parent in reversed(target.parents):
        parent.mkdir(mode=0o700, exist_ok=True)
    with _opened(given.source, given.kind) as source:
        descriptor, name = tempfile.mkstemp(prefix=".incoming-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return Path(name)


def _opened(path: Path, kind: Kind) -> BinaryIO:
    """A file that somebody gave.

    :raises InputError: it cannot be read, is no regular file, or larger than any of its kind.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        if path.stat().st_size > _LIMITS[kind]:
            raise InputError(f"{path}: refused: more than {_LIMITS[kind] >> 20} MiB")
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def given_modules(paths: Iterable[Path], release: str, architecture: str) -> Iterator[Given]:
    """Modules that are to be added.

    :param release: of the kernel. :param architecture: likewise, as ``uname -m`` says. A module for another one gets
        a warning.
    :raises InputError: one of them cannot be read, or is no module. ImageError: it is compressed and damaged.
    """
    for path in paths:
        _check_name(path, path.name)
        if module_name(path) is None:
            raise InputError(
                f"{path}: not a module by its name",
                hint="give .ko files (also .ko.gz, .ko.xz, .ko.zst); for others there are --modprobe-d, --depmod-d"
                " and --firmware",
            )
        yield Given(Kind.MODULE, path.name, path, _misfit(path, release, architecture))


def _misfit(path: Path, release: str, architecture: str) -> str:
    """What speaks against loading a module into a kernel."""
    with _opened(path, Kind.MODULE):
        content = read_module(path).module()
    try:
        elf = ElfFile(content, str(path))
        modinfo = bytes(elf.section_data(".modinfo")) if ".modinfo" in elf.sections else b""
    except ImageError as error:
        raise InputError(
            f"{path}: no kernel module: {error.message}", hint="give the .ko file of a module"
        ) from error
    if not modinfo:
        raise InputError(
            f"{path}: no kernel module: it has no section .modinfo", hint="give the .ko file of a module"
        )
    built_for = next((e[9:] for e in modinfo.split(b"\0") if e.startswith(b"vermagic=")), b"").partition(b" ")[0]
    known = architecture_of_module(content)
    if known is None or known.name != architecture_named(architecture).name:
        return f"{path}: for {known.name if known else 'another architecture'}, and this kernel is for {architecture}"
    if decode(built_for) != release:
        return f"{path}: built for {decode(built_for) or 'no kernel that it names'}, not for {release}"
    return ""


def given_configuration(kind: Kind, paths: Iterable[Path]) -> Iterator[Given]:
    """Files for modprobe.d or depmod.d.

    :raises InputError: kmod would not read one of them.
    """
    for path in paths:
        _check_name(path, path.name)
        if not path.name.endswith(".conf"):
            raise InputError(f"{path}: files in {kind.value} end with .conf", hint="others are not read: rename it")
        _opened(path, kind).close()
        yield Given(kind, path.name, path)


def given_firmware(paths: Iterable[Path]) -> Iterator[Given]:
    """Firmware: files for ``/lib/firmware``, and directories whose content belongs there.

    :raises InputError: one of them cannot be read, or there are unreasonably many.
    """
    for path in paths:
        names = [""] if not path.is_dir() else sorted(_names_below(path))
        if not names or len(names) > _MOST_FIRMWARE:
            raise InputError(f"{path}: has {len(names) or 'no'} files in it", hint="give the firmware of one driver")
        for name in names:
            source = path / name if name else path
            _check_name(source, *(name or path.name).split("/"))
            _opened(source, Kind.FIRMWARE).close()
            yield Given(Kind.FIRMWARE, name or path.name, source)


def _names_below(directory: Path) -> Iterator[str]:
    for where, _, names in os.walk(directory):
        yield from (Path(where, name).relative_to(directory).as_posix() for name in names)


def _check_name(path: Path, *parts: str) -> None:
    """No name leads out of its directory, is hidden, or has characters that a configuration file could not have."""
    if not all(_SAFE_NAME.fullmatch(part) for part in parts):
        raise InputError(f"{path}: not a name that is stored: letters, digits and _.,+@- only", hint="rename it")
