"""Types that are written down: a graph from a table."""

from __future__ import annotations

from collections.abc import Hashable

from kodojo.image.type_graph import Node, Part

VOID = {0: Node("void"), "int": Node("int", "int", 4), "long": Node("int", "long int", 8)}


class PaperTypes:
    """Key -> node; symbols and tags by name."""

    def __init__(self, nodes: dict[Hashable, Node], **symbols: Hashable) -> None:
        self._nodes = VOID | nodes
        self._symbols = symbols

    def node(self, key: Hashable) -> Node:
        return self._nodes[key]

    def symbol(self, name: str) -> Hashable | None:
        return self._symbols.get(name)

    def tag(self, name: str) -> Hashable | None:
        kinds = ("struct", "union")
        return next((key for key, node in self._nodes.items() if node.name == name and node.kind in kinds), None)


def struct(name: str, size: int, *members: tuple[str, Hashable, int], kind: str = "struct") -> Node:
    """Members are (name, type, offset in bytes)."""
    return Node(kind, name, size, parts=tuple(Part(label, key, 8 * offset) for label, key, offset in members))


def pointer(key: Hashable) -> Node:
    return Node("pointer", size=8, target=key)


def function(returns: Hashable, *parameters: Hashable) -> Node:
    return Node("function", target=returns, parts=tuple(Part("", key) for key in parameters))
