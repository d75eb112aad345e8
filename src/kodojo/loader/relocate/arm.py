"""Relocations and veneers of 32-bit ARM (``arch/arm/kernel/module.c``, ``module-plts.c``).

The addends are in the words and instructions themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import decode
from kodojo.loader.refusal import BUILD_AGAIN, refuse, would_damage
from kodojo.loader.relocate.plt import (
    code_relocations,
    last_named,
    missing_section,
    module_init_layout_section,
    reserve,
    symbols_in,
    within_module_init,
)
from kodojo.loader.relocate.section import (
    SHT_REL,
    Rules,
    Section,
    apply_section,
    overflow,
    read_entries,
    signed,
    unknown_relocation,
)
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate", "module_frob_arch_sections"]

INIT_SECTIONS = (b".init", b".ARM.extab.init", b".ARM.exidx.init")
EXIT_SECTIONS = (b".exit", b".ARM.extab.exit", b".ARM.exidx.exit")

R_ARM_NONE, R_ARM_PC24, R_ARM_ABS32, R_ARM_REL32 = 0, 1, 2, 3
R_ARM_THM_CALL, R_ARM_CALL, R_ARM_JUMP24, R_ARM_THM_JUMP24 = 10, 28, 29, 30
R_ARM_TARGET1, R_ARM_V4BX, R_ARM_PREL31 = 38, 40, 42
R_ARM_MOVW_ABS_NC, R_ARM_MOVT_ABS, R_ARM_MOVW_PREL_NC, R_ARM_MOVT_PREL = 43, 44, 45, 46
R_ARM_THM_MOVW_ABS_NC, R_ARM_THM_MOVT_ABS, R_ARM_THM_MOVW_PREL_NC, R_ARM_THM_MOVT_PREL = 47, 48, 49, 50
R_ARM_ALU_PC_G0_NC, R_ARM_ALU_PC_G1_NC, R_ARM_LDR_PC_G2 = 57, 59, 63

CALLS = (R_ARM_PC24, R_ARM_CALL, R_ARM_JUMP24)
THUMB_CALLS = (R_ARM_THM_CALL, R_ARM_THM_JUMP24)
MOVES = (R_ARM_MOVW_ABS_NC, R_ARM_MOVT_ABS, R_ARM_MOVW_PREL_NC, R_ARM_MOVT_PREL)
THUMB_MOVES = (R_ARM_THM_MOVW_ABS_NC, R_ARM_THM_MOVT_ABS, R_ARM_THM_MOVW_PREL_NC, R_ARM_THM_MOVT_PREL)
HIGH_HALF = (R_ARM_MOVT_ABS, R_ARM_MOVT_PREL, R_ARM_THM_MOVT_ABS, R_ARM_THM_MOVT_PREL)
RELATIVE = (R_ARM_MOVW_PREL_NC, R_ARM_MOVT_PREL, R_ARM_THM_MOVW_PREL_NC, R_ARM_THM_MOVT_PREL)
GROUPS = (R_ARM_ALU_PC_G0_NC, R_ARM_ALU_PC_G1_NC, R_ARM_LDR_PC_G2)

PLAIN = (R_ARM_ABS32, R_ARM_REL32, R_ARM_TARGET1, R_ARM_V4BX, R_ARM_PREL31, *CALLS, *MOVES)

STT_FUNC = 2
MASK = 0xFFFFFFFF


# -- room for veneers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Veneers:
    """``struct mod_plt_sec``: veneers in groups, first their instructions and then the addresses they load.

    :param index: of the section. :param line: bytes of a cache line, which is half a group.
    :param values: the targets, those of the tracer first (``fixed`` of them).
    """

    index: int
    line: int
    load: int
    fixed: int
    values: list[int] = field(default_factory=list)

    def offset(self, number: int) -> int:
        """Where the instruction of a veneer is in the section; its address is a line further."""
        per_line = self.line // 4
        return number // per_line * 2 * self.line + number % per_line * 4


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Make room for veneers, and sort the relocations of code.

    Source: ``arch/arm/kernel/module-plts.c: module_frob_arch_sections``.
    """
    config = target.image.config
    if not config.enabled("ARM_MODULE_PLTS"):
        return
    names = last_named(info, (b".plt", b".init.plt"))
    core, init = names.get(b".plt"), names.get(b".init.plt")
    if core is None or init is None:
        text = f"{mod.name}: module PLT section(s) missing"
        raise missing_section(target, mod, text, ".plt" if core is None else ".init.plt")
    fixed = 2 if config.enabled("DYNAMIC_FTRACE") else 0
    line = 1 << int(config.get("CONFIG_ARM_L1_CACHE_SHIFT") or 6)
    thumb = config.enabled("THUMB2_KERNEL")
    load = 0xF8DFF000 | line - 4 if thumb else 0xE59FF000 | line - 8
    counts = {core: fixed, init: fixed}
    for relsec, patched in code_relocations(info, SHT_REL):
        leaves = module_init_layout_section(target, info.section_name(patched), INIT_SECTIONS, EXIT_SECTIONS)
        counts[init if leaves else core] += _count_plts(info, relsec, patched)
    for index, count in counts.items():
        reserve(info, index, -(-8 * count // (2 * line)) * 2 * line, line, code=True)
    mod.arch = tuple(Veneers(index, line, load, fixed) for index in (core, init))


def _count_plts(info: LoadInfo, relsec: int, patched: int) -> int:
    """Sort the relocations by type and symbol, and count the branches to other sections that differ."""
    entries = read_entries(info, relsec)
    order = np.lexsort((entries["r_info"] >> np.uint32(8), entries["r_info"] & np.uint32(0xFF)))
    entries = entries[order]
    info.overwrite(int(info.sechdrs["sh_offset"][relsec]), entries.tobytes())
    kinds = (entries["r_info"] & np.uint32(0xFF)).astype(np.int64)
    chosen = np.flatnonzero(np.isin(kinds, (*CALLS, *THUMB_CALLS)))
    outside = ~symbols_in(info, (entries["r_info"][chosen] >> np.uint32(8)).astype(np.int64), patched)
    bare = _without_addend(info, entries["r_offset"][chosen], kinds[chosen], patched)
    same = np.append(False, entries["r_info"][chosen[1:]] == entries["r_info"][chosen[:-1]])[: len(chosen)]
    duplicate = bare & same & np.append(False, bare[:-1])[: len(chosen)]
    return int((outside & ~duplicate).sum())


def _without_addend(info: LoadInfo, offsets: NDArray[np.uint32], kinds: Indices, patched: int) -> Mask:
    """``is_zero_addend_relocation``: branches as they are encoded to the symbol itself."""
    start = int(info.sechdrs["sh_offset"][patched])
    places = offsets.astype(np.int64) + start
    if len(places) and int(places.max()) + 4 > len(info.data):
        raise info.damage(f"a relocation for section {patched} is outside the file")
    content = np.frombuffer(info.data, np.uint8)
    octets = [content[places + number].astype(np.int64) for number in range(4)]
    upper, lower = octets[0] | octets[1] << 8, octets[2] | octets[3] << 8
    in_thumb = (upper & 0x7FF == 0x7FF) & (lower & 0x2FFF == 0x2FFE)
    in_arm = (upper | lower << 16) & 0xFFFFFF == 0xFFFFFE
    bare: Mask = np.where(np.isin(kinds, THUMB_CALLS), in_thumb, in_arm)
    return bare


def get_module_plt(section: Section, place: int, value: int) -> int:
    """The address of a veneer to an address: the last one's if it is the same, else a new one.

    DamageError where the kernel stops with BUG().
    """
    mod, info = section.mod, section.info
    assert isinstance(mod.arch, tuple)
    core, init = mod.arch
    veneers: Veneers = init if within_module_init(mod, place) else core
    start = int(info.sechdrs["sh_addr"][veneers.index])
    if not veneers.values and veneers.fixed:
        veneers.values = list(_tracers(section.target.image))
    known = veneers.values[: veneers.fixed]
    if value in known:
        return start + veneers.offset(known.index(value))
    if not veneers.values or veneers.values[-1] != value:
        veneers.values.append(value)
        region, offset = info.placement[veneers.index]
        at = offset + veneers.offset(len(veneers.values) - 1)
        if 8 * len(veneers.values) > int(info.sechdrs["sh_size"][veneers.index]):
            raise would_damage(mod.name, "more of its branches need a veneer than there is room for")
        region.data[at : at + 4] = veneers.load.to_bytes(4, "little")
        region.data[at + veneers.line : at + veneers.line + 4] = value.to_bytes(4, "little")
    return start + veneers.offset(len(veneers.values) - 1)


def _tracers(image: Image) -> tuple[int, int]:
    return image.kallsyms.get("ftrace_caller") or 0, image.kallsyms.get("__gnu_mcount_nc") or 0


# -- relocations ------------------------------------------------------------------------------------------


def apply_relocate(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has (``arch/arm/kernel/module.c``)."""
    return apply_section(target, mod, info, relsec, Arm(_widths(target.image)))


def _widths(image: Image) -> dict[int, int]:
    """Group relocations and Thumb code are known to kernels that are built for them."""
    known = [*PLAIN]
    known += GROUPS if image.config.enabled("ARM_HAS_GROUP_RELOCS") else ()
    known += (*THUMB_CALLS, *THUMB_MOVES) if image.config.enabled("THUMB2_KERNEL") else ()
    return {R_ARM_NONE: 0, **dict.fromkeys(known, 4)}


class Arm(Rules):
    """What 32-bit ARM knows."""

    def accepts(self, section: Section) -> Mask:
        """Symbol and offset are looked at here, whatever the type."""
        return (section.indices <= len(section.info.symbols)) & (section.offsets <= self._last(section))

    def _last(self, section: Section) -> np.uint64:
        size = int(section.info.sechdrs["sh_size"][section.target_index])
        return np.uint64(size - 4 & MASK)

    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        if kind in CALLS:
            return _call(section, chosen)
        if kind == R_ARM_PREL31:
            return _prel31(section, chosen)
        if kind in MOVES:
            return _move(section, kind, chosen)
        if kind in (*GROUPS, *THUMB_CALLS, *THUMB_MOVES):
            return np.array([not _one(section, kind, chosen[at : at + 1]) for at in range(len(chosen))])
        words = section.read(chosen, 4)
        if kind == R_ARM_V4BX:
            words = words & np.uint64(0xF000000F) | np.uint64(0x01A0F000)
        else:
            words += section.symbols(chosen)
        if kind == R_ARM_REL32:
            words -= section.places(chosen)
        section.write(chosen, 4, words)
        return np.zeros(len(chosen), np.bool_)

    def refusal(self, section: Section, index: int) -> LoadError:
        mod, kind = section.mod, int(section.kinds[index])
        where = f"{mod.name}: section {section.relsec} reloc {index}"
        if section.indices[index] > len(section.info.symbols):
            return _bad_entry(section, f"{where}: bad relocation sym offset", "names a symbol that there is not")
        where += f" sym '{decode(section.symbol_name(index))}'"
        if section.offsets[index] > self._last(section):
            offset = int(signed(section.offsets[index : index + 1], 32)[0])
            size = int(section.info.sechdrs["sh_size"][section.target_index])
            line = f"{where}: out of bounds relocation, offset {offset} size {size}"
            return _bad_entry(section, line, "is outside the section that it is for")
        if kind not in self.widths:
            return unknown_relocation(section, index, f"{mod.name}: unknown relocation: {kind}")
        chosen = np.array([index])
        value, place = int(section.symbols(chosen)[0]), int(section.places(chosen)[0])
        if _wrong_mode(section, kind, chosen)[0]:
            modes = "ARM -> Thumb" if kind in CALLS else "Thumb -> ARM"
            section.target.printk(3, f"{where}: unsupported interworking call ({modes})")
            return refuse(
                mod.name,
                Errno.ENOEXEC,
                "interworking-call",
                f"its code calls {decode(section.symbol_name(index))}, which is code of another mode ({modes})",
                "Build all of it with the kernel's own flags.",
            )
        section.target.printk(3, f"{where}: relocation {kind} out of range (0x{place:x} -> 0x{value:x})")
        return overflow(section, f"{value:#x} is too far from {place:#x} for a relocation of type {kind}")


def _bad_entry(section: Section, line: str, why: str) -> LoadError:
    section.target.printk(3, line)
    return refuse(section.mod.name, Errno.ENOEXEC, "relocation-bounds", f"a relocation {why}", BUILD_AGAIN)


def _wrong_mode(section: Section, kind: int, chosen: Indices) -> Mask:
    """Calls of code in the other instruction set."""
    values = section.symbols(chosen)
    wrong: Mask = values & np.uint64(3) != 0
    if kind not in CALLS:
        functions = section.column("st_info", chosen) & 15 == STT_FUNC
        wrong = functions & (values & np.uint64(1) == 0) & np.bool_(kind in THUMB_CALLS)
    return wrong


def _offset(section: Section, chosen: Indices, addends: Indices) -> Indices:
    """Addend + S - P as a signed number of 32 bits."""
    return signed(addends.view(np.uint64) + section.symbols(chosen) - section.places(chosen), 32)


def _call(section: Section, chosen: Indices) -> Mask:
    words = section.read(chosen, 4)
    offsets = _offset(section, chosen, signed(words << np.uint64(2), 26))
    wrong = _wrong_mode(section, R_ARM_CALL, chosen)
    far = _far(offsets, 0x02000000)
    if section.target.image.config.enabled("ARM_MODULE_PLTS"):
        for position in np.flatnonzero(far & ~wrong).tolist():
            offsets[position] = _through_veneer(section, chosen[position : position + 1], int(offsets[position]), 8)
        far = _far(offsets, 0x02000000)
    section.write(chosen, 4, words & np.uint64(0xFF000000) | (offsets >> 2 & 0xFFFFFF).view(np.uint64))
    return wrong | far


def _far(offsets: Indices, limit: int) -> Mask:
    far: Mask = (offsets <= -limit) | (offsets >= limit)
    return far


def _through_veneer(section: Section, chosen: Indices, offset: int, bias: int) -> int:
    """The offset to a veneer instead. :param bias: of the program counter in a branch, in bytes."""
    place = int(section.places(chosen)[0])
    address = get_module_plt(section, place, offset + place + bias & MASK)
    return int(signed(np.array([address - place - bias & MASK], np.uint64), 32)[0])


def _prel31(section: Section, chosen: Indices) -> Mask:
    words = section.read(chosen, 4)
    offsets = _offset(section, chosen, signed(words, 31))
    section.write(chosen, 4, words & np.uint64(0x80000000) | (offsets & 0x7FFFFFFF).view(np.uint64))
    refused: Mask = (offsets >= 0x40000000) | (offsets < -0x40000000)
    return refused


def _move(section: Section, kind: int, chosen: Indices) -> Mask:
    words = section.read(chosen, 4)
    addends = signed((words & np.uint64(0xF0000)) >> np.uint64(4) | words & np.uint64(0xFFF), 16)
    values = addends.view(np.uint64) + section.symbols(chosen)
    if kind in RELATIVE:
        values -= section.places(chosen)
    if kind in HIGH_HALF:
        values >>= np.uint64(16)
    words &= np.uint64(0xFFF0F000)
    words |= (values & np.uint64(0xF000)) << np.uint64(4) | values & np.uint64(0xFFF)
    section.write(chosen, 4, words)
    return np.zeros(len(chosen), np.bool_)


# -- the rarer ones, one at a time ------------------------------------------------------------------------


def _one(section: Section, kind: int, chosen: Indices) -> bool:
    """Apply one relocation of a group, or of Thumb code; False if it cannot be."""
    if kind in GROUPS:
        return _group(section, kind, chosen)
    return _thumb_call(section, chosen) if kind in THUMB_CALLS else _thumb_move(section, kind, chosen)


def _group(section: Section, kind: int, chosen: Indices) -> bool:
    """A part of an address that is put together from several instructions (AArch32 ELF: group relocations)."""
    word = int(section.read(chosen, 4)[0])
    if kind == R_ARM_LDR_PC_G2:
        addend = word & 0xFFF if word >> 23 & 1 else -(word & 0xFFF)
    else:
        rotation = (word & 0xF00) >> 7
        addend = ((word & 0xFF) >> rotation | (word & 0xFF) << 32 - rotation) & MASK
        addend = -addend if word >> 22 & 1 else addend
    offset = int(_offset(section, chosen, np.array([addend]))[0])
    if kind == R_ARM_LDR_PC_G2:
        word = word & ~(1 << 23) | (offset >= 0) << 23
        _, rest = get_group_rem(2, abs(offset))
        if rest > 0xFFF:
            return False
        word = word & ~0xFFF | rest
    else:
        word = word & ~(3 << 22) | (1 << 23 if offset >= 0 else 1 << 22)
        shift, rest = get_group_rem(0 if kind == R_ARM_ALU_PC_G0_NC else 1, abs(offset))
        if shift < 24:
            rest = rest >> 24 - shift | shift + 8 << 7
        word = word & ~0xFFF | rest
    section.write(chosen, 4, np.array([word], np.uint64))
    return True


def get_group_rem(group: int, value: int) -> tuple[int, int]:
    """What is left of a value for a group: the shift of its highest bits, and the rest."""
    while True:
        shift = 32 - value.bit_length() & ~1 if value else 32
        rest = value
        if not value or group == 0:
            return shift, rest
        value &= 0xFFFFFF >> shift
        group -= 1


def _thumb_call(section: Section, chosen: Indices) -> bool:
    if _wrong_mode(section, R_ARM_THM_CALL, chosen)[0]:
        return False
    upper, lower = (int(section.read(chosen, 2, shift)[0]) for shift in (0, 2))
    sign, j1, j2 = upper >> 10 & 1, lower >> 13 & 1, lower >> 11 & 1
    bits = sign << 24 | (~(j1 ^ sign) & 1) << 23 | (~(j2 ^ sign) & 1) << 22 | (upper & 0x3FF) << 12
    offset = int(_offset(section, chosen, signed(np.array([bits | (lower & 0x7FF) << 1], np.uint64), 25))[0])
    if not -0x01000000 < offset < 0x01000000 and section.target.image.config.enabled("ARM_MODULE_PLTS"):
        offset = _through_veneer(section, chosen, offset, 4)
    if not -0x01000000 < offset < 0x01000000:
        return False
    sign = offset >> 24 & 1
    j1, j2 = sign ^ ~(offset >> 23) & 1, sign ^ ~(offset >> 22) & 1
    upper = upper & 0xF800 | sign << 10 | offset >> 12 & 0x3FF
    lower = lower & 0xD000 | j1 << 13 | j2 << 11 | offset >> 1 & 0x7FF
    section.write(chosen, 2, np.array([upper], np.uint64))
    section.write(chosen, 2, np.array([lower], np.uint64), 2)
    return True


def _thumb_move(section: Section, kind: int, chosen: Indices) -> bool:
    upper, lower = (int(section.read(chosen, 2, shift)[0]) for shift in (0, 2))
    bits = (upper & 15) << 12 | (upper & 0x400) << 1 | (lower & 0x7000) >> 4 | lower & 0xFF
    value = (bits ^ 0x8000) - 0x8000 + int(section.symbols(chosen)[0])
    if kind in RELATIVE:
        value -= int(section.places(chosen)[0])
    if kind in HIGH_HALF:
        value >>= 16
    upper = upper & 0xFBF0 | (value & 0xF000) >> 12 | (value & 0x800) >> 1
    lower = lower & 0x8F00 | (value & 0x700) << 4 | value & 0xFF
    section.write(chosen, 2, np.array([upper], np.uint64))
    section.write(chosen, 2, np.array([lower], np.uint64), 2)
    return True
