"""Sources of modules among what was given: unpacked, ready to be copied for each build."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kodojo.check.build.recognition import Kind, dkms_directory, kind_of, title_of
from kodojo.check.build.unpack import copy_directory, unpack_members
from kodojo.image.package import is_package, package_members

__all__ = ["Source", "find_sources"]


class Source(NamedTuple):
    """What modules are built from.

    :param label: what it is called in reports; the labels of its modules begin with it.
    :param title: its name and version. :param place: the directory with its files, which no build writes to.
    :param packaged: it is in a package, not a directory of the user's.
    """

    label: str
    title: str
    kind: Kind
    place: Path
    packaged: bool = False

    def module_label(self, module: str) -> str:
        """The label of one of its modules.

        :param module: its name with ``.ko``, or a path below the source.
        """
        return f"{self.label}:{module}" if self.packaged else os.path.join(self.label, module)  # noqa: PTH118


def find_sources(words: Iterable[str], directory: Path) -> tuple[list[Source], list[str]]:
    """The sources among the words, and the other words.

    :param directory: an empty one, for the files of packages and copies of directories.
    :raises KodojoError: a package is damaged or hostile, a directory is too large, the disk is full.
    """
    sources: list[Source] = []
    others = []
    for number, word in enumerate(_expanded(words)):
        path, place = Path(word), directory / str(number)
        kind = kind_of(path) if path.is_dir() else None
        if kind is not None:
            copy_directory(path, place)
            sources.append(Source(str(path), path.resolve().name, kind, place))
        elif path.is_file() and is_package(path) and (found := _in_package(path, place)):
            sources += found
        else:
            others.append(word)
    return sources, others


def _expanded(words: Iterable[str]) -> Iterator[str]:
    """The words, with what patterns match in their places."""
    for word in words:
        is_pattern = not os.path.lexists(word) and glob.has_magic(word)
        yield from (sorted(glob.iglob(word, recursive=True)) if is_pattern else ()) or [word]  # noqa: PTH207


def _in_package(path: Path, place: Path) -> list[Source]:
    wanted = {found for member in package_members(path) if (found := dkms_directory(member.name)) is not None}
    if not wanted:
        return []
    unpack_members(str(path), package_members(path), place, lambda parts: "/".join(parts[:3]) in wanted)
    label = str(path)
    return [
        Source(label if len(wanted) == 1 else f"{label}:{each}", title_of(each), "dkms", place / each, packaged=True)
        for each in sorted(wanted)
        if (place / each / "dkms.conf").is_file()
    ]
