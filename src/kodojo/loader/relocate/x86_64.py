"""Relocations of x86-64 (``arch/x86/kernel/module.c``).

Nearly every module is well formed, so all of its sections are patched in a few array operations. Otherwise each
section is, up to its first entry that is not plain; from there on entries are taken one by one, with the kernel's
own order of tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kodojo.errors import LoadError
from kodojo.image.elf import RELA, SYM
from kodojo.loader.module_memory import ADDRESS_MASK, find_place
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Memory, Module, Region, Target

__all__ = ["EXIT_SECTIONS", "INIT_SECTIONS", "apply_relocate_add", "apply_together", "module_frob_arch_sections"]

INIT_SECTIONS = (b".init",)
EXIT_SECTIONS = (b".exit",)

R_X86_64_NONE = 0
R_X86_64_64 = 1
R_X86_64_PC32 = 2
R_X86_64_PLT32 = 4
R_X86_64_32 = 10
R_X86_64_32S = 11
R_X86_64_PC64 = 24

SIZES = {
    R_X86_64_NONE: 0,
    R_X86_64_64: 8,
    R_X86_64_PC32: 4,
    R_X86_64_PLT32: 4,
    R_X86_64_32: 4,
    R_X86_64_32S: 4,
    R_X86_64_PC64: 8,
}
"""Bytes that each known type writes."""

PC_RELATIVE = (R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_PC64)

ST_VALUE = 8  # offset of st_value in a symbol

UNKNOWN = 25  # one more than the largest known type stands for all unknown ones
SIZE_TABLE = np.array([SIZES.get(kind, -1) for kind in range(UNKNOWN + 1)], dtype=np.int64)
PC_TABLE = np.array([kind in PC_RELATIVE for kind in range(UNKNOWN + 1)])

SPLIT = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
"""``Elf64_Rela`` with the parts of ``r_info``."""

NOTHING = np.zeros(0, np.int64)

OVERFLOW_FIRST = b"Invalid relocation target, existing value is nonzero"
"""The message of kernels that test the range of a value before they look at its place."""


class Patch(NamedTuple):
    """One relocation section, about to be applied.

    :param entries: its ``Elf64_Rela`` records; ``symbols``: the ``Elf64_Sym`` records they refer to.
    :param data: the bytes of the region of the section to patch.
    :param offset: of that section there; ``size`` and ``address`` of it. Where several sections are patched
        together, that is the whole region, and ``size`` where the section of each entry ends.
    :param symtab: address of the symbol table, 0 if it has none.
    :param aliased: patching may change the entries or the symbols themselves.
    """

    entries: NDArray[np.void]
    symbols: NDArray[np.void]
    data: bytearray
    offset: int
    size: int | NDArray[np.int64]
    address: int
    symtab: int
    aliased: bool


def module_frob_arch_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """The architecture adds nothing to the sections."""


def apply_relocate_add(target: Target, mod: Module, info: LoadInfo, relsec: int) -> int:
    """Apply the relocation section with index ``relsec``; how many entries it has.

    Source: ``arch/x86/kernel/module.c: __apply_relocate_add`` (6.1), ``__write_relocate_add`` (6.12).
    """
    patch = _patch(mod, info, relsec)
    plain = _apply_plain(patch)
    if plain < len(patch.entries):
        _apply_one_by_one(target, mod, info, relsec, patch, plain)
    return len(patch.entries)


def apply_together(info: LoadInfo, relsecs: Sequence[int]) -> int | None:
    """Apply several relocation sections in one pass, if all of their entries are plain; how many those are.

    None, and nothing is done, if any is not.
    """
    patches = _by_region(info, relsecs)
    found = [] if patches is None else [(patch, *_plain_entries(patch)) for patch in patches]
    if patches is None or any(len(places) < len(patch.entries) for patch, places, _, _ in found):
        return None
    for patch, places, sizes, values in found:
        _write(patch.data, places, sizes, values)
    return sum(len(patch.entries) for patch in patches)


def _by_region(info: LoadInfo, relsecs: Sequence[int]) -> list[Patch] | None:
    """What the sections do to each region of the module; None if that may depend on their order."""
    starts, sizes, targets, addresses = (
        info.sechdrs[name].tolist() for name in ("sh_offset", "sh_size", "sh_info", "sh_addr")
    )
    regions: dict[Memory, Region] = {}
    parts: dict[Memory, list[tuple[memoryview, int, int]]] = {}
    for relsec in relsecs:
        index = targets[relsec]
        region, offset = info.placement.get(index, (None, 0))
        end = offset + sizes[index]
        length = sizes[relsec] // RELA.itemsize * RELA.itemsize
        if region is None or relsec in info.placement or starts[relsec] + sizes[relsec] > len(info.data):
            return None
        if end > len(region.data) or addresses[index] != region.base + offset:
            return None
        if _has_symbols(info, region, offset, end):
            return None
        regions[region.kind] = region
        content = memoryview(info.data)[starts[relsec] : starts[relsec] + length]
        parts.setdefault(region.kind, []).append((content, offset, end))
    patches = [_together(info, region, parts[kind]) for kind, region in regions.items()]
    return None if None in patches else [patch for patch in patches if patch is not None]


def _has_symbols(info: LoadInfo, region: Region, start: int, end: int) -> bool:
    """Whether patching a part of a region may change the symbols that relocations refer to."""
    place, offset = info.placement.get(info.index.sym, (None, 0))
    return region is place and start < offset + info.symbols.nbytes and offset < end


def _together(info: LoadInfo, region: Region, parts: Sequence[tuple[memoryview, int, int]]) -> Patch | None:
    """Sections of a region as if they were one; None if an entry is outside its own.

    :param parts: the entries of each section, and where the section begins and ends in the region.
    """
    entries = np.frombuffer(bytearray().join(content for content, _, _ in parts), RELA)
    places = np.array([(start, end) for _, start, end in parts], np.int64)
    starts, ends = np.repeat(places, [len(content) // RELA.itemsize for content, _, _ in parts], axis=0).T
    if (entries["r_offset"] > (ends - starts).view(np.uint64)).any():
        return None
    entries["r_offset"] += starts.view(np.uint64)
    return Patch(entries, info.symbols, region.data, 0, ends, region.base, 0, aliased=False)


def _patch(mod: Module, info: LoadInfo, relsec: int) -> Patch:
    section = info.sechdrs[relsec]
    index = int(section["sh_info"])
    place = info.placement.get(index)
    if place is None:
        raise would_damage(mod.name, f"relocations for section {index}, which has no place in memory")
    own = info.placement.get(relsec)
    content: memoryview | bytes
    if own is None:
        content = info.section_file_data(relsec)
    else:
        content = memoryview(own[0].data)[own[1] : own[1] + int(section["sh_size"])]
    count = len(content) // RELA.itemsize
    region, offset = place
    size = min(int(info.sechdrs[index]["sh_size"]), len(region.data) - offset)
    symtab = info.placement.get(info.index.sym)
    return Patch(
        entries=np.frombuffer(content, dtype=RELA, count=count),
        symbols=info.symbols,
        data=region.data,
        offset=offset,
        size=size,
        address=int(info.sechdrs[index]["sh_addr"]),
        symtab=symtab[0].base + symtab[1] if symtab else 0,
        aliased=own is not None or _has_symbols(info, region, offset, offset + size),
    )


# -- many at once -------------------------------------------------------------------------------------


def _apply_plain(patch: Patch) -> int:
    """Apply the entries before the first that is not plain, and say how many those were."""
    places, sizes, values = _plain_entries(patch)
    _write(patch.data, places, sizes, values)
    return len(places)


def _plain_entries(patch: Patch) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """The entries before the first that is not plain: where they write, how many bytes, and which value.

    Plain: known type, existing symbol, a place of its own inside the section that holds zeros, and a value
    that fits.
    """
    if patch.aliased or not len(patch.symbols) or len(patch.data) < 8:
        return NOTHING, NOTHING, NOTHING.view(np.uint64)
    parts = patch.entries.view(SPLIT)
    kinds = np.minimum(parts["type"], UNKNOWN)
    indices = parts["symbol"]
    sizes = SIZE_TABLE[kinds]
    offsets = parts["offset"]
    room = np.maximum(patch.size - sizes, -1)
    inside = (offsets.astype(np.int64) <= room) & (offsets < np.uint64(1 << 63))
    good = (sizes >= 0) & (inside | (sizes == 0)) & (indices < len(patch.symbols))
    plain = _first_false(good)
    plain = _before_overlap(offsets[:plain].astype(np.int64), sizes[:plain])

    places = offsets[:plain].astype(np.int64) + patch.offset
    kinds, sizes = kinds[:plain], sizes[:plain]
    values = _values(patch, indices[:plain], kinds, offsets[:plain])
    plain = _first_false(_zero_at(patch.data, places, sizes) & _fits(kinds, values))
    return places[:plain], sizes[:plain], values[:plain]


def _first_false(mask: NDArray[np.bool_]) -> int:
    """The index of the first False, or the length."""
    return len(mask) if mask.all() else int(np.argmin(mask))


def _before_overlap(offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> int:
    """How many entries from the first one on certainly touch no byte twice."""
    (writing,) = np.nonzero(sizes)
    starts = offsets[writing]
    ends = starts + sizes[writing]
    if (starts[1:] >= ends[:-1]).all():
        return len(offsets)
    # Sizes go into the low bits: sorting values is much faster than sorting an order.
    spans = np.sort(starts << 4 | sizes[writing])
    if ((spans[1:] >> 4) >= (spans[:-1] >> 4) + (spans[:-1] & 15)).all():
        return len(offsets)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    after = starts[1:] < np.maximum.accumulate(ends)[:-1]  # overlaps one that starts before it
    before = starts[1:] < ends[:-1]
    # A pair takes two of those: all before the second are safe.
    involved = np.union1d(writing[order[1:][after]], writing[order[:-1][before]])
    return int(involved[1])


def _values(
    patch: Patch, indices: NDArray[np.uint32], kinds: NDArray[np.uint32], offsets: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """S + A, minus P for the types that are relative to the place, modulo 2 ** 64."""
    addends = patch.entries["r_addend"][: len(indices)].astype(np.int64).view(np.uint64)
    values: NDArray[np.uint64] = patch.symbols["st_value"][indices] + addends
    relative = PC_TABLE[kinds]
    values[relative] -= offsets[relative] + np.uint64(patch.address)
    return values


def _window(data: bytearray, dtype: str) -> NDArray[np.uint64]:
    """The words that start at every byte of ``data``: the place for an index that need not be aligned."""
    size = np.dtype(dtype).itemsize
    return np.ndarray((len(data) - size + 1,), dtype, data, 0, (1,))


def _zero_at(data: bytearray, places: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    zero = np.ones(len(places), dtype=np.bool_)
    for size, dtype in ((4, "<u4"), (8, "<u8")):
        (chosen,) = np.nonzero(sizes == size)
        zero[chosen] = _window(data, dtype)[places[chosen]] == 0
    return zero


def _fits(kinds: NDArray[np.uint32], values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    signed = values.view(np.int64)
    too_large = (kinds == R_X86_64_32) & (values >> np.uint64(32) != 0)
    too_far = (kinds == R_X86_64_32S) & (signed != signed.astype(np.int32))
    fits: NDArray[np.bool_] = ~(too_large | too_far)
    return fits


def _write(data: bytearray, places: NDArray[np.int64], sizes: NDArray[np.int64], values: NDArray[np.uint64]) -> None:
    for size, dtype in ((4, "<u4"), (8, "<u8")):
        (chosen,) = np.nonzero(sizes == size)
        _window(data, dtype)[places[chosen]] = values[chosen].astype(dtype)


# -- one by one, as the kernel does it ----------------------------------------------------------------


def _apply_one_by_one(target: Target, mod: Module, info: LoadInfo, relsec: int, patch: Patch, start: int) -> None:
    overflow_first = target.image.has_text(OVERFLOW_FIRST)
    for index in range(start, len(patch.entries)):
        r_offset, r_info, r_addend = patch.entries[index].item()
        try:
            _apply_one(target, mod, patch, (r_offset, r_info, r_addend), overflow_first=overflow_first)
        except LoadError as error:
            from kodojo.loader.relocate.section import about_entry  # noqa: PLC0415  most have none

            about_entry(error, info, relsec, index)
            raise


def _apply_one(
    target: Target, mod: Module, patch: Patch, entry: tuple[int, int, int], *, overflow_first: bool
) -> None:
    r_offset, r_info, r_addend = entry
    symbol, kind = r_info >> 32, r_info & 0xFFFFFFFF
    symbol_value = _symbol_value(mod, patch, symbol)  # the kernel reads it before it looks at the type
    if kind == R_X86_64_NONE:
        return
    if kind not in SIZES:
        target.printk(3, f"module: {mod.name}: Unknown rela relocation: {kind}")
        raise refuse(
            mod.name,
            Errno.ENOEXEC,
            "unknown-relocation",
            f"it contains a relocation of type {kind}, which kernels of this architecture do not know",
            "Build it with the kernel's own flags (no TLS, no GOT, no PIC).",
        )
    size = SIZES[kind]
    loc = (patch.address + r_offset) & ADDRESS_MASK
    # The kernel does not look where it writes: any place inside the module's memory will do.
    place = find_place(mod, loc, size)
    if place is None:
        raise would_damage(mod.name, f"a relocation at offset {r_offset:#x} is outside the module's memory")
    absolute = (symbol_value + r_addend) & ADDRESS_MASK
    value = (absolute - loc) & ADDRESS_MASK if kind in PC_RELATIVE else absolute
    before = place.region.data[place.offset : place.offset + size]
    fits = _fits_one(kind, value)
    if overflow_first and not fits:
        raise _overflow(target, mod, kind, value)
    if any(before):
        raise _nonzero(target, mod, kind, loc, value if overflow_first else absolute, patch)
    place.region.data[place.offset : place.offset + size] = value.to_bytes(8, "little")[:size]
    if not fits:
        raise _overflow(target, mod, kind, value)


def _symbol_value(mod: Module, patch: Patch, symbol: int) -> int:
    """``st_value`` of a symbol; of what looks like one to the kernel, anywhere in the module's memory."""
    if symbol < len(patch.symbols):
        return int(patch.symbols["st_value"][symbol])
    address = patch.symtab + symbol * SYM.itemsize + ST_VALUE
    place = find_place(mod, address & ADDRESS_MASK, 8) if patch.symtab else None
    if place is None:
        raise would_damage(mod.name, f"a relocation names symbol {symbol} of {len(patch.symbols)}")
    return int.from_bytes(place.region.data[place.offset : place.offset + 8], "little")


