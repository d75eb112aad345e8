"""Kernel memory that is written down in a test: bytes at addresses, types with members where one wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from kodojo.errors import MissingInformationError, UnmappedError
from kodojo.image.btf import Field
from kodojo.kernel.memory import KernelMemory


class FlatMemory:
    """Stands where a processor stands: one piece of memory, all else is not mapped.

    :param base: address of its first byte.
    """

    def __init__(self, size: int, base: int = 0xFFFF888000000000) -> None:
        self.base = base
        self.content = bytearray(size)
        self.ram = SimpleNamespace(size=size)

    def _start(self, address: int, size: int) -> int:
        start = address - self.base
        if start < 0 or start + size > len(self.content):
            raise UnmappedError(f"virtual address {address:#x} is not mapped")
        return start

    def read(self, address: int, size: int) -> bytes:
        start = self._start(address, size)
        return bytes(self.content[start : start + size])

    def write(self, address: int, data: bytes) -> None:
        start = self._start(address, len(data))
        self.content[start : start + len(data)] = data


@dataclass(frozen=True)
class PaperStruct:
    """A type: its size, and its members by path."""

    size: int
    fields: Mapping[str, Field]

    def field(self, path: str) -> Field:
        if path not in self.fields:
            raise MissingInformationError(f"no member {path}")
        return self.fields[path]


class PaperTypes(dict):
    """Name -> type."""

    def struct(self, name: str) -> PaperStruct:
        return self[name]


def words(size: int, **offsets: int) -> PaperStruct:
    """A type of 64-bit members; a double underscore in a name stands for a dot."""
    return PaperStruct(size, {name.replace("__", "."): Field(offset, 8) for name, offset in offsets.items()})


def kernel_memory(size: int, **types: PaperStruct) -> KernelMemory:
    return KernelMemory(FlatMemory(size), PaperTypes(types))
