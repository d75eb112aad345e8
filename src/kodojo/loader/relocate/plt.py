"""Room for what a module's branches go through when their targets are far away, and for its table of addresses.

The linker leaves empty sections in the file; before the layout they get the size that may be needed at most.
What is in them by the time of the relocations is kept in ``mod.arch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import Detail
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from kodojo.errors import LoadError
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = [
    "Slots",
    "code_relocations",
    "last_named",
    "missing_section",
    "module_init_layout_section",
    "reserve",
    "within_module_init",
]

SHF_ALLOC = 2
SHF_EXECINSTR = 4
SHT_SYMTAB = 2
SHT_NOBITS = 8


@dataclass(slots=True)
class Slots:
    """A section of veneers or addresses that is filled while relocations are applied.

    :param index: of the section. :param most: how many there is room for.
    :param used: value -> number of the slot that stands for it, in order.
    """

    index: int
    most: int
    used: dict[int, int] = field(default_factory=dict)

    def address(self, info: LoadInfo, number: int, size: int) -> int:
        """Where a slot is in the kernel."""
        return int(info.sechdrs["sh_addr"][self.index]) + number * size

    def write(self, info: LoadInfo, number: int, content: bytes) -> None:
        """Fill a slot; all of a section's slots have the size of what is written."""
        region, offset = info.placement[self.index]
        start = offset + number * len(content)
        region.data[start : start + len(content)] = content


def last_named(info: LoadInfo, names: Sequence[bytes]) -> dict[bytes, int]:
    """The last section of each name, as loops of the kernel's find it that go on to the end."""
    return {name: index for index, name in enumerate(info.section_names()) if name in names and name is not None}


def missing_section(target: Target, mod: Module, text: str, section: str) -> LoadError:
    """Print the line, if there is one, for a module that its build did not prepare for this architecture."""
    if text:
        target.printk(3, text)
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "no-plt-section",
        f"it has no section {section}, which the kernel's linker script for modules makes",
        "Link it with the kernel's build system (scripts/module.lds).",
        Detail(section),
    )


def reserve(info: LoadInfo, index: int, size: int, align: int, *, code: bool) -> None:
    """Give an empty section the size that it may need."""
    info.sechdrs["sh_type"][index] = SHT_NOBITS
    info.sechdrs["sh_flags"][index] = SHF_ALLOC | SHF_EXECINSTR * code
    info.sechdrs["sh_addralign"][index] = align
    info.sechdrs["sh_size"][index] = size


def code_relocations(info: LoadInfo, kind: int) -> Iterator[tuple[int, int]]:
    """Sections with relocations (of type ``kind``) for code: index, and that of the section that they patch.

    ``sh_info`` is trusted, as the kernel does; DamageError where it leads out of the table.
    """
    for index in np.flatnonzero(info.sechdrs["sh_type"] == kind).tolist():
        patched = int(info.sechdrs["sh_info"][index])
        if patched >= len(info.sechdrs):
            raise info.damage(f"section {index} has relocations for section {patched}, which there is not")
        if int(info.sechdrs["sh_flags"][patched]) & SHF_EXECINSTR:
            yield index, patched


def module_init_layout_section(target: Target, name: bytes, init: Sequence[bytes], exits: Sequence[bytes]) -> bool:
    """Does a section go away after init? (``kernel/module/main.c: module_init_layout_section``).

    :param init: how the names of sections for init begin on this architecture. :param exits: those for exit.
    """
    gone = (*init,) if target.image.config.enabled("MODULE_UNLOAD") else (*init, *exits)
    return name.startswith(gone)


def within_module_init(mod: Module, address: int) -> bool:
    """Is an address in memory that is freed after init? (``include/linux/module.h: within_module_init``)."""
    return any(region.kind.is_init and 0 <= address - region.base < region.size for region in mod.regions.values())


def symbols_in(info: LoadInfo, indices: NDArray[np.int64], patched: int) -> NDArray[np.bool_]:
    """Which of these symbols are defined in a section; DamageError for numbers of no symbol."""
    if len(indices) and int(indices.max()) >= len(info.symbols):
        raise info.damage(f"a relocation names symbol {int(indices.max())} of {len(info.symbols)}")
    inside: NDArray[np.bool_] = info.symbols["st_shndx"][indices] == patched
    return inside
