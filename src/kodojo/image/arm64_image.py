"""The ``Image`` of an arm64 kernel, a flat binary, made the ELF file that the rest of kodojo reads.

The header is that of Documentation/arch/arm64/booting.rst. What the file does not say is the address that the
kernel was linked for, and without it no symbol and no pointer means anything: a relocatable kernel leaves its
pointers to ``relocate_kernel()``, which finds them in ``.rela.dyn``. That table is recognised by its form; and as
one of its entries is ``kallsyms_relative_base``, whose place in the file is known, it tells the address as well.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from kodojo.errors import ImageError
from kodojo.image.elf import EHDR, EM_AARCH64, PHDR, RELA, SHDR, SHF_ALLOC
from kodojo.image.kallsyms_tables import relative_bases
from kodojo.image.recognised import Table, recognised_tables

__all__ = ["elf_of_image", "is_image"]

_MAGIC = b"ARM\x64"
_HEADER = struct.Struct("<8xQQQ")  # text_offset, image_size, flags
_HEADER_SIZE = 64
_BIG_ENDIAN = 1
_LARGEST = 512 << 20
_R_AARCH64_RELATIVE = 0x403
_RELA_WORDS = 3
_PE_BASE_OF_CODE = 0x2C
_FEWEST = 16  # relocations; a shorter row of them is no table
_SHT_PROGBITS, _SHT_STRTAB = 1, 3
_ET_EXEC, _PT_LOAD, _PT_NOTE, _PF_RWX = 2, 1, 4, 7
_NOTE_GNU = struct.pack("<III4s", 4, 20, 3, b"GNU\0")  # a build id: NT_GNU_BUILD_ID with 20 bytes
_ALIGNMENT = 0x10000  # SEGMENT_ALIGN, of which the address is a multiple

Words = npt.NDArray[np.uint64]


def is_image(data: memoryview) -> bool:
    """Tell whether these are the first bytes of an ``Image``, not compressed."""
    return bytes(data[0x38:0x3C]) == _MAGIC


def elf_of_image(image: memoryview, name: str) -> bytes:
    """Return the kernel as an ELF file of one segment, its pointers as ``relocate_kernel()`` leaves them.

    Physical addresses count from the place, a multiple of 2 MiB, that the boot loader chooses.

    :param name: what messages call the file.
    :raises ImageError: truncated, big-endian, or of an unknown form.
    """
    if len(image) < _HEADER_SIZE:
        raise ImageError(f"{name}: truncated: it should have {_HEADER_SIZE} bytes or more and has {len(image)}")
    text_offset, size, flags = _HEADER.unpack_from(image)
    if flags & _BIG_ENDIAN:
        raise ImageError(f"{name}: a big-endian arm64 kernel", hint="give a little-endian one")
    if text_offset + size > _LARGEST:
        raise ImageError(f"{name}: damaged: it says that it takes {text_offset + size} bytes of memory")
    kernel = bytearray(image)
    relocations = _relocations(image)
    link = _link_address(image, relocations, name)
    _relocate(kernel, relocations, link)
    return _elf(kernel, link, text_offset, max(size, len(kernel)))


def _relocations(image: memoryview) -> npt.NDArray[np.void]:
    """The longest row of ``R_AARCH64_RELATIVE``; empty for a kernel that is linked to its address."""
    words: Words = np.frombuffer(image[: len(image) // 8 * 8], "<u8")
    kinds = np.flatnonzero(words == _R_AARCH64_RELATIVE)
    if not len(kinds):
        return np.zeros(0, RELA)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(kinds) != _RELA_WORDS) + 1))
    lengths = np.diff(np.append(starts, len(kinds)))
    longest = int(lengths.argmax())
    first, count = int(kinds[starts[longest]]) - 1, int(lengths[longest])
    if count < _FEWEST or first < 0 or 8 * first + RELA.itemsize * count > len(image):
        return np.zeros(0, RELA)
    return np.frombuffer(image, RELA, count, 8 * first)


def _link_address(image: memoryview, relocations: npt.NDArray[np.void], name: str) -> int:
    """The address of ``_text``, the image's first byte."""
    code = _start_of_code(image)
    for base_at, text in relative_bases(image, name):
        skipped = text - code  # _text - base
        if len(relocations):
            # The entry for the base says: base belongs at link + base_at; and link is base + skipped.
            offsets, addends = relocations["r_offset"].astype(np.int64), relocations["r_addend"]
            bases = np.unique(addends[offsets - addends == base_at + skipped].astype(np.uint64))
        else:
            bases = np.frombuffer(image, "<u8", 1, base_at)
        links = [int(base) + skipped for base in bases if int(base) >> 63]
        found = [link for link in links if link % _ALIGNMENT == 0 and link + len(image) < 1 << 64]
        if len(found) == 1:
            return found[0]
    raise ImageError(
        f"{name}: an arm64 kernel whose address kodojo cannot find out",
        hint="give its vmlinux, which says it",
    )


