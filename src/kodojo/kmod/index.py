"""The index of a module tree: what depmod would have written for it, kept where later look-ups take milliseconds.

The index belongs to the state of the tree's directories; when a file was added, removed or replaced, it is made anew.
A module that was overwritten in place is not noticed, as depmod's files would not notice it: ``refresh`` is for that.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from kodojo.errors import CorruptError, StoreError, decode, encode
from kodojo.image.arrays import read_arrays, write_arrays
from kodojo.image.tree import ModuleTree, fold
from kodojo.kmod.names import LONGEST_NAME, fnmatch, literal_prefix
from kodojo.kmod.tables import Texts, checksum, pack, texts

if TYPE_CHECKING:
    from kodojo.durable import Progress
    from kodojo.image.image import Image
    from kodojo.kmod.depmod import Found
    from kodojo.kmod.tables import Arrays

__all__ = ["ModuleIndex"]

_FORMAT = 1  # to be raised whenever what the arrays mean changes
_LISTS = ("directory", "name", "path", "symbol", "alias", "prefix", "builtin", "balias", "bprefix", "bmodule")
_NUMBERS = ("by_name", "depends", "depends_of", "symbol_of", "alias_of", "prefix_at", "balias_of", "bprefix_at")
_SYMBOL = "symbol:"


class ModuleIndex:
    """Names, aliases, symbols and dependencies of the modules of one kernel. Made by :meth:`of` and :meth:`open`.

    Names are folded; look-ups give what kmod's indexes would give, in the same order.
    """

    def __init__(self, root: Path | None, arrays: Arrays) -> None:
        self.root = root
        self._lists = {name: texts(arrays, name) for name in (*_LISTS, "softdep", "softdep_of", "bname", "binfo")}
        self._numbers = {name: arrays[name] for name in (*_NUMBERS, "binfo_of")}

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
        """Open the index of a tree, made if it is absent, damaged or of another state of the tree.

        :param directory: where it is kept; None: nowhere.
        :param refresh: make it anew in any case.
        :param progress: told how many modules have been read, if it has to be made.
        :raises InputError: the tree cannot be read.
        """
        if tree.root is None:
            return cls(None, _arrays_of(None, ModuleTree(None)))
        path = directory and directory / f"modules-{zlib.crc32(os.fsencode(tree.root)):08x}"
        if path is not None and not refresh:
            with suppress(OSError, CorruptError, KeyError):
                arrays = read_arrays(path)
                if _is_good(arrays, tree.root):
                    return cls(tree.root, arrays)
        made = _arrays_of(tree.root, ModuleTree(tree.root), progress)  # a tree object remembers what it has seen
        if path is not None:
            _keep(path, made)
        return cls(tree.root, made)

    # -- modules ----------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._lists["name"])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._number(name) is not None

    @property
    def names(self) -> list[str]:
        """The names of all modules, in the order of modules.order."""
        return list(self._lists["name"])

    def path(self, name: str) -> Path | None:
        """The file of a module, None if the tree has no such module."""
        number = self._number(name)
        return None if number is None or self.root is None else self.root / self._lists["path"][number]

    def dependencies(self, name: str) -> tuple[str, ...]:
        """What must be loaded before a module, in load order; nothing for what is not in the tree."""
        number = self._number(name)
        if number is None:
            return ()
        first, last = self._numbers["depends_of"][number : number + 2].tolist()
        return tuple(self._lists["name"][other] for other in self._numbers["depends"][first:last].tolist())

    def _number(self, name: str) -> int | None:
        """Binary search in the names, which are kept in another order."""
        names, order, wanted = self._lists["name"], self._numbers["by_name"], encode(fold(name))
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            if names.raw(int(order[middle])) < wanted:
                low = middle + 1
            else:
                high = middle
        return int(order[low]) if low < len(order) and names.raw(int(order[low])) == wanted else None

    # -- looking up ---------------------------------------------------------------------------------------
    def by_symbol(self, alias: str) -> list[str]:
        """The module that exports the symbol in ``symbol:NAME``."""
        if not alias.startswith(_SYMBOL):
            return []
        found = self._lists["symbol"].equal(encode(alias[len(_SYMBOL) :]))
        return [self._lists["name"][int(self._numbers["symbol_of"][at])] for at in found]

    @property
    def aliases(self) -> list[tuple[str, str]]:
        """All aliases with their modules, in the order in which ``modprobe -c`` dumps its index."""
        names, numbers = self._lists["name"], self._numbers["alias_of"].tolist()
        found = sorted((encode(alias), number) for alias, number in zip(self._lists["alias"], numbers, strict=True))
        return [(decode(alias), names[number]) for alias, number in found]

    @property
    def symbols(self) -> list[tuple[str, str]]:
        """All exported symbols with their modules, sorted as bytes."""
        names, numbers = self._lists["name"], self._numbers["symbol_of"].tolist()
        return [(symbol, names[number]) for symbol, number in zip(self._lists["symbol"], numbers, strict=True)]

    def by_alias(self, alias: str) -> list[str]:
        """The modules one of whose aliases matches, in the order in which modprobe loads them."""
        found = sorted(int(self._numbers["alias_of"][at]) for at in self._matching("alias", "prefix", alias))
        return [self._lists["name"][number] for number in found]

    def by_builtin_alias(self, alias: str) -> list[str]:
        """The built-in modules that have this name or a matching alias."""
        found = [int(self._numbers["balias_of"][at]) for at in self._matching("balias", "bprefix", alias)]
        return [self._lists["bmodule"][number] for number in found]

    def _matching(self, patterns: str, prefixes: str, alias: str) -> list[int]:
        """Where the patterns that match are: only those are looked at whose literal beginning is the name's, too."""
        if len(alias) > LONGEST_NAME:
            return []
        pattern_list, starts = self._lists[patterns], self._numbers[f"{prefixes}_at"]
        name = encode(alias)
        found = []
        for length in range(len(name) + 1):
            for at in self._lists[prefixes].equal(name[:length]):
                candidates = range(int(starts[at]), int(starts[at + 1]))
                found += [number for number in candidates if _match(pattern_list[number], length, alias)]
        return found

    # -- built in ---------------------------------------------------------------------------------------
    def is_builtin(self, name: str) -> bool:
        """Whether a module is built into the kernel (``modules.builtin``)."""
        return bool(self._lists["builtin"].equal(encode(name)))

    def builtin_modinfo(self, name: str) -> list[bytes]:
        """The entries of ``modules.builtin.modinfo`` for a module."""
        at = self._lists["bname"].equal(encode(name))
        if not at:
            return []
        first, last = self._numbers["binfo_of"][at[0] : at[0] + 2].tolist()
        return [self._lists["binfo"].raw(number) for number in range(first, last)]

    @property
    def softdeps(self) -> list[tuple[str, str]]:
        """The ``softdep`` entries in the modules: name, and text as in modprobe.d."""
        return list(zip(self._lists["softdep_of"], self._lists["softdep"], strict=True))

    @property
    def weakdeps(self) -> list[tuple[str, str]]:
        """The ``weakdep`` entries of ``modules.weakdep``, likewise, which kmod knows since version 33."""
        if self.root is None:
            return []
        try:
            text = (self.root / "modules.weakdep").read_text("utf-8", "surrogateescape")
        except OSError:
            return []
        lines = (line.split(None, 2) for line in text.splitlines())
        return [(fold(words[1]), words[2]) for words in lines if len(words) == 3 and words[0] == "weakdep"]


