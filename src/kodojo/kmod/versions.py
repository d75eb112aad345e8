"""The CRCs of symbols in a module's file: what ``modprobe`` shows of them, and what forcing takes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import decode
from kodojo.kmod.elf_parts import NotElfError, Sections

if TYPE_CHECKING:
    from kodojo.image.elf import Format

__all__ = ["exported_versions", "version_line", "wanted_versions", "without_version_facts"]

_SHF_ALLOC = 2
_SHN_ABS = 0xFFF1
_SHN_UNDEF = 0
_UNKNOWN = (1 << 64) - 1
_ENTRY_SIZE = 64  # of struct modversion_info
_CRC = b"__crc_"
_VERMAGIC = b"vermagic="


def version_line(crc: int, symbol: str) -> str:
    """``0x12345678<tab>symbol``."""
    return f"0x{crc:08x}\t{symbol}"


def wanted_versions(data: bytes) -> list[tuple[int, str]] | None:
    """The CRCs that a module wants of other modules' symbols, in the file's order; None: it has no such section.

    :raises NotElfError: damaged, or no ELF file.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_get_modversions``.
    """
    sections = Sections.of(data)
    content = sections.content(b"__versions")
    if content is None:
        return None
    if len(content) % _ENTRY_SIZE:
        raise NotElfError
    word = sections.format.word
    found = []
    for at in range(0, len(content), _ENTRY_SIZE):
        crc = int.from_bytes(content[at : at + word], sections.format.byteorder)
        name = content[at + word : at + _ENTRY_SIZE].partition(b"\0")[0].removeprefix(b".")
        found.append((crc, decode(name)))
    return found


def exported_versions(data: bytes) -> list[tuple[int, str]] | None:
    """The symbols that a module exports, with their CRCs (0 where there are none); None: it exports nothing.

    :raises NotElfError: damaged, or no ELF file.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_get_symbols``.
    """
    sections = Sections.of(data)
    table, strings = sections.content(b".symtab"), sections.content(b".strtab")
    found = []
    if table is not None and strings is not None and not len(table) % sections.format.sym.itemsize:
        found = _crc_symbols(sections, np.frombuffer(table, sections.format.sym)[1:], strings)
    if found:
        return found
    names = sections.content(b"__ksymtab_strings")
    return None if names is None else [(0, decode(name)) for name in names.split(b"\0") if name]


def _crc_symbols(sections: Sections, symbols: np.ndarray, strings: bytes) -> list[tuple[int, str]]:
    found = []
    for name, section, value in zip(
        symbols["st_name"].tolist(), symbols["st_shndx"].tolist(), symbols["st_value"].tolist(), strict=True
    ):
        if strings.startswith(_CRC, name):
            text = strings[name + len(_CRC) : strings.find(b"\0", name)]
            found.append((_resolved(sections, value, section), decode(text)))
    return found


def _resolved(sections: Sections, value: int, section: int) -> int:
    """``kmod_elf_resolve_crc``: the CRC is the symbol's value, or stands where the symbol is."""
    if section in (_SHN_ABS, _SHN_UNDEF):
        return value
    place = sections.place(section)
    if place is None or value > place.stop - place.start - 4:
        return _UNKNOWN
    at = place.start + value
    return int.from_bytes(sections.data[at : at + 4], sections.format.byteorder)


def without_version_facts(data: bytes, *, modversions: bool, vermagic: bool) -> bytes:
    """A module as ``insmod -f`` hands it over where user space has unpacked it.

    Of a file that the kernel reads itself the flags of ``finit_module(2)`` ask for the same.

    :param modversions: the section ``__versions`` is no longer to be loaded.
    :param vermagic: the version magic is overwritten with zeros.
    :return: the data as they are if there is no such thing, or the file is damaged: the kernel will see.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_strip_section, kmod_elf_strip_vermagic``.
    """
    try:
        sections = Sections.of(data)
        changed = bytearray(data)
        if modversions:
            _unload(changed, sections, b"__versions")
        place = sections.place(sections.number(b".modinfo")) if vermagic else None
    except NotElfError:
        return data
    if place is not None:
        start = place.start
        for entry in data[place].split(b"\0"):
            if entry.startswith(_VERMAGIC):
                changed[start : start + len(entry)] = bytes(len(entry))
                break
            start += len(entry) + 1
    return bytes(changed)


def _unload(data: bytearray, sections: Sections, name: bytes) -> None:
    number = sections.number(name)
    if number is not None:
        elf_format: Format = sections.format
        header = np.frombuffer(data, elf_format.shdr, 1, sections.table + number * elf_format.shdr.itemsize)
        header["sh_flags"] &= ~np.uint64(_SHF_ALLOC).astype(header["sh_flags"].dtype)
