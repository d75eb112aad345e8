"""A writer of relocatable ELF files: modules as tests want them, whole or damaged in any way.

::

    writer = module_writer(name=b"hello", struct_size=896)
    writer.section(".text").data = b"\\xc3" * 16
    writer.section(".text").header["sh_size"] = 1 << 40     # what is written there, whatever the data
    writer.header["e_machine"] = 183
    data = writer.build()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from kodojo.image.elf import ELF64_LE, Format

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 1, 2, 3, 4, 8, 9
WRITE, ALLOC, EXEC = 1, 2, 4
GLOBAL, WEAK = 1, 2
FUNC, OBJECT = 2, 1


@dataclass
class Section:
    """A section to be written.

    :param header: members of the section header that are written as they are here, right or wrong.
    """

    name: str
    type: int = SHT_PROGBITS
    flags: int = 0
    data: bytes = b""
    size: int | None = None
    align: int = 1
    entsize: int = 0
    link: str = ""
    info: str = ""
    header: dict[str, int] = field(default_factory=dict)


@dataclass
class Symbol:
    """A symbol to be written.

    :param section: a section's name, or a special index (0 is undefined, 0xfff1 absolute, 0xfff2 common).
    :param name_offset: what is written as ``st_name``; None: where the name is.
    """

    name: str
    section: str | int = 0
    value: int = 0
    size: int = 0
    bind: int = GLOBAL
    type: int = 0
    name_offset: int | None = None
    other: int = 0


class ElfWriter:
    """Sections, symbols and relocations of a file; :meth:`build` makes the bytes.

    The tables ``.symtab``, ``.strtab`` and ``.shstrtab`` are sections like all others, written last; their
    contents are made by :meth:`build`, unless ``data`` was set.

    :param elf_format: class and byte order.
    :ivar header: members of the ELF header that are written as they are here.
    :ivar tail: bytes behind everything else (a signature).
    """

    def __init__(self, elf_format: Format = ELF64_LE) -> None:
        self.format = elf_format
        self.header: dict[str, int | bytes] = {}
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self.zero: dict[str, int] = {}
        self.tables = [
            Section(".symtab", SHT_SYMTAB, align=8, entsize=elf_format.sym.itemsize, link=".strtab"),
            Section(".strtab", SHT_STRTAB),
            Section(".shstrtab", SHT_STRTAB),
        ]
        self.tail = b""

    def add(self, name: str, data: bytes = b"", flags: int = ALLOC, **options: int | str | None) -> Section:
        """Append a section."""
        section = Section(name, flags=flags, data=data, **options)
        self.sections.append(section)
        return section

    def section(self, name: str) -> Section:
        """The first section of that name."""
        return next(section for section in self._all() if section.name == name)

    def index(self, name: str) -> int:
        """The index of the first section of that name."""
        return next(i for i, section in enumerate(self._all(), 1) if section.name == name)

    def remove(self, name: str) -> None:
        """Leave out all sections of that name."""
        self.sections = [section for section in self.sections if section.name != name]
        self.tables = [section for section in self.tables if section.name != name]

    def symbol(self, name: str, section: str | int = 0, value: int = 0, **options: int | None) -> Symbol:
        """Append a symbol."""
        symbol = Symbol(name, section, value, **options)
        self.symbols.append(symbol)
        return symbol

    def relocations(self, target: str, entries: Iterable[tuple[int, int, str, int]], *, rela: bool = True) -> Section:
        """Append a section of relocations for ``target``: offset, type, name of the symbol, addend.

        :param rela: with addends; without, those that are given have to be 0.
        """
        number = {symbol.name: i for i, symbol in enumerate(self.symbols, 1)}
        bits = 8 if self.format.bits == 32 else 32
        rows = [(offset, number[name] << bits | kind, addend) for offset, kind, name, addend in entries]
        kind = self.format.rela if rela else self.format.rel
        assert rela or not any(addend for _, _, addend in rows)
        data = np.array([row if rela else row[:2] for row in rows], kind).tobytes()
        options = {"type": SHT_RELA if rela else SHT_REL, "link": ".symtab", "info": target, "align": 8}
        return self.add(f"{'.rela' if rela else '.rel'}{target}", data, 0, entsize=kind.itemsize, **options)

    def build(self) -> bytes:
        """The bytes of the file: ELF header, contents of the sections, section headers, tail."""
        sections = self._all()
        names, name_offsets = _strings(section.name for section in sections)
        strings, string_offsets = _strings(symbol.name for symbol in self.symbols)
        made = {".symtab": self._symbol_table(string_offsets), ".strtab": strings, ".shstrtab": names}
        headers = np.zeros(len(sections) + 1, self.format.shdr)
        body = bytearray(self.format.ehdr.itemsize)
        for index, section in enumerate(sections, 1):
            data = section.data
            if not data and any(section is table for table in self.tables):
                data = made[section.name]
            if section.type != SHT_NOBITS:
                body += bytes(-len(body) % max(min(section.align, 4096), 1))
            headers[index] = self._section_header(section, name_offsets[section.name], len(body), len(data))
            if section.type != SHT_NOBITS:
                body += data
        for index, section in enumerate(sections, 1):
            _override(headers, index, section.header)
        _override(headers, 0, self.zero)
        body += bytes(-len(body) % 8)
        return (
            self._elf_header(len(body), headers)
            + bytes(body[self.format.ehdr.itemsize :])
            + headers.tobytes()
            + self.tail
        )

    def _all(self) -> list[Section]:
        return [*self.sections, *self.tables]

    def _section_header(self, section: Section, name: int, offset: int, length: int) -> tuple[int, ...]:
        size = length if section.size is None else section.size
        link = self.index(section.link) if section.link else 0
        info = self.index(section.info) if section.info else 0
        return (name, section.type, section.flags, 0, offset, size, link, info, section.align, section.entsize)

    def _symbol_table(self, offsets: Mapping[str, int]) -> bytes:
        table = np.zeros(len(self.symbols) + 1, self.format.sym)
        for row, symbol in enumerate(self.symbols, 1):
            name = offsets[symbol.name] if symbol.name_offset is None else symbol.name_offset
            section = symbol.section if isinstance(symbol.section, int) else self.index(symbol.section)
            members = {"st_name": name, "st_info": symbol.bind << 4 | symbol.type, "st_other": symbol.other}
            members |= {"st_shndx": section, "st_value": symbol.value, "st_size": symbol.size}
            for member, value in members.items():
                table[member][row] = value
        return table.tobytes()

    def _elf_header(self, e_shoff: int, headers: np.ndarray) -> bytes:
        values = {
            "e_ident": b"\x7fELF" + bytes((self.format.word // 4, 1 + (not self.format.little), 1)) + bytes(9),
            "e_type": 1, "e_machine": 62, "e_version": 1,
            "e_shoff": e_shoff, "e_ehsize": self.format.ehdr.itemsize, "e_shentsize": self.format.shdr.itemsize,
            "e_shnum": len(headers), "e_shstrndx": len(headers) - 1,
        }  # fmt: skip
        header = np.zeros(1, self.format.ehdr)
        for member, value in (values | self.header).items():
            header[member] = value
        return header.tobytes()


def _strings(names: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    """A string table, and where each name is in it."""
    table, offsets = bytearray(1), {"": 0}
    for name in names:
        if name not in offsets:
            offsets[name] = len(table)
            table += name.encode() + b"\0"
    return bytes(table), offsets


def _override(headers: np.ndarray, index: int, members: Mapping[str, int]) -> None:
    for member, value in members.items():
        headers[member][index] = value


# -- modules ----------------------------------------------------------------------------------------------


def modinfo(**values: str | bytes | Iterable[str]) -> bytes:
    """The contents of ``.modinfo``: several values of a key as a tuple."""
    pairs = [
        (key, one) for key, value in values.items() for one in ((value,) if isinstance(value, str | bytes) else value)
    ]
    return b"".join(
        key.encode() + b"=" + (one if isinstance(one, bytes) else one.encode()) + b"\0" for key, one in pairs
    )


def versions(crcs: Mapping[str, int]) -> bytes:
    """The contents of ``__versions``."""
    rows = (crc.to_bytes(8, "little") + name.encode().ljust(56, b"\0") for name, crc in crcs.items())
    return b"".join(rows)


def struct_module(name: bytes, size: int) -> bytes:
    """The contents of ``.gnu.linkonce.this_module``."""
    return (bytes(24) + name.ljust(56, b"\0")).ljust(size, b"\0")[: max(size, 0)]


def module_writer(
    *,
    name: str = "paper",
    struct_size: int = 896,
    info: Mapping[str, str | Iterable[str]] | None = None,
    crcs: Mapping[str, int] | None = None,
) -> ElfWriter:
    """A module as the kernel's build makes one, with a little code and data.

    :param struct_size: sizeof(struct module) of the kernel it is for.
    :param info: what .modinfo has besides or instead of the usual; a value of None leaves a key out.
    :param crcs: the contents of ``__versions``; without it there is no such section.
    """
    usual = {"license": "GPL", "retpoline": "Y", "intree": "Y", "name": name}
    usual["vermagic"] = "9.9-paper SMP preempt mod_unload modversions "
    keys = {key: value for key, value in (usual | dict(info or {})).items() if value is not None}
    writer = ElfWriter()
    writer.add(".text", b"\xc3" * 32, ALLOC | EXEC, align=16)
    writer.add(".init.text", b"\xc3" * 16, ALLOC | EXEC, align=16)
    writer.add(".rodata", b"read only data", ALLOC, align=8)
    writer.add(".modinfo", modinfo(**keys), ALLOC)
    if crcs is not None:
        writer.add("__versions", versions(crcs), ALLOC, align=32)
    writer.add(".data", b"data" * 4, ALLOC | WRITE, align=8)
    writer.add(".gnu.linkonce.this_module", struct_module(name.encode(), struct_size), ALLOC | WRITE, align=64)
    writer.add(".bss", b"", ALLOC | WRITE, type=SHT_NOBITS, size=64, align=16)
    writer.add(".comment", b"made by hand\0", 0)
    writer.symbol("init_module", ".init.text", type=FUNC, size=1)
    writer.symbol("work", ".text", 16, type=FUNC, size=16)
    writer.symbol("counter", ".data", 8, type=OBJECT, size=4)
    return writer


def add_symbols(writer: ElfWriter, exports: Iterable[str], needs: Iterable[str]) -> None:
    """Give a module symbols that it exports, without checksums, and undefined ones that it needs."""
    names = tuple(exports)
    if names:
        writer.add("__ksymtab", b"\0" * 12 * len(names), ALLOC)
        writer.add("__ksymtab_strings", b"".join(symbol.encode() + b"\0" for symbol in names), ALLOC)
    for symbol in names:
        writer.symbol(symbol, ".text")
        writer.symbol(f"__ksymtab_{symbol}", "__ksymtab")
    for symbol in needs:
        writer.symbol(symbol)
