"""Applying relocations: what is the same on every architecture, and the table of architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from kodojo.errors import UnmodelledError, decode
from kodojo.loader.livepatch import klp_apply_section_relocs
from kodojo.loader.refusal import refuse
from kodojo.loader.relocate import x86_64
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = ["apply_relocations"]

SHT_RELA = 4
SHT_REL = 9
SHF_ALLOC = 2
SHF_RELA_LIVEPATCH = 0x00100000


class ApplyRelocateAdd(Protocol):
    """``apply_relocate_add`` of an architecture: the section's entries, and the section to patch."""

    def __call__(self, target: Target, mod: Module, info: LoadInfo, relsec: int) -> int: ...


ARCHITECTURES: dict[str, ApplyRelocateAdd] = {"x86_64": x86_64.apply_relocate_add}


def apply_relocations(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Apply every relocation section whose target section is loaded; facts: how many that were.

    Stops at the first error. Source: ``kernel/module/main.c: apply_relocations``.
    """
    apply_relocate_add = ARCHITECTURES.get(target.image.architecture)
    if apply_relocate_add is None:
        raise UnmodelledError(f"relocations of {target.image.architecture} are not modelled yet")
    _take_over_struct_module(target, mod, info)
    sections = entries = 0
    for index in _relocation_sections(info.sechdrs):
        section = info.sechdrs[index]
        if int(section["sh_flags"]) & SHF_RELA_LIVEPATCH:
            entries += klp_apply_section_relocs(target, mod, info, index, apply_relocate_add)
            sections += 1
        elif section["sh_type"] == SHT_REL:
            target.printk(3, f"module {mod.name}: REL relocation unsupported")
            raise refuse(
                mod.name,
                Errno.ENOEXEC,
                "rel-relocations",
                f"section {decode(info.section_name(index))} has relocations without addends (SHT_REL)",
                "Build the module for this architecture: its ABI uses SHT_RELA.",
            )
        elif section["sh_type"] == SHT_RELA:
            entries += apply_relocate_add(target, mod, info, index)
            sections += 1
    return {"sections": sections, "entries": entries}


def _take_over_struct_module(target: Target, mod: Module, info: LoadInfo) -> None:
    """The kernel has filled in much of struct module by now, and relocations find it so."""
    if info.index.mod not in info.placement:
        return
    live = target.struct_module(mod)
    region, offset = info.placement[info.index.mod]
    region.data[offset : offset + len(live)] = live


def _relocation_sections(sechdrs: NDArray[np.void]) -> list[int]:
    """The sections that apply to a section that is loaded (``sh_info`` is trusted, as the kernel does)."""
    number = len(sechdrs)
    info = sechdrs["sh_info"].astype(np.int64)
    valid = info < number
    loaded = (sechdrs["sh_flags"][np.where(valid, info, 0)] & np.uint64(SHF_ALLOC)) != 0
    indices = np.flatnonzero(valid & loaded)
    return [int(index) for index in indices if index]
