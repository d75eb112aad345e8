"""One relocation section at work: what the architectures that know many types have in common.

The entries of a type are handled together, in array operations. Where several entries write to one place,
they are so in turn: first the first of each place, then the second, and so on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import Detail, LoadError, decode
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from kodojo.image.elf import Format
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

    Words = NDArray[np.uint64]
    Mask = NDArray[np.bool_]
    Indices = NDArray[np.int64]

__all__ = [
    "SHT_REL",
    "SHT_RELA",
    "Rules",
    "Section",
    "about_entry",
    "apply_section",
    "fits_signed",
    "overflow",
    "read_entries",
    "signed",
    "unknown_relocation",
]

SHT_RELA = 4
SHT_REL = 9
STT_SECTION = 3


class Rules(ABC):
    """What an architecture knows about its relocations.

    :param widths: type -> bytes that it reads and writes; the kernel knows no other types.
    """

    def __init__(self, widths: Mapping[int, int]) -> None:
        self.widths = widths

    def accepts(self, section: Section) -> Mask:
        """Which entries pass what the kernel tests before it looks at the type."""
        return np.ones(len(section.kinds), np.bool_)

    @abstractmethod
    def relocate(self, section: Section, kind: int, chosen: Indices) -> Mask:
        """Apply the entries with these numbers, all of this type; which of them the kernel refuses."""

    @abstractmethod
    def refusal(self, section: Section, index: int) -> LoadError:
        """Print the kernel's line for an entry that it refuses, and say why."""


@dataclass(eq=False)
class Section:
    """A relocation section that is about to be applied.

    :param relsec: its index. :param target_index: of the section that is patched.
    :param kinds: the types of its entries; ``indices``: their symbols; ``offsets`` and ``addends`` (0 where
        the section has none).
    :param data: the bytes of the region of the section to patch; ``start``: where that begins there.
    :param address: of that section in the kernel.
    """

    target: Target
    mod: Module
    info: LoadInfo
    relsec: int
    target_index: int
    kinds: Indices
    indices: Indices
    offsets: Words
    addends: Words
    data: bytearray
    start: int
    address: int

    @property
    def format(self) -> Format:
        return self.info.format

    @property
    def mask(self) -> np.uint64:
        """The bits that an address has."""
        return np.uint64(self.format.mask)

    def column(self, name: str, chosen: Indices) -> NDArray[np.int64]:
        """A member of the entries' symbols."""
        column: NDArray[np.int64] = self.info.symbols[name][self.indices[chosen]].astype(np.int64)
        return column

    def symbols(self, chosen: Indices) -> Words:
        """``st_value`` of the entries' symbols: S."""
        values: Words = self.info.symbols["st_value"][self.indices[chosen]].astype(np.uint64)
        return values

    def values(self, chosen: Indices) -> Words:
        """S + A, as wide as an address."""
        return (self.symbols(chosen) + self.addends[chosen]) & self.mask

    def places(self, chosen: Indices) -> Words:
        """The addresses that are patched: P."""
        return (self.offsets[chosen] + np.uint64(self.address)) & self.mask

    def symbol_name(self, index: int) -> bytes:
        """The name of an entry's symbol."""
        return self.info.symbol_name(int(self.indices[index]))

    def read(self, chosen: Indices, width: int, shift: int = 0) -> Words:
        """The unsigned integers of ``width`` bytes at the entries' places, ``shift`` bytes further."""
        words: Words = self._window(width)[self._at(chosen) + shift].astype(np.uint64)
        return words

    def write(self, chosen: Indices, width: int, words: Words, shift: int = 0) -> None:
        """Write integers there; what does not fit into their width is cut off."""
        window = self._window(width)
        window[self._at(chosen) + shift] = words.astype(window.dtype)

    def _at(self, chosen: Indices) -> Indices:
        places: Indices = self.offsets[chosen].astype(np.int64) + self.start
        return places

    def _window(self, width: int) -> NDArray[np.unsignedinteger]:
        """The words that start at every byte: the place for an index that need not be aligned."""
        count = max(len(self.data) - width + 1, 0)
        return np.ndarray((count,), f"{self.format.order}u{width}", self.data, 0, (1,))


