"""Relocations and stubs of 64-bit PowerPC with ABI version 2 (``arch/powerpc/kernel/module_64.c``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import UnmodelledError
from kodojo.loader.refusal import refuse
from kodojo.loader.relocate.plt import missing_section
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
    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate_add", "module_frob_arch_sections"]

INIT_SECTIONS: tuple[bytes, ...] = ()
"""Code for init stays with the rest: a stub has to be near both."""
EXIT_SECTIONS = (b".exit",)

PREFIX = "module_64: "
SHT_SYMTAB = 2
SHN_UNDEF, SHN_ABS, SHN_LIVEPATCH = 0, 0xFFF1, 0xFF20

ADDR32, REL24, REL32, ADDR64, REL64 = 1, 10, 26, 38, 44
TOC16, TOC16_LO, TOC16_HA, TOC, TOC16_DS, TOC16_LO_DS = 47, 48, 50, 51, 63, 64
TOCSAVE, ENTRY, REL16_LO, REL16_HA = 109, 118, 250, 252

WIDTHS = {
    ADDR32: 4, REL24: 4, REL32: 4, ADDR64: 8, REL64: 8, TOC16: 2, TOC16_LO: 2, TOC16_HA: 2, TOC: 8, TOC16_DS: 2,
    TOC16_LO_DS: 2, TOCSAVE: 0, ENTRY: 8, REL16_LO: 2, REL16_HA: 2,
}  # fmt: skip

STUB_SIZE = 40
STUB_MAGIC = 0x73747562
NOP, LD_TOC = 0x60000000, 0xE8410018  # the latter: ld r2,24(r1)
LINK_BRANCH = ((18 << 26 | 1), (16 << 26 | 1))
LI_MASK = 0x03FFFFFC
TRACERS = (b"_mcount", b"ftrace_caller", b"ftrace_regs_caller")


@dataclass(slots=True)
class Stubs:
    """``struct mod_arch_specific``: the sections of stubs and of the table of contents, and the stubs in use."""

    section: int
    toc: int
    toc_fixed: bool = False
    used: dict[int, int] = field(default_factory=dict)


# -- room for stubs ---------------------------------------------------------------------------------------


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Make room for stubs, and define ``.TOC.``.

    Source: ``arch/powerpc/kernel/module_64.c: module_frob_arch_sections``.
    """
    if target.image.config.enabled("PPC_KERNEL_PCREL"):
        raise UnmodelledError(f"{mod.name}: kernels with CONFIG_PPC_KERNEL_PCREL are not modelled yet")
    names = {name: index for index, name in enumerate(info.section_names()) if index}
    stubs, toc = names.get(b".stubs", 0), names.get(b".toc", 0)
    if toc:
        align = info.sechdrs["sh_addralign"]
        align[toc] = max(int(align[toc]), 8)
    _dedotify(info)
    if not stubs:
        raise missing_section(target, mod, f"{PREFIX}{mod.name}: doesn't contain .stubs.", ".stubs")
    mod.arch = Stubs(stubs, toc or stubs)
    info.sechdrs["sh_size"][stubs] = _stubs_size(target, info)


def _dedotify(info: LoadInfo) -> None:
    """Undefined names lose their leading dot, and ``.TOC.`` is defined, its value to be set later."""
    symbols = info.symbols
    for index in np.flatnonzero(symbols["st_shndx"] == SHN_UNDEF).tolist()[1:]:
        name = info.symbol_name(index)
        if name.startswith(b"."):
            if name == b".TOC.":
                symbols["st_shndx"][index] = SHN_ABS
            symbols["st_name"][index] += 1
    info.store_symbols()


def _stubs_size(target: Target, info: LoadInfo) -> int:
    """One stub for each different call, sorted so that the same calls are neighbours; one more ends them."""
    config = target.image.config
    count = 1 + config.enabled("DYNAMIC_FTRACE") + config.enabled("DYNAMIC_FTRACE_WITH_REGS")
    for index in np.flatnonzero(info.sechdrs["sh_type"] == SHT_RELA).tolist():
        entries = read_entries(info, index)
        info.sorted_from[index] = np.lexsort((entries["r_addend"], entries["r_info"]))[::-1]
        entries = entries[info.sorted_from[index]]
        info.overwrite(int(info.sechdrs["sh_offset"][index]), entries.tobytes())
        calls = entries[entries["r_info"] & np.uint64(0xFFFFFFFF) == REL24]
        symbols, addends = calls["r_info"] >> np.uint64(32), calls["r_addend"]
        # The kernel keeps the last addend in an unsigned int: a negative one never equals itself.
        new = (np.diff(symbols, prepend=np.uint64(0)) != 0) | (np.diff(addends, prepend=0) != 0) | (addends < 0)
        count += int(new.sum())
    return count * STUB_SIZE


# -- relocations ------------------------------------------------------------------------------------------


