"""ELF files of kernels: sections, segments and the bytes behind virtual addresses.

For kernels and for modules of a distribution's tree: damage is an :class:`~kodojo.errors.ImageError`.
What the kernel itself says about a damaged module is the loader's business.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kodojo.errors import ImageError

__all__ = [
    "EHDR",
    "EM_386",
    "EM_X86_64",
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
    "Section",
    "Segment",
]

# The structures of elf.h for 64-bit little-endian files, with the names of their members there.
EHDR = np.dtype(
    [
        ("e_ident", "V16"),
        ("e_type", "<u2"),
        ("e_machine", "<u2"),
        ("e_version", "<u4"),
        ("e_entry", "<u8"),
        ("e_phoff", "<u8"),
        ("e_shoff", "<u8"),
        ("e_flags", "<u4"),
        ("e_ehsize", "<u2"),
        ("e_phentsize", "<u2"),
        ("e_phnum", "<u2"),
        ("e_shentsize", "<u2"),
        ("e_shnum", "<u2"),
        ("e_shstrndx", "<u2"),
    ]
)
PHDR = np.dtype(
    [
        ("p_type", "<u4"),
        ("p_flags", "<u4"),
        ("p_offset", "<u8"),
        ("p_vaddr", "<u8"),
        ("p_paddr", "<u8"),
        ("p_filesz", "<u8"),
        ("p_memsz", "<u8"),
        ("p_align", "<u8"),
    ]
)
SHDR = np.dtype(
    [
        ("sh_name", "<u4"),
        ("sh_type", "<u4"),
        ("sh_flags", "<u8"),
        ("sh_addr", "<u8"),
        ("sh_offset", "<u8"),
        ("sh_size", "<u8"),
        ("sh_link", "<u4"),
        ("sh_info", "<u4"),
        ("sh_addralign", "<u8"),
        ("sh_entsize", "<u8"),
    ]
)
SYM = np.dtype(
    [
        ("st_name", "<u4"),
        ("st_info", "u1"),
        ("st_other", "u1"),
        ("st_shndx", "<u2"),
        ("st_value", "<u8"),
        ("st_size", "<u8"),
    ]
)
RELA = np.dtype([("r_offset", "<u8"), ("r_info", "<u8"), ("r_addend", "<i8")])

EM_386 = 3
EM_X86_64 = 62
MACHINES = {
    2: "sparc",
    EM_386: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    43: "sparc64",
    EM_X86_64: "x86_64",
    183: "arm64",
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


@dataclass(frozen=True, slots=True)
class Segment:
    """A ``PT_LOAD`` segment: ``filesz`` bytes at ``offset``, then zeros up to ``memsz``."""

    vaddr: int
    paddr: int
    offset: int
    filesz: int
    memsz: int
    flags: int


class ElfFile:
    """A 64-bit little-endian ELF file.

    :param data: the file; kept, never copied as a whole.
    :param name: what messages call it.
    :raises ImageError: it is no such file, or a table or segment reaches beyond its end.
    """

    def __init__(self, data: bytes | memoryview | mmap.mmap, name: str) -> None:
        self.name = name
        self.data = memoryview(data)
        if len(self.data) < EHDR.itemsize or bytes(self.data[:4]) != b"\x7fELF":
            raise ImageError(f"{name}: not an ELF file")
        if bytes(self.data[4:6]) != b"\x02\x01":
            raise ImageError(f"{name}: not a 64-bit little-endian ELF file")
        self._header = np.frombuffer(self.data, EHDR, 1)[0]
        self.machine = int(self._header["e_machine"])
        self.type = int(self._header["e_type"])
        self.entry = int(self._header["e_entry"])

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
        table = self._table("section headers", SHDR, "e_shoff", "e_shnum", "e_shentsize")
        names_index = int(self._header["e_shstrndx"])
        if names_index >= len(table):
            return {}
        names = self._slice(int(table[names_index]["sh_offset"]), int(table[names_index]["sh_size"]), "section names")
        sections: dict[str, Section] = {}
        for index, (name, kind, flags, address, offset, size, *_) in enumerate(table.tolist()):
            text = _string(names, name).decode("utf-8", "replace")
            sections.setdefault(text, Section(index, text, kind, flags, address, offset, size))
        return sections

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
        table = self._table("program headers", PHDR, "e_phoff", "e_phnum", "e_phentsize")
        found = []
        for p_type, flags, offset, vaddr, paddr, filesz, memsz, _ in table.tolist():
            if p_type == kind:
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
