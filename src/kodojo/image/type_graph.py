"""Types as a graph, whatever they were read from.

BTF and DWARF get one shape, so that what a module was built with can be compared with what a kernel has.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kodojo.image.btf_format import (
    ARRAY,
    COMPOUND,
    ENUMS,
    FUNC,
    FUNC_PROTO,
    FWD,
    KIND_NAMES,
    PTR,
    QUALIFIERS,
    TYPE_TAG,
    TYPEDEF,
    VAR,
)

if TYPE_CHECKING:
    from kodojo.image.btf import Btf

__all__ = ["BtfTypes", "Node", "Part", "TypeGraph", "resolve", "spell"]

LONGEST_CHAIN = 256
TRANSPARENT = frozenset({"typedef", "const", "volatile", "restrict"})


@dataclass(frozen=True, slots=True)
class Part:
    """A member of a struct or union, or a parameter.

    :param type: key of its node.
    :param bits: offset in bits from the start of the struct. ``bit_size``: of a bit-field, else 0.
    """

    name: str
    type: Hashable
    bits: int = 0
    bit_size: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One type.

    :param kind: ``int``, ``float``, ``void``, ``pointer``, ``array``, ``struct``, ``union``, ``enum``, ``function``,
        ``forward`` (declared only), ``typedef``, ``const``, ``volatile`` or ``restrict``.
    :param name: tag or name; empty if it has none. ``size``: in bytes, of what has one of its own.
    :param target: what a pointer points to, an array consists of, a typedef stands for, a function returns.
    :param parts: members or parameters; a part without a name and a type ends a variadic function's.
    :param count: of an array's elements. ``values``: of an enum's constants, by name.
    """

    kind: str
    name: str = ""
    size: int = 0
    target: Hashable = 0
    parts: tuple[Part, ...] = ()
    count: int = 0
    values: tuple[tuple[str, int], ...] = ()


class TypeGraph(Protocol):
    """Where types come from. The key 0 is ``void``."""

    def node(self, key: Hashable) -> Node:
        """The type of that key."""

    def symbol(self, name: str) -> Hashable | None:
        """The type of a function or variable; None if it is not described."""

    def tag(self, name: str) -> Hashable | None:
        """A struct or union by its tag, if its members are known."""


class BtfTypes:
    """The types of a kernel. ImageError where its BTF is damaged."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._nodes: dict[Hashable, Node] = {}

    def node(self, key: Hashable) -> Node:
        if key not in self._nodes:
            self._nodes[key] = self._make(int(key))  # type: ignore[call-overload]
        return self._nodes[key]

    def symbol(self, name: str) -> Hashable | None:
        for type_id in self._btf._ids(name):
            record = self._btf._record(type_id)
            if record.kind in (FUNC, VAR):
                return record.value
        return None

    def tag(self, name: str) -> Hashable | None:
        return next((key for key in self._btf._ids(name) if self._btf._record(key).kind in COMPOUND), None)

    def _make(self, type_id: int) -> Node:
        btf = self._btf
        record = btf._record(type_id)
        name = btf._string(record.name_offset) if record.name_offset else ""
        kind = record.kind
        if kind in QUALIFIERS:
            return Node(QUALIFIERS[kind], target=record.value)
        if kind in (TYPEDEF, TYPE_TAG):
            return Node("typedef", name, target=record.value)
        if kind == PTR:
            return Node("pointer", size=btf._size(type_id), target=record.value)
        if kind == ARRAY:
            element, count = btf._array(record)
            return Node("array", target=element, count=count)
        if kind in COMPOUND:
            members = btf._members(type_id)
            parts = tuple(Part(one.name, one.type_id, one.bits, one.bit_size) for one in members)
            return Node(KIND_NAMES[kind], name, record.value, parts=parts)
        if kind in ENUMS:
            return Node("enum", name, record.value, values=tuple(btf._enum_items(record)))
        if kind == FUNC_PROTO:
            items = btf._items(record)
            pairs = zip(items[::2], items[1::2], strict=True)
            parts = tuple(Part(btf._string(offset) if offset else "", parameter) for offset, parameter in pairs)
            return Node("function", target=record.value, parts=parts)
        if kind == FWD:
            return Node("forward", name)
        return Node(KIND_NAMES.get(kind, "void"), name, record.value if kind in KIND_NAMES and kind else 0)


def resolve(types: TypeGraph, key: Hashable) -> tuple[Hashable, Node]:
    """Follow typedefs and qualifiers; of a chain without an end, what stands at the limit."""
    node = types.node(key)
    for _ in range(LONGEST_CHAIN):
        if node.kind not in TRANSPARENT:
            break
        key = node.target
        node = types.node(key)
    return key, node


def spell(types: TypeGraph, key: Hashable, inner: str = "", depth: int = 0) -> str:
    """A type as C writes it, around the name of what is declared."""
    node = types.node(key)
    if depth > LONGEST_CHAIN or node.kind == "void":
        return f"void {inner}".rstrip()
    if node.kind == "pointer":
        return _spell_pointer(types, node, "*" + inner, depth)
    if node.kind == "array":
        return spell(types, node.target, f"{inner}[{node.count}]", depth + 1)
    if node.kind == "function":
        return spell(types, node.target, f"{inner}({_parameters(types, node, depth)})", depth + 1)
    if node.kind in ("const", "volatile", "restrict"):
        if types.node(node.target).kind == "pointer":
            return spell(types, node.target, f"{node.kind} {inner}".rstrip(), depth + 1)
        return f"{node.kind} {spell(types, node.target, inner, depth + 1)}"
    if node.kind == "typedef" and not node.name:  # a tag on a type, which C does not write
        return spell(types, node.target, inner, depth + 1)
    return f"{_base(node)}{'' if inner.startswith('[') else ' '}{inner}".rstrip()


def _spell_pointer(types: TypeGraph, node: Node, inner: str, depth: int) -> str:
    if types.node(node.target).kind in ("array", "function"):
        inner = f"({inner})"
    return spell(types, node.target, inner, depth + 1)


def _parameters(types: TypeGraph, node: Node, depth: int) -> str:
    if depth > 4:  # functions that get functions that get functions
        return "..."
    texts = ["..." if part.type == 0 else spell(types, part.type, "", depth + 1) for part in node.parts]
    return ", ".join(texts) or "void"


def _base(node: Node) -> str:
    if node.kind in ("struct", "union", "enum"):
        return f"{node.kind} {node.name}".rstrip()
    return f"struct {node.name}" if node.kind == "forward" else node.name or node.kind