def _match(pattern: str, length: int, alias: str) -> bool:
    """Whether a pattern matches, the first ``length`` bytes of which are literally the name's."""
    if pattern.isascii() and alias.isascii():
        rest = pattern[length:]
        if rest == "*":
            return True
        if not rest:
            return len(alias) == length
        return fnmatch(rest, alias[length:])
    return fnmatch(pattern, alias)


def _keep(path: Path, arrays: Arrays) -> None:
    from kodojo.durable import write_atomically  # noqa: PLC0415  only when it is made

    def write(file: BinaryIO) -> None:
        write_arrays(file, arrays)

    with suppress(StoreError):  # where it cannot be written, time is not saved
        write_atomically(path, write)


def _is_good(arrays: Arrays, root: Path) -> bool:
    if arrays["format"].tolist() != [_FORMAT] or arrays["crc"].tolist() != checksum(arrays).tolist():
        return False
    directories: Texts = texts(arrays, "directory")
    return all(
        _stamp(root / name) == stamp for name, stamp in zip(directories, arrays["stamp"].tolist(), strict=True)
    )


def _stamp(path: Path) -> int:
    try:
        status = os.stat(path)  # noqa: PTH116  for speed: there are a thousand
    except OSError:
        return 0
    return zlib.crc32(f"{status.st_mtime_ns} {status.st_size} {status.st_ino}".encode())


