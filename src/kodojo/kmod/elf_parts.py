"""The few parts of a module's file that kmod looks at, read without reading the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np

from kodojo.image.elf import FORMATS, Format

__all__ = [
    "LinkParts",
    "NotElfError",
    "Parts",
    "link_parts",
    "modinfo_section",
    "modinfo_strings",
    "module_parts",
    "section_content",
]

_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_LONGEST_SYMBOL = 512  # KSYM_NAME_LEN
_MOST_SYMBOLS = 1 << 16  # of one module; what is more is no module but an attempt to use up memory
_EXPORTED = re.compile(rb"\0__ksymtab_([^\0]{1,511})(?=\0)")
_CRC = b"__crc_"
_WITH_CRC = re.compile(rb"\0__crc_([^\0]{1,511})(?=\0)")
_SHN_UNDEF, _SHN_ABS, _STB_WEAK = 0, 0xFFF1, 2
_NO_CRC = (1 << 64) - 1


class NotElfError(ValueError):
    """The file is no ELF file, or a damaged one."""


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int


class Parts(NamedTuple):
    """What :func:`module_parts` finds.

    :param exports: the symbols that it exports. :param undefined: those that it needs, in its symbol table's order.
    """

    modinfo: bytes
    exports: tuple[bytes, ...]
    undefined: tuple[bytes, ...]


def modinfo_section(data: bytes | mmap) -> bytes | None:
    """The content of section ``.modinfo``; None if there is none.

    :raises NotElfError: damaged, or no ELF file.
    """
    return section_content(data, b".modinfo")


def section_content(data: bytes | mmap, wanted: bytes) -> bytes | None:
    """The content of the first section of that name; None if there is none. Raises NotElfError likewise."""
    for section, name in _sections(data, _format(data)):
        if name == wanted:
            return _content(data, section)
    return None


def module_parts(data: bytes | mmap) -> Parts:
    """Read what depmod needs of a module. Raises NotElfError as :func:`modinfo_section`."""
    elf_format = _format(data)
    sections = list(_sections(data, elf_format))
    modinfo = next((_content(data, section) for section, name in sections if name == b".modinfo"), b"")
    table = next((section for section, _ in sections if section.type == _SHT_SYMTAB), None)
    if table is None or table.link >= len(sections):
        return Parts(modinfo, (), ())
    strings = _content(data, sections[table.link][0])
    exports: list[bytes] = []
    if any(name.startswith(b"__ksymtab") for _, name in sections):
        exports = [match[1] for _, match in zip(range(_MOST_SYMBOLS), _EXPORTED.finditer(strings), strict=False)]
    return Parts(modinfo, tuple(exports), _undefined(_content(data, table), strings, elf_format))


class LinkParts(NamedTuple):
    """What depmod reads of a module.

    :param exports: names as libkmod finds them, each with its CRC (0 if that was not asked for, or is not there).
    :param needs: names of undefined symbols, then of those that only ``__versions`` has; each with its CRC, likewise,
        and whether it is weak.
    """

    modinfo: bytes
    exports: dict[bytes, int]
    needs: dict[bytes, tuple[int, bool]]


def link_parts(data: bytes | mmap, *, checksums: bool = False) -> LinkParts:
    """Read a module as libkmod does (``kmod_elf_get_symbols``, ``kmod_elf_get_dependency_symbols``).

    :param checksums: CRCs and weakness, too: it takes longer.
    :raises NotElfError: damaged, or no ELF file.
    """
    elf_format = _format(data)
    sections = list(_sections(data, elf_format))
    by_name = {name: section for section, name in reversed(sections)}
    modinfo = _content(data, by_name[b".modinfo"]) if b".modinfo" in by_name else b""
    if b".symtab" not in by_name or b".strtab" not in by_name:
        return LinkParts(modinfo, _listed_exports(data, by_name), {})
    table, strings = _content(data, by_name[b".symtab"]), _content(data, by_name[b".strtab"])
    kind = elf_format.sym
    if len(table) % kind.itemsize:
        return LinkParts(modinfo, _listed_exports(data, by_name), {})
    names = [match[1] for _, match in zip(range(_MOST_SYMBOLS), _WITH_CRC.finditer(strings), strict=False)]
    exports = dict.fromkeys(names, 0) or _listed_exports(data, by_name)
    needs = dict.fromkeys(_undefined(table, strings, elf_format), (0, False))
    versions = _versions(data, by_name, elf_format)
    if checksums:
        symbols = np.frombuffer(table, kind)[1:]
        weak = _weak(symbols, strings)
        needs = {name: (versions.get(name, 0), name in weak) for name in needs}
        if names:
            exports |= _checksums(data, [section for section, _ in sections], symbols, strings, elf_format)
    needs |= {name: (crc, False) for name, crc in versions.items() if name not in needs}
    return LinkParts(modinfo, exports, needs)


def _listed_exports(data: bytes | mmap, by_name: dict[bytes, _Section]) -> dict[bytes, int]:
    """Of a kernel without CRCs: everything in ``__ksymtab_strings``."""
    section = by_name.get(b"__ksymtab_strings")
    return {} if section is None else dict.fromkeys(modinfo_strings(_content(data, section))[:_MOST_SYMBOLS], 0)


def _versions(data: bytes | mmap, by_name: dict[bytes, _Section], elf_format: Format) -> dict[bytes, int]:
    """``struct modversion_info``: a CRC of a word, and the name in the rest of 64 bytes."""
    section = by_name.get(b"__versions")
    content = _content(data, section) if section is not None else b""
    if len(content) % 64 or len(content) > 64 * _MOST_SYMBOLS:
        return {}
    word = np.dtype(elf_format.sym["st_value"])
    found: dict[bytes, int] = {}
    for crc, name in np.frombuffer(content, [("crc", word), ("name", f"S{64 - word.itemsize}")]).tolist():
        found.setdefault(name.partition(b"\0")[0], crc)
    return found


def _weak(symbols: np.ndarray[Any, Any], strings: bytes) -> set[bytes]:
    undefined = (symbols["st_shndx"] == _SHN_UNDEF) & (symbols["st_info"] >> 4 == _STB_WEAK)
    return {_string(strings, start) for start in symbols["st_name"][undefined].tolist()}


def _checksums(
    data: bytes | mmap, sections: list[_Section], symbols: np.ndarray[Any, Any], strings: bytes, elf_format: Format
) -> dict[bytes, int]:
    """The CRC of each exported symbol (``kmod_elf_resolve_crc``): a value, or where in a section it stands."""
    word = elf_format.shdr["sh_name"]
    found = {}
    for start, index, value in symbols[["st_name", "st_shndx", "st_value"]].tolist():
        if not strings.startswith(_CRC, start):
            continue
        name = _string(strings, start)[len(_CRC) :]
        if index in (_SHN_UNDEF, _SHN_ABS):
            found[name] = value
            continue
        content = _content(data, sections[index]) if index < len(sections) else b""
        found[name] = int(np.frombuffer(content, word, 1, value)[0]) if value + 4 <= len(content) else _NO_CRC
    return found


def _string(strings: bytes, start: int) -> bytes:
    return strings[start : max(start, strings.find(b"\0", start))]


def modinfo_strings(section: bytes) -> list[bytes]:
    """The strings of a .modinfo, as libkmod takes it apart: padding and empty ones left out."""
    return [entry for entry in section.split(b"\0") if entry]


def _undefined(table: bytes, strings: bytes, elf_format: Format) -> tuple[bytes, ...]:
    kind = elf_format.sym
    symbols = np.frombuffer(table, kind, len(table) // kind.itemsize)[1:]
    names = symbols["st_name"][(symbols["st_shndx"] == 0) & (symbols["st_name"] != 0)][:_MOST_SYMBOLS]
    found = []
    for start in names.tolist():
        end = strings.find(b"\0", start, start + _LONGEST_SYMBOL)
        if end > start:
            found.append(strings[start:end])
    return tuple(found)


def _format(data: bytes | mmap) -> Format:
    """Class and byte order of a file, whatever the architecture of this machine is."""
    found = FORMATS.get((data[4], data[5])) if len(data) > 5 and data[:4] == b"\x7fELF" else None
    if found is None or len(data) < found.ehdr.itemsize:
        raise NotElfError
    return found


def _sections(data: bytes | mmap, elf_format: Format) -> Iterator[tuple[_Section, bytes]]:
    """The sections of a file with their names.

    :raises NotElfError: a table is not inside the file, or the names have no end (``kmod_elf_new``).
    """
    header = np.frombuffer(data[: elf_format.ehdr.itemsize], elf_format.ehdr)[0]
    offset, count, names = (int(header[name]) for name in ("e_shoff", "e_shnum", "e_shstrndx"))
    end = offset + count * elf_format.shdr.itemsize
    if header["e_shentsize"] != elf_format.shdr.itemsize or end > len(data) or names >= count:
        raise NotElfError
    sections = [_Section._make(row) for row in np.frombuffer(data[offset:end], elf_format.shdr).tolist()]
    texts = _content(data, sections[names])
    if not texts.endswith(b"\0"):
        raise NotElfError
    for section in sections:
        stop = texts.find(b"\0", section.name, section.name + _LONGEST_SYMBOL)
        yield section, texts[section.name : stop] if stop >= 0 else b""


def _content(data: bytes | mmap, section: _Section) -> bytes:
    if section.type == _SHT_NOBITS:
        return b""
    if section.offset + section.size > len(data):
        raise NotElfError
    return data[section.offset : section.offset + section.size]
