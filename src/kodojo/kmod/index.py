"""The index of a module tree: names, aliases, symbols and dependencies, as modprobe looks them up.

Where the tree has ``modules.dep.bin``, it is depmod's own files that decide. Where it has none, depmod's files are
made and kept elsewhere, for later look-ups to take milliseconds. They belong to the state of the tree's directories;
when a file was added, removed or replaced, they are made anew. A module that was overwritten in place is not noticed,
as depmod's files would not notice it: ``refresh`` is for that.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from kodojo.errors import CorruptError, InputError, StoreError, decode, encode
from kodojo.image.arrays import read_arrays, write_arrays
from kodojo.image.kmod_index import KmodIndex
from kodojo.image.regular import read_regular
from kodojo.image.tree import ModuleTree, fold, module_name
from kodojo.kmod.names import LONGEST_NAME, fnmatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from kodojo.durable import Progress
    from kodojo.image.image import Image

    Arrays = Mapping[str, npt.NDArray[Any]]

__all__ = ["ModuleIndex"]

_FORMAT = 2  # to be raised whenever what the arrays mean changes
_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
_KEPT = (
    "modules.dep.bin",
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.softdep",
    "modules.weakdep",
)
_SYMBOL = "symbol:"


class _Files(Protocol):
    """Where depmod's files are."""

    def index(self, name: str) -> KmodIndex | None:
        """A binary one; None if it is not there, or empty."""

    def text(self, name: str) -> bytes:
        """One for people; empty if it is not there."""


class _TreeFiles:
    """In the tree itself."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def index(self, name: str) -> KmodIndex | None:
        return KmodIndex.open(self._root / name)

    def text(self, name: str) -> bytes:
        try:
            return read_regular(self._root / name)
        except OSError:
            return b""


class _MadeFiles:
    """In arrays, made by :func:`_made`."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def index(self, name: str) -> KmodIndex | None:
        content = self.text(name)
        return KmodIndex(content, name) if content else None

    def text(self, name: str) -> bytes:
        return bytes(self._arrays[name].data) if name in self._arrays else b""


