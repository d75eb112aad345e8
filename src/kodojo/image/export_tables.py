"""The export tables inside a vmlinux: ``__ksymtab``, ``__ksymtab_gpl`` and their CRCs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import ImageError, decode
from kodojo.image.exports import Export

if TYPE_CHECKING:
    import numpy.typing as npt

    from kodojo.image.elf import ElfFile
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["decode_exports"]

_MEMBERS = 3  # of struct kernel_symbol: value, name, namespace


def decode_exports(elf: ElfFile, kallsyms: Kallsyms | None) -> Iterator[Export]:
    """Decode both tables (see :meth:`kodojo.image.exports.Exports.decode`).

    :raises ImageError: the tables are damaged or of an unknown format.
    """
    for suffix, gpl in (("", False), ("_gpl", True)):
        table = _locate(elf, kallsyms, "__ksymtab" + suffix)
        if table is not None and table[1]:
            crcs = _locate(elf, kallsyms, "__kcrctab" + suffix)
            yield from _decode_table(elf, table, crcs if crcs and crcs[1] else None, gpl=gpl)


def _decode_table(
    elf: ElfFile, table: tuple[int, int], crcs: tuple[int, int] | None, *, gpl: bool
) -> Iterator[Export]:
    address, size = table
    order = elf.format.order
    # Distances of 32 bits from the members themselves (CONFIG_HAVE_ARCH_PREL32_RELOCATIONS), or else addresses.
    width = 4 if crcs is None or crcs[1] * _MEMBERS == size else elf.format.word
    count = size // (_MEMBERS * width)
    if size != _MEMBERS * width * count or (crcs is not None and crcs[1] != 4 * count):
        raise ImageError(f"{elf.name}: its export table at {address:#x} has a format that kodojo does not know")
    members = _array(elf, address, _MEMBERS * count, f"{order}i{width}").astype(np.int64).reshape(count, _MEMBERS)
    fields = _pointers(elf, address, members, width).tolist()
    sums = [None] * count if crcs is None else _array(elf, crcs[0], count, f"{order}u4").tolist()
    for (value, name, namespace), (_, _, has_namespace), crc in zip(fields, members.tolist(), sums, strict=True):
        # Exports from assembly have no pointer to a namespace, others may point to an empty string.
        space = decode(elf.string(namespace)) if has_namespace else ""
        yield Export(decode(elf.string(name)), value, crc, gpl, space or None)


def _pointers(elf: ElfFile, address: int, members: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint64]:
    """What the members point to; of 32 bits on both sides, whether a first name is where it would be tells."""
    mask = np.uint64(elf.format.mask)
    values = members.astype(np.uint64) & mask
    if width < elf.format.word or not len(members) or elf.offset_of(int(values[0, 1])) is None:
        places = np.arange(members.size, dtype=np.uint64).reshape(members.shape) * np.uint64(width)
        values = values + places + np.uint64(address) & mask
    return values


def _array(elf: ElfFile, address: int, count: int, dtype: str) -> npt.NDArray[np.signedinteger]:
    start = elf.offset_of(address) if count else 0
    if start is None or start + np.dtype(dtype).itemsize * count > len(elf.data):
        raise ImageError(f"{elf.name}: its export table at {address:#x} is not in the file")
    return np.frombuffer(elf.data, dtype, count, start)


def _locate(elf: ElfFile, kallsyms: Kallsyms | None, name: str) -> tuple[int, int] | None:
    """Return address and size of a table."""
    section = elf.sections.get(name)
    if section is not None:
        return section.address, section.size
    if kallsyms is None:
        return None
    start, stop = kallsyms.get(f"__start_{name}"), kallsyms.get(f"__stop_{name}")
    return (start, stop - start) if start is not None and stop is not None and stop >= start else None
