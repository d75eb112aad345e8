"""What architectures do differently: relocations, and sections that are made larger before the layout.

Each has a file, named as its directory in the kernel or, where that holds several, as ``uname -m`` says.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from kodojo.errors import Detail, decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.livepatch import klp_apply_section_relocs
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = [
    "apply_relocations",
    "module_finalize",
    "module_frob_arch_sections",
    "module_init_sections",
    "store_mod_arch",
]

SHT_RELA = 4
SHT_REL = 9
SHF_ALLOC = 2
SHF_RELA_LIVEPATCH = 0x00100000


class FrobArchSections(Protocol):
    """``module_frob_arch_sections`` of an architecture: make sections larger by what relocations may need.

    ``module_finalize`` has the same form.
    """

    def __call__(self, target: Target, mod: Module, info: LoadInfo) -> None: ...


class StoreModArch(Protocol):
    """What an architecture has found out about a module, for the kernel's own functions: ``mod->arch``."""

    def __call__(self, target: Target, mod: Module) -> None: ...


class ApplyRelocate(Protocol):
    """``apply_relocate_add`` or ``apply_relocate``: patch one section; how many entries there are."""

    def __call__(self, target: Target, mod: Module, info: LoadInfo, relsec: int) -> int: ...


class ApplyTogether(Protocol):
    """Patch several sections at once; how many entries they have. None, and nothing is done, if they are unusual."""

    def __call__(self, info: LoadInfo, relsecs: Sequence[int]) -> int | None: ...


class ModuleC(NamedTuple):
    """``arch/*/kernel/module.c``: what the file of an architecture has.

    :param init_sections: how the names of sections begin that go away after init (``module_init_section``).
    :param exit_sections: likewise those that nobody needs where modules cannot be removed.
    :param apply_together: None where sections are always patched one by one.
    """

    init_sections: tuple[bytes, ...]
    exit_sections: tuple[bytes, ...]
    module_frob_arch_sections: FrobArchSections
    apply_relocate: ApplyRelocate
    store_mod_arch: StoreModArch | None
    module_finalize: FrobArchSections | None
    apply_together: ApplyTogether | None


FILES = {
    "x86_64": "x86_64", "aarch64": "arm64", "i686": "i386", "armv7l": "arm", "riscv64": "riscv64",
    "ppc64le": "ppc64le", "s390x": "s390x",
}  # fmt: skip


@lru_cache(maxsize=16)
def module_c(architecture: str) -> ModuleC:
    """The file of an architecture, imported when it is needed: nobody needs them all."""
    known = architecture_named(architecture)
    file = import_module(f"{__name__}.{FILES[known.name]}")
    return ModuleC(
        file.INIT_SECTIONS,
        file.EXIT_SECTIONS,
        file.module_frob_arch_sections,
        file.apply_relocate_add if known.rela else file.apply_relocate,
        getattr(file, "store_mod_arch", None),  # for architectures whose kernels are booted
        getattr(file, "module_finalize", None),
        getattr(file, "apply_together", None),
    )


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """What an architecture adds to the sections: nothing on x86, room for PLTs on others."""
    module_c(target.image.architecture).module_frob_arch_sections(target, mod, info)


def store_mod_arch(target: Target, mod: Module) -> None:
    """Fill in ``mod->arch`` when all relocations have been applied."""
    store = module_c(target.image.architecture).store_mod_arch
    if store is not None and target.runs_code:
        store(target, mod)


def module_finalize(target: Target, mod: Module, info: LoadInfo) -> None:
    """What the architecture's function of the name may refuse, before the kernel's own does its work."""
    check = module_c(target.image.architecture).module_finalize
    if check is not None:
        check(target, mod, info)


def module_init_sections(target: Target) -> tuple[bytes, ...]:
    """How the names of sections begin that go to the memory for init.

    Source: ``kernel/module/main.c: module_init_layout_section``.
    """
    file = module_c(target.image.architecture)
    unload = target.image.config.enabled("MODULE_UNLOAD")
    return file.init_sections if unload else (*file.init_sections, *file.exit_sections)


def apply_relocations(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Apply every relocation section whose target section is loaded; facts: how many that were.

    Stops at the first error. Source: ``kernel/module/main.c: apply_relocations``.
    """
    rela = architecture_named(target.image.architecture).rela
    accepted, other = (SHT_RELA, SHT_REL) if rela else (SHT_REL, SHT_RELA)
    file = module_c(target.image.architecture)
    _take_over_struct_module(target, mod, info)
    indices = _relocation_sections(info.sechdrs)
    ordinary = _ordinary(info, indices, accepted, other)
    together = file.apply_together(info, ordinary) if file.apply_together and ordinary else None
    if together is not None:
        return {"sections": len(ordinary), "entries": together}
    sections = entries = 0
    for index in indices:
        section = info.sechdrs[index]
        if int(section["sh_flags"]) & SHF_RELA_LIVEPATCH:
            entries += klp_apply_section_relocs(target, mod, info, index, file.apply_relocate)
            sections += 1
        elif section["sh_type"] == other:
            target.printk(3, f"module {mod.name}: {'REL' if rela else 'RELA'} relocation unsupported")
            raise refuse(
                mod.name,
                Errno.ENOEXEC,
                "rel-relocations",
                f"section {decode(info.section_name(index))} has relocations with"
                + ("out addends (SHT_REL)" if rela else " addends (SHT_RELA)"),
                f"Build the module for this architecture: its ABI uses {'SHT_RELA' if rela else 'SHT_REL'}.",
                Detail(decode(info.section_name(index)), "", {"section": index, "type": int(section["sh_type"])}),
            )
        elif section["sh_type"] == accepted:
            entries += file.apply_relocate(target, mod, info, index)
            sections += 1
    return {"sections": sections, "entries": entries}


def _ordinary(info: LoadInfo, indices: Sequence[int], accepted: int, other: int) -> list[int]:
    """The sections with relocations of the accepted type; none of them if there are others besides."""
    kinds, flags = info.sechdrs["sh_type"].tolist(), info.sechdrs["sh_flags"].tolist()
    if any(kinds[index] == other or flags[index] & SHF_RELA_LIVEPATCH for index in indices):
        return []
    return [index for index in indices if kinds[index] == accepted]


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
