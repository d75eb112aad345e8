"""Relocations, PLT and GOT of 64-bit RISC-V (``arch/riscv/kernel/module.c``, ``module-sections.c``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import decode
from kodojo.loader.refusal import BUILD_AGAIN, refuse, would_damage
from kodojo.loader.relocate.plt import Slots, code_relocations, last_named, missing_section, reserve
from kodojo.loader.relocate.section import (
    SHT_RELA,
    Rules,
    Section,
    apply_section,
    overflow,
    read_entries,
    unknown_relocation,
)
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate_add", "module_frob_arch_sections"]

INIT_SECTIONS = (b".init",)
EXIT_SECTIONS = (b".exit",)

L1_CACHE_BYTES = 64
GOT_ENTRY_SIZE = 8
PLT_ENTRY_SIZE = 12
STB_WEAK = 2
FIRST_ERROR = (1 << 64) - 4095
U32 = 0xFFFFFFFF

MORE_TYPES = b"%s: Thread local storage not supported in kernel modules"
"""A message of kernels that know all types of the ABI (6.7), and add up those that share a place."""

R_32, R_64, BRANCH, JAL, CALL, CALL_PLT, GOT_HI20 = 1, 2, 16, 17, 18, 19, 20
PCREL_HI20, PCREL_LO12_I, PCREL_LO12_S, HI20, LO12_I, LO12_S = 23, 24, 25, 26, 27, 28
ALIGN, RVC_BRANCH, RVC_JUMP, RELAX, R_32_PCREL, PLT32 = 43, 44, 45, 51, 57, 59
SET_ULEB128, SUB_ULEB128 = 60, 61
ADDS = {33: 1, 34: 2, 35: 4, 36: 8}
SUBS = {37: 1, 38: 2, 39: 4, 40: 8}
SETS = {54: 1, 55: 2, 56: 4}
SUB6, SET6 = 52, 53

WIDTHS = {
    R_32: 4, R_64: 8, BRANCH: 4, JAL: 4, CALL: 8, CALL_PLT: 8, GOT_HI20: 4, PCREL_HI20: 4, PCREL_LO12_I: 4,
    PCREL_LO12_S: 4, HI20: 4, LO12_I: 4, LO12_S: 4, RVC_BRANCH: 2, RVC_JUMP: 2, RELAX: 0, 35: 4, 36: 8, 39: 4, 40: 8,
}  # fmt: skip
"""Bytes that each type of early kernels writes."""

MORE_WIDTHS = {
    **WIDTHS, **ADDS, **SUBS, **SETS, SUB6: 1, SET6: 1, R_32_PCREL: 4, PLT32: 4, SET_ULEB128: 1, SUB_ULEB128: 1,
}  # fmt: skip

ACCUMULATED = (*ADDS, *SUBS, *SETS, SUB6, SET6)
"""Types whose values later kernels add up from 0, whatever the place holds."""

DYNAMIC = (3, 4, 5, 6, 7, 8, 9, 10, 11, 58)
THREAD_LOCAL = (21, 22, 29, 30, 31, 32)

# Where the bits of an offset go: (mask of the bits, how far they move; negative: to the right).
SCATTER = {
    BRANCH: (0x01FFF07F, 4, ((0x1000, 19), (0x800, -4), (0x7E0, 20), (0x1E, 7))),
    JAL: (0x00000FFF, 4, ((0x100000, 11), (0xFF000, 0), (0x800, 9), (0x7FE, 20))),
    RVC_BRANCH: (0xE383, 2, ((0x100, 4), (0xC0, -1), (0x20, -3), (0x18, 7), (0x6, 2))),
    RVC_JUMP: (
        0xE003, 2,
        ((0x800, 1), (0x400, -2), (0x300, 1), (0x80, -1), (0x40, 1), (0x20, -3), (0x10, 7), (0xE, 2)),
    ),
}  # fmt: skip


# -- room for PLT and GOT ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Tables:
    """``struct mod_arch_specific``."""

    got: Slots
    plt: Slots
    got_plt: Slots


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Make room for PLT and GOT (``arch/riscv/kernel/module-sections.c: module_frob_arch_sections``)."""
    if not target.image.config.enabled("MODULE_SECTIONS"):
        return
    names = last_named(info, (b".plt", b".got", b".got.plt"))
    for name, word in ((b".plt", "PLT"), (b".got", "GOT"), (b".got.plt", "GOT.PLT")):
        if name not in names:
            raise missing_section(target, mod, f"{mod.name}: module {word} section(s) missing", name.decode())
    plts = gots = 0
    branches = (CALL_PLT, PLT32) if target.image.has_text(MORE_TYPES) else (CALL_PLT,)
    for relsec, _patched in code_relocations(info, SHT_RELA):
        entries = read_entries(info, relsec)
        kinds = entries["r_info"] & np.uint64(U32)
        keys = entries[["r_info", "r_addend"]].tolist()
        plts += len({keys[index] for index in np.flatnonzero(np.isin(kinds, branches)).tolist()})
        gots += len({keys[index] for index in np.flatnonzero(kinds == GOT_HI20).tolist()})
    plt, got, got_plt = names[b".plt"], names[b".got"], names[b".got.plt"]
    reserve(info, plt, (plts + 1) * PLT_ENTRY_SIZE, L1_CACHE_BYTES, code=True)
    reserve(info, got, (gots + 1) * GOT_ENTRY_SIZE, L1_CACHE_BYTES, code=False)
    reserve(info, got_plt, (plts + 1) * GOT_ENTRY_SIZE, L1_CACHE_BYTES, code=False)
    mod.arch = Tables(Slots(got, gots), Slots(plt, plts), Slots(got_plt, plts))