def apply_section(target: Target, mod: Module, info: LoadInfo, relsec: int, rules: Rules) -> int:
    """Apply the relocation section with index ``relsec``; how many entries it has.

    The kernel stops at the first entry that it refuses, which is the one that is reported. What had been
    patched behind it by then makes no difference, but in struct module: the module is gone.
    """
    section = open_section(target, mod, info, relsec)
    own = _struct_module(section)
    kept = bytes(section.data[own])
    count = len(section.kinds)
    sizes = _sizes(section.kinds, rules.widths)
    accepted = rules.accepts(section)
    usable = accepted & _usable(section, sizes)
    worst = count if usable.all() else int(np.argmin(usable))
    for kind, chosen in _batches(section, sizes, worst):
        refused = rules.relocate(section, kind, chosen)
        if refused.any():
            worst = min(worst, int(chosen[refused].min()))
    if worst < count:
        section.data[own] = kept
        _apply_within(section, rules, np.where(usable, sizes, 0)[: worst + 1], own)
        try:
            if accepted[worst]:
                _check_damage(section, int(sizes[worst]), worst)
            raise rules.refusal(section, worst)
        except LoadError as error:
            about_entry(error, info, relsec, worst)
            raise
    return count


def open_section(target: Target, mod: Module, info: LoadInfo, relsec: int) -> Section:
    """Look at a relocation section; DamageError if it applies to what has no place in memory."""
    header = info.sechdrs[relsec]
    index = int(header["sh_info"])
    place = info.placement.get(index)
    if place is None:
        raise would_damage(mod.name, f"relocations for section {index}, which has no place in memory")
    entries = read_entries(info, relsec)
    bits = np.uint64(8 if info.format.bits == 32 else 32)
    r_info = entries["r_info"].astype(np.uint64)
    names = entries.dtype.names or ()
    addends = entries["r_addend"].astype(np.int64).view(np.uint64) if "r_addend" in names else None
    return Section(
        target,
        mod,
        info,
        relsec,
        index,
        (r_info & np.uint64((1 << int(bits)) - 1)).astype(np.int64),
        (r_info >> bits).astype(np.int64),
        entries["r_offset"].astype(np.uint64),
        np.zeros(len(entries), np.uint64) if addends is None else addends,
        place[0].data,
        place[1],
        int(info.sechdrs["sh_addr"][index]),
    )


