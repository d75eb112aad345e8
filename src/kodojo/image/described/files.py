"""Descriptions of kernels without the kernel: where headers packages and build trees have what files.

Known layouts: a directory with ``Module.symvers`` (a build tree, ``/usr/src/linux-headers-RELEASE``, or the file and
whatever of the rest somebody copied), an unpacked headers package (``usr/src/...``, ``usr/src/kernels/...``,
``lib/modules/RELEASE/build``), and ``lib/modules/RELEASE`` with ``build`` in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kodojo.errors import ImageError, InputError
from kodojo.image.elf import ElfFile

__all__ = [
    "COMPLETE",
    "LARGEST_TEXT",
    "LARGEST_VMLINUX",
    "DescriptionFiles",
    "describe_build",
    "find_description",
    "read_small",
]

SYMVERS = "Module.symvers"
_SYMVERS_NAMES = (SYMVERS, "symvers", "symvers.gz", "symvers.xz", "symvers.zst")
_PATTERNS = ("usr/src/*", "usr/src/kernels/*", "lib/modules/*/build", "usr/lib/modules/*/build", "build")
_INCLUDED_MAKEFILE = re.compile(rb"^include\s+\S*?([^/\s]+)/Makefile\s*$", re.MULTILINE)

LARGEST_TEXT = 32 << 20  # bytes; a distribution's Module.symvers has about 2 MiB
LARGEST_VMLINUX = 64 << 20  # bytes; one that has only types has about 6 MiB
COMPLETE = "give the whole headers package, or a build tree after `make modules_prepare`"


class DescriptionFiles(NamedTuple):
    """The parts of a description; None for what is not there.

    :param directory: the build tree, or what stands for it.
    :param config: ``.config``; ``auto_conf``: what the build made of it.
    :param headers: the directory that has ``include/linux/module.h``: the tree itself, or the half of the headers
        that flavours of a kernel share.
    :param types: a ``vmlinux`` that holds nothing but the kernel's types.
    :param modules: the tree of modules that belongs to it.
    """

    directory: Path
    symvers: Path
    config: Path | None = None
    auto_conf: Path | None = None
    headers: Path | None = None
    types: Path | None = None
    modules: Path | None = None

    def parts(self) -> dict[str, Path]:
        """The files whose content makes up the description, by their paths in a build tree."""
        named = {".config": self.config, "include/config/auto.conf": self.auto_conf, "vmlinux": self.types}
        places = {self.symvers.name: self.symvers} | {name: path for name, path in named.items() if path is not None}
        places |= {name: self.directory / name for name in GENERATED}
        if self.headers is not None:
            places |= {name: self.headers / name for name in (*HEADERS, *SOURCES)}
        return {name: path for name, path in places.items() if path.is_file()}


GENERATED = (
    "include/config/kernel.release", "include/generated/utsrelease.h", "include/generated/compile.h",
    "include/generated/randstruct_hash.h",
)  # fmt: skip
HEADERS = (
    "include/linux/module.h", "include/linux/moduleloader.h", "include/linux/panic.h", "include/linux/execmem.h",
    "include/linux/oid_registry.h",
)  # fmt: skip
SOURCES = (
    "kernel/module/main.c", "kernel/module/signing.c", "kernel/module/strict_rwx.c", "kernel/params.c",
    "mm/execmem.c", "arch/x86/kernel/module.c",
)  # fmt: skip
BUILD_FILES = frozenset({SYMVERS, ".config", "Makefile", "vmlinux", "include/config/auto.conf", *GENERATED, *HEADERS})
"""What is wanted of a build tree or of headers, by path in it."""


def find_description(root: Path) -> DescriptionFiles | None:
    """The description in a directory, None if there is none.

    :raises InputError: there are several.
    """
    found = describe_build(root)
    if found is not None:
        return found
    builds: dict[Path, Path] = {}
    for pattern in _PATTERNS:
        for path in sorted(root.glob(pattern)):
            if (path / SYMVERS).is_file():
                builds.setdefault(path.resolve(), path)
    if len(builds) > 1:
        names = ", ".join(sorted(map(str, builds.values())))
        raise InputError(f"{root}: holds headers of several kernels: {names}", hint="give the one that you mean")
    return next((describe_build(path) for path in builds.values()), None)


def describe_build(directory: Path) -> DescriptionFiles | None:
    """What a directory with a ``Module.symvers`` in it describes; None if it has none."""
    symvers = _first(directory / name for name in _SYMVERS_NAMES)
    if symvers is None:
        return None
    vmlinux = directory / "vmlinux"
    return DescriptionFiles(
        directory=directory,
        symvers=symvers,
        config=_first((directory / ".config", directory / "config")),
        auto_conf=_first((directory / "include/config/auto.conf",)),
        headers=_headers_of(directory),
        types=vmlinux if vmlinux.is_file() and _has_only_types(vmlinux) else None,
        modules=_modules_of(directory),
    )


def read_small(path: Path) -> bytes:
    """The content of a file that may not be there: then there is none.

    :raises ImageError: it is too large to be what its name says.
    :raises InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST_TEXT:
        raise ImageError(f"{path}: too large to be what its name says", hint=COMPLETE)
    return data


def _headers_of(directory: Path) -> Path | None:
    """The tree itself, or the one whose Makefile its own Makefile includes, as Debian divides headers."""
    candidates = [directory, directory / "source"]
    makefile = directory / "Makefile"
    shared = _INCLUDED_MAKEFILE.search(read_small(makefile)) if makefile.is_file() else None
    if shared is not None:
        candidates.append(directory.resolve().parent / shared[1].decode("utf-8", "surrogateescape"))
    return next((path for path in candidates if (path / "include/linux/module.h").is_file()), None)


def _modules_of(directory: Path) -> Path | None:
    """``lib/modules/RELEASE``, if the tree is ``build`` in it and there are modules."""
    parent = directory.parent
    return parent if directory.name == "build" and (parent / "modules.dep").is_file() else None


def _has_only_types(vmlinux: Path) -> bool:
    """Whether a file is what headers packages bring for the types of modules: no code, no data, only ``.BTF``."""
    import mmap  # noqa: PLC0415

    try:
        with vmlinux.open("rb") as file:
            sections = ElfFile(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(vmlinux)).sections
            return ".BTF" in sections and ".text" not in sections
    except (OSError, ValueError, ImageError):  # an empty file cannot be mapped
        return False


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
