"""The symbols that a kernel exports to modules, with CRC, licence and namespace, as tables that are mapped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kodojo.errors import ImageError, decode, encode

if TYPE_CHECKING:
    import numpy.typing as npt

    from kodojo.image.elf import ElfFile
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["VMLINUX", "Export", "Exports"]

VMLINUX = "vmlinux"
"""The owner of what the kernel itself exports."""

_GPL, _HAS_CRC = 1, 2
_FEW_SEARCHES = 200  # they take less time than to read all names
_ARRAYS: dict[str, np.dtype[Any]] = {
    "names": np.dtype("u1"),  # each with its NUL
    "starts": np.dtype("<u4"),  # of the names, and the end of the last one
    "addresses": np.dtype("<u8"),
    "crcs": np.dtype("<u4"),
    "flags": np.dtype("u1"),
    "namespaces": np.dtype("<u4"),  # numbers of texts
    "owners": np.dtype("<u4"),  # numbers of texts
    "texts": np.dtype("u1"),  # each with its NUL; the first one is empty
}


class Export(NamedTuple):
    """One ``struct kernel_symbol`` and its CRC.

    :param crc: None if it has none (``CONFIG_MODVERSIONS``).
    :param namespace: None for the common namespace, which needs no import.
    :param owner: who exports it: ``vmlinux``, or the path of a module in the tree without ``.ko``.
    """

    name: str
    address: int
    crc: int | None
    gpl: bool
    namespace: str | None
    owner: str = VMLINUX


class Exports:
    """Two export tables, the plain one and that of GPL-only symbols, each sorted by name.

    :param arrays: what :meth:`index_arrays` returned.
    :raises ImageError: the arrays do not fit together.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, dtype in _ARRAYS.items():
            if name not in arrays or arrays[name].dtype != dtype:
                raise _damaged(name)
        self._arrays = {name: arrays[name] for name in _ARRAYS}
        self._names = memoryview(arrays["names"].data)
        self._starts = memoryview(arrays["starts"].data)  # a search takes numbers one by one: numpy is slow at that
        self._texts = bytes(arrays["texts"]).split(b"\0")[:-1]
        count = len(arrays["addresses"])
        if any(len(arrays[name]) != count for name in ("crcs", "flags", "namespaces", "owners")):
            raise _damaged("arrays of different lengths")
        if len(self._starts) != count + 1 or self._starts[-1] != len(self._names):
            raise _damaged("positions outside the names")
        if count and max(arrays["namespaces"].max(), arrays["owners"].max()) >= len(self._texts):
            raise _damaged("numbers of texts that there are not")
        self._plain = count - int(np.count_nonzero(arrays["flags"] & _GPL))
        self._known: dict[tuple[str, bool], Export | None] = {}
        self._searches = 0

    @classmethod
    def decode(cls, elf: ElfFile, kallsyms: Kallsyms | None = None) -> Exports:
        """Decode the tables of a kernel.

        :param elf: the vmlinux; its tables are found by section name, or by ``__start___ksymtab`` and the like in
            ``kallsyms`` if section headers have been stripped.
        :raises ImageError: the tables are damaged or of an unknown format.
        """
        from kodojo.image.export_tables import decode_exports  # noqa: PLC0415  (once for each kernel)

        return cls.of(decode_exports(elf, kallsyms))

    @classmethod
    def of(cls, exports: Iterable[Export]) -> Exports:
        """Make the tables from their entries, in whatever order."""
        entries = sorted((export.gpl, encode(export.name), export) for export in exports)
        texts = {"": 0}
        names = [name + b"\0" for _, name, _ in entries]
        rows = [
            (
                export.address,
                export.crc or 0,
                _GPL * export.gpl | _HAS_CRC * (export.crc is not None),
                texts.setdefault(export.namespace or "", len(texts)),
                texts.setdefault(export.owner, len(texts)),
            )
            for _, _, export in entries
        ]
        columns: list[tuple[int, ...]] = list(zip(*rows, strict=True)) or [()] * 5
        arrays: dict[str, npt.NDArray[Any]] = {
            "names": np.frombuffer(b"".join(names), np.uint8),
            "starts": np.cumsum([0, *map(len, names)]).astype("<u4"),
            "texts": np.frombuffer(b"".join(encode(text) + b"\0" for text in texts), np.uint8),
        }
        for name, column in zip(("addresses", "crcs", "flags", "namespaces", "owners"), columns, strict=True):
            arrays[name] = np.array(column, _ARRAYS[name])
        return cls(arrays)

    def index_arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """Return the tables as arrays, to be saved and given back to :class:`Exports`."""
        return self._arrays

    def __repr__(self) -> str:
        return f"<Exports, {len(self)} symbols>"

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[Export]:
        return map(self._export, range(len(self)))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str, gplok: bool = True) -> Export | None:
        """Return an export as ``kernel/module/main.c: find_symbol`` finds it; None if there is none.

        The plain table is searched first, then that of the GPL-only symbols, unless ``gplok`` is false.
        """
        try:
            return self._known[name, gplok]
        except KeyError:
            found = self._known[name, gplok] = self._find(encode(name), gplok)
            return found

    def get(self, name: str) -> Export | None:
        """Return an export of either table, None if there is none."""
        return self.find(name)

    def owners(self) -> frozenset[str]:
        """Who exports something: ``vmlinux``, paths of modules."""
        return frozenset(decode(self._texts[number]) for number in np.unique(self._arrays["owners"]))

    def of_owner(self, owner: str) -> list[Export]:
        """What one owner exports, the plain table first, each sorted by name."""
        try:
            number = self._texts.index(encode(owner))
        except ValueError:
            return []
        return [self._export(int(index)) for index in np.flatnonzero(self._arrays["owners"] == number)]

    def has_crcs(self) -> bool:
        """Whether any export has a CRC."""
        return bool((self._arrays["flags"] & _HAS_CRC).any())

    @cached_property
    def _positions(self) -> tuple[dict[bytes, int], dict[bytes, int]]:
        """Where the names of the two tables are; the first of several with one name counts."""
        names = bytes(self._names).split(b"\0")[:-1]
        if len(names) != len(self):
            raise _damaged("names with NULs")
        numbered = list(zip(names, range(len(names)), strict=True))
        return dict(reversed(numbered[: self._plain])), dict(reversed(numbered[self._plain :]))

    def _find(self, name: bytes, gplok: bool) -> Export | None:
        self._searches += 1
        if self._searches > _FEW_SEARCHES:
            for positions in self._positions if gplok else self._positions[:1]:
                if name in positions:
                    return self._export(positions[name])
            return None
        tables = [(0, self._plain), (self._plain, len(self))]
        for low, high in tables if gplok else tables[:1]:
            index = bisect_left(range(len(self)), name, low, high, key=self._name)
            if index < high and self._name(index) == name:
                return self._export(index)
        return None

    def _name(self, index: int) -> bytes:
        return bytes(self._names[self._starts[index] : self._starts[index + 1] - 1])

    def _export(self, index: int) -> Export:
        arrays = self._arrays
        flags = int(arrays["flags"][index])
        return Export(
            decode(self._name(index)),
            int(arrays["addresses"][index]),
            int(arrays["crcs"][index]) if flags & _HAS_CRC else None,
            bool(flags & _GPL),
            decode(self._texts[arrays["namespaces"][index]]) or None,
            decode(self._texts[arrays["owners"][index]]),
        )


def _damaged(what: str) -> ImageError:
    return ImageError(f"the index of the kernel's exports is damaged: {what}")