def module_emit_got_entry(section: Section, value: int) -> int:
    """The address of the GOT's entry for a value. DamageError where the kernel stops with BUG()."""
    tables = section.mod.arch
    assert isinstance(tables, Tables)
    number = _slot(section, tables.got, value)
    tables.got.write(section.info, number, value.to_bytes(GOT_ENTRY_SIZE, "little"))
    return tables.got.address(section.info, number, GOT_ENTRY_SIZE)


def module_emit_plt_entry(section: Section, value: int) -> int:
    """The address of the PLT's entry for a target. DamageError where the kernel stops with BUG()."""
    tables = section.mod.arch
    assert isinstance(tables, Tables)
    number = _slot(section, tables.plt, value)
    place = tables.plt.address(section.info, number, PLT_ENTRY_SIZE)
    tables.got_plt.write(section.info, number, value.to_bytes(GOT_ENTRY_SIZE, "little"))
    offset = tables.got_plt.address(section.info, number, GOT_ENTRY_SIZE) - place
    high = offset + 0x800 & 0xFFFFF000
    # auipc t0, high; ld t1, low(t0); jr t1
    code = (0x0017 | 5 << 7 | high, 0x3003 | (offset - high & 0xFFF) << 20 | 5 << 15 | 6 << 7, 0x0067 | 6 << 15)
    tables.plt.write(section.info, number, b"".join(word.to_bytes(4, "little") for word in code))
    return place


def _slot(section: Section, slots: Slots, value: int) -> int:
    number = slots.used.setdefault(value, len(slots.used))
    if number >= slots.most:
        raise would_damage(section.mod.name, "it needs more entries of PLT or GOT than there is room for")
    return number


# -- relocations ------------------------------------------------------------------------------------------


