"""The types in a module's debugging information (DWARF), which builds leave in it unless they strip it.

Reading DWARF takes pyelftools (``pip install kodojo[dwarf]``). A module is somebody's file: whatever goes wrong in
there, it means no more than that nothing is known of its types.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from kodojo.errors import ImageError, decode
from kodojo.image.elf import EHDR, RELA, SHDR, SYM
from kodojo.image.type_graph import Node, Part

__all__ = ["DwarfTypes"]

LARGEST = 16 << 20
"""Bytes of ``.debug_info`` that are looked at: a megabyte takes about a second."""
MOST_ENTRIES = 200_000

QUALIFIERS = {"DW_TAG_const_type": "const", "DW_TAG_volatile_type": "volatile", "DW_TAG_restrict_type": "restrict"}
COMPOUND = {"DW_TAG_structure_type": "struct", "DW_TAG_union_type": "union", "DW_TAG_class_type": "struct"}
DW_ATE_FLOAT = 4
SHT_RELA = 4
ABSOLUTE = {62: {1: 8, 10: 4, 11: 4}, 183: {257: 8, 258: 4}}
"""``e_machine`` -> absolute relocations that debugging information has, and their sizes (x86-64, arm64)."""


class DwarfTypes:
    """The types of a module. Keys are offsets in ``.debug_info``, for inner dimensions of arrays with their number.

    ImageError if there are none, if pyelftools is not installed, or if they are damaged.
    """

    def __init__(self, content: bytes) -> None:
        self._dwarf = _open(content)
        self._nodes: dict[Hashable, Node] = {0: Node("void")}
        self._dies: dict[int, Any] = {}
        self._symbols: dict[str, int] = {}
        self._tags: dict[str, int] = {}
        with _guarded():
            for die in islice(self._top_level(), MOST_ENTRIES):
                self._remember(die)

    def symbol(self, name: str) -> Hashable | None:
        return self._symbols.get(name)

    def tag(self, name: str) -> Hashable | None:
        return self._tags.get(name)

    def node(self, key: Hashable) -> Node:
        if key not in self._nodes:
            offset, dimension = key if isinstance(key, tuple) else (key, 0)
            with _guarded():
                self._nodes[key] = self._make(self._die(offset), dimension)
        return self._nodes[key]

    def _top_level(self) -> Iterator[Any]:
        for unit in self._dwarf.iter_CUs():
            yield from _children(unit.get_top_DIE())

    def _remember(self, die: Any) -> None:
        name = _name(die)
        if not name:
            return
        self._dies[die.offset] = die
        if die.tag in ("DW_TAG_subprogram", "DW_TAG_variable") and "DW_AT_external" in die.attributes:
            self._symbols.setdefault(name, die.offset)
        elif die.tag in COMPOUND and "DW_AT_declaration" not in die.attributes:
            self._tags.setdefault(name, die.offset)

    def _die(self, offset: int) -> Any:
        if offset not in self._dies:
            self._dies[offset] = self._dwarf.get_DIE_from_refaddr(offset)
        return self._dies[offset]

    def _target(self, die: Any) -> int:
        if "DW_AT_type" not in die.attributes:
            return 0
        target = die.get_DIE_from_attribute("DW_AT_type")
        self._dies.setdefault(target.offset, target)
        return int(target.offset)

    def _make(self, die: Any, dimension: int) -> Node:
        name, tag = _name(die), die.tag
        if tag == "DW_TAG_variable":
            return Node("typedef", target=self._target(die))
        if tag in QUALIFIERS:
            return Node(QUALIFIERS[tag], target=self._target(die))
        if tag == "DW_TAG_typedef":
            return Node("typedef", name, target=self._target(die))
        if tag == "DW_TAG_pointer_type":
            return Node("pointer", size=_number(die, "DW_AT_byte_size"), target=self._target(die))
        if tag in ("DW_TAG_subprogram", "DW_TAG_subroutine_type"):
            return Node("function", target=self._target(die), parts=tuple(self._parameters(die)))
        if tag in COMPOUND:
            return self._compound(die, name)
        if tag == "DW_TAG_array_type":
            return self._array(die, dimension)
        size = _number(die, "DW_AT_byte_size")
        if tag == "DW_TAG_enumeration_type":
            values = tuple((_name(one), _number(one, "DW_AT_const_value")) for one in _children(die))
            return Node("enum", name, size, values=values)
        kind = "float" if _number(die, "DW_AT_encoding") == DW_ATE_FLOAT else "int"
        return Node(kind, name, size)

    def _parameters(self, die: Any) -> Iterator[Part]:
        for child in _children(die):
            if child.tag == "DW_TAG_formal_parameter":
                yield Part(_name(child), self._target(child))
            elif child.tag == "DW_TAG_unspecified_parameters":
                yield Part("", 0)

    def _compound(self, die: Any, name: str) -> Node:
        if "DW_AT_declaration" in die.attributes:
            complete = self._tags.get(name)
            return Node("forward", name) if complete is None else self.node(complete)
        parts = tuple(self._member(child) for child in _children(die) if child.tag == "DW_TAG_member")
        return Node(COMPOUND[die.tag], name, _number(die, "DW_AT_byte_size"), parts=parts)

    def _member(self, die: Any) -> Part:
        bits = _number(die, "DW_AT_data_bit_offset") + 8 * _number(die, "DW_AT_data_member_location")
        bit_size = _number(die, "DW_AT_bit_size")
        if "DW_AT_bit_offset" in die.attributes:  # DWARF 3: counted from the other end of the unit
            unit = _number(die, "DW_AT_byte_size") or self.node(self._target(die)).size
            bits += 8 * unit - _number(die, "DW_AT_bit_offset") - bit_size
        return Part(_name(die), self._target(die), bits, bit_size)

    def _array(self, die: Any, dimension: int) -> Node:
        """One dimension of an array; those within it have keys of their own."""
        counts = [_count(child) for child in _children(die) if child.tag == "DW_TAG_subrange_type"] or [0]
        inner = dimension + 1 < len(counts)
        target: Hashable = (die.offset, dimension + 1) if inner else self._target(die)
        return Node("array", target=target, count=counts[dimension])


class _guarded:  # noqa: N801  used as a function
    """Turn whatever pyelftools raises on a damaged file into an ImageError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            raise ImageError(f"the module's debugging information is damaged: {error!r}") from error


