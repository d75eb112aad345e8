"""BTF: the types and function prototypes that a kernel carries in its section ``.BTF``.

Nothing is parsed in advance but the position of each record. That index is three arrays which can be
kept on disk (:meth:`Btf.index_arrays`), so that the second opening of a kernel costs next to nothing; a
lookup then parses the one struct that is asked for.

The format is described in Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.btf_format import (
    ARRAY,
    COMPOUND,
    ENUM,
    ENUM64,
    ENUMS,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    ITEM_WORDS,
    KIND_NAMES,
    MODIFIERS,
    PTR,
    QUALIFIERS,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VOID,
    record_words,
    scan,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Btf", "Field", "Member", "Parameter", "Prototype", "Struct"]

_POINTER_SIZE = 8
_MAX_NAME = 1024  # twice the kernel's KSYM_NAME_LEN
_MAX_CHAIN = 256  # typedefs and qualifiers on top of one type; arrays in arrays
_INDEX_NAMES = ("positions", "name_hashes", "name_ids")
_STEP = re.compile(r"(?:^|\.)([A-Za-z_]\w*)|\[(\d{1,10})\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field:
    """A place inside a struct.

    :param offset: in bytes from the start of the outermost struct.
    :param size: of the value in bytes; for a bit-field of the unit that holds it.
    :param bit_offset: of a bit-field: from the least significant bit of the unit.
    :param bit_size: of a bit-field; 0 for everything else.
    :param type_name: as in C: ``struct list_head``, ``const char *``, ``unsigned int[4]``.
    :param signed: for integers and enums.
    :param kind: ``int``, ``pointer``, ``struct``, ``union``, ``enum``, ``float``, ``array`` or ``function``.
    :param count: elements of an array, None for everything else.
    """

    offset: int
    size: int
    bit_offset: int = 0
    bit_size: int = 0
    type_name: str = ""
    signed: bool = False
    kind: str = "int"
    count: int | None = None


class Member(NamedTuple):
    """A direct member of a struct or union; an anonymous one has an empty name."""

    name: str
    offset: int
    type: str


class Parameter(NamedTuple):
    """A parameter of a function, or what it returns.

    :param type: as in C.
    :param kind: as :attr:`Field.kind`, or ``void``.
    :param size: in bytes, 0 for void.
    :param signed: for integers and enums.
    """

    name: str
    type: str
    kind: str
    size: int
    signed: bool


class Prototype(NamedTuple):
    """The prototype of a function; ``variadic`` if it ends in ``...``."""

    name: str
    returns: Parameter
    parameters: tuple[Parameter, ...]
    variadic: bool = False


class _Type(NamedTuple):
    """One record: ``value`` is its size or the type it refers to, ``position`` that of its items."""

    name_offset: int
    kind: int
    vlen: int
    flag: bool
    value: int
    position: int


class _RawMember(NamedTuple):
    name: str
    type_id: int
    bits: int
    bit_size: int


_VOID_TYPE = _Type(0, VOID, 0, flag=False, value=0, position=0)


class Struct:
    """A struct or union of the kernel.

    Paths are written as in C: ``list.next``, ``mem[3].base``, ``core_layout.base``. Members of anonymous
    structs and unions are members of the outer one.
    """

    def __init__(self, btf: Btf, name: str, type_id: int) -> None:
        self._btf = btf
        self._type_id = type_id
        self._fields: dict[str, Field | None] = {}
        self.name = name
        self.size = btf._record(type_id).value

    def __repr__(self) -> str:
        return f"<Struct {self.name}, {self.size} bytes>"

    def field(self, path: str) -> Field:
        """Return where the member is; :class:`MissingInformationError` if there is none of that path."""
        found = self._find(path)
        if found is None:
            raise MissingInformationError(f"struct {self.name} of this kernel has no member {path!r}")
        return found

    def offset(self, path: str) -> int:
        """Return the offset of a member in bytes; :class:`MissingInformationError` as :meth:`field`."""
        return self.field(path).offset

    def has(self, path: str) -> bool:
        """Tell whether there is a member of that path."""
        return self._find(path) is not None

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The direct members, in order of declaration."""
        btf = self._btf
        return tuple(
            Member(member.name, member.bits // 8, btf._type_name(member.type_id))
            for member in btf._members(self._type_id)
        )

    def _find(self, path: str) -> Field | None:
        try:
            return self._fields[path]
        except KeyError:
            found = self._fields[path] = self._btf._walk(self._type_id, path)
            return found


class Btf:
    """The types of one kernel.

    :param data: the contents of ``.BTF``; not copied as a whole.
    :param index: what :meth:`index_arrays` returned for the same data earlier; made anew without it.
    :raises ImageError: the data is damaged. Damage inside a record is found when that record is used.
    """

    def __init__(self, data: bytes | memoryview, index: Mapping[str, np.ndarray] | None = None) -> None:
        self._words, self._strings = split(data)
        if index is None:
            index = self._build_index()
        self._check_index(index)
        self._positions = index["positions"]
        self._name_hashes = index["name_hashes"]
        self._name_ids = index["name_ids"]
        self._records: dict[int, _Type] = {0: _VOID_TYPE}
        self._known_members: dict[int, list[_RawMember]] = {}
        self._structs: dict[str, Struct | None] = {}
        self._prototypes: dict[str, Prototype | None] = {}
        self._enumerator_values: dict[str, int | None] = {}

    def __repr__(self) -> str:
        return f"<Btf, {len(self._positions)} types>"

    def index_arrays(self) -> dict[str, np.ndarray]:
        """Return the index as arrays, to be saved and given back to :class:`Btf` with the same data."""
        return {
            "positions": self._positions,
            "name_hashes": self._name_hashes,
            "name_ids": self._name_ids,
        }

    def has(self, name: str) -> bool:
        """Tell whether there is a struct or union of that name (or a typedef of one)."""
        return self._find_struct(name) is not None

    def struct(self, name: str) -> Struct:
        """Return a struct or union by its tag, or by the name of a typedef of one.

        :raises MissingInformationError: there is none.
        """
        found = self._find_struct(name)
        if found is None:
            raise MissingInformationError(f"the kernel's BTF describes no struct {name!r}")
        return found

    def enumerators(self, enum_name: str) -> dict[str, int]:
        """Return the constants of an enum by name; :class:`MissingInformationError` if there is none."""
        for type_id in self._ids(enum_name):
            record = self._record(type_id)
            if record.kind in ENUMS:
                return dict(self._enum_items(record))
        raise MissingInformationError(f"the kernel's BTF describes no enum {enum_name!r}")

    def enumerator(self, name: str) -> int | None:
        """Return the value of a constant of any enum, anonymous ones included; None if there is none."""
        try:
            return self._enumerator_values[name]
        except KeyError:
            pass
        value: int | None = None
        for offset in self._string_offsets(name):
            owners = self._enumerator_owners(offset)
            if owners:
                value = dict(self._enum_items(self._record(owners[0]))).get(name)
                break
        self._enumerator_values[name] = value
        return value

    def function(self, name: str) -> Prototype | None:
        """Return the prototype of a function, None if the BTF knows none of that name."""
        if name not in self._prototypes:
            self._prototypes[name] = self._find_function(name)
        return self._prototypes[name]

    # Opening

    def _build_index(self) -> dict[str, np.ndarray]:
        positions = np.array(scan(self._words), dtype=np.uint32)
        name_offsets = self._words[positions] if len(positions) else positions
        ids = np.flatnonzero(name_offsets).astype(np.uint32)
        unique, inverse = np.unique(name_offsets[ids], return_inverse=True)
        string = self._string_bytes
        hashes = np.array([crc32(string(offset)) for offset in unique.tolist()], dtype=np.uint32)[inverse]
        order = np.argsort(hashes, kind="stable")
        return {"positions": positions, "name_hashes": hashes[order], "name_ids": ids[order] + np.uint32(1)}

    def _check_index(self, index: Mapping[str, np.ndarray]) -> None:
        arrays = [index.get(name) for name in _INDEX_NAMES]
        if any(array is None or array.ndim != 1 or array.dtype != np.uint32 for array in arrays):
            raise ImageError("the index of the kernel's BTF is damaged")
        positions, hashes, ids = index["positions"], index["name_hashes"], index["name_ids"]
        end = 0
        if len(positions):
            last = int(positions[-1])
            if int(positions[0]) == 0 and last + 3 <= len(self._words):
                info = int(self._words[last + 1])
                end = last + record_words(info)
        ascending = bool(np.all(positions[1:] > positions[:-1]))
        if end != len(self._words) or not ascending or len(hashes) != len(ids) or len(ids) > len(positions):
            raise ImageError("the index of the kernel's BTF does not belong to it")

    # Strings and names

    def _string_bytes(self, offset: int) -> bytes:
        end = self._strings.find(b"\0", offset, offset + _MAX_NAME)
        if end < 0:
            raise ImageError(f"the kernel's BTF is damaged: no name at {offset:#x} of its strings")
        return self._strings[offset:end]

    def _string(self, offset: int) -> str:
        return self._string_bytes(offset).decode("utf-8", "replace")

    def _string_offsets(self, name: str) -> Iterator[int]:
        """Yield where the name stands in the strings; more than once only if they were not deduplicated."""
        needle = b"\0" + name.encode() + b"\0"
        found = self._strings.find(needle)
        while found >= 0:
            yield found + 1
            found = self._strings.find(needle, found + 1)

    def _ids(self, name: str) -> Iterator[int]:
        """Yield the type ids of that name in ascending order."""
        encoded = name.encode("utf-8", "replace")
        wanted = np.uint32(crc32(encoded))
        first = int(np.searchsorted(self._name_hashes, wanted, side="left"))
        last = int(np.searchsorted(self._name_hashes, wanted, side="right"))
        for type_id in self._name_ids[first:last].tolist():
            if self._string_bytes(self._record(type_id).name_offset) == encoded:
                yield type_id

    # Records

    def _record(self, type_id: int) -> _Type:
        try:
            return self._records[type_id]
        except KeyError:
            pass
        if not 0 < type_id <= len(self._positions):
            raise ImageError(f"the kernel's BTF is damaged: it refers to type {type_id}, which does not exist")
        position = int(self._positions[type_id - 1])
        if position + 3 > len(self._words):
            raise ImageError("the index of the kernel's BTF is damaged")
        name_offset, info, value = self._words[position : position + 3].tolist()
        kind = info >> 24 & 0x1F
        if position + record_words(info) > len(self._words):
            raise ImageError(f"the kernel's BTF is damaged: type {type_id} is truncated")
        record = _Type(name_offset, kind, info & 0xFFFF, bool(info >> 31), value, position + 3)
        self._records[type_id] = record
        return record

    def _items(self, record: _Type) -> list[int]:
        count = record.vlen * ITEM_WORDS[record.kind]
        items: list[int] = self._words[record.position : record.position + count].tolist()
        return items

    def _resolve(self, type_id: int) -> tuple[int, _Type]:
        """Follow typedefs and qualifiers."""
        for _ in range(_MAX_CHAIN):
            record = self._record(type_id)
            if record.kind not in MODIFIERS:
                return type_id, record
            type_id = record.value
        raise ImageError(f"the kernel's BTF is damaged: type {type_id} refers to itself")

    def _array(self, record: _Type) -> tuple[int, int]:
        """Return element type and number of elements."""
        element, _index, count = self._words[record.position : record.position + 3].tolist()
        return element, count

    def _size(self, type_id: int) -> int:
        factor = 1
        for _ in range(_MAX_CHAIN):
            type_id, record = self._resolve(type_id)
            if record.kind != ARRAY:
                break
            type_id, count = self._array(record)
            factor *= count
        else:
            raise ImageError("the kernel's BTF is damaged: an array contains itself")
        if record.kind == PTR:
            return factor * _POINTER_SIZE
        if record.kind in {VOID, FWD, FUNC_PROTO, FUNC}:
            return 0
        return factor * record.value

    def _signed(self, record: _Type) -> bool:
        if record.kind == INT:
            return bool(int(self._words[record.position]) >> 24 & 1)  # BTF_INT_SIGNED
        return record.kind in ENUMS and record.flag

    # Names of types

    def _type_name(self, type_id: int) -> str:
        """Spell a type as in C, the parameters of function pointers aside.

        The declarator grows around the place where the declared name would stand.
        """
        qualifiers = declarator = ""
        for _ in range(_MAX_CHAIN):
            record = self._record(type_id)
            kind = record.kind
            if kind == PTR:
                declarator = "*" + declarator
                if self._record(record.value).kind in {ARRAY, FUNC_PROTO}:
                    declarator = f"({declarator})"
            elif kind in QUALIFIERS:
                if self._record(record.value).kind == PTR:
                    declarator = f"{QUALIFIERS[kind]} {declarator}".rstrip()
                else:
                    qualifiers += QUALIFIERS[kind] + " "
            elif kind == ARRAY:
                type_id, count = self._array(record)
                declarator += f"[{count}]"
                continue
            elif kind == FUNC_PROTO:
                declarator += "(...)"
            elif kind != TYPE_TAG:
                gap = " " if declarator and declarator[0] != "[" else ""
                return qualifiers + self._base_name(record) + gap + declarator
            type_id = record.value
        raise ImageError(f"the kernel's BTF is damaged: type {type_id} refers to itself")

    def _base_name(self, record: _Type) -> str:
        name = self._string(record.name_offset) if record.name_offset else ""
        if record.kind in ENUMS:
            return f"enum {name}".rstrip()
        if record.kind in COMPOUND or record.kind == FWD:
            union = record.kind == UNION or (record.kind == FWD and record.flag)
            return f"{'union' if union else 'struct'} {name}".rstrip()
        return name or "void"

    # Structs

    def _find_struct(self, name: str) -> Struct | None:
        if name not in self._structs:
            self._structs[name] = self._make_struct(name)
        return self._structs[name]

    def _make_struct(self, name: str) -> Struct | None:
        typedef = None
        for type_id in self._ids(name):
            kind = self._record(type_id).kind
            if kind in COMPOUND:
                return Struct(self, name, type_id)
            if kind == TYPEDEF and typedef is None:
                typedef = type_id
        if typedef is None:
            return None
        type_id, record = self._resolve(typedef)
        return Struct(self, name, type_id) if record.kind in COMPOUND else None

    def _members(self, type_id: int) -> list[_RawMember]:
        known = self._known_members.get(type_id)
        if known is None:
            known = self._known_members[type_id] = list(self._read_members(self._record(type_id)))
        return known

    def _read_members(self, record: _Type) -> Iterator[_RawMember]:
        items = self._items(record)
        for index in range(0, len(items), 3):
            name_offset, member_type, bits = items[index : index + 3]
            bit_size = 0
            if record.flag:
                bits, bit_size = bits & 0xFFFFFF, bits >> 24
            yield _RawMember(self._string(name_offset) if name_offset else "", member_type, bits, bit_size)

    def _member(self, type_id: int, name: str, seen: set[int]) -> _RawMember | None:
        """Find a member by name, also inside anonymous members; each type is searched once."""
        seen.add(type_id)
        for member in self._members(type_id):
            if member.name == name:
                return member
            if member.name:
                continue
            inner, record = self._resolve(member.type_id)
            if record.kind in COMPOUND and inner not in seen and len(seen) < _MAX_CHAIN:
                found = self._member(inner, name, seen)
                if found is not None:
                    return _RawMember(name, found.type_id, member.bits + found.bits, found.bit_size)
        return None

    def _walk(self, type_id: int, path: str) -> Field | None:
        bits = bit_size = end = 0
        for step in _STEP.finditer(path):
            if step.start() != end:
                return None
            end = step.end()
            base_id, record = self._resolve(type_id)
            if step[1] is not None:
                member = self._member(base_id, step[1], set()) if record.kind in COMPOUND else None
                if member is None:
                    return None
                type_id, bit_size = member.type_id, member.bit_size
                bits += member.bits
            else:
                if record.kind != ARRAY:
                    return None
                type_id, count = self._array(record)
                if int(step[2]) >= count > 0:  # an array without a length goes on as far as it likes
                    return None
                bits += 8 * int(step[2]) * self._size(type_id)
        complete = path and path[0] != "." and end == len(path)
        return self._field(type_id, bits, bit_size) if complete else None

    def _field(self, type_id: int, bits: int, bit_size: int) -> Field:
        _base, record = self._resolve(type_id)
        size = self._size(type_id)
        if record.kind == INT and not bit_size:
            encoding = int(self._words[record.position])
            if encoding & 0xFF != 8 * size:  # bit-fields before BTF had its kind_flag
                bits, bit_size = bits + (encoding >> 16 & 0xFF), encoding & 0xFF
        offset, bit_offset = bits // 8, 0
        if bit_size:
            unit = size or 1
            offset = bits // (8 * unit) * unit
            bit_offset = bits - 8 * offset
            if bit_offset + bit_size > 8 * unit:  # packed: it straddles two units
                offset, bit_offset = divmod(bits, 8)
                size = (bit_offset + bit_size + 7) // 8
        return Field(
            offset,
            size,
            bit_offset,
            bit_size,
            self._type_name(type_id),
            self._signed(record),
            KIND_NAMES.get(record.kind, "void"),
            self._array(record)[1] if record.kind == ARRAY else None,
        )

    # Enums

    def _enum_items(self, record: _Type) -> Iterator[tuple[str, int]]:
        items = self._items(record)
        wide = record.kind == ENUM64
        width = 64 if wide else 32
        step = 3 if wide else 2
        for index in range(0, len(items), step):
            value = items[index + 1] | (items[index + 2] << 32 if wide else 0)
            if record.flag and value >> (width - 1):
                value -= 1 << width
            yield self._string(items[index]), value

    @cached_property
    def _enumerator_table(self) -> tuple[np.ndarray, np.ndarray]:
        """The name offset of every enumerator, and the id of the enum it is in."""
        infos = self._words[self._positions + np.uint32(1)]
        kinds = infos >> 24 & 0x1F
        names, owners = [], []
        for kind in (ENUM, ENUM64):
            index = np.flatnonzero(kinds == kind)
            counts = (infos[index] & 0xFFFF).astype(np.int64)
            first = np.repeat(self._positions[index].astype(np.int64) + 3, counts)
            number = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
            places = first + number * ITEM_WORDS[kind]
            if len(places) and int(places.max()) >= len(self._words):
                raise ImageError("the index of the kernel's BTF is damaged")
            names.append(self._words[places])
            owners.append(np.repeat(index + 1, counts))
        return np.concatenate(names), np.concatenate(owners)

    def _enumerator_owners(self, name_offset: int) -> list[int]:
        names, owners = self._enumerator_table
        found: list[int] = owners[names == name_offset].tolist()
        return found

    # Functions

    def _find_function(self, name: str) -> Prototype | None:
        for type_id in self._ids(name):
            record = self._record(type_id)
            if record.kind != FUNC:
                continue
            prototype = self._record(record.value)
            if prototype.kind != FUNC_PROTO:
                raise ImageError(f"the kernel's BTF is damaged: function {name!r} has no prototype")
            items = self._items(prototype)
            pairs = list(zip(items[::2], items[1::2], strict=True))
            variadic = bool(pairs) and pairs[-1] == (0, 0)
            parameters = tuple(
                self._parameter(self._string(name_offset), parameter)
                for name_offset, parameter in (pairs[:-1] if variadic else pairs)
            )
            return Prototype(name, self._parameter("", prototype.value), parameters, variadic)
        return None

    def _parameter(self, name: str, type_id: int) -> Parameter:
        _base, record = self._resolve(type_id)
        kind = KIND_NAMES.get(record.kind, "void")
        return Parameter(name, self._type_name(type_id), kind, self._size(type_id), self._signed(record))
