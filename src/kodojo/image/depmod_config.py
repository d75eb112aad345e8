"""depmod.d: which of several files of one name is the module (``tools/depmod.c: cfg_file_parse``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.errors import decode
from kodojo.image.regular import read_regular

__all__ = ["BUILTIN", "CONFIG_DIRECTORIES", "EXTERNAL", "DepmodConfig", "root_of_tree", "wrapped_lines"]

CONFIG_DIRECTORIES = ("etc/depmod.d", "run/depmod.d", "usr/local/lib/depmod.d", "lib/depmod.d", "usr/lib/depmod.d")
"""Relative to the root. kmod 30 has ``lib`` or, where it was built so, ``usr/lib``; a file that both have is one."""

BUILTIN, EXTERNAL = "built-in", "external"  # words of a search line that stand for other places than their names
_LARGEST_FILE = 1 << 20
_LONGEST_PATTERN = 256
_MOST_WORDS = 1000
_MOST_REPETITIONS = 3
_REPEATED = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]|\\[1-9]")
_PIECE = re.compile(r"\\[\s\S]|\n|[^\\\n]+|\\")
_NOT_DONE = ("include", "make_map_files")


@dataclass
class DepmodConfig:
    """What depmod.d says for one kernel.

    :param search: directories, the one with the highest priority first.
    :param overrides: ``DIRECTORY/MODULE``, as depmod asks them: the last line first.
    :param externals: absolute paths of directories outside of the tree, likewise.
    :param excludes: names of files and directories to leave out.
    :param problems: what is wrong with the files, in kmod's words. :param remarks: what depmod says with -vv only.
    """

    search: list[str] = field(default_factory=lambda: ["updates"])
    overrides: list[str] = field(default_factory=list)
    externals: list[str] = field(default_factory=list)
    excludes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, paths: Iterable[Path], release: str) -> DepmodConfig:
        """Read files and the ``*.conf`` files of directories; of two files of one name the first directory's counts.

        :param release: of the kernel: ``override`` and ``external`` lines may be for some kernels only.
        """
        config = cls(search=[])
        files: dict[str, tuple[Path, bool]] = {}
        for path in paths:
            given = path.exists() and not path.is_dir()
            for file in [path] if given else _config_files(path, config):
                files.setdefault(file.name, (file, given))
        for name in sorted(files, key=os.fsencode):
            path, given = files[name]
            config._parse(path, release, given=given)
        config.search = config.search or ["updates"]
        for kind in (config.search, config.overrides, config.externals, config.excludes):
            if len(kind) > _MOST_WORDS:
                config.problems.append(f"more than {_MOST_WORDS} words of a kind: the rest is ignored")
                del kind[_MOST_WORDS:]
        return config

    @classmethod
    def beside(cls, tree: Path) -> DepmodConfig:
        """That of the system that a tree belongs to: the files in ``etc/depmod.d`` and so on of its root."""
        root = root_of_tree(tree)
        if root is None:
            return cls()
        config = cls.read(filter(Path.is_dir, (root / name for name in CONFIG_DIRECTORIES)), tree.name)
        config.externals = [str(root / path.lstrip("/")) for path in config.externals]
        return config

    def _parse(self, path: Path, release: str, *, given: bool) -> None:
        """Read a file; ``given``: by its own name, so that it may be a pipe or ``/dev/null``."""
        try:
            text = decode(_content(path) if given else read_regular(path))
        except OSError as error:
            self.problems.append(f"file parse {path}: {error.strerror or error}")
            return
        for number, line in wrapped_lines(text):
            command, *words = re.split(r"[\t ]+", line.strip("\t "))
            if command and not line.startswith("#") and not self._obey(command, words, release, f"{path}:{number}"):
                self.problems.append(f"{path}:{number}: ignoring bad line starting with '{command}'")

    def _obey(self, command: str, words: Sequence[str], release: str, place: str) -> bool:
        """Take one line in; whether it is a good one."""
        if command == "search":
            self.search += words
        elif command == "override" and len(words) >= 3:
            if _matches(words[1], release):
                self.overrides.insert(0, f"{words[2]}/{words[0]}")
            else:
                self.remarks.append(f"{place}: override kernel did not match {words[1]}")
        elif command == "external" and len(words) >= 2:
            if not words[1].startswith("/"):
                self.problems.append(f"{place}: external directory {words[1]} is not an absolute path: ignored")
            elif _matches(words[0], release):
                self.externals.insert(0, words[1])
            else:
                self.remarks.append(f"{place}: external directory did not match {words[0]}")
        elif command == "exclude":
            self.excludes += words
        elif command in _NOT_DONE:
            self.remarks.append(f"{place}: command {command} not implemented yet")
        else:
            return False
        return True


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST_FILE)


def root_of_tree(tree: Path) -> Path | None:
    """The root of the system whose ``lib/modules/RELEASE`` or ``usr/lib/modules/RELEASE`` a tree is; else None."""
    if tree.parts[-3:-1] != ("lib", "modules"):
        return None
    root = tree.parents[2]
    return root.parent if root.name == "usr" else root


def _config_files(path: Path, config: DepmodConfig) -> Iterator[Path]:
    if not path.is_dir():
        return
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208  names are wanted
    except OSError as error:
        config.problems.append(f"files list {path}: {error.strerror or error}")
        return
    for name in names:
        if name.startswith("."):
            continue
        if not name.endswith(".conf") or len(name) < 6:
            config.remarks.append(f"All cfg files need .conf: {path}/{name}")
        elif (path / name).is_dir():
            config.problems.append(f"Directories inside directories are not supported: {path}/{name}")
        elif (path / name).is_file():
            yield path / name


def wrapped_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with the numbers of their ends; a backslash takes away the line end behind it, and vanishes itself.

    Source: ``shared/util.c: freadline_wrapped``.
    """
    number = 0
    parts: list[str] = []
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece == "\n":
            number += 1
            yield number, "".join(parts)
            parts = []
        elif piece == "\\\n":
            number += 1
        else:
            parts.append(piece.removeprefix("\\"))
    if rest := "".join(parts):
        yield number + 1, rest


def _matches(pattern: str, release: str) -> bool:
    """``cfg_kernel_matches``: ``*``, or an extended regular expression that is found in the release.

    A pattern that could take very long (many repetitions, or one of a group) matches nothing, as a wrong one does.
    """
    if pattern == "*":
        return True
    if len(pattern) > _LONGEST_PATTERN or len(_REPEATED.findall(pattern)) > _MOST_REPETITIONS:
        return False
    try:
        return _REPEATED_GROUP.search(pattern) is None and re.search(pattern, release[:_LONGEST_PATTERN]) is not None
    except (re.error, OverflowError):
        return False
