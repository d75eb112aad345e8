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

_ENTRY = 12  # struct kernel_symbol with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS
_MASK = (1 << 64) - 1


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
    count = size // _ENTRY
    if size % _ENTRY or (crcs is not None and crcs[1] != 4 * count):
        raise ImageError(f"{elf.name}: its export table at {address:#x} has a format that kodojo does not know")
    offsets = _array(elf, address, 3 * count, "<i4").astype(np.int64).reshape(count, 3)
    # The value of a field is relative to the field itself.
    places = address + np.arange(0, size, _ENTRY, dtype=np.uint64)[:, np.newaxis] + np.array([0, 4, 8], np.uint64)
    fields = (places + offsets.astype(np.uint64)).tolist()
    sums = [None] * count if crcs is None else _array(elf, crcs[0], count, "<u4").tolist()
    for (value, name, namespace), (_, _, has_namespace), crc in zip(fields, offsets.tolist(), sums, strict=True):
        # Exports from assembly have no pointer to a namespace, others may point to an empty string.
        space = decode(elf.string(namespace)) if has_namespace else ""
        yield Export(decode(elf.string(name)), value, crc, gpl, space or None)


def _array(elf: ElfFile, address: int, count: int, dtype: str) -> npt.NDArray[np.int32]:
    start = elf.offset_of(address) if count else 0
    if start is None or start + 4 * count > len(elf.data):
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
