"""What forcing is where there are no flags: a module that user space has unpacked goes to ``init_module(2)``."""

from __future__ import annotations

import numpy as np

from kodojo.errors import ImageError
from kodojo.image.elf import SHF_ALLOC, ElfFile
from kodojo.loader.load_info import MODULE_INIT_IGNORE_MODVERSIONS, MODULE_INIT_IGNORE_VERMAGIC

__all__ = ["without_version_facts"]

_VERMAGIC = b"vermagic="


def without_version_facts(data: bytes, flags: int) -> bytes:
    """A module as kmod hands it over that is forced: without what the flags of ``finit_module(2)`` ignore.

    :param flags: MODULE_INIT_IGNORE_MODVERSIONS: the section ``__versions`` is no longer to be loaded.
        MODULE_INIT_IGNORE_VERMAGIC: the version magic is overwritten with zeros.
    :return: the data as they are if there is no such thing, or the file is damaged: the kernel will see.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_strip_section, kmod_elf_strip_vermagic``.
    """
    if not flags:
        return data
    changed = bytearray(data)
    try:
        elf = ElfFile(data, "module")
        versions, modinfo = elf.sections.get("__versions"), elf.sections.get(".modinfo")
        if flags & MODULE_INIT_IGNORE_MODVERSIONS and versions is not None:
            table = np.frombuffer(changed, elf.format.shdr, len(elf.section_list), elf.section_table)
            table["sh_flags"][versions.index] = versions.flags & ~SHF_ALLOC
        if flags & MODULE_INIT_IGNORE_VERMAGIC and modinfo is not None:
            start = modinfo.offset
            for entry in bytes(elf.section_data(".modinfo")).split(b"\0"):
                if entry.startswith(_VERMAGIC):
                    changed[start : start + len(entry)] = bytes(len(entry))
                    break
                start += len(entry) + 1
    except ImageError:
        return data
    return bytes(changed)