def _fits_one(kind: int, value: int) -> bool:
    if kind == R_X86_64_32:
        return value < 1 << 32
    if kind == R_X86_64_32S:
        return value < 1 << 31 or value >= (1 << 64) - (1 << 31)
    return True


def _overflow(target: Target, mod: Module, kind: int, value: int) -> LoadError:
    target.printk(3, f"module: overflow in relocation type {kind} val {value:x}")
    target.printk(3, f"module: `{mod.name}' likely not compiled with -mcmodel=kernel")
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "relocation-overflow",
        f"the value {value:#x} does not fit into a relocation of type {kind}",
        "Compile with -mcmodel=kernel, as the kernel's own build does.",
    )


def _nonzero(target: Target, mod: Module, kind: int, loc: int, value: int, patch: Patch) -> LoadError:
    verb = "Invalid" if target.image.has_text(OVERFLOW_FIRST) else "Skipping invalid"
    target.printk(
        3,
        f"module: x86/modules: {verb} relocation target, existing value is nonzero"
        f" for type {kind}, loc {target.hashed_pointer(loc)}, val {value:x}",
    )
    where = loc - patch.address
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "relocation-target-nonzero",
        f"the place of a relocation (offset {where:#x} of its section) is not zero:"
        " the file was relocated before, or two relocations share the place",
        "Take the module as the build left it; do not link or patch it afterwards.",
    )
