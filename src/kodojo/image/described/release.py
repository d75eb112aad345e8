"""The release of a kernel that is described by what its build generated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kodojo.errors import decode
from kodojo.image.described.files import DescriptionFiles, read_small

__all__ = ["Release", "release_of", "version_of"]

_UTS_RELEASE = re.compile(rb'^#define\s+UTS_RELEASE\s+"([^"\s]{1,64})"', re.MULTILINE)
_NAMED = re.compile(r"(?:linux-headers-|kernel-devel-)?(\d+\.\d[\w.+~-]*)")
_VERSION = re.compile(r"\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Release:
    """What the files say about the release.

    :param name: as ``uname -r`` says; empty if no file and no name tells it.
    :param certain: it is what the build generated, not the name of a directory.
    :param kernel_release: the content of ``include/config/kernel.release``; empty without.
    """

    name: str
    certain: bool
    kernel_release: str


def release_of(files: DescriptionFiles) -> Release:
    """``UTS_RELEASE``, which modules are compared with; else ``kernel.release``, else the directory's name."""
    directory = files.directory
    kernel_release = decode(read_small(directory / "include/config/kernel.release")).strip()
    if not re.fullmatch(r"[\w.+~-]{1,64}", kernel_release, re.ASCII):
        kernel_release = ""
    found = _UTS_RELEASE.search(read_small(directory / "include/generated/utsrelease.h"))
    name = decode(found[1]) if found else kernel_release
    if name:
        return Release(name, certain=True, kernel_release=kernel_release)
    parent = directory.parent if directory.name == "build" else directory
    named = _NAMED.fullmatch(parent.name)
    return Release(named[1] if named else "", certain=False, kernel_release="")


def version_of(release: str) -> str:
    """``VERSION.PATCHLEVEL`` of a release; empty if it does not begin so."""
    found = _VERSION.match(release)
    return found[0] if found else ""
