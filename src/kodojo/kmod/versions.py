"""The CRCs of symbols in a module's file, as ``modprobe`` shows them."""

from __future__ import annotations

import numpy as np

from kodojo.errors import ImageError, decode
from kodojo.image.elf import ElfFile

__all__ = ["exported_versions", "version_line", "wanted_versions"]

_SHN_ABS = 0xFFF1
_SHN_UNDEF = 0
_UNKNOWN = (1 << 64) - 1
_ENTRY_SIZE = 64  # of struct modversion_info
_CRC = b"__crc_"


def version_line(crc: int, symbol: str) -> str:
    """``0x12345678<tab>symbol``."""
    return f"0x{crc:08x}\t{symbol}"


def wanted_versions(data: bytes, name: str) -> list[tuple[int, str]] | None:
    """The CRCs that a module wants of other modules' symbols, in the file's order; None: it has no such section.

    :param name: what messages call the file.
    :raises ImageError: it is no module, or damaged.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_get_modversions``.
    """
    elf = ElfFile(data, name)
    content = _content(elf, "__versions")
    if content is None:
        return None
    if len(content) % _ENTRY_SIZE:
        raise ImageError(f"{name}: the section __versions ends inside an entry")
    word = elf.format.word
    found = []
    for at in range(0, len(content), _ENTRY_SIZE):
        crc = int.from_bytes(content[at : at + word], elf.format.byteorder)
        symbol = content[at + word : at + _ENTRY_SIZE].partition(b"\0")[0].removeprefix(b".")
        found.append((crc, decode(symbol)))
    return found


def exported_versions(data: bytes, name: str) -> list[tuple[int, str]] | None:
    """The symbols that a module exports, with their CRCs (0 where there are none); None: it exports nothing.

    :param name: what messages call the file.
    :raises ImageError: it is no module, or damaged.
    Source: ``libkmod/libkmod-elf.c: kmod_elf_get_symbols``.
    """
    elf = ElfFile(data, name)
    table, strings = _content(elf, ".symtab"), _content(elf, ".strtab")
    found = []
    if table is not None and strings is not None and not len(table) % elf.format.sym.itemsize:
        found = _crc_symbols(elf, np.frombuffer(table, elf.format.sym)[1:], strings)
    if found:
        return found
    names = _content(elf, "__ksymtab_strings")
    return None if names is None else [(0, decode(symbol)) for symbol in names.split(b"\0") if symbol]


def _content(elf: ElfFile, section: str) -> bytes | None:
    return bytes(elf.section_data(section)) if section in elf.sections else None


def _crc_symbols(elf: ElfFile, symbols: np.ndarray, strings: bytes) -> list[tuple[int, str]]:
    found = []
    columns = (symbols[name].tolist() for name in ("st_name", "st_shndx", "st_value"))
    for name, section, value in zip(*columns, strict=True):
        if strings.startswith(_CRC, name):
            found.append((_resolved(elf, value, section), decode(_string(strings, name + len(_CRC)))))
    return found


def _string(strings: bytes, start: int) -> bytes:
    end = strings.find(b"\0", start)
    return strings[start:end] if end >= 0 else strings[start:]


def _resolved(elf: ElfFile, value: int, section: int) -> int:
    """``kmod_elf_resolve_crc``: the CRC is the symbol's value, or stands where the symbol is."""
    if section in (_SHN_ABS, _SHN_UNDEF):
        return value
    place = elf.section_list[section] if section < len(elf.section_list) else None
    if place is None or value > place.size - 4:
        return _UNKNOWN
    at = place.offset + value
    return int.from_bytes(elf.data[at : at + 4], elf.format.byteorder)
