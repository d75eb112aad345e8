"""What has changed between two kernels' types: the prototype of a symbol, and the structures that it leads to.

A version checksum covers everything that is reachable from a function's prototype. So both sides are walked through
at the same time, nearest types first, and structures whose layout differs are told of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kodojo.image.type_graph import resolve, spell

if TYPE_CHECKING:
    from kodojo.image.type_graph import Node, Part, TypeGraph

__all__ = ["Changes", "TypeChange"]

Pair = tuple[Hashable, Hashable]

MOST_CHANGES = 3
"""Changed types that are told of for one symbol: the nearest ones."""
MOST_PAIRS = 3_000
"""Types that are walked through for one symbol."""
MOST_LINES = 8
COMPOUND = ("struct", "union")


@dataclass(frozen=True, slots=True)
class TypeChange:
    """A struct, union or enum that is not what it was.

    :param name: as in C, such as ``struct module``. ``old_size``, ``new_size``: in bytes.
    :param lines: what happened to its members: ``+`` new, ``-`` gone, ``~`` of another type or elsewhere.
    """

    name: str
    old_size: int
    new_size: int
    lines: tuple[str, ...]


@dataclass
class Changes:
    """Compares the types that a module was built with (old) with those of a kernel (new).

    :param budget: types that may be walked through altogether.
    """

    old: TypeGraph
    new: TypeGraph
    budget: int = 60_000
    _known: dict[Pair, TypeChange | None] = field(default_factory=dict)

    def of_prototype(self, name: str) -> tuple[str, str] | None:
        """Both declarations of a symbol, if both are known and they differ."""
        old, new = self.old.symbol(name), self.new.symbol(name)
        if old is None or new is None:
            return None
        declared = spell(self.old, old, name), spell(self.new, new, name)
        return declared if declared[0] != declared[1] else None

    def reachable(self, name: str) -> list[TypeChange]:
        """The changed types that a symbol leads to, the nearest first. Raises ImageError if a side is damaged."""
        found: dict[str, TypeChange] = {}
        for pair in self._walk(self._roots(name)):
            change = self.of_type(pair)
            if change is not None:
                found.setdefault(change.name, change)
                if len(found) == MOST_CHANGES:
                    break
        return list(found.values())

    def _roots(self, name: str) -> list[Pair]:
        """Where to start: both types of the symbol, or the structures that have a name on both sides."""
        old, new = self.old.symbol(name), self.new.symbol(name)
        if old is None:
            return []
        if new is not None:
            return [(old, new)]
        return [(key, other) for key, other in self._named(old) if other is not None]

    def _named(self, root: Hashable) -> Iterator[tuple[Hashable, Hashable | None]]:
        """The structures right behind a symbol, and what has their name on the other side."""
        _key, node = resolve(self.old, root)
        for key in (node.target, *(part.type for part in node.parts), root):
            target, inner = resolve(self.old, key)
            while inner.kind in ("pointer", "array"):
                target, inner = resolve(self.old, inner.target)
            if inner.kind in COMPOUND and inner.name:
                yield target, self.new.tag(inner.name)

    def _walk(self, roots: list[Pair]) -> Iterator[Pair]:
        waiting = deque(roots)
        seen: set[Pair] = set()
        while waiting and len(seen) < MOST_PAIRS and self.budget > 0:
            old, old_node = resolve(self.old, waiting[0][0])
            new, new_node = resolve(self.new, waiting.popleft()[1])
            if (old, new) in seen or old_node.kind != new_node.kind:
                continue
            seen.add((old, new))
            self.budget -= 1
            yield old, new
            waiting.extend(self._next(old_node, new_node))

    def _next(self, old: Node, new: Node) -> Iterator[Pair]:
        """What is behind two types of the same kind: targets, and the parts that belong together."""
        if old.target and new.target:
            yield old.target, new.target
        if old.kind == "function":
            yield from ((one.type, other.type) for one, other in zip(old.parts, new.parts, strict=False))
        elif old.kind in COMPOUND:
            after = dict(_members(self.new, new))
            for name, part in _members(self.old, old):
                if name in after:
                    yield part.type, after[name].type

    def of_type(self, pair: Pair) -> TypeChange | None:
        """What has changed in a struct, union or enum; None if nothing has, or if it is another kind of type."""
        if pair not in self._known:
            self._known[pair] = self._compare(self.old.node(pair[0]), self.new.node(pair[1]))
        return self._known[pair]

    def _compare(self, old: Node, new: Node) -> TypeChange | None:
        if old.kind == "enum":
            lines = list(_enum_lines(dict(old.values), dict(new.values)))
        elif old.kind in COMPOUND:
            lines = list(self._member_lines(old, new))
        else:
            return None
        if not lines and old.size == new.size:
            return None
        name = f"{old.kind} {old.name or new.name or '(without a name)'}"
        return TypeChange(name, old.size, new.size, _shortened(lines))

    def _member_lines(self, old: Node, new: Node) -> Iterator[str]:
        before, after = dict(_members(self.old, old)), dict(_members(self.new, new))
        for name, part in before.items():
            if name not in after:
                yield f"- {spell(self.old, part.type, name)}; was at offset {_offset(part)}"
        moved = []
        for name, part in after.items():
            declared = spell(self.new, part.type, name)
            if name not in before:
                yield f"+ {declared}; at offset {_offset(part)}"
                continue
            was = before[name]
            if spell(self.old, was.type, name) != declared or was.bit_size != part.bit_size:
                yield f"~ {spell(self.old, was.type, name)}; is {declared}; at offset {_offset(part)}"
            elif was.bits != part.bits:
                moved.append((name, was, part))
        if moved:
            name, was, part = moved[0]
            others = f", as are {len(moved) - 1} members behind it" if len(moved) > 1 else ""
            yield f"~ {name} is at offset {_offset(part)} instead of {_offset(was)}{others}"


def _members(types: TypeGraph, node: Node, bits: int = 0, depth: int = 0) -> Iterator[tuple[str, Part]]:
    """The members as C sees them: those of anonymous structs and unions are the outer one's."""
    for part in node.parts:
        if part.name:
            yield part.name, type(part)(part.name, part.type, bits + part.bits, part.bit_size)
            continue
        _key, inner = resolve(types, part.type)
        if inner.kind in COMPOUND and depth < 16:
            yield from _members(types, inner, bits + part.bits, depth + 1)


def _offset(part: Part) -> str:
    return (
        f"{part.bits // 8}" if part.bits % 8 == 0 and not part.bit_size else f"{part.bits // 8} bit {part.bits % 8}"
    )


def _enum_lines(old: dict[str, int], new: dict[str, int]) -> Iterator[str]:
    yield from (f"- {name} = {value}" for name, value in old.items() if name not in new)
    yield from (f"+ {name} = {value}" for name, value in new.items() if name not in old)
    for name, value in new.items():
        if old.get(name, value) != value:
            yield f"~ {name} = {old[name]}; is {value}"


def _shortened(lines: list[str]) -> tuple[str, ...]:
    more = len(lines) - MOST_LINES
    return (*lines[:MOST_LINES], f"... and {more} more changes") if more > 0 else tuple(lines)