def apply_relocate_add(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has (``arch/riscv/kernel/module.c``)."""
    widths = MORE_WIDTHS if target.image.has_text(MORE_TYPES) else WIDTHS
    return apply_section(target, mod, info, relsec, Riscv64(widths))


class Riscv64(Rules):
    """What 64-bit RISC-V knows. Most refusals here are EINVAL."""

    def __init__(self, widths: Mapping[int, int]) -> None:
        super().__init__(widths)
        self._sums: dict[int, int] = {}

    def accepts(self, section: Section) -> Mask:
        """Symbols whose values are error numbers stop it, unless they are weak."""
        everything = np.arange(len(section.kinds))
        known = everything[section.indices < len(section.info.symbols)]
        error = section.symbols(known) >= np.uint64(FIRST_ERROR)
        accepted = np.ones(len(section.kinds), np.bool_)
        accepted[known[error & (section.column("st_info", known) >> 4 != STB_WEAK)]] = False
        self._clear_accumulated(section, known)
        return accepted

    def _clear_accumulated(self, section: Section, known: Indices) -> None:
        if not section.target.image.has_text(MORE_TYPES):
            return
        room = len(section.data) - section.start
        for kind in ACCUMULATED:
            chosen = known[section.kinds[known] == kind]
            width = MORE_WIDTHS[kind]
            chosen = chosen[section.offsets[chosen] <= np.uint64(max(room - width, 0))]
            section.write(chosen, width, np.zeros(len(chosen), np.uint64))

    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        weak = section.symbols(chosen) >= np.uint64(FIRST_ERROR)  # unresolved: nothing is patched
        refused = np.zeros(len(chosen), np.bool_)
        chosen = chosen[~weak]
        refused[~weak] = self._relocate(section, kind, chosen)
        return refused

    def _relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        if kind in (PCREL_LO12_I, PCREL_LO12_S):
            return _low_half(section, kind, chosen)
        values = section.values(chosen)
        if kind in (SET_ULEB128, SUB_ULEB128):
            self._uleb128(section, kind, chosen)
        elif kind in SCATTER:
            _scatter(section, kind, chosen, values - section.places(chosen))
        elif kind in (PCREL_HI20, GOT_HI20, CALL, CALL_PLT, PLT32):
            return _far(section, kind, chosen, values)
        elif kind in (HI20, LO12_I, LO12_S):
            return _absolute(section, kind, chosen, values)
        else:
            return _data(section, kind, chosen, values)
        return np.zeros(len(chosen), np.bool_)

    def _uleb128(self, section: Section, kind: int, chosen: Indices) -> None:
        """A length in debugging data: the difference of two values that share a place."""
        for index, value in zip(chosen.tolist(), section.values(chosen).tolist(), strict=True):
            offset = int(section.offsets[index])
            if kind == SET_ULEB128:
                self._sums[offset] = value
                continue
            rest = self._sums.pop(offset, 0) - value & (1 << 64) - 1
            octets = bytearray()
            while rest:
                octets.append(rest & 0x7F | (rest >= 0x80) << 7)
                rest >>= 7
            end = section.start + offset + len(octets)
            section.data[section.start + offset : end] = octets[: len(section.data) - section.start - offset]

    def refusal(self, section: Section, index: int) -> LoadError:
        mod, kind = section.mod, int(section.kinds[index])
        chosen = np.array([index])
        if section.symbols(chosen)[0] >= np.uint64(FIRST_ERROR):
            name = decode(section.symbol_name(index))
            section.target.printk(4, f"{mod.name}: Unknown symbol {name}")
            return refuse(mod.name, Errno.ENOENT, "unknown-symbol", f"{name} has no address", BUILD_AGAIN)
        value, place = int(section.values(chosen)[0]), int(section.places(chosen)[0])
        pointer = section.target.hashed_pointer(place)
        if kind not in self.widths:
            return unknown_relocation(section, index, _unknown_line(section, kind, pointer), Errno.EINVAL)
        if kind in (PCREL_LO12_I, PCREL_LO12_S):
            section.target.printk(3, f"{mod.name}: Can not find HI20 relocation information")
            why = "a relocation for the low half of an address has none for the high half"
            return refuse(mod.name, Errno.EINVAL, "relocation-without-partner", why, BUILD_AGAIN)
        if kind == R_32:
            line = f"{mod.name}: value {value:016x} out of range for 32-bit field"
        elif kind == GOT_HI20:
            line = f"{mod.name}: can not generate the GOT entry for symbol = {value:016x} from PC = {pointer}"
        else:
            line = f"{mod.name}: target {value:016x} can not be addressed by the 32-bit offset from PC = {pointer}"
        section.target.printk(3, line)
        return overflow(section, f"{value:#x} is out of reach of a relocation of type {kind}", Errno.EINVAL)


def _unknown_line(section: Section, kind: int, pointer: str) -> str:
    name = section.mod.name
    if kind == ALIGN:
        return f"{name}: The unexpected relocation type 'R_RISCV_ALIGN' from PC = {pointer}"
    if section.target.image.has_text(MORE_TYPES):
        if kind in DYNAMIC:
            return f"{name}: Dynamic linking not supported in kernel modules PC = {pointer}"
        if kind in THREAD_LOCAL:
            return f"{name}: Thread local storage not supported in kernel modules PC = {pointer}"
    return f"{name}: Unknown relocation type {kind}"


def _data(section: Section, kind: int, chosen: Indices, values: Words) -> Mask:
    width = MORE_WIDTHS[kind]
    words = section.read(chosen, width)
    six = np.uint64(0x3F)
    if kind in ADDS:
        words += values
    elif kind in SUBS:
        words -= values
    elif kind == SUB6:
        words = words - (values & six) & six
    elif kind == SET6:
        words = words & np.uint64(0xC0) | values & six
    else:
        words = values - section.places(chosen) if kind == R_32_PCREL else values
    section.write(chosen, width, words)
    refused: Mask = (values >> np.uint64(32) != 0) & np.bool_(kind == R_32)
    return refused


def _patch(section: Section, chosen: Indices, keep: int, bits: Words, shift: int = 0, width: int = 4) -> None:
    """``riscv_insn_rmw``: some bits of an instruction stay."""
    words = section.read(chosen, width, shift)
    section.write(chosen, width, words & np.uint64(keep) | bits, shift)


def _scatter(section: Section, kind: int, chosen: Indices, offsets: Words) -> None:
    keep, width, moves = SCATTER[kind]
    bits = np.zeros(len(chosen), np.uint64)
    for mask, move in moves:
        part = offsets & np.uint64(mask)
        bits |= part << np.uint64(move) if move >= 0 else part >> np.uint64(-move)
    _patch(section, chosen, keep, bits, width=width)


def _high(offsets: Words) -> Words:
    return offsets + np.uint64(0x800) & np.uint64(0xFFFFF000)


def _in_reach(offsets: Words) -> Mask:
    """``riscv_insn_valid_32bit_offset``: what a pair of auipc and jalr reaches."""
    numbers = offsets.view(np.int64)
    reach: Mask = (numbers >= -(1 << 31) - (1 << 11)) & (numbers < (1 << 31) - (1 << 11))
    return reach


def _far(section: Section, kind: int, chosen: Indices, values: Words) -> Mask:
    """Types that reach 2 GiB, some of them farther through PLT or GOT."""
    places = section.places(chosen)
    offsets = values - places
    has_tables = section.target.image.config.enabled("MODULE_SECTIONS")
    if kind == GOT_HI20:
        refused = np.full(len(chosen), not has_tables)
        emit, through = module_emit_got_entry, ~refused
    else:
        refused = ~_in_reach(offsets)
        emit, through = module_emit_plt_entry, refused & (kind in (CALL_PLT, PLT32)) & has_tables
    for position in np.flatnonzero(through).tolist():
        address = emit(section, int(values[position]))
        offsets[position] = address - int(places[position]) & (1 << 64) - 1
    if kind == PLT32:
        section.write(chosen, 4, offsets)
    else:
        _patch(section, chosen, 0xFFF, _high(offsets))
    if kind in (CALL, CALL_PLT):
        _patch(section, chosen, 0xFFFFF, (offsets - _high(offsets) & np.uint64(0xFFF)) << np.uint64(20), 4)
    refused &= ~through
    return refused


def _absolute(section: Section, kind: int, chosen: Indices, values: Words) -> Mask:
    if kind == HI20:
        _patch(section, chosen, 0xFFF, _high(values))
        return np.full(len(chosen), section.target.image.config.enabled("CMODEL_MEDLOW"))
    _patch_low(section, kind, chosen, values - _high(values))
    return np.zeros(len(chosen), np.bool_)


def _patch_low(section: Section, kind: int, chosen: Indices, low: Words) -> None:
    if kind in (LO12_I, PCREL_LO12_I):
        _patch(section, chosen, 0xFFFFF, (low & np.uint64(0xFFF)) << np.uint64(20))
    else:
        bits = (low & np.uint64(0xFE0)) << np.uint64(20) | (low & np.uint64(0x1F)) << np.uint64(7)
        _patch(section, chosen, 0x1FFF07F, bits)


def _low_half(section: Section, kind: int, chosen: Indices) -> Mask:
    """The other half of the address whose high half is patched at the place that the symbol names."""
    possible = np.isin(section.kinds, (PCREL_HI20, GOT_HI20)) & (section.indices < len(section.info.symbols))
    partners = np.flatnonzero(possible)
    places = section.places(partners)
    order = np.argsort(places, kind="stable")
    wanted = section.symbols(chosen)
    at = np.searchsorted(places[order], wanted)
    found = at < len(order)
    found[found] = places[order][at[found]] == wanted[found]
    chosen, at = chosen[found], at[found]
    partner = partners[order][at]
    values = section.values(partner)
    if section.target.image.config.enabled("MODULE_SECTIONS"):
        for position in np.flatnonzero(section.kinds[partner] == GOT_HI20).tolist():
            values[position] = module_emit_got_entry(section, int(values[position]))
    offsets = values - section.places(partner)
    _patch_low(section, kind, chosen, offsets - _high(offsets))
    refused: Mask = ~found
    return refused
