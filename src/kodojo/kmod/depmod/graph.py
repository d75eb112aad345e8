"""Who needs whom: dependencies by symbols, their order, and circles (``tools/depmod.c: depmod_load``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kodojo.errors import InputError, decode
from kodojo.kmod.depmod.scan import ScannedModule

__all__ = ["Graph", "Wishes", "link"]

_MOST_STEPS = 10_000  # of the search for circles, which is exponential
_MOST_DEPENDENCIES = 1_000_000  # of all modules in sum; distributions' trees have some 20,000


class Wishes(NamedTuple):
    """What else depmod should do.

    :param unknown: report symbols that nobody has (``-e``). :param versions: and CRCs that differ (``-E``).
    :param needs: list every dependency that is found (``-v``). :param prefix: of symbols (``-P``).
    """

    unknown: bool = False
    versions: bool = False
    needs: bool = False
    prefix: bytes = b""


@dataclass
class Graph:
    """The modules, and how they depend on each other.

    :param owners: symbol to the number of the module that exports it, in no particular order.
    :param direct: for each module the numbers of those whose symbols it needs, in the order of its symbols.
    :param depends: of all that must be loaded before it, what is to be loaded last first; as modules.dep has it.
    :param cycles: modules that need each other, as ``a -> b -> a``; then ``depends`` of all are empty.
    :param cyclic: how many modules are in them.
    :param warnings: for -e and -E, in kmod's words. :param needs: for -v, likewise.
    """

    modules: Sequence[ScannedModule]
    owners: dict[bytes, int] = field(default_factory=dict)
    direct: list[list[int]] = field(default_factory=list)
    depends: list[list[int]] = field(default_factory=list)
    cycles: list[str] = field(default_factory=list)
    cyclic: int = 0
    warnings: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


def link(
    modules: Sequence[ScannedModule], kernel: Mapping[bytes, int] | None = None, wishes: Wishes | None = None
) -> Graph:
    """Find out what modules need.

    :param kernel: CRCs of the kernel's symbols, by name; only for the warnings.
    :raises InputError: modules need each other in chains that are longer than any kernel's.
    """
    wishes = wishes or Wishes()
    graph = Graph(modules)
    crcs = dict(kernel or {})
    for number, module in enumerate(modules):
        for symbol, crc in module.exports.items():
            name = symbol.removeprefix(wishes.prefix)
            graph.owners[name] = number
            crcs[name] = crc
    for number in range(len(modules)):
        graph.direct.append(_direct(graph, number, crcs, wishes))
    places = _sorted(graph.direct)
    graph.depends = [[] for _ in modules]
    if len(places) < len(modules):
        _find_cycles(graph, [number for number in range(len(modules)) if number not in places])
        return graph
    left = _MOST_DEPENDENCIES
    for number, module in enumerate(modules):
        needed = _reachable(graph.direct, number, left)
        left -= len(needed)
        if left < 0:
            raise InputError(
                f"{module.file}: refused: with it, modules.dep would list more than {_MOST_DEPENDENCIES} others",
                hint="no kernel is like that: take the modules that need each other in a long chain out of the tree",
            )
        graph.depends[number] = sorted(needed, key=places.__getitem__)
    return graph


def _direct(graph: Graph, number: int, crcs: Mapping[bytes, int], wishes: Wishes) -> list[int]:
    """``depmod_load_module_dependencies``."""
    module = graph.modules[number]
    found: dict[int, None] = {}
    for symbol, (crc, weak) in module.needs.items():
        name = symbol.removeprefix(b".").removeprefix(wishes.prefix)  # .foo is foo on PowerPC
        owner = graph.owners.get(name)
        if owner is None and name not in crcs:
            if wishes.unknown and not weak:
                graph.warnings.append(f"{module.file} needs unknown symbol {decode(symbol)}")
            continue
        if wishes.unknown and wishes.versions and not weak and crcs[name] != crc:
            graph.warnings.append(f"{module.file} disagrees about version of symbol {decode(symbol)}")
        if owner is not None and owner not in found:
            found[owner] = None
            if wishes.needs:
                graph.needs.append(f'{module.file} needs "{decode(name)}": {graph.modules[owner].file}')
    return list(found)


def _sorted(direct: Sequence[Sequence[int]]) -> dict[int, int]:
    """Users before what they use (``depmod_calculate_dependencies``): the place of each; of those in circles none."""
    users = [0] * len(direct)
    for others in direct:
        for other in others:
            users[other] += 1
    roots = [number for number, count in enumerate(users) if count == 0]
    places: dict[int, int] = {}
    while roots:
        number = roots.pop()
        places[number] = len(places)
        for other in direct[number]:
            users[other] -= 1
            if users[other] == 0:
                roots.append(other)
    return places


def _reachable(direct: Sequence[Sequence[int]], start: int, most: int) -> list[int]:
    """All that is needed, or one more than there may be."""
    seen: dict[int, None] = {}
    stack = list(direct[start])
    while stack and len(seen) <= most:
        number = stack.pop()
        if number not in seen:
            seen[number] = None
            stack.extend(direct[number])
    return list(seen)


class _Vertex(NamedTuple):
    number: int
    parent: _Vertex | None

    def chain(self) -> Iterator[int]:
        """Those that it was reached through, nearest first."""
        above = self.parent
        while above is not None:
            yield above.number
            above = above.parent


def _find_cycles(graph: Graph, unsorted: Sequence[int]) -> None:
    """``depmod_report_cycles``: from each module that is left, unless it was in a circle that is known already.

    What a module of its own lies behind one is listed as a circle of one, as kmod does it.
    """
    roots = list(unsorted)
    visited: set[int] = set()
    members: set[int] = set()
    left = _MOST_STEPS
    while roots:
        root = roots.pop(0)
        stack = [_Vertex(root, None)]
        while stack and left:
            left -= 1
            vertex = stack.pop()
            number = vertex.number
            if number == root and number in visited:
                chain = list(vertex.chain())
                members.update(chain)
                graph.cycles.append(" -> ".join(graph.modules[each].name for each in (*reversed(chain), number)))
                for each in reversed(chain):
                    roots = _without(roots, each)
                continue
            visited.add(number)
            if not graph.direct[number]:
                roots = _without(roots, number)
            elif number not in vertex.chain():  # kmod would go round for ever in a circle without the root
                stack += [_Vertex(other, vertex) for other in graph.direct[number]]
    graph.cyclic = len(members)


def _without(ring: list[int], number: int) -> list[int]:
    """Take one out of a ring, which begins with the next one then (``kmod_list_remove_data``)."""
    if number not in ring:
        return ring
    at = ring.index(number)
    return ring[at + 1 :] + ring[:at]
