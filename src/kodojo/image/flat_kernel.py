"""A kernel that is a flat binary, as objcopy makes it, made the ELF file that the rest of kodojo reads.

What such a file does not say is the address that the kernel was linked for, and without it no symbol and no pointer
means anything. A relocatable kernel leaves its pointers to its first instructions, which find them in ``.rela.dyn``.
That table is recognised by its form; and as one of its entries is ``kallsyms_relative_base``, whose place in the
file is known, it tells the address as well. Where the first symbol is not at a known place, the export tables tell
the address: each entry has a symbol's address and a pointer to its name.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kodojo.errors import ImageError
from kodojo.image.architecture import Architecture
from kodojo.image.elf import SHF_ALLOC, Format
from kodojo.image.kallsyms_tables import Unplaced, symbols_without_base
from kodojo.image.recognised import Table, recognised_tables

__all__ = ["FlatKernel", "Pointers", "elf_of_flat_kernel"]

_RELA_MEMBERS = 3
_FEWEST = 16  # relocations; a shorter row of them is no table
_SHT_PROGBITS, _SHT_STRTAB = 1, 3
_ET_EXEC, _PT_LOAD, _PT_NOTE, _PF_RWX = 2, 1, 4, 7
_FILE_ALIGNMENT = 0x10000
_SAMPLES = 64  # exports that are asked for the address
_MOST_EQUAL = 8  # places where the name of one may be

Relocations = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Pointers:
    """What the kernel's first instructions store: at which places, addresses of the linked kernel, and what."""

    places: npt.NDArray[np.uint64]
    values: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FlatKernel:
    """What is known about a flat kernel before anything in it is understood.

    :param relative: the type of relocation that adds the address of the kernel (``R_*_RELATIVE``).
    :param landmarks: symbols, and how far behind the first byte they are; the first one that is listed counts. None:
        no symbol is at a known place, and the export tables have to tell.
    :param alignment: the address is a multiple of it.
    :param link: the address, if it is known.
    :param physical: where in memory its first byte belongs, from where the boot loader puts kernels.
    :param memory: how many bytes of memory it takes, at least.
    """

    architecture: Architecture
    relative: int
    landmarks: tuple[tuple[bytes, int], ...]
    alignment: int
    link: int | None = None
    physical: int = 0
    memory: int = 0

    @property
    def layout(self) -> Format:
        """Class and byte order."""
        return self.architecture.format


def elf_of_flat_kernel(image: memoryview, kernel: FlatKernel, name: str, pointers: Pointers | None = None) -> bytes:
    """Return the kernel as an ELF file of one segment, its pointers as the kernel itself relocates them.

    :param name: what messages call the file.
    :param pointers: if it is known where its relocations are; else they are looked for.
    :raises ImageError: it has an unknown form.
    """
    content = bytearray(image)
    if pointers is None:
        relocations = _relocations(image, kernel)
        pointers = Pointers(relocations["r_offset"].astype(np.uint64), relocations["r_addend"].astype(np.int64))
    link = _link_address(image, kernel, pointers, name) if kernel.link is None else kernel.link
    _relocate(content, kernel.layout, pointers, link)
    return _elf(content, kernel, link)


def _relocations(image: memoryview, kernel: FlatKernel) -> Relocations:
    """The longest row of relative relocations; empty for a kernel that is linked to its address."""
    layout = kernel.layout
    words = np.frombuffer(image[: len(image) // layout.word * layout.word], f"{layout.order}u{layout.word}")
    kinds = np.flatnonzero(words == kernel.relative)
    if not len(kinds) or not kernel.architecture.rela:
        return np.zeros(0, layout.rela)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(kinds) != _RELA_MEMBERS) + 1))
    lengths = np.diff(np.append(starts, len(kinds)))
    longest = int(lengths.argmax())
    first, count = layout.word * (int(kinds[starts[longest]]) - 1), int(lengths[longest])
    if count < _FEWEST or first < 0 or first + layout.rela.itemsize * count > len(image):
        return np.zeros(0, layout.rela)
    return np.frombuffer(image, layout.rela, count, first)


def _link_address(image: memoryview, kernel: FlatKernel, pointers: Pointers, name: str) -> int:
    """The address of the image's first byte."""
    ask: Callable[[memoryview, FlatKernel, Pointers, Unplaced], set[int]] = (
        _by_landmark if kernel.landmarks else _by_exports
    )
    for symbols in symbols_without_base(image, name, kernel.layout):
        links = ask(image, kernel, pointers, symbols)
        # On 64 bits kernels are in the upper half of memory, but for those that have a whole address space.
        lowest = 1 << 63 if kernel.architecture.text >> 63 else 1
        highest = kernel.layout.mask - len(image)
        found = [link for link in links if lowest <= link <= highest and link % kernel.alignment == 0]
        if len(found) == 1:
            return found[0]
    raise ImageError(
        f"{name}: a kernel for {kernel.architecture.name} whose address kodojo cannot find out",
        hint="give its vmlinux, which says it, or its headers package (linux-headers-..., kernel-devel-...)",
    )


def _by_landmark(image: memoryview, kernel: FlatKernel, pointers: Pointers, symbols: Unplaced) -> set[int]:
    """The addresses with which a symbol is where it has to be."""
    known = ((symbols.offset(landmark), place) for landmark, place in kernel.landmarks)
    skipped = next((offset - place for offset, place in known if offset is not None), None)
    if skipped is None:
        return set()
    if len(pointers.places):
        # The entry for the base says: base belongs at link + base_at; and link is base + skipped.
        fitting = pointers.places.astype(np.int64) - pointers.values == symbols.base_at + skipped
        return {base + skipped & kernel.layout.mask for base in np.unique(pointers.values[fitting]).tolist()}
    return {_base(image, kernel.layout, symbols) + skipped}


