"""Relocations and veneers of arm64 (``arch/arm64/kernel/module.c``, ``module-plts.c``).

Which CPU runs the kernel is not known here: the workaround for erratum 843419, which only the Cortex-A53
needs, is left out, as the kernel leaves it out on every other CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kodojo.image.inferred_config import ALWAYS_VENEERS
from kodojo.loader.refusal import refuse
from kodojo.loader.relocate.plt import (
    Slots,
    code_relocations,
    last_named,
    missing_section,
    module_init_layout_section,
    reserve,
    symbols_in,
    within_module_init,
)
from kodojo.loader.relocate.section import (
    SHT_RELA,
    Rules,
    Section,
    apply_section,
    fits_signed,
    overflow,
    read_entries,
    unknown_relocation,
)
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate_add", "module_frob_arch_sections", "store_mod_arch"]

INIT_SECTIONS = (b".init",)
EXIT_SECTIONS = (b".exit",)

L1_CACHE_BYTES = 64
PLT_ENTRY_SIZE = 12
PLT_ALIGN = 4
X16 = 16
BREAK_FAULT = 0xD4202000

TRAMPOLINES = (b".text.ftrace_trampoline", b".init.text.ftrace_trampoline")
"""What a module's code goes through to the tracer; the second is of those later kernels."""

R_AARCH64_NONE = (0, 256)
R_AARCH64_JUMP26, R_AARCH64_CALL26 = 282, 283


class Data(NamedTuple):
    """A number in data: is it relative to the place; how many bits it has; the range it has to be in, if any."""

    relative: bool
    bits: int
    checked: bool


class Movw(NamedTuple):
    """The 16 bits from ``lsb`` on in a move instruction; a signed one becomes MOVN where it is negative."""

    relative: bool
    lsb: int
    is_signed: bool
    checked: bool


class Immediate(NamedTuple):
    """Bits ``lsb`` to ``lsb + bits`` of a value in an instruction.

    :param base: what they are counted from: ``abs``, ``prel`` (the place) or ``page`` (its page).
    :param field: where they go: the shift of a plain field, or -1 for the divided one of ADR and ADRP.
    :param width: of that field in bits.
    """

    base: str
    lsb: int
    bits: int
    field: int
    width: int
    checked: bool


ABS, PREL = False, True

RULES: dict[int, Data | Movw | Immediate] = {
    257: Data(ABS, 64, False),
    258: Data(ABS, 32, True),
    259: Data(ABS, 16, True),
    260: Data(PREL, 64, False),
    261: Data(PREL, 32, True),
    262: Data(PREL, 16, True),
    # MOVW_UABS_G0, G0_NC, G1, G1_NC, G2, G2_NC, G3
    263: Movw(ABS, 0, False, True),
    264: Movw(ABS, 0, False, False),
    265: Movw(ABS, 16, False, True),
    266: Movw(ABS, 16, False, False),
    267: Movw(ABS, 32, False, True),
    268: Movw(ABS, 32, False, False),
    269: Movw(ABS, 48, False, False),
    # MOVW_SABS_G0, G1, G2
    270: Movw(ABS, 0, True, True),
    271: Movw(ABS, 16, True, True),
    272: Movw(ABS, 32, True, True),
    273: Immediate("prel", 2, 19, 5, 19, True),  # LD_PREL_LO19
    274: Immediate("prel", 0, 21, -1, 21, True),  # ADR_PREL_LO21
    275: Immediate("page", 12, 21, -1, 21, True),  # ADR_PREL_PG_HI21
    276: Immediate("page", 12, 21, -1, 21, False),  # ADR_PREL_PG_HI21_NC
    277: Immediate("abs", 0, 12, 10, 12, False),  # ADD_ABS_LO12_NC
    278: Immediate("abs", 0, 12, 10, 12, False),  # LDST8_ABS_LO12_NC
    279: Immediate("prel", 2, 14, 5, 14, True),  # TSTBR14
    280: Immediate("prel", 2, 19, 5, 19, True),  # CONDBR19
    R_AARCH64_JUMP26: Immediate("prel", 2, 26, 0, 26, True),
    R_AARCH64_CALL26: Immediate("prel", 2, 26, 0, 26, True),
    284: Immediate("abs", 1, 11, 10, 12, False),  # LDST16_ABS_LO12_NC
    285: Immediate("abs", 2, 10, 10, 12, False),  # LDST32_ABS_LO12_NC
    286: Immediate("abs", 3, 9, 10, 12, False),  # LDST64_ABS_LO12_NC
    # MOVW_PREL_G0, G0_NC, G1, G1_NC, G2, G2_NC, G3
    287: Movw(PREL, 0, True, True),
    288: Movw(PREL, 0, False, False),
    289: Movw(PREL, 16, True, True),
    290: Movw(PREL, 16, False, False),
    291: Movw(PREL, 32, True, True),
    292: Movw(PREL, 32, False, False),
    293: Movw(PREL, 48, True, False),
    299: Immediate("abs", 4, 8, 10, 12, False),  # LDST128_ABS_LO12_NC
}