def apply_relocate_add(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has (``arch/powerpc/kernel/module_64.c``)."""
    stubs = mod.arch
    assert isinstance(stubs, Stubs)
    if not stubs.toc_fixed:
        _fix_toc(info, stubs)
        stubs.toc_fixed = True
    return apply_section(target, mod, info, relsec, Ppc64le())


def _fix_toc(info: LoadInfo, stubs: Stubs) -> None:
    """Give ``TOC.`` (its dot is gone) its value."""
    for index in np.flatnonzero(info.symbols["st_shndx"] == SHN_ABS).tolist():
        if index and info.symbol_name(index) == b"TOC.":
            info.symbols["st_value"][index] = my_r2(info, stubs)
            return


def my_r2(info: LoadInfo, stubs: Stubs) -> int:
    """What register 2 holds in the module's code: the table of contents and 0x8000."""
    return (int(info.sechdrs["sh_addr"][stubs.toc]) & ~0xFF) + 0x8000


class Ppc64le(Rules):
    """What 64-bit PowerPC knows."""

    def __init__(self) -> None:
        super().__init__(WIDTHS)
        self._problems: dict[int, tuple[int, str]] = {}

    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        values = section.values(chosen)
        if kind == REL24:
            return self._branch(section, chosen, values)
        if kind == ENTRY:
            _entry(section, chosen)
        elif kind in (TOC16, TOC16_LO, TOC16_HA, TOC16_DS, TOC16_LO_DS):
            return _half(section, kind, chosen, values - np.uint64(_r2(section)))
        elif kind in (REL16_LO, REL16_HA):
            return _half(section, kind, chosen, values - section.places(chosen))
        elif kind == REL32:
            values -= section.places(chosen)
            section.write(chosen, 4, values)
            return values + np.uint64(0x80000000) > np.uint64(0xFFFFFFFF)
        else:
            if kind == TOC:
                values = np.full(len(chosen), _r2(section), np.uint64)
            elif kind == REL64:
                values -= section.places(chosen)
            section.write(chosen, WIDTHS[kind], values)
        return np.zeros(len(chosen), np.bool_)

    def _branch(self, section: Section, chosen: Indices, values: Words) -> Mask:
        symbols = section.column("st_shndx", chosen)
        external = (symbols == SHN_UNDEF) | (symbols == SHN_LIVEPATCH)
        local = section.column("st_other", chosen) >> 5 & 7
        values[~external] += (((1 << local) >> 2) << 2)[~external].astype(np.uint64)
        refused = np.zeros(len(chosen), np.bool_)
        if external.any():
            values[external], refused[external] = self._stubs(section, chosen[external], values[external])
        values -= section.places(chosen)
        words = section.read(chosen, 4)
        section.write(chosen, 4, words & np.uint64(0xFFFFFFFF & ~LI_MASK) | values & np.uint64(LI_MASK))
        far: Mask = (values + np.uint64(0x2000000) > np.uint64(0x3FFFFFF)) | (values & np.uint64(3) != 0)
        return refused | far

    def _stubs(self, section: Section, chosen: Indices, values: Words) -> tuple[Words, Mask]:
        """The stubs for addresses outside the module, and which calls cannot be made to work with one."""
        distinct, first, which = np.unique(values, return_index=True, return_inverse=True)
        stubs = np.zeros(len(distinct), np.uint64)
        for number in np.argsort(first).tolist():
            stubs[number] = stub_for_addr(section, int(distinct[number]))
        addresses = stubs[which]
        for index in chosen[addresses == 0].tolist():
            self._problems[index] = (Errno.ENOENT, "")
        refused = self._restore_r2(section, chosen[addresses != 0])
        return addresses, (addresses == 0) | np.isin(chosen, refused)

    def _restore_r2(self, section: Section, chosen: Indices) -> Indices:
        """Let the instruction behind each call restore register 2; the calls behind which there is another one."""
        names = {symbol: section.info.symbol_name(symbol) for symbol in np.unique(section.indices[chosen]).tolist()}
        tracers = [symbol for symbol, name in names.items() if name in TRACERS]
        calls = section.read(chosen, 4) & np.uint64(0x3F << 26 | 3)
        room = len(section.data) - section.start - 8
        chosen = chosen[
            np.isin(calls, LINK_BRANCH)
            & ~np.isin(section.indices[chosen], tracers)
            & (section.offsets[chosen].astype(np.int64) <= room)
        ]
        following = section.read(chosen, 4, 4)
        free = following == NOP
        section.write(chosen[free], 4, np.full(int(free.sum()), LD_TOC, np.uint64), 4)
        if section.target.image.has_text(SKIPS_RESTORED):
            free |= following == LD_TOC
        for index, word in zip(chosen[~free].tolist(), following[~free].tolist(), strict=True):
            place = int(section.places(np.array([index]))[0]) + 4
            line = f"{PREFIX}{section.mod.name}: Expected nop after call, got {word:08x} at 0x{place:x}"
            self._problems[index] = (Errno.ENOEXEC, line)
        refused: Indices = chosen[~free]
        return refused

    def refusal(self, section: Section, index: int) -> LoadError:
        mod, kind, chosen = section.mod, int(section.kinds[index]), np.array([index])
        name = f"{PREFIX}{mod.name}"
        if kind not in WIDTHS:
            return unknown_relocation(section, index, f"{name}: Unknown ADD relocation: {kind}")
        if index in self._problems:
            errno, line = self._problems[index]
            if line:
                section.target.printk(3, line)
            why = "a call to the kernel leaves no place for restoring register 2" if line else "there is no stub left"
            return refuse(mod.name, errno, "call-without-restore" if line else "no-veneer-left", why, HINT)
        value = int(section.values(chosen)[0])
        if kind in TOC_NAMES:
            value = value - _r2(section) & (1 << 64) - 1
            section.target.printk(3, f"{name}: bad {TOC_NAMES[kind]} relocation (0x{value:x})")
        else:
            value = self._distance(section, chosen, value)
            section.target.printk(3, f"{name}: REL{24 if kind == REL24 else 32} {value} out of range!")
        return overflow(section, f"the value {value:#x} does not fit into a relocation of type {kind}")

    def _distance(self, section: Section, chosen: Indices, value: int) -> int:
        if int(section.kinds[chosen[0]]) == REL24:
            if int(section.column("st_shndx", chosen)[0]) in (SHN_UNDEF, SHN_LIVEPATCH):
                value = stub_for_addr(section, value)
            else:
                value += 1 << (int(section.column("st_other", chosen)[0]) >> 5 & 7) >> 2 << 2
        distance = value - int(section.places(chosen)[0]) & (1 << 64) - 1
        return distance - (1 << 64) if distance >> 63 else distance


HINT = "Build the module with the kernel's own build system, for exactly this kernel."
SKIPS_RESTORED = b"Invalid module architecture in ELF header"
"""A text of kernels that accept a call whose restore is there already (6.2: de3d098dd1fc)."""
TOC_NAMES = {TOC16: "TOC16", TOC16_DS: "TOC16_DS", TOC16_LO_DS: "TOC16_LO_DS"}


def _r2(section: Section) -> int:
    stubs = section.mod.arch
    assert isinstance(stubs, Stubs)
    return my_r2(section.info, stubs)


def _half(section: Section, kind: int, chosen: Indices, values: Words) -> Mask:
    """Sixteen bits of a value, or the fourteen of an instruction whose operand is a multiple of 4."""
    refused = np.zeros(len(chosen), np.bool_)
    if kind in (TOC16, TOC16_DS):
        refused |= values + np.uint64(0x8000) > np.uint64(0xFFFF)
    multiple = kind in (TOC16_DS, TOC16_LO_DS)
    if multiple:
        refused |= values & np.uint64(3) != 0
    if kind in (TOC16_HA, REL16_HA):
        values = values + np.uint64(0x8000) >> np.uint64(16)
    mask = 0xFFFC if multiple else 0xFFFF
    words = section.read(chosen, 2) & np.uint64(0xFFFF & ~mask)
    section.write(chosen, 2, words | values & np.uint64(mask))
    return refused


def _entry(section: Section, chosen: Indices) -> None:
    """Functions that load their table of contents from memory may compute it instead, if it is near."""
    values = np.uint64(_r2(section)) - section.places(chosen)
    first, second = section.read(chosen, 4), section.read(chosen, 4, 4)
    # ld r2,...(r12); add r2,r2,r12
    near = values + np.uint64(0x80008000) <= np.uint64(0xFFFFFFFF)
    near &= (first & np.uint64(0xFFFFFFFF & ~0xFFFC) == 0xE84C0000) & (second == 0x7C426214)
    chosen, values = chosen[near], values[near]
    # addis r2,r12,value@ha; addi r2,r2,value@l
    high = values + np.uint64(0x8000) >> np.uint64(16) & np.uint64(0xFFFF)
    section.write(chosen, 4, np.uint64(0x3C4C0000) | high)
    section.write(chosen, 4, np.uint64(0x38420000) | values & np.uint64(0xFFFF), 4)


def stub_for_addr(section: Section, address: int) -> int:
    """The address of the stub through which the module reaches an address; 0 if there is no room for another."""
    stubs, info = section.mod.arch, section.info
    assert isinstance(stubs, Stubs)
    number = stubs.used.get(address)
    start = int(info.sechdrs["sh_addr"][stubs.section])
    if number is None:
        number = len(stubs.used)
        if (number + 1) * STUB_SIZE > int(info.sechdrs["sh_size"][stubs.section]):
            return 0
        stubs.used[address] = number
        # The stub of a tracer has other code, which only the running kernel can tell.
        content = _stub(start + number * STUB_SIZE - _r2(section), address)
        region, offset = info.placement[stubs.section]
        at = offset + number * STUB_SIZE
        region.data[at : at + STUB_SIZE] = content
    return start + number * STUB_SIZE


def _stub(distance: int, address: int) -> bytes:
    """The code: addis r11,r2; addi r11,r11; std r2,24(r1); ld r12,32(r11); mtctr r12; bctr, and the address."""
    words = (
        0x3D620000 | (distance + 0x8000 >> 16 & 0xFFFF), 0x396B0000 | distance & 0xFFFF, 0xF8410018, 0xE98B0020,
        0x7D8903A6, 0x4E800420, 0, STUB_MAGIC,
    )  # fmt: skip
    return b"".join(word.to_bytes(4, "little") for word in words) + address.to_bytes(8, "little")