def _open(content: bytes) -> Any:
    try:
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415  optional
    except ImportError:
        raise ImageError("to read debugging information takes pyelftools: pip install 'kodojo[dwarf]'") from None
    with _guarded():
        file = ELFFile(io.BytesIO(content))
        section = file.get_section_by_name(".debug_info")
        if section is not None and section.data_size <= LARGEST:
            if file["e_machine"] in ("EM_X86_64", "EM_AARCH64"):
                return ELFFile(io.BytesIO(_relocated(content))).get_dwarf_info(relocate_dwarf_sections=False)
            return file.get_dwarf_info()
    raise ImageError("the module has no debugging information, or too much")


def _relocated(content: bytes) -> bytes:
    """The file with its debugging information relocated; what pyelftools does, a hundred times as fast."""
    data = bytearray(content)
    header = np.frombuffer(content, EHDR, 1)[0]
    sizes = ABSOLUTE[int(header["e_machine"])]
    sections = np.frombuffer(content, SHDR, int(header["e_shnum"]), int(header["e_shoff"]))
    for section in sections[sections["sh_type"] == SHT_RELA]:
        target, table = sections[int(section["sh_info"])], sections[int(section["sh_link"])]
        if int(target["sh_flags"]):  # it is loaded, or compressed
            continue
        entries = np.frombuffer(content, RELA, int(section["sh_size"]) // RELA.itemsize, int(section["sh_offset"]))
        symbols = np.frombuffer(content, SYM, int(table["sh_size"]) // SYM.itemsize, int(table["sh_offset"]))
        values = symbols["st_value"][entries["r_info"] >> np.uint64(32)] + entries["r_addend"].astype(np.uint64)
        kinds = entries["r_info"] & np.uint64(0xFFFFFFFF)
        view = memoryview(data)[int(target["sh_offset"]) :][: int(target["sh_size"])]
        for kind, size in sizes.items():
            chosen = kinds == kind
            places = entries["r_offset"][chosen].astype(np.int64)[:, None] + np.arange(size)
            raw = values[chosen].astype("<u8").view(np.uint8).reshape(-1, 8)[:, :size]
            np.frombuffer(view, np.uint8)[places] = raw
    return bytes(data)


def _children(die: Any) -> Iterator[Any]:
    """The entries inside an entry, up to one that says that its next one is before it: they would have no end."""
    last = -1
    for child in die.iter_children():
        if child.offset <= last:
            return
        last = child.offset
        yield child


def _name(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return decode(attribute.value) if attribute is not None else ""


def _number(die: Any, name: str) -> int:
    attribute = die.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else 0


def _count(die: Any) -> int:
    if "DW_AT_count" in die.attributes:
        return _number(die, "DW_AT_count")
    return _number(die, "DW_AT_upper_bound") + 1 if "DW_AT_upper_bound" in die.attributes else 0
