"""Reading and writing the memory of a module that is being formed, by address.

Until it is committed, a module's memory is the bytes of its regions. What points elsewhere is not the
module's own business: a kernel that followed such a pointer would read or destroy something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kodojo.loader.refusal import would_damage

if TYPE_CHECKING:
    from kodojo.image.elf import Format
    from kodojo.loader.target import Module, Region

__all__ = ["Place", "find_place", "read_bytes", "read_string", "read_word"]

ADDRESS_MASK = (1 << 64) - 1


class Place(NamedTuple):
    """A place in a module's memory: the offset counts bytes of ``region.data``."""

    region: Region
    offset: int


def find_place(mod: Module, address: int, size: int) -> Place | None:
    """Where ``size`` bytes at a guest address are, if all of them are in one region of the module."""
    for region in mod.regions.values():
        offset = address - region.base
        if region.base and 0 <= offset <= len(region.data) - size:
            return Place(region, offset)
    return None


def read_bytes(mod: Module, address: int, size: int) -> bytes:
    """Bytes of the module's memory. DamageError if they are not the module's."""
    place = find_place(mod, address, size)
    if place is None:
        raise would_damage(mod.name, f"a table points to {address:#x}, outside the module's memory")
    return bytes(place.region.data[place.offset : place.offset + size])


def read_word(mod: Module, address: int, elf_format: Format) -> int:
    """An unsigned long of the module's memory."""
    return int.from_bytes(read_bytes(mod, address, elf_format.word), elf_format.byteorder)


def read_string(mod: Module, address: int) -> bytes:
    """A C string in the module's memory, without its NUL. DamageError if it is not there or has no end."""
    place = find_place(mod, address, 1)
    if place is None:
        raise would_damage(mod.name, f"a name is at {address:#x}, outside the module's memory")
    end = place.region.data.find(b"\0", place.offset)
    if end < 0:
        raise would_damage(mod.name, f"the name at {address:#x} has no end")
    return bytes(place.region.data[place.offset : end])
