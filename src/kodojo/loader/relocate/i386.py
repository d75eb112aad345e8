"""Relocations of 32-bit x86 (``arch/x86/kernel/module.c``): the addends are in the places themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kodojo.loader.relocate.section import Rules, Section, apply_section, unknown_relocation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate", "module_frob_arch_sections"]

INIT_SECTIONS = (b".init",)
EXIT_SECTIONS = (b".exit",)

R_386_32 = 1
R_386_PC32 = 2
R_386_PLT32 = 4

WIDTHS = {R_386_32: 4, R_386_PC32: 4, R_386_PLT32: 4}


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """The architecture adds nothing to the sections."""


def apply_relocate(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply a relocation section; how many entries it has."""
    return apply_section(target, mod, info, relsec, I386(WIDTHS))


class I386(Rules):
    """What 32-bit x86 knows; nothing can overflow."""

    def relocate(self, section: Section, kind: int, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        values = section.read(chosen, 4) + section.symbols(chosen)
        if kind != R_386_32:
            values -= section.places(chosen)
        section.write(chosen, 4, values)
        return np.zeros(len(chosen), np.bool_)

    def refusal(self, section: Section, index: int) -> LoadError:
        line = f"module: {section.mod.name}: Unknown relocation: {int(section.kinds[index])}"
        return unknown_relocation(section, index, line)
