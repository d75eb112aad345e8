"""ELF files of kernels: sections, segments and the bytes behind virtual addresses.

For kernels and for modules of a distribution's tree: damage is an :class:`~kodojo.errors.ImageError`.
What the kernel itself says about a damaged module is the loader's business.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from kodojo.errors import ImageError

__all__ = [
    "EHDR",
    "ELF64_LE",
    "EM_386",
    "EM_AARCH64",
    "EM_X86_64",
    "FORMATS",
    "MACHINES",
    "PHDR",
    "RELA",
    "SHDR",
    "SHF_ALLOC",
    "SHF_EXECINSTR",
    "SHF_WRITE",
    "SHT_NOBITS",
    "SYM",
    "ElfFile",
    "Format",
    "Section",
    "Segment",
]


def _structure(order: str, members: str) -> np.dtype[np.void]:
    """The dtype of a C structure: ``u4 name`` for each member, in order and without padding."""
    pairs = [member.split() for member in members.split(",")]
    return np.dtype([(name, kind if kind[0] == "V" else order + kind) for kind, name in pairs])


@dataclass(frozen=True)
class Format:
    """The structures of elf.h for one class and byte order, with the names of their members there.

    :param bits: 32 or 64. :param order: ``<`` or ``>``, as numpy and struct write it.
    """

    bits: int
    order: Literal["<", ">"]

    @cached_property
    def little(self) -> bool:
        """Whether the lowest byte of a number comes first."""
        return self.order == "<"

    @cached_property
    def byteorder(self) -> Literal["little", "big"]:
        """The byte order as ``int.from_bytes`` calls it."""
        return "little" if self.little else "big"

    @cached_property
    def word(self) -> int:
        """``sizeof(long)``, which is the size of an address, too."""
        return self.bits // 8

    @cached_property
    def mask(self) -> int:
        """The largest address."""
        return (1 << self.bits) - 1

    @cached_property
    def ehdr(self) -> np.dtype[np.void]:
        """``Elf32_Ehdr`` or ``Elf64_Ehdr``, and so on."""
        return self._of(
            "V16 e_ident,u2 e_type,u2 e_machine,u4 e_version,W e_entry,W e_phoff,W e_shoff,u4 e_flags,u2 e_ehsize,"
            "u2 e_phentsize,u2 e_phnum,u2 e_shentsize,u2 e_shnum,u2 e_shstrndx"
        )

    @cached_property
    def phdr(self) -> np.dtype[np.void]:
        if self.bits == 32:
            return self._of(
                "u4 p_type,u4 p_offset,u4 p_vaddr,u4 p_paddr,u4 p_filesz,u4 p_memsz,u4 p_flags,u4 p_align"
            )
        return self._of("u4 p_type,u4 p_flags,u8 p_offset,u8 p_vaddr,u8 p_paddr,u8 p_filesz,u8 p_memsz,u8 p_align")

    @cached_property
    def shdr(self) -> np.dtype[np.void]:
        return self._of(
            "u4 sh_name,u4 sh_type,W sh_flags,W sh_addr,W sh_offset,W sh_size,u4 sh_link,u4 sh_info,"
            "W sh_addralign,W sh_entsize"
        )

    @property
    def sh_addr(self) -> int:
        """Where ``sh_addr`` is in a section header."""
        return 8 + self.word

    @cached_property
    def sym(self) -> np.dtype[np.void]:
        if self.bits == 32:
            return self._of("u4 st_name,u4 st_value,u4 st_size,u1 st_info,u1 st_other,u2 st_shndx")
        return self._of("u4 st_name,u1 st_info,u1 st_other,u2 st_shndx,u8 st_value,u8 st_size")

    @cached_property
    def rel(self) -> np.dtype[np.void]:
        return self._of("W r_offset,W r_info")

    @cached_property
    def rela(self) -> np.dtype[np.void]:
        return self._of("W r_offset,W r_info," + ("i4 r_addend" if self.bits == 32 else "i8 r_addend"))

    def _of(self, members: str) -> np.dtype[np.void]:
        return _structure(self.order, members.replace("W ", f"u{self.word} "))


ELF64_LE = Format(64, "<")
FORMATS = {(2, 1): ELF64_LE, (1, 1): Format(32, "<"), (2, 2): Format(64, ">"), (1, 2): Format(32, ">")}
"""By ``e_ident[EI_CLASS]`` and ``e_ident[EI_DATA]``."""

# Those of most kernels, and of all that are booted.
EHDR, PHDR, SHDR, SYM, RELA = ELF64_LE.ehdr, ELF64_LE.phdr, ELF64_LE.shdr, ELF64_LE.sym, ELF64_LE.rela

EM_386 = 3
EM_X86_64 = 62
EM_AARCH64 = 183
MACHINES = {
    2: "sparc",
    EM_386: "i686",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "armv7l",
    43: "sparc64",
    EM_X86_64: "x86_64",
    EM_AARCH64: "aarch64",
    243: "riscv",
    258: "loongarch",
}

SHT_NOBITS = 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
_PT_LOAD, _PT_NOTE = 1, 4
_MAX_STRING = 1 << 16


@dataclass(frozen=True, slots=True)
class Section:
    """A section; ``offset`` and ``size`` are in the file (``SHT_NOBITS``: only the size counts)."""

    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int


class Segment(NamedTuple):
    """A ``PT_LOAD`` segment: ``filesz`` bytes at ``offset``, then zeros up to ``memsz``."""

    vaddr: int
    paddr: int
    offset: int
    filesz: int
    memsz: int
    flags: int


class ElfFile:
    """An ELF file of any class and byte order.

    :param data: the file; kept, never copied as a whole.
    :param name: what messages call it.
    :raises ImageError: it is no such file, or a table or segment reaches beyond its end.

    :attr section_table: where the section headers are in the file.
    """

    def __init__(self, data: bytes | memoryview | mmap.mmap, name: str) -> None:
        self.name = name
        self.data = memoryview(data)
        if len(self.data) < EHDR.itemsize or bytes(self.data[:4]) != b"\x7fELF":
            raise ImageError(f"{name}: not an ELF file")
        found = FORMATS.get((self.data[4], self.data[5]))
        if found is None:
            raise ImageError(f"{name}: an ELF file of unknown class or byte order")
        self.format = found
        self._header = np.frombuffer(self.data, found.ehdr, 1)[0]
        self.machine = int(self._header["e_machine"])
        self.type = int(self._header["e_type"])
        self.entry = int(self._header["e_entry"])
        self.section_table = int(self._header["e_shoff"])

    def __repr__(self) -> str:
        return f"<ElfFile {self.name}, {MACHINES.get(self.machine, self.machine)}>"

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The ``PT_LOAD`` segments in file order."""
        return self._segments(_PT_LOAD)

    @cached_property
    def note_segments(self) -> tuple[Segment, ...]:
        """The ``PT_NOTE`` segments."""
        return self._segments(_PT_NOTE)

    @cached_property
    def sections(self) -> dict[str, Section]:
        """The sections by name; of several with one name the first. Empty if there are no section headers."""
        sections: dict[str, Section] = {}
        for section in self.section_list:
            sections.setdefault(section.name, section)
        return sections

    @cached_property
    def section_list(self) -> tuple[Section, ...]:
        """The sections in the order of their headers, the empty first one included."""
        table = self._table("section headers", self.format.shdr, "e_shoff", "e_shnum", "e_shentsize")
        names_index = int(self._header["e_shstrndx"])
        if names_index >= len(table):
            return ()
        names = self._slice(int(table[names_index]["sh_offset"]), int(table[names_index]["sh_size"]), "section names")
        return tuple(
            Section(index, _string(names, name).decode("utf-8", "replace"), kind, flags, address, offset, size)
            for index, (name, kind, flags, address, offset, size, *_) in enumerate(table.tolist())
        )

    def section_data(self, name: str) -> memoryview:
        """Return the bytes of a section; none for one without bytes in the file (``SHT_NOBITS``).

        :raises ImageError: there is no such section, or it reaches beyond the end of the file.
        """
        section = self.sections.get(name)
        if section is None:
            raise ImageError(f"{self.name}: no section {name}")
        if section.type == SHT_NOBITS:
            return self.data[:0]
        return self._slice(section.offset, section.size, f"section {name}")

    def segment_data(self, segment: Segment) -> memoryview:
        """Return the ``filesz`` bytes that the file has of a segment."""
        return self._slice(segment.offset, segment.filesz, f"the segment at {segment.vaddr:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at a virtual address, as they are when the kernel is loaded.

        :raises ImageError: not inside one segment.
        """
        for segment in self.segments:
            start = address - segment.vaddr
            if start >= 0 and size >= 0 and start + size <= segment.memsz:
                end = min(start + size, segment.filesz)
                there = bytes(self.data[segment.offset + start : segment.offset + end]) if end > start else b""
                return there + bytes(size - len(there))
        raise ImageError(f"{self.name}: {size} bytes at {address:#x} are not in the kernel")

    def offset_of(self, address: int) -> int | None:
        """Return where in the file the byte at a virtual address is; None if nowhere."""
        for segment in self.segments:
            if 0 <= address - segment.vaddr < segment.filesz:
                return segment.offset + address - segment.vaddr
        return None

    def string(self, address: int, limit: int = _MAX_STRING) -> bytes:
        """Return the NUL-terminated string at a virtual address, without its NUL.

        :raises ImageError: nothing there, or no NUL within ``limit`` bytes.
        """
        offset = self.offset_of(address)
        if offset is not None:
            for size in (min(64, limit), limit):  # most are short, and the limit is generous
                text = bytes(self.data[offset : offset + size])
                end = text.find(b"\0")
                if end >= 0:
                    return text[:end]
        raise ImageError(f"{self.name}: no string at {address:#x}")

    def _segments(self, kind: int) -> tuple[Segment, ...]:
        table = self._table("program headers", self.format.phdr, "e_phoff", "e_phnum", "e_phentsize")
        found = []
        names = ("p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz")
        for header in table[table["p_type"] == kind]:
            flags, offset, vaddr, paddr, filesz, memsz = (int(header[name]) for name in names)
            self._slice(offset, filesz, f"the segment at {vaddr:#x}")
            found.append(Segment(vaddr, paddr, offset, filesz, max(filesz, memsz), flags))
        return tuple(found)

    def _table(self, what: str, dtype: np.dtype[np.void], at: str, number: str, size: str) -> np.ndarray:
        count = int(self._header[number])
        if not count or not int(self._header[at]):
            return np.zeros(0, dtype)
        if int(self._header[size]) != dtype.itemsize:
            raise ImageError(f"{self.name}: {what} of an unknown size")
        return np.frombuffer(self._slice(int(self._header[at]), count * dtype.itemsize, what), dtype)

    def _slice(self, offset: int, size: int, what: str) -> memoryview:
        if offset + size > len(self.data):
            raise ImageError(
                f"{self.name}: truncated: {what} should end at byte {offset + size} of {len(self.data)}",
                hint="get the file again",
            )
        return self.data[offset : offset + size]


def _string(table: memoryview, offset: int) -> bytes:
    text = bytes(table[offset : offset + 256])
    return text.partition(b"\0")[0]
