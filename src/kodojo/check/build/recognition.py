"""What is source rather than a module: by the names and the content of files, without building anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

__all__ = ["Kind", "build_hint", "dkms_directory", "kind_of", "title_of"]

Kind = Literal["dkms", "kbuild"]

_CONF = re.compile(r"(?:\./)?(usr/src/[^/]+)/dkms\.conf")
_OBJECTS = re.compile(rb"^\s*obj-(?:m|\$[({]\w+[)}])\s*[:+?]?=", re.MULTILINE)
_VERSION = re.compile(r"-\d+(?=[.+~-]|$)")
_LARGEST_MAKEFILE = 1 << 20


def dkms_directory(member: str) -> str | None:
    """The directory in a package that a member makes the source of a DKMS module: ``usr/src/vpoll-0.1``."""
    found = _CONF.fullmatch(member)
    return found[1] if found else None


def title_of(directory: str) -> str:
    """What DKMS calls such a source, by the name of its directory: ``vpoll 0.1``."""
    name = directory.rpartition("/")[2]
    found = _VERSION.search(name)  # names have dashes, too
    return f"{name[: found.start()]} {name[found.start() + 1 :]}" if found else name


def kind_of(directory: Path) -> Kind | None:
    """Whether a directory is a module's source: with a ``dkms.conf``, or a ``Kbuild`` or ``Makefile`` for kbuild."""
    if (directory / "dkms.conf").is_file():
        return "dkms"
    for name in ("Kbuild", "Makefile"):
        path = directory / name
        if path.is_file():
            with path.open("rb") as file:
                if _OBJECTS.search(file.read(_LARGEST_MAKEFILE)):
                    return "kbuild"
    return None


def build_hint(word: str) -> str:
    """What to do with a source."""
    return f"build it against each kernel: kodojo check --build {word}"
