"""The kernel's own symbol table: from names to addresses and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kodojo.errors import ImageError, MissingInformationError

if TYPE_CHECKING:
    import numpy.typing as npt

    from kodojo.image.elf import ElfFile

__all__ = ["Kallsyms", "Located"]

_ARRAYS = {
    "names": np.dtype("u1"),
    "starts": np.dtype("<u4"),
    "types": np.dtype("u1"),
    "addresses": np.dtype("<u8"),
    "order": np.dtype("<u4"),
}


class Located(NamedTuple):
    """The symbol that an address belongs to: its name, address, and size in bytes (up to the next symbol)."""

    name: str
    start: int
    size: int


class Kallsyms:
    """The symbols of a kernel, in the order of its own table (by address).

    :param arrays: what :meth:`index_arrays` returned.
    :raises ImageError: the arrays do not fit together.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, dtype in _ARRAYS.items():
            if name not in arrays or arrays[name].dtype != dtype:
                raise ImageError(f"the index of the kernel's symbols is damaged: {name}")
        self._names = memoryview(arrays["names"].data)
        self._starts = arrays["starts"]
        self._types = arrays["types"]
        self._addresses: npt.NDArray[np.uint64] = arrays["addresses"]
        self._order = arrays["order"]
        count = len(self._addresses)
        if not count == len(self._order) == len(self._types) == len(self._starts) - 1:
            raise ImageError("the index of the kernel's symbols is damaged: arrays of different lengths")
        ascending = bool(np.all(self._starts[1:] > self._starts[:-1]))
        if not ascending or self._starts[-1] != len(self._names) or (count and self._order.max() >= count):
            raise ImageError("the index of the kernel's symbols is damaged: positions outside the names")
        self._known: dict[str, int | None] = {}

    @classmethod
    def decode(cls, elf: ElfFile) -> Kallsyms:
        """Decode the tables inside a kernel.

        :raises MissingInformationError: the kernel has none (``CONFIG_KALLSYMS``).
        :raises ImageError: they are damaged.
        """
        from kodojo.image.kallsyms_tables import decode_kallsyms  # noqa: PLC0415

        tables = decode_kallsyms(elf)
        names = tables.names.tobytes().split(b"\0")
        count = len(tables.addresses)
        order = np.array(sorted(range(count), key=names.__getitem__), dtype="<u4")  # stable: table order
        return cls(
            {
                "names": tables.names,
                "starts": tables.starts,
                "types": tables.types,
                "addresses": tables.addresses,
                "order": order,
            }
        )

    def __repr__(self) -> str:
        return f"<Kallsyms, {len(self)} symbols>"

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def index_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the table as arrays, to be saved and given back to :class:`Kallsyms`."""
        return {
            "names": np.frombuffer(self._names, np.uint8),
            "starts": self._starts,
            "types": self._types,
            "addresses": self._addresses,
            "order": self._order,
        }

    def add(self, variables: Mapping[str, int]) -> None:
        """Let the addresses of names be known that the table does not list."""
        for name, address in variables.items():
            if self.get(name) is None:
                self._known[name] = address

    def address(self, name: str) -> int:
        """Return the address of a symbol; the first in table order if there are several.

        :raises MissingInformationError: there is none of that name.
        """
        found = self.get(name)
        if found is None:
            raise MissingInformationError(f"the kernel has no symbol {name!r}")
        return found

    def get(self, name: str) -> int | None:
        """Return the address of a symbol as :meth:`address`, None if there is none."""
        try:
            return self._known[name]
        except KeyError:
            wanted = name.encode("utf-8", "surrogateescape")
            low = self._bisect(wanted)
            found = self._known[name] = self._at(low) if self._is(low, wanted) else None
            return found

    def get_all(self, name: str) -> tuple[int, ...]:
        """Return the addresses of all symbols of that name, in table order."""
        wanted = name.encode("utf-8", "surrogateescape")
        low = self._bisect(wanted)
        found = []
        while self._is(low, wanted):
            found.append(self._at(low))
            low += 1
        return tuple(found)

    def specialised(self, name: str) -> tuple[int, ...]:
        """Return the addresses of the functions of that name, and of those that a compiler has made of them.

        It calls them ``name.isra.0`` and the like. ``name.cold`` is none: it is a part of a function.
        """
        prefix = name.encode("utf-8", "surrogateescape") + b"."
        low = self._bisect(prefix)
        found = list(self.get_all(name))
        while low < len(self) and (found_name := self._name(int(self._order[low]))).startswith(prefix):
            if not found_name.endswith(b".cold"):
                found.append(self._at(low))
            low += 1
        return tuple(found)

    def type_of(self, name: str) -> str | None:
        """Return the letter that ``nm`` would show (``T``, ``t``, ``D``, ...), None for no such symbol."""
        wanted = name.encode("utf-8", "surrogateescape")
        low = self._bisect(wanted)
        return chr(int(self._types[self._order[low]])) if self._is(low, wanted) else None

    def symbol_at(self, address: int) -> Located | None:
        """Return the symbol that an address belongs to, None outside the kernel.

        As ``kernel/kallsyms.c: kallsyms_lookup``: the largest address that is not above, the first of several
        symbols there; the size reaches to the next symbol, and that of the last one to the end of the kernel.
        """
        start, end = self.get("_stext"), self.get("_end")
        if not 0 <= address < 1 << 64 or (start is not None and address < start):
            return None
        if end is not None and address >= end:
            return None
        value = np.uint64(address)
        above = int(np.searchsorted(self._addresses, value, "right"))
        if not above:
            return None
        where = self._addresses[above - 1]
        first = int(np.searchsorted(self._addresses, where, "left"))
        found = int(where)
        stop = int(self._addresses[above]) if above < len(self) else max(end or 0, found)
        return Located(self._name(first).decode("utf-8", "surrogateescape"), found, stop - found)

    def names_and_addresses(self) -> Iterator[tuple[str, int]]:
        """Iterate over all symbols in table order."""
        names = bytes(self._names).decode("utf-8", "surrogateescape").split("\0")
        return zip(names, self._addresses.tolist(), strict=False)

    def _name(self, index: int) -> bytes:
        return bytes(self._names[int(self._starts[index]) : int(self._starts[index + 1]) - 1])

    def _at(self, position: int) -> int:
        return int(self._addresses[self._order[position]])

    def _is(self, position: int, name: bytes) -> bool:
        return position < len(self) and self._name(int(self._order[position])) == name

    def _bisect(self, name: bytes) -> int:
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._name(int(self._order[middle])) < name:
                low = middle + 1
            else:
                high = middle
        return low