def _by_exports(image: memoryview, kernel: FlatKernel, pointers: Pointers, symbols: Unplaced) -> set[int]:
    """The address with which pointers that are beside the addresses of symbols point to the names of those."""
    layout = kernel.layout
    del pointers  # they are in the file
    words = np.frombuffer(image[: len(image) // layout.word * layout.word], f"{layout.order}u{layout.word}")
    base = _base(image, layout, symbols)
    addresses = symbols.offsets.astype(np.uint64) + np.uint64(base) & np.uint64(layout.mask)
    order = np.argsort(addresses, kind="stable")
    at = np.minimum(np.searchsorted(addresses[order], words[:-1]), len(order) - 1)
    pairs = np.flatnonzero(addresses[order][at] == words[:-1])
    content, votes = bytes(image), Counter[int]()
    for pair in pairs[:: max(1, len(pairs) // _SAMPLES)].tolist():
        index = int(order[at[pair]])
        name = symbols.names[int(symbols.starts[index]) : int(symbols.starts[index + 1])]
        for place in _places_of(content, name):
            votes[int(words[pair + 1]) - place] += 1
    best = votes.most_common(1)
    return {best[0][0]} if best and best[0][1] > 1 else set()


def _base(image: memoryview, layout: Format, symbols: Unplaced) -> int:
    return int.from_bytes(image[symbols.base_at : symbols.base_at + layout.word], layout.byteorder)


def _places_of(content: bytes, name: bytes) -> list[int]:
    found: list[int] = []
    at = content.find(name)
    while at >= 0 and len(found) < _MOST_EQUAL:
        found.append(at)
        at = content.find(name, at + 1)
    return found


def _relocate(content: bytearray, layout: Format, pointers: Pointers, link: int) -> None:
    places = pointers.places - np.uint64(link)
    inside = places <= len(content) - layout.word
    octets = pointers.values[inside].astype(f"{layout.order}i{layout.word}").view(np.uint8).reshape(-1, layout.word)
    where = places[inside].astype(np.int64)
    np.frombuffer(content, np.uint8)[where[:, np.newaxis] + np.arange(layout.word)] = octets


def _elf(content: bytearray, kernel: FlatKernel, link: int) -> bytes:
    """One segment for everything, one for the note with the build id, and sections for the tables that are found."""
    layout = kernel.layout
    headers = layout.ehdr.itemsize + 2 * layout.phdr.itemsize
    start = -(-headers // _FILE_ALIGNMENT) * _FILE_ALIGNMENT
    memory = max(kernel.memory, len(content))
    load = (_PT_LOAD, _PF_RWX, start, link, kernel.physical, len(content), memory, kernel.alignment)
    segments = np.zeros(2, layout.phdr)
    _put(segments[0], load)
    note = content.find(struct.pack(layout.order + "III4s", 4, 20, 3, b"GNU\0"))  # NT_GNU_BUILD_ID with 20 bytes
    if note >= 0:
        _put(segments[1], (_PT_NOTE, _PF_RWX, start + note, link + note, kernel.physical + note, 36, 36, 4))
    tables = recognised_tables(content, layout, link, relative=kernel.architecture.prel32)
    names, sections = _sections(layout, tables, start, link, start + len(content))
    header = np.zeros(1, layout.ehdr)
    ident = bytes((0x7F, 0x45, 0x4C, 0x46, layout.bits // 32, 1 if layout.little else 2, 1))
    header["e_ident"] = np.void(ident.ljust(16, b"\0"))
    header["e_type"], header["e_machine"], header["e_version"] = _ET_EXEC, kernel.architecture.machines[0], 1
    header["e_entry"] = kernel.physical
    header["e_phoff"], header["e_ehsize"] = layout.ehdr.itemsize, layout.ehdr.itemsize
    header["e_phentsize"], header["e_phnum"] = layout.phdr.itemsize, 1 if note < 0 else 2
    header["e_shoff"], header["e_shentsize"] = start + len(content) + len(names), layout.shdr.itemsize
    header["e_shnum"], header["e_shstrndx"] = len(sections), len(sections) - 1
    head = header.tobytes() + segments.tobytes()
    return b"".join((head.ljust(start, b"\0"), content, names, sections.tobytes()))


def _put(header: np.void, values: tuple[int, ...]) -> None:
    """Fill in a program header, whose members have another order in each class."""
    members = ("p_type", "p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz", "p_align")
    for member, value in zip(members, values, strict=True):
        header[member] = value


def _sections(
    layout: Format, tables: list[Table], start: int, link: int, names_at: int
) -> tuple[bytes, npt.NDArray[np.void]]:
    """The names of sections, and their headers: an empty one, those of the tables, and that of the names."""
    headers = np.zeros(len(tables) + 2, layout.shdr)
    names = bytearray(b"\0")
    for header, table in zip(headers[1:], tables, strict=False):
        header["sh_name"], header["sh_type"], header["sh_flags"] = len(names), _SHT_PROGBITS, SHF_ALLOC
        header["sh_addr"], header["sh_offset"] = link + table.offset, start + table.offset
        header["sh_size"], header["sh_addralign"] = table.size, 4
        names += table.name.encode() + b"\0"
    last = headers[-1]
    last["sh_name"], last["sh_type"], last["sh_offset"] = len(names), _SHT_STRTAB, names_at
    names += b".shstrtab\0"
    names += bytes(-(names_at + len(names)) % 8)
    last["sh_size"], last["sh_addralign"] = len(names), 1
    return bytes(names), headers
