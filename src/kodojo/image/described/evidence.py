"""What a kernel prints, told without the kernel: by headers that came with the same change, or by its sources.

Which variant of a check a kernel has is asked by the messages that it can print. A headers package has none of
them, but some changes left something behind in headers, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodojo.image.described.files import SOURCES, DescriptionFiles, read_small

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Evidence", "evidence"]

_SECTIONS_COUNTED = b"Only one .modinfo section must exist."

# Text of a message -> the header and the word in it by which a kernel is known that has both.
_COMPANIONS = {
    # The checks and the seven regions of ac3b43283923 are of the same release (6.4).
    _SECTIONS_COUNTED: ("include/linux/module.h", b"enum mod_mem_type {"),
    # 74829ddf5977 and 2852ca7fba9f (6.0)
    b"%s: loading test module taints kernel.": ("include/linux/panic.h", b"TAINT_TEST"),
    # 0c05e7bd2d01 (6.3) rewrote the one and declared the other.
    b"Invalid relocation target, existing value is nonzero": ("include/linux/moduleloader.h", b"clear_relocate_add"),
    b"execmem: unable to allocate memory": ("include/linux/execmem.h", b"execmem_alloc"),
}
# Text -> another one that is older: where that is missing, so is this.
_LATER = {b"Invalid ELF section name table type": _SECTIONS_COUNTED}

_OID = re.compile(rb"\bOID_\w+,?\s*/\*\s*(\d+(?:\.\d+)+)")
_ADJACENT = re.compile(rb'"\s*"')


@dataclass(frozen=True, slots=True)
class Evidence:
    """Texts that the kernel has, and those that it has not.

    :param sources: the kernel's own code, its broken literals joined; empty if it is not there.
    :param oids: object identifiers that it knows, in the order of ``enum OID``.
    """

    present: tuple[bytes, ...]
    absent: tuple[bytes, ...]
    sources: bytes
    oids: tuple[str, ...]


def evidence(files: DescriptionFiles) -> Evidence:
    """Look into the headers and, in a build tree, into the sources of the loader."""
    root = files.headers
    if root is None:
        return Evidence((), (), b"", ())
    present = [text for text, (header, word) in _COMPANIONS.items() if word in read_small(root / header)]
    absent = [text for text in _COMPANIONS if text not in present]
    absent += [text for text, older in _LATER.items() if older in absent]
    oids = (oid.decode() for oid in _OID.findall(read_small(root / "include/linux/oid_registry.h")))
    return Evidence(tuple(present), tuple(absent), _sources(root), tuple(oids))


def _sources(root: Path) -> bytes:
    if not (root / SOURCES[0]).is_file():
        return b""
    return _ADJACENT.sub(b"", b"\n".join(read_small(root / name) for name in SOURCES))
