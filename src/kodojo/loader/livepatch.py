"""Relocations of livepatches: symbols are named by object and position, exported or not.

Source of all: ``kernel/livepatch/core.c``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import UnmodelledError, decode
from kodojo.image.elf import RELA
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Callable

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = ["klp_apply_section_relocs", "klp_find_object_symbol", "klp_resolve_symbols"]

SHN_LIVEPATCH = 0xFF20
VMLINUX = b"vmlinux"
# What sscanf() is given: MODULE_NAME_LEN is 56, KSYM_NAME_LEN is 512.
SECTION = re.compile(rb"\.klp\.rela\.([^.]{1,55})", re.DOTALL)
SYMBOL = re.compile(rb"\.klp\.sym\.([^.]{1,55})\.([^,]{1,511}),[ \t\n\v\f\r]*([0-9]+)", re.DOTALL)
UNSIGNED_LONG = (1 << 64) - 1
TOOLS = "Build the livepatch with the tools of the kernel that it is for."


def klp_apply_section_relocs(
    target: Target,
    mod: Module,
    info: LoadInfo,
    index: int,
    apply_relocate_add: Callable[[Target, Module, LoadInfo, int], int],
) -> int:
    """Apply a section for the kernel itself; those for a module wait until that is patched. How many entries."""
    if not target.image.config.enabled("LIVEPATCH"):
        return 0
    name = info.section_name(index)
    match = SECTION.match(name)
    if match is None:
        raise _refused(
            target,
            mod,
            f"section {decode(name)} has an incorrectly formatted name",
            "livepatch-section-name",
            f"livepatch relocation section {decode(name)} is not named .klp.rela.OBJECT.SECTION",
        )
    if match[1] != VMLINUX:
        return 0
    klp_resolve_symbols(target, mod, info, index)
    return apply_relocate_add(target, mod, info, index)


def klp_resolve_symbols(target: Target, mod: Module, info: LoadInfo, index: int) -> None:
    """Give the symbols of a section for the kernel their addresses, in the order of the entries."""
    for number in _symbols_of(info, index):
        if number >= len(info.symbols):
            raise would_damage(mod.name, f"a relocation names symbol {number} of {len(info.symbols)}")
        name = info.symbol_name(number)
        if int(info.symbols["st_shndx"][number]) != SHN_LIVEPATCH:
            raise _refused(
                target,
                mod,
                f"symbol {decode(name)} is not marked as a livepatch symbol",
                "livepatch-symbol",
                f"a livepatch relocation refers to {decode(name)}, which is an ordinary symbol",
            )
        match = SYMBOL.match(name)
        if match is None:
            raise _refused(
                target,
                mod,
                f"symbol {decode(name)} has an incorrectly formatted name",
                "livepatch-symbol",
                f"livepatch symbol {decode(name)} is not named .klp.sym.OBJECT.NAME,POSITION",
            )
        if match[1] != VMLINUX:
            raise UnmodelledError(f"{mod.name}: {decode(name)}: symbols of other modules are not modelled yet")
        position = int(match[3]) & UNSIGNED_LONG
        info.symbols["st_value"][number] = klp_find_object_symbol(target, mod, decode(match[2]), position)


def _symbols_of(info: LoadInfo, index: int) -> list[int]:
    """The symbols that a section's entries name, as they are in memory."""
    size = int(info.sechdrs["sh_size"][index])
    place = info.placement.get(index)
    content: memoryview | bytearray = info.section_file_data(index)
    if place is not None:
        region, offset = place
        content = region.data[offset : offset + size]
    entries = np.frombuffer(content, RELA, len(content) // RELA.itemsize)
    return [int(number) for number in entries["r_info"] >> np.uint64(32)]


def klp_find_object_symbol(target: Target, mod: Module, name: str, position: int) -> int:
    """The address of a symbol of the kernel, the ``position``-th of its name; with 0 it must be the only one."""
    if "symbols" not in target.image.describes:
        target.image.cannot_check("symbols of livepatches: the kernel's own table of symbols is not described")
        return 0
    addresses = target.image.kallsyms.get_all(name)
    if not addresses:
        text = f"symbol '{name}' not found in symbol table"
        why = f"the kernel has no symbol {name}"
    elif position == 0 and len(addresses) > 1:
        text = f"unresolvable ambiguity for symbol '{name}' in object '(null)'"
        why = f"the kernel has {len(addresses)} symbols named {name}, and the livepatch does not say which it means"
    elif position > len(addresses):
        text = f"symbol position {position} for symbol '{name}' in object 'vmlinux' not found"
        why = f"the kernel has only {len(addresses)} symbols named {name}"
    else:
        return addresses[max(position, 1) - 1]
    raise _refused(target, mod, text, "livepatch-symbol", why)


def _refused(target: Target, mod: Module, text: str, slug: str, why: str) -> LoadError:
    target.printk(3, f"livepatch: {text}")
    return refuse(mod.name, Errno.EINVAL, slug, why, TOOLS)