WIDTHS = {
    **dict.fromkeys(R_AARCH64_NONE, 0),
    **{kind: rule.bits // 8 if isinstance(rule, Data) else 4 for kind, rule in RULES.items()},
}


# -- room for veneers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Veneers:
    """``struct mod_arch_specific``: the veneers of code that stays, and of code for init."""

    core: Slots
    init: Slots
    last: dict[int, bytes]


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Make room for veneers, and sort the branches that may need them.

    Source: ``arch/arm64/kernel/module-plts.c: module_frob_arch_sections``.
    """
    if not _has_plts(target):
        return
    names = last_named(info, (b".plt", b".init.plt", *TRAMPOLINES))
    core, init = names.get(b".plt", 0), names.get(b".init.plt", 0)
    if not core or not init:
        text = f"{mod.name}: module PLT section(s) missing"
        raise missing_section(target, mod, text, ".init.plt" if core else ".plt")
    counts = {core: 0, init: 0}
    for relsec, patched in code_relocations(info, SHT_RELA):
        leaves = module_init_layout_section(target, info.section_name(patched), INIT_SECTIONS, EXIT_SECTIONS)
        counts[init if leaves else core] += _count_plts(target, info, relsec, patched)
    for index, count in counts.items():
        reserve(info, index, (count + 1) * PLT_ENTRY_SIZE, L1_CACHE_BYTES, code=True)
    # One for ftrace_caller; earlier kernels have one for ftrace_regs_caller, too.
    trampolines = 2 if target.image.config.enabled("DYNAMIC_FTRACE_WITH_REGS") else 1
    for name in TRAMPOLINES if _always_plts(target) else TRAMPOLINES[:1]:
        if name in names:
            reserve(info, names[name], trampolines * PLT_ENTRY_SIZE, PLT_ALIGN, code=True)
    mod.arch = Veneers(Slots(core, counts[core]), Slots(init, counts[init]), {})


def store_mod_arch(target: Target, mod: Module) -> None:
    """Enter the veneers into ``struct mod_arch_specific``, where the kernel's own functions look for them."""
    if not isinstance(mod.arch, Veneers):
        return
    for part, slots in (("core", mod.arch.core), ("init", mod.arch.init)):
        values = {"plt_shndx": slots.index, "plt_num_entries": len(slots.used), "plt_max_entries": slots.most}
        for member, value in values.items():
            target.set_field(mod, f"arch.{part}.{member}", value)


def module_finalize(target: Target, mod: Module, info: LoadInfo) -> None:
    """Refuse what the kernel's function of the name refuses without a word.

    Source: ``arch/arm64/kernel/module.c: module_init_ftrace_plt``.
    """
    if not _has_plts(target) or not target.image.config.enabled("DYNAMIC_FTRACE"):
        return
    module, second = struct_module(target.image), "arch.init_ftrace_trampolines"
    both = module.has(second) and module.field(second).size
    names = info.section_names()
    for name in TRAMPOLINES if both else TRAMPOLINES[:1]:
        if name not in names:
            raise missing_section(target, mod, "", name.decode())


def _has_plts(target: Target) -> bool:
    return target.image.config.enabled("ARM64_MODULE_PLTS") or target.image.has_text(ALWAYS_VENEERS)


def _always_plts(target: Target) -> bool:
    """Whether the kernel has veneers without asking its configuration, which has no such option then."""
    return not target.image.config.enabled("ARM64_MODULE_PLTS") and target.image.has_text(ALWAYS_VENEERS)


def _count_plts(target: Target, info: LoadInfo, relsec: int, patched: int) -> int:
    """Sort the branches to other sections to the front, and count those of different targets."""
    if not _always_plts(target) and not target.image.config.enabled("RANDOMIZE_BASE"):
        return 0
    entries = read_entries(info, relsec)
    r_info = entries["r_info"]
    kinds, symbols = (r_info & np.uint64(0xFFFFFFFF)).astype(np.int64), (r_info >> np.uint64(32)).astype(np.int64)
    needs = ((kinds == R_AARCH64_JUMP26) | (kinds == R_AARCH64_CALL26)) & ~symbols_in(info, symbols, patched)
    order = _partitioned(needs)
    count = int(needs.sum())
    # The loop that parts them ends before it has looked at the last entry: one stays unsorted if all need it.
    sortable = count - (count == len(entries) and count > 0)
    front = order[:sortable]
    front = front[np.lexsort((entries["r_addend"][front], symbols[front], kinds[front]))]
    order = np.concatenate((front, order[sortable:]))
    info.overwrite(int(info.sechdrs["sh_offset"][relsec]), entries[order].tobytes())
    chosen = order[:count]
    same = (r_info[chosen[1:]] == r_info[chosen[:-1]]) & (entries["r_addend"][chosen[:-1]] == 0)
    duplicates = np.append(False, same & (entries["r_addend"][chosen[1:]] == 0))[:count]
    return count - int(duplicates.sum())


def _partitioned(needs: Mask) -> Indices:
    """The order after ``partition_branch_plt_relas``: entries swap places pairwise, from both ends."""
    count = int(needs.sum())
    order = np.arange(len(needs))
    left = np.flatnonzero(~needs[:count])
    right = np.flatnonzero(needs[count:])[::-1] + count
    order[left], order[right] = right, left
    return order


# -- relocations ------------------------------------------------------------------------------------------


def apply_relocate_add(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has (``arch/arm64/kernel/module.c``)."""
    return apply_section(target, mod, info, relsec, Arm64())


class Arm64(Rules):
    """What arm64 knows."""

    def __init__(self) -> None:
        super().__init__(WIDTHS)
        self._full: set[int] = set()

    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        rule = RULES[kind]
        if isinstance(rule, Data):
            return _data(section, rule, chosen)
        if isinstance(rule, Movw):
            return _movw(section, rule, chosen)
        refused = _immediate(section, rule, chosen, section.values(chosen))
        if kind in (R_AARCH64_JUMP26, R_AARCH64_CALL26) and refused.any() and _has_plts(section.target):
            for position in np.flatnonzero(refused).tolist():
                refused[position] = not self._through_veneer(section, rule, chosen[position : position + 1])
        return refused

    def _through_veneer(self, section: Section, rule: Immediate, chosen: Indices) -> bool:
        address = module_emit_plt_entry(section, chosen)
        if not address:
            self._full.add(int(chosen[0]))
            return False
        return not _immediate(section, rule, chosen, np.array([address], np.uint64)).any()

    def refusal(self, section: Section, index: int) -> LoadError:
        mod, kind = section.mod, int(section.kinds[index])
        prefix = "Modules: " if section.target.image.has_text(ALWAYS_VENEERS) else ""
        if kind not in WIDTHS:
            line = f"{prefix}module {mod.name}: unsupported RELA relocation: {kind}"
            return unknown_relocation(section, index, line)
        if index in self._full:
            return refuse(
                mod.name,
                Errno.ENOEXEC,
                "no-veneer-left",
                "more of its branches need a veneer than there is room for",
                "The file is damaged: build it again.",
            )
        value = int(section.values(np.array([index]))[0])
        section.target.printk(3, f"{prefix}module {mod.name}: overflow in relocation type {kind} val {value:x}")
        return overflow(section, f"the value {value:#x} does not fit into a relocation of type {kind}")


def _data(section: Section, rule: Data, chosen: Indices) -> Mask:
    """``reloc_data``."""
    values = section.values(chosen)
    if rule.relative:
        values -= section.places(chosen)
    section.write(chosen, rule.bits // 8, values)
    if not rule.checked:
        return np.zeros(len(chosen), np.bool_)
    return ~fits_signed(values, rule.bits) if rule.relative else values >> np.uint64(rule.bits) != 0


def _movw(section: Section, rule: Movw, chosen: Indices) -> Mask:
    """``reloc_insn_movw``."""
    values = section.values(chosen)
    if rule.relative:
        values -= section.places(chosen)
    words = section.read(chosen, 4)
    immediate = (values.view(np.int64) >> np.int64(rule.lsb)).view(np.uint64)
    if rule.is_signed:
        negative = values.view(np.int64) < 0
        words &= np.uint64(0xFFFFFFFF & ~(3 << 29))
        words[~negative] |= np.uint64(2 << 29)
        immediate[negative] = ~immediate[negative]
    section.write(
        chosen, 4, words & np.uint64(0xFFFFFFFF & ~(0xFFFF << 5)) | (immediate & np.uint64(0xFFFF)) << np.uint64(5)
    )
    refused: Mask = (immediate >> np.uint64(16) != 0) & np.bool_(rule.checked)
    return refused


def _immediate(section: Section, rule: Immediate, chosen: Indices, values: Words) -> Mask:
    """``reloc_insn_imm``, and ``reloc_insn_adrp`` on a CPU without the erratum."""
    places = section.places(chosen)
    if rule.base == "page":
        values = (values & ~np.uint64(0xFFF)) - (places & ~np.uint64(0xFFF))
    elif rule.base == "prel":
        values = values - places
    values = (values.view(np.int64) >> np.int64(rule.lsb)).view(np.uint64)
    # The kernel takes as many bits as there are up to lsb + bits, which may be fewer than the field has.
    immediate = values & np.uint64((1 << rule.bits) - 1)
    words = section.read(chosen, 4)
    if rule.field < 0:
        low, high = immediate & np.uint64(3), immediate >> np.uint64(2)
        words &= np.uint64(0xFFFFFFFF & ~(3 << 29 | 0x7FFFF << 5))
        words |= low << np.uint64(29) | high << np.uint64(5)
    else:
        words &= np.uint64(0xFFFFFFFF & ~(((1 << rule.width) - 1) << rule.field))
        words |= immediate << np.uint64(rule.field)
    section.write(chosen, 4, words)
    return ~fits_signed(values, rule.bits) & np.bool_(rule.checked)


def module_emit_plt_entry(section: Section, chosen: Indices) -> int:
    """The address of a veneer to the entry's target, a new one unless it is the last one's; 0 if there is no room."""
    veneers = section.mod.arch
    assert isinstance(veneers, Veneers)
    value = int(section.values(chosen)[0])
    init = within_module_init(section.mod, int(section.places(chosen)[0]))
    slots = veneers.init if init else veneers.core
    number = len(slots.used)
    place, before = (slots.address(section.info, one, PLT_ENTRY_SIZE) for one in (number, number - 1))
    entry = get_plt_entry(value, place)
    slots.write(section.info, number, entry)  # there is room for one more than are expected
    if number and plt_entries_equal((entry, place), (veneers.last[slots.index], before)):
        return before
    if number >= slots.most:
        return 0
    slots.used[number] = value
    veneers.last[slots.index] = entry
    return place


def plt_entries_equal(one: tuple[bytes, int], other: tuple[bytes, int]) -> bool:
    """Whether two veneers, each with its address, lead to the same target."""
    (a, at_a), (b, at_b) = one, other
    if a[4:] != b[4:]:
        return False
    pages = [(int.from_bytes(entry[:4], "little"), at >> 12) for entry, at in ((a, at_a), (b, at_b))]
    if pages[0] == pages[1]:
        return True
    return _leads_to(*pages[0]) == _leads_to(*pages[1]) and BREAK_FAULT not in (pages[0][0], pages[1][0])


def _leads_to(adrp: int, page: int) -> int:
    """The page that ADRP gives on a page."""
    distance = (adrp >> 5 & 0x7FFFF) << 2 | adrp >> 29 & 3
    return page + (distance ^ 1 << 20) - (1 << 20)


def get_plt_entry(target: int, place: int) -> bytes:
    """``adrp x16``, ``add x16``, ``br x16``."""
    distance = (target - (place & ~0xFFF)) & 0xFFFF_FFFF_FFFF_FFFF
    pages = ((distance >> 12 & 0xFFFF_FFFF) ^ 1 << 31) - (1 << 31)  # a distance that the kernel keeps in 32 bits
    adrp = 0x90000000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | X16
    if not -(1 << 20) <= pages < 1 << 20:
        adrp = BREAK_FAULT
    add = 0x91000000 | (target & 0xFFF) << 10 | X16 << 5 | X16
    branch = 0xD61F0000 | X16 << 5
    return b"".join(word.to_bytes(4, "little") for word in (adrp, add, branch))