def _directories(root: Path | None) -> list[tuple[str, int]]:
    """All directories and lists that the index depends on, with what shows that they changed."""
    if root is None:
        return []
    names = ["modules.order", "modules.builtin", "modules.builtin.modinfo", "modules.dep"]
    for directory, directories, _ in os.walk(root):
        directories[:] = sorted(d for d in directories if d not in ("build", "source"))
        names.append(os.path.relpath(directory, root))
    return [(name, _stamp(root / name)) for name in names]


def _arrays_of(root: Path | None, tree: ModuleTree, progress: Progress | None = None) -> Arrays:
    from kodojo.kmod.depmod import examine  # noqa: PLC0415  only when the index is made

    directories = _directories(root)
    arrays: dict[str, Any] = {"format": np.array([_FORMAT], np.uint32)}
    arrays |= pack("directory", [name for name, _ in directories])
    arrays["stamp"] = np.array([stamp for _, stamp in directories], np.uint32)
    found = examine(tree, progress)
    arrays |= _module_arrays(found) | _alias_arrays(found) | _builtin_arrays(found)
    arrays["crc"] = checksum(arrays)
    return arrays


def _numbers(values: list[int]) -> Any:
    return np.array(values, np.uint32)


def _starts(counts: list[int]) -> Any:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.uint32)


def _module_arrays(found: Found) -> dict[str, Any]:
    modules = found.modules
    names = [encode(module.name) for module in modules]
    symbols = sorted(found.symbols)
    return {
        **pack("name", names),
        **pack("path", [module.path for module in modules]),
        "by_name": _numbers(sorted(range(len(names)), key=names.__getitem__)),
        "depends": _numbers([number for module in modules for number in module.depends]),
        "depends_of": _starts([len(module.depends) for module in modules]),
        **pack("symbol", symbols),
        "symbol_of": _numbers([found.symbols[symbol] for symbol in symbols]),
        **pack("softdep_of", [name for name, _ in found.softdeps]),
        **pack("softdep", [text for _, text in found.softdeps]),
    }


def _alias_arrays(found: Found) -> dict[str, Any]:
    builtin = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in found.builtin_aliases))}
    builtin_aliases = dict.fromkeys((alias, builtin[name]) for alias, name in found.builtin_aliases)
    return {
        **_by_prefix("alias", "prefix", found.aliases),
        **_by_prefix("balias", "bprefix", list(builtin_aliases)),
        **pack("bmodule", list(builtin)),
    }


def _by_prefix(patterns: str, prefixes: str, aliases: list[tuple[str, int]]) -> dict[str, Any]:
    """Patterns sorted by their literal beginning, and where those of each beginning start."""
    keyed = sorted((encode(literal_prefix(alias)), number, encode(alias)) for alias, number in aliases)
    beginnings: dict[bytes, int] = {}
    for prefix, _, _ in keyed:
        beginnings[prefix] = beginnings.get(prefix, 0) + 1
    return {
        **pack(patterns, [alias for _, _, alias in keyed]),
        f"{patterns}_of": _numbers([number for _, number, _ in keyed]),
        **pack(prefixes, list(beginnings)),
        f"{prefixes}_at": _starts(list(beginnings.values())),
    }


def _builtin_arrays(found: Found) -> dict[str, Any]:
    names = sorted(found.builtin_info, key=encode)
    return {
        **pack("builtin", sorted({encode(name) for name in found.builtin})),
        **pack("bname", names),
        **pack("binfo", [entry for name in names for entry in found.builtin_info[name]]),
        "binfo_of": _starts([len(found.builtin_info[name]) for name in names]),
    }
