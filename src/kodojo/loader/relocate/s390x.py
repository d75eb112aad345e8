"""Relocations, GOT and PLT of s390x (``arch/s390/kernel/module.c``).

GOT and PLT are no sections: they stand at the beginning of the memory for code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kodojo.errors import decode
from kodojo.loader.refusal import BUILD_AGAIN, refuse
from kodojo.loader.relocate.section import (
    SHT_RELA,
    Rules,
    Section,
    apply_section,
    overflow,
    read_entries,
    unknown_relocation,
)
from kodojo.loader.target import Errno, Memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Region, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate_add", "module_frob_arch_sections"]

INIT_SECTIONS = (b".init",)
EXIT_SECTIONS = (b".exit",)

GOT_ENTRY_SIZE = 8
PLT_ENTRY_SIZE = 22
SHN_UNDEF, SHN_ABS = 0, 0xFFF1


class Field(NamedTuple):
    """Where a value goes.

    :param what: ``direct`` (S + A), ``pc`` (relative to the place), ``got`` (the offset of the symbol's entry),
        ``gotent`` (its distance), ``plt`` (the distance of the function or its entry), ``pltoff`` (the offset of
        its entry from the GOT), ``gotoff`` (the symbol's distance from the GOT) or ``gotpc`` (that of the GOT).
    :param shift: lowest bits that have to be 0 and are left out.
    """

    what: str
    is_signed: bool
    bits: int
    shift: int = 0


FIELDS = {
    1: Field("direct", False, 8),
    2: Field("direct", False, 12),
    3: Field("direct", False, 16),
    4: Field("direct", False, 32),
    5: Field("pc", True, 32),
    6: Field("got", False, 12),
    7: Field("got", False, 32),
    8: Field("plt", False, 32),
    13: Field("gotoff", False, 32),
    14: Field("gotpc", True, 32),
    15: Field("got", False, 16),
    16: Field("pc", True, 16),
    17: Field("pc", True, 16, 1),
    18: Field("plt", True, 16, 1),
    19: Field("pc", True, 32, 1),
    20: Field("plt", True, 32, 1),
    21: Field("gotpc", True, 32, 1),
    22: Field("direct", False, 64),
    23: Field("pc", True, 64),
    24: Field("got", False, 64),
    25: Field("plt", False, 64),
    26: Field("gotent", True, 32, 1),
    27: Field("gotoff", False, 16),
    28: Field("gotoff", False, 64),
    29: Field("got", False, 12),
    30: Field("got", False, 16),
    31: Field("got", False, 32),
    32: Field("got", False, 64),
    33: Field("gotent", True, 32, 1),
    34: Field("pltoff", False, 16),
    35: Field("pltoff", False, 32),
    36: Field("pltoff", False, 64),
    57: Field("direct", True, 20),
    58: Field("got", True, 20),
    59: Field("got", True, 20),
}
NONE = 0
DYNAMIC = (9, 10, 11, 12)  # COPY, GLOB_DAT, JMP_SLOT, RELATIVE: refused without a word
GOT_TYPES = tuple(kind for kind, place in FIELDS.items() if place.what in ("got", "gotent"))
PLT_TYPES = tuple(kind for kind, place in FIELDS.items() if place.what in ("plt", "pltoff"))
PLT16DBL, PLT32DBL = 18, 20

BYTES = {8: 1, 12: 2, 16: 2, 20: 4, 32: 4, 64: 8}
WIDTHS = {NONE: 0, **{kind: BYTES[place.bits] for kind, place in FIELDS.items()}}


@dataclass(slots=True)
class Tables:
    """``struct mod_arch_specific``.

    :param got: of each symbol, the offset of its entry in the GOT, -1 without one; ``plt`` likewise.
    :param got_offset: of the GOT in the memory for code; ``plt_offset`` likewise. :param plt_size: in bytes.
    :param expoline: whether the PLT jumps by way of one more entry at its end, against speculation.
    """

    kind: Memory
    got: Indices
    plt: Indices
    got_offset: int
    plt_offset: int
    plt_size: int
    expoline: bool


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Make room for GOT and PLT before everything else (``arch/s390/kernel/module.c``)."""
    symbols = info.symbols
    for index in np.flatnonzero(symbols["st_shndx"] == SHN_UNDEF).tolist():
        if info.symbol_name(index) == b"_GLOBAL_OFFSET_TABLE_":
            symbols["st_shndx"][index] = SHN_ABS
    info.store_symbols()
    got, plt = _entries(info)
    kind = Memory.TEXT if Memory.TEXT in mod.regions else Memory.CORE
    region = mod.regions[kind]
    got_offset = region.size + 3 & ~3
    plt_offset = got_offset + int((got >= 0).sum()) * GOT_ENTRY_SIZE
    count = int((plt >= 0).sum())
    config = target.image.config
    expoline = count > 0 and config.enabled("EXPOLINE") and not config.enabled("EXPOLINE_OFF")
    plt_size = (count + expoline) * PLT_ENTRY_SIZE
    region.size = plt_offset + plt_size
    mod.arch = Tables(kind, got, plt, got_offset, plt_offset, plt_size, expoline)


def _entries(info: LoadInfo) -> tuple[Indices, Indices]:
    """For each symbol, its place in GOT and PLT: in the order in which relocations first ask for one."""
    sections = np.flatnonzero(info.sechdrs["sh_type"] == SHT_RELA).tolist()
    used = [read_entries(info, index)["r_info"].astype(np.uint64) for index in sections]
    r_info = np.concatenate(used) if used else np.zeros(0, np.uint64)
    kinds, symbols = r_info & np.uint64(0xFFFFFFFF), (r_info >> np.uint64(32)).astype(np.int64)
    tables = []
    for types, size in ((GOT_TYPES, GOT_ENTRY_SIZE), (PLT_TYPES, PLT_ENTRY_SIZE)):
        wanted = symbols[np.isin(kinds, types)]
        if len(wanted) and int(wanted.max()) >= len(info.symbols):
            raise info.damage(f"a relocation names symbol {int(wanted.max())} of {len(info.symbols)}")
        distinct, first = np.unique(wanted, return_index=True)
        table = np.full(len(info.symbols), -1, np.int64)
        table[distinct[np.argsort(first)]] = np.arange(len(distinct)) * size
        tables.append(table)
    return tables[0], tables[1]


def apply_relocate_add(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has (``arch/s390/kernel/module.c``)."""
    return apply_section(target, mod, info, relsec, S390x(WIDTHS))


class S390x(Rules):
    """What s390x knows. A value that does not fit is told as the kernel has it then."""

    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        place = FIELDS[kind]
        if place.what in ("got", "gotent"):
            _fill_got(section, chosen)
        elif place.what in ("plt", "pltoff"):
            _fill_plt(section, chosen)
        return apply_rela_bits(section, place, chosen, _values(section, kind, chosen))

    def refusal(self, section: Section, index: int) -> LoadError:
        mod, kind = section.mod, int(section.kinds[index])
        if kind in DYNAMIC:
            why = f"it contains a relocation of type {kind}, for the dynamic linker of programs"
            return refuse(mod.name, Errno.ENOEXEC, "unknown-relocation", why, BUILD_AGAIN)
        if kind not in WIDTHS:
            return unknown_relocation(section, index, f"module {mod.name}: unknown relocation: {kind}")
        value = int(_values(section, kind, np.array([index]))[0])
        name = decode(section.symbol_name(index))
        section.target.printk(
            3,
            f"module {mod.name}: relocation error for symbol {name} (r_type {kind}, value 0x{value:x})",
        )
        return overflow(section, f"the value {value:#x} does not fit into a relocation of type {kind}")


def _tables(section: Section) -> tuple[Tables, Region]:
    tables = section.mod.arch
    assert isinstance(tables, Tables)
    return tables, section.mod.regions[tables.kind]


def _values(section: Section, kind: int, chosen: Indices) -> Words:
    """What is stored, before bits are left out."""
    tables, region = _tables(section)
    symbols = section.indices[chosen]
    addends, places = section.addends[chosen], section.places(chosen)
    got, plt = region.base + tables.got_offset, region.base + tables.plt_offset
    what = FIELDS[kind].what
    if what == "direct":
        return section.values(chosen)
    if what == "pc":
        return section.values(chosen) - places
    if what == "got":
        return tables.got[symbols].astype(np.uint64) + addends
    if what == "gotent":
        return tables.got[symbols].astype(np.uint64) + addends + np.uint64(got) - places
    if what == "gotoff":
        return section.values(chosen) - np.uint64(got)
    if what == "gotpc":
        return np.uint64(got) + addends - places
    if what == "pltoff":
        return np.uint64(tables.plt_offset - tables.got_offset) + tables.plt[symbols].astype(np.uint64) + addends
    values = section.symbols(chosen)
    reach = {PLT16DBL: (0xFFFF, 0x1FFFFE), PLT32DBL: (0xFFFFFFFF, 0x1FFFFFFFE)}.get(kind)
    near = np.zeros(len(chosen), np.bool_)
    if reach is not None:
        near = values - places + np.uint64(reach[0]) < np.uint64(reach[1])
    values = np.where(near, values, tables.plt[symbols].astype(np.uint64) + np.uint64(plt))
    return values + addends - places


def apply_rela_bits(section: Section, place: Field, chosen: Indices, values: Words) -> Mask:
    """Store values in big-endian fields; which do not fit."""
    refused: Mask = values & np.uint64((1 << place.shift) - 1) != 0
    shift = np.uint64(place.shift)
    if place.is_signed:
        numbers = values.view(np.int64) >> np.int64(place.shift)
        low, high = -(1 << place.bits - 1), (1 << place.bits - 1) - 1
        refused = refused | (numbers < low) | (numbers > high)
        values = numbers.view(np.uint64)
    else:
        values = values >> shift
        refused = refused | (values > np.uint64((1 << place.bits) - 1))
    width = BYTES[place.bits]
    if place.bits == 12:
        values = values & np.uint64(0xFFF) | section.read(chosen, 2) & np.uint64(0xF000)
    elif place.bits == 20:
        halves = (values & np.uint64(0xFFF)) << np.uint64(16) | (values & np.uint64(0xFF000)) >> np.uint64(4)
        values = halves | section.read(chosen, 4) & np.uint64(0xF00000FF)
    section.write(chosen, width, values)
    return refused


def _fill_got(section: Section, chosen: Indices) -> None:
    """Store the addresses of the entries' symbols in the GOT."""
    tables, region = _tables(section)
    for symbol in np.unique(section.indices[chosen]).tolist():
        at = tables.got_offset + int(tables.got[symbol])
        value = int(section.info.symbols["st_value"][symbol])
        region.data[at : at + GOT_ENTRY_SIZE] = value.to_bytes(GOT_ENTRY_SIZE, "big")


def _fill_plt(section: Section, chosen: Indices) -> None:
    """Write the PLT entries of the entries' symbols: basr 1,0; lg 1,12(1); a branch; the address."""
    tables, region = _tables(section)
    for symbol in np.unique(section.indices[chosen]).tolist():
        at = tables.plt_offset + int(tables.plt[symbol])
        branch = b"\x07\xf1\0\0\0\0"  # br %r1
        if tables.expoline:
            # brcl 15 to the entry at the end
            last = tables.plt_offset + tables.plt_size - PLT_ENTRY_SIZE
            branch = b"\xc0\xf4" + ((last - (at + 8)) // 2).to_bytes(4, "big")
        value = int(section.info.symbols["st_value"][symbol])
        code = bytes.fromhex("0d10e310100c0004") + branch + value.to_bytes(8, "big")
        region.data[at : at + PLT_ENTRY_SIZE] = code