class ModuleIndex:
    """Names, aliases, symbols and dependencies of the modules of one kernel. Made by :meth:`of` and :meth:`open`.

    Names are folded; look-ups give what kmod's would give, in the same order, and raise ImageError where a file of
    the tree is damaged.
    """

    def __init__(self, root: Path | None, files: _Files) -> None:
        self.root = root
        self._files = files
        self._given_as_builtin: set[str] = set()

    # -- making -----------------------------------------------------------------------------------------
    @classmethod
    def of(cls, image: Image, *, refresh: bool = False, progress: Progress | None = None) -> ModuleIndex:
        """The index of an image's module tree, kept beside the image's own index. Raises as :meth:`open`."""
        tree = image.modules
        return cls.open(tree, image.index_directory, refresh=refresh, progress=progress)

    @classmethod
    def open(
        cls,
        tree: ModuleTree,
        directory: Path | None,
        *,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> ModuleIndex:
        """Open the index of a tree; what depmod has not made is made if it is absent, damaged or of another state.

        :param directory: where that is kept; None: nowhere.
        :param refresh: make it anew in any case.
        :param progress: told how many modules have been read, if it has to be made.
        :raises InputError: the tree cannot be read; or modules need each other in a circle: depmod makes no files.
        :raises ImageError: ``modules.dep.bin`` is damaged.
        """
        if tree.root is None or not tree.root.exists():
            return cls(tree.root, _MadeFiles({}))
        if tree.dep_index is not None:
            return cls(tree.root, _TreeFiles(tree.root))
        path = directory and directory / f"modules-{zlib.crc32(os.fsencode(tree.root)):08x}"
        if path is not None and not refresh:
            with suppress(OSError, CorruptError, KeyError):
                arrays = read_arrays(path)
                if _is_good(arrays, tree):
                    return cls(tree.root, _MadeFiles(arrays))
        made = _made(ModuleTree(tree.root, tree.config), tree.root, progress)  # a tree remembers what it has seen
        if path is not None:
            _keep(path, made)
        return cls(tree.root, _MadeFiles(made))

    # -- modules ----------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._line(name) is not None

    @cached_property
    def names(self) -> list[str]:
        """The names of all modules, in the order of their priority: that of modules.order."""
        found = {key: priority for key, priority, _ in self._dep.items()} if self._dep is not None else {}
        return [decode(key) for key in sorted(found, key=found.__getitem__)]

    def path(self, name: str) -> Path | None:
        """The file of a module, None if the tree has no such module."""
        line = self._line(name)
        return None if line is None or self.root is None else self.root / line.partition(":")[0]

    def dependencies(self, name: str) -> tuple[str, ...]:
        """What must be loaded before a module, in load order; nothing for what is not in the tree."""
        words = (self._line(name) or "").partition(":")[2].split()
        return tuple(other for word in reversed(words) if (other := module_name(word)) is not None)

    def _line(self, name: str) -> str | None:
        """Its line in modules.dep (``kmod_search_moddep``)."""
        found = self._dep.search(encode(fold(name))) if self._dep is not None else None
        return None if found is None else decode(found)

    # -- looking up ---------------------------------------------------------------------------------------
    def by_symbol(self, alias: str) -> list[str]:
        """The module that exports the symbol in ``symbol:NAME``."""
        return _matching(self._symbols, alias) if alias.startswith(_SYMBOL) else []

    def by_alias(self, alias: str) -> list[str]:
        """The modules one of whose aliases matches, in the order in which modprobe loads them."""
        return _matching(self._aliases, alias)

    def by_builtin_alias(self, alias: str) -> list[str]:
        """The built-in module that has this name, else those that have a matching alias."""
        found = [alias] if self._is_listed(alias) else _matching(self._builtin_aliases, alias)
        self._given_as_builtin.update(found)
        return found

    @property
    def aliases(self) -> list[tuple[str, str]]:
        """All aliases with their modules, in the order in which ``modprobe -c`` dumps its index."""
        return _pairs(self._aliases)

    @property
    def symbols(self) -> list[tuple[str, str]]:
        """All exported symbols with their modules, sorted as bytes."""
        return [(alias.removeprefix(_SYMBOL), name) for alias, name in _pairs(self._symbols)]

    @cached_property
    def _dep(self) -> KmodIndex | None:
        return self._files.index("modules.dep.bin")

    @cached_property
    def _symbols(self) -> KmodIndex | None:
        return self._files.index("modules.symbols.bin")

    @cached_property
    def _aliases(self) -> KmodIndex | None:
        return self._files.index("modules.alias.bin")

    @cached_property
    def _builtin(self) -> KmodIndex | None:
        return self._files.index("modules.builtin.bin")

    @cached_property
    def _builtin_aliases(self) -> KmodIndex | None:
        return self._files.index("modules.builtin.alias.bin")

    # -- built in ---------------------------------------------------------------------------------------
    def is_builtin(self, name: str) -> bool:
        """Whether a module is built into the kernel: ``modules.builtin`` has it, or a look-up has given it as such.

        For ``modules.builtin.modinfo`` knows aliases of what is no module by its name, and kmod remembers them.
        """
        return self._is_listed(name) or name in self._given_as_builtin

    def _is_listed(self, name: str) -> bool:
        return self._builtin is not None and self._builtin.search(encode(name)) is not None

    def builtin_modinfo(self, name: str) -> list[bytes]:
        """The entries of ``modules.builtin.modinfo`` for a module."""
        return self._builtin_entries.get(encode(name), [])

    @cached_property
    def _builtin_entries(self) -> dict[bytes, list[bytes]]:
        found: dict[bytes, list[bytes]] = {}
        data = _TreeFiles(self.root).text("modules.builtin.modinfo") if self.root is not None else b""
        for entry in filter(None, data.split(b"\0")):
            name, dot, value = entry.partition(b".")
            if dot:
                found.setdefault(name.replace(b"-", b"_"), []).append(value)
        return found

    # -- modules.softdep, modules.weakdep -----------------------------------------------------------------
    @property
    def softdeps(self) -> list[tuple[str, str]]:
        """The ``softdep`` entries in the modules: name, and text as in modprobe.d."""
        return self._configured("softdep")

    @property
    def weakdeps(self) -> list[tuple[str, str]]:
        """The ``weakdep`` entries, likewise, which kmod knows since version 33: what a module may want, by names."""
        return self._configured("weakdep")

    def _configured(self, command: str) -> list[tuple[str, str]]:
        lines = (line.split(None, 2) for line in decode(self._files.text(f"modules.{command}")).splitlines())
        return [(fold(words[1]), words[2]) for words in lines if len(words) == 3 and words[0] == command]


def _matching(index: KmodIndex | None, alias: str) -> list[str]:
    return [] if index is None or len(alias) > LONGEST_NAME else index.search_wild(encode(alias), fnmatch)


def _pairs(index: KmodIndex | None) -> list[tuple[str, str]]:
    return [] if index is None else [(decode(key), decode(value)) for key, _, value in index.items()]


# -- files that are made --------------------------------------------------------------------------------------


def _made(tree: ModuleTree, root: Path, progress: Progress | None = None) -> Arrays:
    """What depmod would write, and the state of the tree that it is true for."""
    from kodojo.kmod.depmod import files_of, link, scan  # noqa: PLC0415  only when the index is made

    directories = [*_LISTS, *tree.found.directories]
    stamps = [_stamp(root / name) for name in directories]  # before anything is read
    graph = link(scan(tree, progress=progress))
    if graph.cycles:
        raise InputError(
            f"{root}: Cycle detected: {graph.cycles[0]}; depmod makes no modules.dep for such a tree",
            hint="take one of these modules out of the tree, or leave its directory out: exclude, in depmod.d",
        )
    files = files_of(graph, root, _KEPT).files
    arrays: dict[str, Any] = {"format": np.array([_FORMAT], np.uint32), "config": _config_stamp(tree)}
    arrays["directories"] = _bytes("\0".join(directories).encode("utf-8", "surrogateescape"))
    arrays["stamps"] = np.array(stamps, np.uint32)
    arrays |= {name: _bytes(files[name]) for name in _KEPT if files[name]}
    arrays["crc"] = _checksum(arrays)
    return arrays


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _keep(path: Path, arrays: Arrays) -> None:
    from kodojo.durable import write_atomically  # noqa: PLC0415  only when it is made

    def write(file: BinaryIO) -> None:
        write_arrays(file, arrays)

    with suppress(StoreError):  # where it cannot be written, time is not saved
        write_atomically(path, write)


def _is_good(arrays: Arrays, tree: ModuleTree) -> bool:
    if arrays["format"].tolist() != [_FORMAT] or arrays["crc"].tolist() != _checksum(arrays).tolist():
        return False
    if arrays["config"].tolist() != _config_stamp(tree).tolist():
        return False
    directories = decode(arrays["directories"].tobytes()).split("\0")
    stamps: list[int] = arrays["stamps"].tolist()
    return [_stamp(Path(tree.root or "", name)) for name in directories] == stamps


def _config_stamp(tree: ModuleTree) -> npt.NDArray[np.uint32]:
    return np.array([zlib.crc32(repr(tree.config).encode("utf-8", "surrogateescape"))], np.uint32)


def _stamp(path: Path) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116  for speed: there are a thousand
    except OSError:
        return 0
    return zlib.crc32(f"{status.st_mtime_ns} {status.st_size} {status.st_ino}".encode())


def _checksum(arrays: Arrays) -> npt.NDArray[np.uint32]:
    """CRC-32 of all arrays but ``crc`` itself."""
    crc = 0
    for name in sorted(arrays):
        if name != "crc":
            crc = zlib.crc32(np.ascontiguousarray(arrays[name]).data, zlib.crc32(name.encode(), crc))
    return np.array([crc], np.uint32)