def read_entries(info: LoadInfo, relsec: int) -> NDArray[np.void]:
    """The entries of a relocation section, from its place in memory if it has one."""
    header = info.sechdrs[relsec]
    own = info.placement.get(relsec)
    content: memoryview
    if own is None:
        content = info.section_file_data(relsec)
    else:
        content = memoryview(own[0].data)[own[1] : own[1] + int(header["sh_size"])]
    kind = info.format.rela if int(header["sh_type"]) == SHT_RELA else info.format.rel
    return np.frombuffer(content, kind, len(content) // kind.itemsize)


def _sizes(kinds: Indices, widths: Mapping[int, int]) -> Indices:
    """Bytes that each entry patches; -1 for unknown types."""
    largest = max(widths) + 1
    table = np.full(largest + 1, -1, np.int64)
    for kind, width in widths.items():
        table[kind] = width
    sizes: Indices = table[np.minimum(kinds, largest)]
    return sizes


def _usable(section: Section, sizes: Indices) -> Mask:
    """Entries of a known type, with a symbol that exists, and a place in the memory of the patched section."""
    room = np.uint64(max(len(section.data) - section.start, 0))
    inside = (section.offsets <= room) & (section.offsets.astype(np.int64) + sizes <= int(room))
    usable: Mask = (sizes >= 0) & (section.indices < len(section.info.symbols)) & (inside | (sizes == 0))
    return usable


def _check_damage(section: Section, size: int, index: int) -> None:
    """DamageError where the kernel would read or write what is not the module's."""
    symbol, offset = int(section.indices[index]), int(section.offsets[index])
    if symbol >= len(section.info.symbols):
        raise would_damage(section.mod.name, f"a relocation names symbol {symbol} of {len(section.info.symbols)}")
    if size > 0 and offset + size > len(section.data) - section.start:
        raise would_damage(section.mod.name, f"a relocation at offset {offset:#x} is outside the module's memory")


def _struct_module(section: Section) -> slice:
    """Where struct module is in the region that is patched; empty if it is in another."""
    info = section.info
    region, at = info.placement.get(info.index.mod, (None, 0))
    if region is None or region.data is not section.data:
        return slice(0, 0)
    return slice(at, at + int(info.sechdrs["sh_size"][info.index.mod]))


def _apply_within(section: Section, rules: Rules, sizes: Indices, part: slice) -> None:
    """Apply, in order, those of the first entries that touch a part of the region."""
    starts = section.offsets[: len(sizes)].astype(np.int64) + section.start
    for index in np.flatnonzero((sizes > 0) & (starts < part.stop) & (starts + sizes > part.start)).tolist():
        rules.relocate(section, int(section.kinds[index]), np.array([index]))


def _batches(section: Section, sizes: Indices, count: int) -> Iterator[tuple[int, Indices]]:
    """The first ``count`` entries in groups of one type that touch no place twice."""
    offsets, kinds = section.offsets[:count].astype(np.int64), section.kinds[:count]
    writing = np.flatnonzero(sizes[:count] > 0)
    if not len(writing):
        return
    order = writing[np.argsort(offsets[writing], kind="stable")]
    starts, ends = offsets[order], offsets[order] + sizes[order]
    overlaps = starts[1:] < np.maximum.accumulate(ends)[:-1]
    if not overlaps.any():
        ranks = np.zeros(len(order), np.int64)
    elif (overlaps & (starts[1:] != starts[:-1])).any():
        yield from ((int(kinds[index]), np.array([index])) for index in writing.tolist())  # they interleave
        return
    else:
        first = np.flatnonzero(np.append(True, starts[1:] != starts[:-1]))
        ranks = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    for rank in range(int(ranks.max()) + 1):
        members = np.sort(order[ranks == rank])
        for kind in np.unique(kinds[members]).tolist():
            yield kind, members[kinds[members] == kind]


def about_entry(error: LoadError, info: LoadInfo, relsec: int, index: int) -> None:
    """Say in the details of a refusal which entry of a relocation section it is about.

    :param relsec: index of the section. :param index: of its entry.
    """
    entry = read_entries(info, relsec)[index]
    bits = 8 if info.format.bits == 32 else 32
    kind, symbol = int(entry["r_info"]) & (1 << bits) - 1, int(entry["r_info"]) >> bits
    if relsec in info.sorted_from:
        index = int(info.sorted_from[relsec][index])
    offset, at = int(entry["r_offset"]), int(info.sechdrs["sh_offset"][relsec]) + index * entry.dtype.itemsize
    section, patched = _section_name(info, relsec), _section_name(info, int(info.sechdrs["sh_info"][relsec]))
    name = _name_of_symbol(info, symbol)
    facts: dict[str, int | str] = {
        "section": section, "relocation": index, "file offset": at, "patched section": patched, "offset": offset,
        "type": kind, "symbol": name,
    }  # fmt: skip
    if "r_addend" in (entry.dtype.names or ()):
        facts["addend"] = int(entry["r_addend"])
    text = f"relocation {index} of {section}, of type {kind}, for {name} (at offset {at:#x} of the file)"
    detail = Detail(f"{patched}+{offset:#x}", text, facts)
    error.refusal = replace(error.refusal, details=(*error.refusal.details, detail))


def _section_name(info: LoadInfo, index: int) -> str:
    names = info.section_names()
    return decode(names[index] or b"") or f"section {index}" if index < len(names) else f"section {index}"


def _name_of_symbol(info: LoadInfo, index: int) -> str:
    """Its name; of a symbol that stands for a section, that of the section."""
    if index >= len(info.symbols):
        return f"symbol {index}"
    with suppress(LoadError):  # the name may be outside the file
        name = decode(info.symbol_name(index))
        if name:
            return name
    kind, section = int(info.symbols["st_info"][index]) & 15, int(info.symbols["st_shndx"][index])
    return _section_name(info, section) if kind == STT_SECTION else f"symbol {index}"


# -- for the rules ----------------------------------------------------------------------------------------


def signed(values: Words, bits: int = 64) -> Indices:
    """The same numbers as signed ones of ``bits`` bits."""
    shift = np.int64(64 - bits)
    return (values << np.uint64(shift)).view(np.int64) >> shift


def fits_signed(values: Words, bits: int) -> Mask:
    """Which 64-bit numbers are the same as signed ones of ``bits`` bits."""
    fits: Mask = signed(values, bits) == values.view(np.int64)
    return fits


def overflow(section: Section, why: str, errno: int = Errno.ENOEXEC) -> LoadError:
    """The refusal of a value that does not fit, whose line has been printed."""
    return refuse(
        section.mod.name,
        errno,
        "relocation-overflow",
        why,
        "Build the module with the kernel's own build system, for exactly this kernel.",
    )


def unknown_relocation(section: Section, index: int, line: str, errno: int = Errno.ENOEXEC) -> LoadError:
    """Print the kernel's line for a type that it does not know."""
    section.target.printk(3, line)
    return refuse(
        section.mod.name,
        errno,
        "unknown-relocation",
        f"it contains a relocation of type {int(section.kinds[index])},"
        " which kernels of this architecture do not know",
        "Build it with the kernel's own flags (no TLS, no GOT, no PIC).",
    )
