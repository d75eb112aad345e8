"""``struct kernel_symbol``, an entry of the export tables of a module; and where the kernel's own symbols are."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from kodojo.errors import DamageError, MissingInformationError, decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.module_memory import find_place, read_bytes, read_string
from kodojo.loader.target import Symbol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kodojo.image.elf import Format
    from kodojo.image.image import Image
    from kodojo.loader.target import Module

__all__ = ["ExportTable", "KernelSymbols", "kernel_symbols", "known_address"]


class KernelSymbols(NamedTuple):
    """The entries as a kernel has them: value, name, namespace.

    :param relative: each is the distance from itself in 32 bits (``CONFIG_HAVE_ARCH_PREL32_RELOCATIONS``), else an
        address.
    """

    format: Format
    relative: bool

    @property
    def size(self) -> int:
        """Of an entry in bytes."""
        return 3 * self._width

    @property
    def _width(self) -> int:
        return 4 if self.relative else self.format.word

    def names(self, mod: Module, start: int, count: int) -> Iterator[bytes]:
        """The names of the ``count`` symbols in a table. :param start: its address."""
        return (read_string(mod, name) for _, name, _ in self._entries(mod, start, count))

    def table(self, mod: Module, start: int, crcs: Sequence[int | None], *, gpl: bool) -> ExportTable:
        """A table as modules find it that come later. :param crcs: one for each symbol."""
        entries = zip(self._entries(mod, start, len(crcs)), crcs, strict=True)
        return ExportTable(
            Symbol(decode(read_string(mod, name)), value, crc, gpl, self._namespace(mod, namespace), mod)
            for (value, name, namespace), crc in entries
        )

    def _namespace(self, mod: Module, address: int | None) -> str | None:
        """A namespace, which may be empty; None where there is none, or nothing of the module.

        A kernel does not look before somebody uses the symbol, so that does no harm by itself.
        """
        if address is not None:
            with suppress(DamageError):
                return decode(read_string(mod, address))
        return None

    def _entries(self, mod: Module, start: int, count: int) -> Iterator[tuple[int, int, int | None]]:
        """What the members of each entry point to; None for a namespace that it does not have."""
        size, width, mask = self.size, self._width, self.format.mask
        members = struct.Struct(self.format.order + ("3i" if self.relative else "3I" if width == 4 else "3Q"))
        whole = find_place(mod, start, size * count)
        for at in range(start, start + size * count, size):
            if whole is None:  # and so one of them has no place: perhaps not the first
                value, name, namespace = members.unpack(read_bytes(mod, at, size))
            else:
                value, name, namespace = members.unpack_from(whole.region.data, whole.offset + at - start)
            base = at if self.relative else 0
            step = width if self.relative else 0
            yield (
                (base + value) & mask,
                (base + step + name) & mask,
                (base + 2 * step + namespace) & mask if namespace else None,
            )


class ExportTable:
    """The symbols that a module exports, in the order of one of its two tables."""

    def __init__(self, symbols: Iterable[Symbol] = ()) -> None:
        self._symbols = list(symbols)
        names = [symbol.name for symbol in self._symbols]
        ordered = all(name < other for name, other in pairwise(names))
        self._by_name = dict(zip(names, self._symbols, strict=True)) if ordered else None

    def find(self, name: str) -> Symbol | None:
        """What a kernel finds: in a table that is not sorted it misses some (``lib/bsearch.c``)."""
        if self._by_name is not None:
            return self._by_name.get(name)
        base, count = 0, len(self._symbols)
        while count:
            pivot = base + count // 2
            found = self._symbols[pivot].name
            if found == name:
                return self._symbols[pivot]
            if name > found:
                base = pivot + 1
                count -= 1
            count //= 2
        return None


def known_address(image: Image, name: str) -> int | None:
    """Where a symbol of the kernel is: one that it exports is known even where kallsyms lists functions only."""
    address = image.kallsyms.get(name)
    if address is None:
        export = image.exports.get(name)
        address = None if export is None else export.address
    return address


@lru_cache(maxsize=16)
def kernel_symbols(image: Image) -> KernelSymbols:
    """The entries of a kernel's modules; addresses where nothing says otherwise."""
    architecture = architecture_named(image.architecture)
    relative = architecture.prel32
    if not relative:
        with suppress(MissingInformationError):
            relative = image.config.enabled("HAVE_ARCH_PREL32_RELOCATIONS")
    return KernelSymbols(architecture.format, relative)
