"""The modules of a tree by depmod's rules: what is looked at, and which of several files of one name is the module.

Where depmod goes by the order of directory entries, which is any, files that modules.order lists come first, then
names decide. Links are followed, as depmod follows them, wherever they lead; only not back to where they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kodojo.errors import InputError, decode
from kodojo.image.depmod_config import BUILTIN, EXTERNAL, DepmodConfig
from kodojo.image.regular import read_regular

__all__ = ["EXCLUDED", "Found", "PassedOver", "SearchedFile", "goes_first", "read_order", "search"]

EXCLUDED = "excluded by depmod.d"

_MOST_ENTRIES = 1 << 17  # real trees have some thousands
_LONGEST_PATH = 4095  # PATH_MAX - 1
_NO_MODULES = frozenset({"build", "source"})  # links to where the kernel was built
# Compressed in ways that neither kmod nor depmod's users know: not even looked at, and worth a word.
_UNREAD = (".ko.bz2", ".ko.lz4", ".ko.lzma", ".ko.lzo", ".ko.lz")


class SearchedFile(NamedTuple):
    """A file with a module's name.

    :param path: as modules.dep has it: relative to the tree; absolute in an external directory, which is not
        ``inside``. :param directory: what it begins with. :param base: and ends with.
    """

    name: str
    path: str
    directory: str
    base: str
    inside: bool

    @property
    def uncompressed(self) -> str:
        """The path as modules.order has it."""
        return f"{self.directory}{self.base[: len(self.name) + 3]}"


class PassedOver(NamedTuple):
    """Something in the tree that was not looked at: its path, and why."""

    path: str
    why: str


@dataclass
class Found:
    """What a search found.

    :param modules: by name. :param shadowed: files that are not the module of their name.
    :param directories: all that were read, relative to the root or absolute; the tree changes when one of them does.
    """

    modules: dict[str, SearchedFile] = field(default_factory=dict)
    shadowed: list[SearchedFile] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)


def search(root: Path, config: DepmodConfig, name_of: Callable[[str], str | None]) -> Found:
    """Find the modules of a tree (``tools/depmod.c: depmod_modules_search``).

    :param name_of: the name of the module in a file of this name, None for other files.
    :raises InputError: the tree cannot be read, or has more entries than any tree.
    """
    found = Found()
    order = read_order(root)
    walk = _Walk(found, config, name_of)
    _check(root)
    files = sorted(walk.files(root, ""), key=lambda file: (file.uncompressed not in order, file.path))
    for external in config.externals:
        if os.path.isdir(external):  # noqa: PTH112  as the rest here: strings
            files += sorted(walk.files(Path(external), f"{external.rstrip('/')}/"), key=lambda file: file.path)
    for file in files:
        known = found.modules.get(file.name)
        if known is None:
            found.modules[file.name] = file
        elif goes_first(config, known, file):
            found.shadowed.append(file)
        else:
            found.shadowed.append(known)
            del found.modules[file.name]
            found.modules[file.name] = file
    return found


def read_order(root: Path) -> dict[str, int]:
    """The lines of modules.order with their numbers, the last one of a path; nothing if it is absent or damaged."""
    with suppress(OSError):
        text = decode(read_regular(root / "modules.order"))
        if text.endswith("\n"):
            return {line: number for number, line in enumerate(text[:-1].split("\n"))}
    return {}


def _check(root: Path) -> None:
    try:
        os.scandir(root).close()
    except OSError as error:
        raise InputError(f"{root}: cannot be read: {error.strerror or error}") from error


class _Walk:
    """Goes through directories, in no order."""

    def __init__(self, found: Found, config: DepmodConfig, name_of: Callable[[str], str | None]) -> None:
        self._found = found
        self._excluded = frozenset(config.excludes)
        self._name_of = name_of
        self._left = _MOST_ENTRIES

    def files(self, top: Path, prefix: str) -> Iterator[SearchedFile]:
        """The modules below a directory.

        :param prefix: what their paths begin with.
        """
        status = os.stat(top)  # noqa: PTH116  for speed: there are a thousand
        pending: list[tuple[str, str, _Chain]] = [(str(top), prefix, ((status.st_dev, status.st_ino), None))]
        while pending:
            path, shown, above = pending.pop()
            self._found.directories.append(shown.rstrip("/") or ".")
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        yield from self._entry(entry, shown, above, pending)
            except OSError as error:
                self._pass_over(shown.rstrip("/"), f"cannot be read: {error.strerror or error}")

    def _entry(
        self, entry: os.DirEntry[str], shown: str, above: _Chain, pending: list[tuple[str, str, _Chain]]
    ) -> Iterator[SearchedFile]:
        self._left -= 1
        if self._left < 0:
            raise InputError(f"{entry.path}: the tree has more than {_MOST_ENTRIES} entries: refused")
        base = entry.name
        if base in _NO_MODULES:
            return
        path = shown + base
        if base in self._excluded:
            self._pass_over(path, EXCLUDED)
        elif len(path) > _LONGEST_PATH:
            self._pass_over(path, "its path is too long")
        elif entry.is_file(follow_symlinks=False):
            yield from self._file(base, shown)
        elif entry.is_dir(follow_symlinks=False):
            pending.append((entry.path, f"{path}/", ((entry.stat().st_dev, entry.inode()), above)))
        else:
            yield from self._other(entry, shown, above, pending)

    def _file(self, base: str, shown: str) -> Iterator[SearchedFile]:
        name = self._name_of(base)
        if name is not None:
            yield SearchedFile(name, shown + base, shown, base, not shown.startswith("/"))
        elif base.endswith(_UNREAD):
            self._pass_over(shown + base, "compressed in a way that kmod does not know")

    def _other(
        self, entry: os.DirEntry[str], shown: str, above: _Chain, pending: list[tuple[str, str, _Chain]]
    ) -> Iterator[SearchedFile]:
        """Links, and what is neither a file nor a directory."""
        path = shown + entry.name
        try:
            status = entry.stat()
        except OSError as error:
            target = _target(entry)
            why = (
                f"a link to {target}, which is not there" if target else f"cannot be read: {error.strerror or error}"
            )
            self._pass_over(path, why)
            return
        if stat.S_ISREG(status.st_mode):
            yield from self._file(entry.name, shown)
        elif not stat.S_ISDIR(status.st_mode):
            self._pass_over(path, "neither a file nor a directory")
        elif _is_above((status.st_dev, status.st_ino), above):
            self._pass_over(path, f"a link to {_target(entry)}, a directory that it is in itself")
        else:
            pending.append((entry.path, f"{path}/", ((status.st_dev, status.st_ino), above)))

    def _pass_over(self, path: str, why: str) -> None:
        self._found.passed_over.append(PassedOver(path, why))


# A directory and those that it was reached through, as device and inode.
_Chain = tuple[tuple[int, int], "_Chain | None"]


def _is_above(identity: tuple[int, int], chain: _Chain | None) -> bool:
    while chain is not None:
        if chain[0] == identity:
            return True
        chain = chain[1]
    return False


def _target(entry: os.DirEntry[str]) -> str:
    try:
        return os.readlink(entry.path)  # noqa: PTH115  as it stands there
    except OSError:
        return ""


def goes_first(config: DepmodConfig, old: SearchedFile, new: SearchedFile) -> bool:
    """Whether of two files of one name the one that was found first stays the module.

    (``tools/depmod.c: depmod_module_is_higher_priority``.)
    """
    # These are compared as depmod does it: without suffix, and relative to the tree (of external ones: nothing).
    old_path, new_path = _stem(old), _stem(new)
    for override in config.overrides:
        if override == new_path and new.inside:
            return False
        if override == old_path and old.inside:
            return True
    old_priority, new_priority = _priorities(config, old, new)
    return new_priority <= old_priority


def _priorities(config: DepmodConfig, old: SearchedFile, new: SearchedFile) -> tuple[int, int]:
    """Of both files, by the search lines; the highest number is the first word's."""
    number, builtin, old_priority, new_priority = 0, -1, -1, -1
    for place in reversed(config.search):
        if place == BUILTIN:
            builtin = number
        elif place == EXTERNAL:
            for directory in config.externals:
                if not new.inside and _is_below(_stem(new), directory):
                    new_priority = number
                if not old.inside and _is_below(_stem(old), directory):
                    old_priority = number
                number += 1
        elif new.inside and _is_below(_stem(new), place):
            new_priority = number
        elif old.inside and _is_below(_stem(old), place):  # not if both are there: the later one wins, then
            old_priority = number
        number += 1
    return (builtin if old_priority < 0 else old_priority), (builtin if new_priority < 0 else new_priority)


def _stem(file: SearchedFile) -> str:
    return file.directory + file.base[: len(file.name)]


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory) and path[len(directory) : len(directory) + 1] == "/"