def _start_of_code(image: memoryview) -> int:
    """How far ``_stext`` is behind ``_text``: what the PE header says, if there is one."""
    pe = int.from_bytes(image[0x3C:0x40], "little")
    if bytes(image[pe : pe + 4]) == b"PE\0\0" and pe + _PE_BASE_OF_CODE + 4 <= len(image):
        return int.from_bytes(image[pe + _PE_BASE_OF_CODE : pe + _PE_BASE_OF_CODE + 4], "little")
    return _ALIGNMENT


def _relocate(kernel: bytearray, relocations: npt.NDArray[np.void], link: int) -> None:
    places = relocations["r_offset"] - np.uint64(link)
    inside = places <= len(kernel) - 8
    places, addends = places[inside], relocations["r_addend"][inside]
    if np.any(places % 8):
        for place, addend in zip(places.tolist(), addends.tolist(), strict=True):
            struct.pack_into("<q", kernel, place, addend)
        return
    words = np.frombuffer(memoryview(kernel)[: len(kernel) // 8 * 8], "<i8")
    words[(places // 8).astype(np.int64)] = addends


def _elf(kernel: bytearray, link: int, text_offset: int, memory: int) -> bytes:
    """One segment for everything, one for the note with the build id, and sections for the tables that are found."""
    start = -(-(EHDR.itemsize + 2 * PHDR.itemsize) // _ALIGNMENT) * _ALIGNMENT
    segments = np.zeros(2, PHDR)
    segments[0] = (_PT_LOAD, _PF_RWX, start, link, text_offset, len(kernel), memory, _ALIGNMENT)
    note = kernel.find(_NOTE_GNU)
    if note >= 0:
        size = len(_NOTE_GNU) + 20
        segments[1] = (_PT_NOTE, _PF_RWX, start + note, link + note, text_offset + note, size, size, 4)
    names, sections = _sections(recognised_tables(kernel), start, link, start + len(kernel))
    header = np.zeros(1, EHDR)
    header["e_ident"] = np.void(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"))
    header["e_type"], header["e_machine"], header["e_version"] = _ET_EXEC, EM_AARCH64, 1
    header["e_entry"] = text_offset
    header["e_phoff"], header["e_ehsize"] = EHDR.itemsize, EHDR.itemsize
    header["e_phentsize"], header["e_phnum"] = PHDR.itemsize, 1 if note < 0 else 2
    header["e_shoff"], header["e_shentsize"] = start + len(kernel) + len(names), SHDR.itemsize
    header["e_shnum"], header["e_shstrndx"] = len(sections), len(sections) - 1
    head = header.tobytes() + segments.tobytes()
    return b"".join((head.ljust(start, b"\0"), kernel, names, sections.tobytes()))


def _sections(tables: list[Table], start: int, link: int, names_at: int) -> tuple[bytes, npt.NDArray[np.void]]:
    """The names of sections, and their headers: an empty one, those of the tables, and that of the names."""
    headers = np.zeros(len(tables) + 2, SHDR)
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
