"""The kernel's memory, by type: what drgn does for a running kernel, on the guest's address space."""

from __future__ import annotations

import struct

from kodojo.errors import MachineError
from kodojo.image.btf import Btf, Field
from kodojo.machine.cpu import Cpu

__all__ = ["KernelMemory", "StructView"]

_FORMATS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_SIGNED = {1: struct.Struct("<b"), 2: struct.Struct("<h"), 4: struct.Struct("<i"), 8: struct.Struct("<q")}
_STRING_PIECE = 256
_MASK = (1 << 64) - 1


class KernelMemory:
    """Reads and writes by guest virtual address. Unmapped addresses raise MachineError."""

    def __init__(self, cpu: Cpu, btf: Btf) -> None:
        self.cpu = cpu
        self.btf = btf
        self._fields: dict[tuple[str, str], Field] = {}
        self.read = cpu.read
        self.write = cpu.write

    def u8(self, address: int) -> int:
        return self.read(address, 1)[0]

    def u16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def put(self, address: int, size: int, value: int) -> None:
        """Store an integer of ``size`` bytes, wrapped to it."""
        self.write(address, (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"))

    def string(self, address: int, limit: int = 1 << 16) -> bytes:
        """A NUL-terminated string without its NUL, or ``limit`` bytes of it."""
        pieces: list[bytes] = []
        while limit > 0:
            size = min(limit, _STRING_PIECE - address % _STRING_PIECE)
            piece = self.read(address, size)
            end = piece.find(0)
            if end >= 0:
                pieces.append(piece[:end])
                break
            pieces.append(piece)
            address += size
            limit -= size
        return b"".join(pieces)

    def field(self, type_name: str, path: str) -> Field:
        """Where a member is. Raises MissingInformationError if the type or the member is not there."""
        key = (type_name, path)
        field = self._fields.get(key)
        if field is None:
            field = self._fields[key] = self.btf.struct(type_name).field(path)
        return field

    def struct(self, type_name: str, address: int) -> StructView:
        return StructView(self, type_name, address)


class StructView:
    """A C structure at an address: members by their path (``mkobj.kobj.name``, ``mem[3].base``)."""

    __slots__ = ("_memory", "address", "type_name")

    def __init__(self, memory: KernelMemory, type_name: str, address: int) -> None:
        self._memory = memory
        self.type_name = type_name
        self.address = address

    def offset(self, path: str) -> int:
        return self._memory.field(self.type_name, path).offset

    def address_of(self, path: str) -> int:
        """``&s->path``."""
        return self.address + self.offset(path)

    def get(self, path: str) -> int:
        """The value of an integer, enum, pointer or bit-field member."""
        field = self._memory.field(self.type_name, path)
        raw = self._memory.read(self.address + field.offset, field.size)
        if field.bit_size:
            return (int.from_bytes(raw, "little") >> field.bit_offset) & ((1 << field.bit_size) - 1)
        formats = _SIGNED if field.signed else _FORMATS
        if field.size not in formats:
            raise MachineError(f"{self.type_name}.{path} is no scalar")
        value: int = formats[field.size].unpack(raw)[0]
        return value

    def set(self, path: str, value: int) -> None:
        """Store an integer, enum, pointer or bit-field member."""
        field = self._memory.field(self.type_name, path)
        address = self.address + field.offset
        if field.bit_size:
            mask = ((1 << field.bit_size) - 1) << field.bit_offset
            old = int.from_bytes(self._memory.read(address, field.size), "little")
            value = (old & ~mask) | ((value << field.bit_offset) & mask)
        self._memory.put(address, field.size, value & _MASK)

    def raw(self, path: str) -> bytes:
        """The raw bytes of a member of any type."""
        field = self._memory.field(self.type_name, path)
        return self._memory.read(self.address + field.offset, field.size)

    def string(self, path: str) -> bytes:
        """A ``char[]`` member up to its NUL."""
        return self.raw(path).split(b"\0", 1)[0]
