"""Module files from outside a kernel's tree, found beside it: a driver that was built, and what it needs.

What depmod would find out about the files is found out here, in memory: names, aliases, soft dependencies, and who
exports the symbols that another one needs. A file wins over the tree's module of the same name, as it would in the
tree's ``updates``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kodojo.errors import InputError, KodojoError, decode, encode
from kodojo.image.payload import read_module
from kodojo.image.tree import fold, load_order, module_name
from kodojo.kmod.elf_parts import NotElfError, Parts, modinfo_strings, module_parts
from kodojo.kmod.known import KnownModules
from kodojo.kmod.names import alias_normalize, fnmatch

__all__ = ["Siblings", "modules_at", "modules_beside", "named_as_path"]

_MOST_FILES = 20_000  # more than any tree has
_SYMBOL = "symbol:"


class _Told(NamedTuple):
    """What a module says about itself."""

    aliases: tuple[str, ...] = ()
    softdeps: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    release: str = ""
    exports: tuple[bytes, ...] = ()
    undefined: tuple[bytes, ...] = ()


class Siblings:
    """The modules of a kernel's tree, and before them some files (a :class:`kodojo.kmod.known.KnownModules`).

    The files are read when somebody first asks for more than their names.

    :param index: the tree's.
    :param files: of several with one name that which was built for this kernel counts, else the first.
    :param release: of the kernel.
    """

    def __init__(self, index: KnownModules, files: Iterable[Path], release: str = "") -> None:
        self._index = index
        self._files = _one_of_each(files, release)

    @property
    def root(self) -> Path | None:
        return self._index.root

    @property
    def files(self) -> Mapping[str, Path]:
        """The files by the names of their modules."""
        return self._files

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (fold(name) in self._files or name in self._index)

    def path(self, name: str) -> Path | None:
        return self._files.get(fold(name)) or self._index.path(name)

    def is_builtin(self, name: str) -> bool:
        return fold(name) not in self._files and self._index.is_builtin(name)

    def by_builtin_alias(self, alias: str) -> list[str]:
        return self._index.by_builtin_alias(alias)

    def by_symbol(self, alias: str) -> list[str]:
        if not alias.startswith(_SYMBOL):
            return []
        owner = self._exporters.get(encode(alias[len(_SYMBOL) :]))
        return [owner] if owner is not None else self._of_the_tree(self._index.by_symbol(alias))

    def by_alias(self, alias: str) -> list[str]:
        """The tree's modules first: in the order that depmod gives, a module that modules.order lacks comes last."""
        ours = [name for name, told in self._told.items() if any(fnmatch(each, alias) for each in told.aliases)]
        return self._of_the_tree(self._index.by_alias(alias)) + ours

    @property
    def softdeps(self) -> list[tuple[str, str]]:
        ours = [(name, text) for name, told in self._told.items() for text in told.softdeps]
        return [pair for pair in self._index.softdeps if pair[0] not in self._files] + ours

    def dependencies(self, name: str) -> tuple[str, ...]:
        """What must be loaded before a module: by its symbols, as depmod finds it, and by what it names itself."""
        name = fold(name)
        return load_order(name, iter(self._direct(name)), self._direct)

    def absent(self, name: str) -> tuple[str, ...]:
        """What a file names among those that it depends on, and is neither built in, nor in the tree, nor a file."""
        told = self._told.get(fold(name), _Told())
        return tuple(other for other in told.depends if other not in self and not self.is_builtin(other))

    def _direct(self, name: str) -> tuple[str, ...]:
        """What a file needs directly; for a module of the tree all that it needs, in load order."""
        if name not in self._files:
            return self._index.dependencies(name)
        told = self._told[name]
        exporters = (self.by_symbol(f"{_SYMBOL}{decode(symbol)}") for symbol in told.undefined)
        found = dict.fromkeys(owner for owners in exporters for owner in owners[:1])
        found |= dict.fromkeys(other for other in told.depends if other in self)
        return tuple(other for other in found if other != name)

    def _of_the_tree(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in self._files]

    @cached_property
    def _told(self) -> dict[str, _Told]:
        return {name: _read(path) for name, path in self._files.items()}

    @cached_property
    def _exporters(self) -> dict[bytes, str]:
        return {symbol: name for name, told in self._told.items() for symbol in told.exports}


def named_as_path(word: str | os.PathLike[str]) -> bool:
    """Whether a word is a module's file rather than a name or an alias, which may have slashes in it, too."""
    text = os.fspath(word)
    if not isinstance(word, str) or text.startswith(("/", "./", "../")):
        return True
    return "/" in text and os.path.exists(text)  # noqa: PTH110  as it was typed


def modules_beside(file: Path) -> list[Path]:
    """The modules in a file's directory, the file itself before all others.

    :raises InputError: it is no module by its name, or the directory cannot be read.
    """
    if not file.exists():
        raise InputError(f"{file}: no such file", hint="give the path of a .ko file")
    if module_name(file) is None:
        raise InputError(f"{file}: not a module by its name", hint="give a .ko file (also .ko.gz, .ko.xz, .ko.zst)")
    others = _modules_in(file.parent, below=False)
    return [file, *(other for other in others if module_name(other) != module_name(file))]


def modules_at(path: Path) -> list[Path]:
    """The modules of a directory and below it, the least deep ones first; those beside a file if it is one.

    :raises InputError: there is no such thing, or there are none, or more than any tree has.
    """
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or directory", hint="give a .ko file, or a directory of them")
        return modules_beside(path)
    found = _modules_in(path, below=True)
    if not found:
        raise InputError(f"{path}: has no modules in it", hint="give a directory with .ko files")
    return sorted(found, key=lambda file: (len(file.parts), file))


def _modules_in(directory: Path, *, below: bool) -> list[Path]:
    """The regular files with a module's name, sorted; links to directories are not followed."""
    found: list[Path] = []
    for where, directories, names in os.walk(directory, onerror=_cannot_list):
        if not below:
            directories.clear()
        paths = (Path(where, name) for name in names if module_name(name) is not None)
        found += (path for path in paths if path.is_file())
        if len(found) > _MOST_FILES:
            raise InputError(f"{directory}: more than {_MOST_FILES} modules", hint="name a directory with fewer")
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def _one_of_each(files: Iterable[Path], release: str) -> dict[str, Path]:
    by_name: dict[str, list[Path]] = {}
    for path in files:
        name = module_name(path)
        if name is not None:
            by_name.setdefault(name, []).append(path)
    return {name: _chosen(paths, release) for name, paths in by_name.items()}


def _chosen(paths: list[Path], release: str) -> Path:
    if len(paths) == 1 or not release:
        return paths[0]
    return next((path for path in paths if _read(path).release == release), paths[0])


def _read(path: Path) -> _Told:
    """What the module in a file says; nothing if it cannot be read: who loads it will be told why."""
    try:
        parts = module_parts(read_module(path).module())
    except (KodojoError, NotElfError):
        return _Told()
    return _told(parts)


def _told(parts: Parts) -> _Told:
    entries: dict[str, list[str]] = {}
    for entry in modinfo_strings(parts.modinfo):
        tag, _, value = decode(entry).partition("=")
        entries.setdefault(tag, []).append(value)
    aliases = (alias_normalize(alias) for alias in entries.get("alias", ()))
    return _Told(
        tuple(alias for alias in aliases if alias),
        tuple(entries.get("softdep", ())),
        tuple(fold(name) for names in entries.get("depends", ()) for name in names.split(",") if name),
        next(iter(entries.get("vermagic", ())), "").partition(" ")[0],
        parts.exports,
        parts.undefined,
    )
