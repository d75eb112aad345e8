"""Physical memory of the emulated machine: one mapping, private to this process.

A machine that starts from a snapshot maps the snapshot's file copy-on-write, so starting costs no
copying, and the operating system knows which pages were written since (:meth:`Ram.dirty_pages`).
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NewType

import numpy as np
import numpy.typing as npt

from kodojo.errors import MachineError, StoreError

__all__ = ["PAGE_SIZE", "PhysicalAddress", "Ram"]

PAGE_SIZE = 4096
PhysicalAddress = NewType("PhysicalAddress", int)

_U64 = struct.Struct("<Q")
_PAGEMAP_FILE_OR_SHARED = np.uint64(1 << 61)
_PAGEMAP_PRESENT_OR_SWAPPED = np.uint64(3 << 62)


class Ram:
    """RAM from physical address ``base`` on.

    :param size: bytes, a multiple of the page size.
    :param file: a file of ``size`` bytes whose content the RAM starts with (mapped copy-on-write,
        never written); all zero without it.
    """

    def __init__(self, size: int, file: Path | None = None, base: int = 0) -> None:
        self.size = size
        self.base = base
        self.file = file
        if size <= 0 or size % PAGE_SIZE:
            raise MachineError(f"memory of {size} bytes is not a whole number of pages")
        try:
            if file is None:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
                self._map = mmap.mmap(-1, size, flags=flags)
            else:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    if os.fstat(descriptor).st_size < size:
                        raise StoreError(f"{file}: shorter than the machine's memory of {size} bytes")
                    self._map = mmap.mmap(
                        descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                    )
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise MachineError(f"cannot map {size >> 20} MiB of guest memory: {error}") from error
        self._view = memoryview(self._map)
        self.pages: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8).reshape(-1, PAGE_SIZE)
        self.address = int(self.pages.ctypes.data)

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at a physical address. Raises MachineError outside the RAM."""
        start = address - self.base
        if start < 0 or start + size > self.size:
            raise MachineError(f"physical address {address:#x} is outside the machine's memory")
        return bytes(self._view[start : start + size])

    def table_entry(self, address: int) -> int:
        """The 64-bit little-endian word at a physical address, a multiple of 8; 0, nothing, outside the RAM."""
        where = address - self.base
        if not 0 <= where < self.size:
            return 0
        value: int = _U64.unpack_from(self._map, where)[0]
        return value

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write at a physical address; the CPU's translated code is not told (see ``Cpu.write``)."""
        start = address - self.base
        if start < 0 or start + len(data) > self.size:
            raise MachineError(f"physical address {address:#x} is outside the machine's memory")
        self._view[start : start + len(data)] = data

    def dirty_pages(self) -> npt.NDArray[np.int64]:
        """Indices of the pages that may differ from what the RAM started with, ascending.

        Raises MachineError if that cannot be mapped once more.
        """
        marked = self._pages_written()
        if self.file is None:
            candidates = np.arange(self.size // PAGE_SIZE) if marked is None else marked
            return candidates[self.pages[candidates].any(axis=1)]
        try:
            original = np.memmap(self.file, dtype=np.uint8, mode="r", shape=(self.size,)).reshape(-1, PAGE_SIZE)
        except OSError as error:
            raise MachineError(f"cannot map {self.size >> 20} MiB of guest memory: {error}") from error
        if marked is None:
            chunks = [
                start
                + np.flatnonzero((self.pages[start : start + 4096] != original[start : start + 4096]).any(axis=1))
                for start in range(0, len(self.pages), 4096)
            ]
            return np.concatenate(chunks)
        changed: npt.NDArray[np.int64] = marked[(self.pages[marked] != original[marked]).any(axis=1)]
        return changed

    def _pages_written(self) -> npt.NDArray[np.int64] | None:
        """Pages that this process has its own copy of; None where the system can't tell (no /proc)."""
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                pagemap.seek(self.address // mmap.PAGESIZE * 8)
                raw = pagemap.read(self.size // mmap.PAGESIZE * 8)
        except OSError:
            return None
        entries = np.frombuffer(raw, dtype=np.uint64)
        if mmap.PAGESIZE != PAGE_SIZE or len(entries) != len(self.pages):
            return None
        present = (entries & _PAGEMAP_PRESENT_OR_SWAPPED) != 0
        return np.flatnonzero(present & ((entries & _PAGEMAP_FILE_OR_SHARED) == 0))
