"""The symbols that a kernel exports to modules, with CRC, licence and namespace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import ImageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from kodojo.image.elf import ElfFile
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["Export", "Exports", "Symver", "parse_symvers"]

_ENTRY = 12  # struct kernel_symbol with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Export:
    """One ``struct kernel_symbol`` and its CRC.

    :param crc: None if the kernel has no CRCs (``CONFIG_MODVERSIONS``).
    :param namespace: None for the common namespace, which needs no import.
    """

    name: str
    address: int
    crc: int | None
    gpl: bool
    namespace: str | None


@dataclass(frozen=True, slots=True)
class Symver:
    """A line of ``Module.symvers``; ``module`` is a path without ``.ko``, or ``vmlinux``."""

    name: str
    crc: int
    module: str
    gpl: bool
    namespace: str | None


class _Table:
    """One ``__ksymtab``: decoded entry by entry, since a lookup needs about 14 of them."""

    def __init__(self, elf: ElfFile, table: tuple[int, int], crcs: tuple[int, int] | None, gpl: bool) -> None:
        self._elf = elf
        self._gpl = gpl
        self.address, size = table
        self.count = size // _ENTRY
        if size % _ENTRY or (crcs is not None and crcs[1] != 4 * self.count):
            raise ImageError(
                f"{elf.name}: its export table at {self.address:#x} has a format that kodojo does not know"
            )
        self._offsets = self._array(self.address, 3 * self.count, "<i4")
        self._crcs = None if crcs is None else self._array(crcs[0], self.count, "<u4")

    def _array(self, address: int, count: int, dtype: str) -> npt.NDArray[np.int32]:
        start = self._elf.offset_of(address) if count else 0
        if start is None or start + 4 * count > len(self._elf.data):
            raise ImageError(f"{self._elf.name}: its export table at {address:#x} is not in the file")
        return np.frombuffer(self._elf.data, dtype, count, start)

    def name(self, index: int) -> bytes:
        return self._elf.string(self._field(index, 1))

    def export(self, index: int) -> Export:
        namespace = b""
        if self._offsets[3 * index + 2]:  # exports from assembly have no pointer, others may have an empty string
            namespace = self._elf.string(self._field(index, 2))
        return Export(
            self.name(index).decode("utf-8", "surrogateescape"),
            self._field(index, 0),
            None if self._crcs is None else int(self._crcs[index]) & 0xFFFFFFFF,
            self._gpl,
            namespace.decode("utf-8", "surrogateescape") or None,
        )

    def _field(self, index: int, field: int) -> int:
        """The value of a field is relative to the field itself."""
        return (self.address + _ENTRY * index + 4 * field + int(self._offsets[3 * index + field])) & _MASK

    def find(self, name: bytes) -> int | None:
        """Binary search by ``strcmp`` order, as ``kernel/module/main.c: find_exported_symbol_in_section``."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            found = self.name(middle)
            if found == name:
                return middle
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None


class Exports:
    """The kernel's two export tables.

    :param elf: the vmlinux; its tables are found by section name, or by ``__start___ksymtab`` and the like in
        ``kallsyms`` if section headers have been stripped.
    :raises ImageError: the tables are damaged or of an unknown format.
    """

    def __init__(self, elf: ElfFile, kallsyms: Kallsyms | None = None) -> None:
        self._tables = []
        for suffix, gpl in (("", False), ("_gpl", True)):
            table = _locate(elf, kallsyms, "__ksymtab" + suffix)
            if table is not None and table[1]:
                crcs = _locate(elf, kallsyms, "__kcrctab" + suffix)
                self._tables.append(_Table(elf, table, crcs if crcs and crcs[1] else None, gpl))
        self._known: dict[tuple[str, bool], Export | None] = {}

    def __repr__(self) -> str:
        return f"<Exports, {len(self)} symbols>"

    def __len__(self) -> int:
        return sum(table.count for table in self._tables)

    def __iter__(self) -> Iterator[Export]:
        for table in self._tables:
            yield from (table.export(index) for index in range(table.count))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str, gplok: bool = True) -> Export | None:
        """Return an export as ``kernel/module/main.c: find_symbol`` finds it; None if there is none.

        The plain table is searched first, then that of the GPL-only symbols, unless ``gplok`` is false.
        """
        try:
            return self._known[name, gplok]
        except KeyError:
            found = self._known[name, gplok] = self._find(name.encode("utf-8", "surrogateescape"), gplok)
            return found

    def get(self, name: str) -> Export | None:
        """Return an export of either table, None if there is none."""
        return self.find(name)

    def _find(self, name: bytes, gplok: bool) -> Export | None:
        for table in self._tables:
            if (gplok or not table._gpl) and (index := table.find(name)) is not None:
                return table.export(index)
        return None


def _locate(elf: ElfFile, kallsyms: Kallsyms | None, name: str) -> tuple[int, int] | None:
    """Return address and size of a table."""
    section = elf.sections.get(name)
    if section is not None:
        return section.address, section.size
    if kallsyms is None:
        return None
    start, stop = kallsyms.get(f"__start_{name}"), kallsyms.get(f"__stop_{name}")
    return (start, stop - start) if start is not None and stop is not None and stop >= start else None


def parse_symvers(text: str, name: str = "Module.symvers") -> dict[str, Symver]:
    """Parse a ``Module.symvers`` as ``scripts/mod/modpost.c: read_dump`` does; the first of two lines wins.

    :param name: what messages call the text.
    :raises ImageError: a line has another form.
    """
    found: dict[str, Symver] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line:
            continue
        fields = line.split("\t")
        try:
            crc = int(fields[0], 16)
            symbol, module, kind = fields[1:4]
        except ValueError:
            raise ImageError(f"{name}:{number}: not a line of a Module.symvers: {line[:80]!r}") from None
        namespace = fields[4] if len(fields) > 4 else ""
        found.setdefault(symbol, Symver(symbol, crc, module, kind.endswith("_GPL"), namespace or None))
    return found
