"""What is loaded before what: for one kernel, the modules that were given and those of the kernel's own tree.

A module needs those that it names in ``depends=``, and those among the given ones that export what it needs and
the kernel does not. A given module wins over the tree's of the same name; of several given ones, that which was
built for this kernel's release, or else lies nearest to who needs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kodojo.check.sources import GivenModule, Key, own_module
from kodojo.errors import KodojoError, decode
from kodojo.image.tree import MOST_NEEDED, module_name

if TYPE_CHECKING:
    from kodojo.check.examine import Examined
    from kodojo.image.image import Image

__all__ = ["Node", "Plan"]

_MOST_BEFORE = 1_000_000  # modules before others, in sum; for a distribution's tree they are some 20,000

Name = TypeVar("Name", str, bytes)


class Node(NamedTuple):
    """A module in the order of things.

    :param before: all modules that have to be loaded first, in load order.
    :param absent: names of modules that it depends on and that are neither given nor in the kernel's tree.
    :param beside: files of such modules that lie beside it and were not given.
    :param notes: what else a person should know about that order.
    """

    module: GivenModule
    before: tuple[Key, ...] = ()
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class _Candidates:
    """Modules one of which will do, of whatever number: the one that is nearest to who needs it.

    :param modules: in the order in which they were given.
    :param release: those that were built for it are preferred.
    """

    def __init__(self, modules: Sequence[Examined], release: str) -> None:
        self.keys = frozenset(other.module.key for other in modules)
        self._modules = modules
        self._release = release

    @cached_property
    def _first_below(self) -> dict[tuple[bool, tuple[str, ...]], list[Examined]]:
        """Whether built for the release, and the beginning of a path -> the first two modules there."""
        found: defaultdict[tuple[bool, tuple[str, ...]], list[Examined]] = defaultdict(list)
        for other in self._modules:
            parts = other.module.label.split("/")
            for length in range(len(parts) + 1):
                some = found[other.release == self._release, tuple(parts[:length])]
                if len(some) < 2:  # one of them may be who needs it
                    some.append(other)
        return dict(found)

    def nearest(self, user: Examined | None) -> Examined | None:
        """That which was built for the release, else that with most of its path in common with the user's."""
        if len(self._modules) == 1:
            return self._modules[0] if self._modules[0] is not user else None
        parts = user.module.label.split("/") if user else []
        for built_for in (True, False):
            for length in range(len(parts), -1, -1):
                for other in self._first_below.get((built_for, tuple(parts[:length])), ()):
                    if other is not user:
                        return other
        return None


class Plan:
    """The order of things for one kernel."""

    def __init__(self, image: Image, given: Sequence[Examined]) -> None:
        self._image = image
        self._given = {examined.module.key: examined for examined in given}
        self._modules: dict[Key, GivenModule] = {examined.module.key: examined.module for examined in given}
        self._direct: dict[Key, tuple[list[Key], list[str]]] = {}
        self._nodes: dict[Key, Node] = {}
        self._left = _MOST_BEFORE
        self._directories: dict[Path, dict[str, str]] = {}
        by_name: defaultdict[str, list[Examined]] = defaultdict(list)
        for examined in given:
            if not examined.module.problem:
                by_name[examined.name].append(examined)
        self._by_name = self._candidates(by_name)

    @cached_property
    def _exporters(self) -> dict[bytes, _Candidates]:
        found: defaultdict[bytes, list[Examined]] = defaultdict(list)
        for examined in self._given.values():
            for symbol in examined.exports:
                found[symbol].append(examined)
        return self._candidates(found)

    def _candidates(self, found: Mapping[Name, Sequence[Examined]]) -> dict[Name, _Candidates]:
        release = self._image.release if found else ""
        return {name: _Candidates(modules, release) for name, modules in found.items()}

    def nodes(self, modules: Iterable[GivenModule]) -> dict[Key, Node]:
        """The nodes of these modules, and of all that have to be loaded before them."""
        found: dict[Key, Node] = {}
        for module in modules:
            self._modules.setdefault(module.key, module)
            node = self._node(module.key)
            found[module.key] = node
            for key in node.before:
                if key not in found:
                    found[key] = self._node(key)
        return found

    def _node(self, key: Key) -> Node:
        if key not in self._nodes:
            circles: list[str] = []
            order = tuple(islice(self._closure(key, circles), MOST_NEEDED + 1)) if self._left > 0 else ()
            self._left -= len(order)
            if len(order) > MOST_NEEDED or self._left <= 0:
                self._nodes[key] = Node(_with_too_many(self._modules[key]))
                return self._nodes[key]
            module, absent = self._modules[key], self._needs(key)[1]
            notes = (module.unused, *circles) if module.unused else tuple(circles)
            self._nodes[key] = Node(module, order, tuple(absent), notes, self._beside(module, absent))
        return self._nodes[key]

    def _beside(self, module: GivenModule, names: Sequence[str]) -> tuple[str, ...]:
        """The files beside a module, as the user would name them, that hold modules of these names."""
        file = Path(module.label)
        if not names or module.own or not file.is_file():  # what is in an archive has nothing beside it
            return ()
        directory = file.parent
        if directory not in self._directories:
            self._directories[directory] = _modules_in(directory)
        there = self._directories[directory]
        return tuple(there[name] for name in names if name in there)

    def _closure(self, start: Key, circles: list[str]) -> Iterator[Key]:
        """Depth first, without recursion: chains can be as long as somebody likes."""
        done: set[Key] = set()
        path: dict[Key, Iterator[Key]] = {start: iter(self._needs(start)[0])}
        while path:
            current = next(reversed(path))
            following = next(path[current], None)
            if following is None:
                path.pop(current)
                done.add(current)
                if path:
                    yield current
            elif following in path:
                around = list(path)[list(path).index(following) :]
                names = ", ".join(self._name(key) for key in (*around, following))
                circles.append(f"these modules need each other in a circle, which no kernel can load: {names}")
            elif following not in done:
                if len(path) > MOST_NEEDED:
                    yield from path
                    return
                path[following] = iter(self._needs(following)[0])

    def _name(self, key: Key) -> str:
        return self._given[key].name if key in self._given else key[1]

    def _needs(self, key: Key) -> tuple[list[Key], list[str]]:
        """What a module needs directly, and the names of what is nowhere to be found."""
        if key not in self._direct:
            found: dict[Key, None] = {}
            absent: list[str] = []
            examined = self._given.get(key)
            if examined is not None:
                self._declared(examined, found, absent)
                self._exporting(examined, found)
            elif not self._modules[key].problem:
                self._of_tree(key, found)
            found.pop(key, None)
            self._direct[key] = list(found), absent
        return self._direct[key]

    def _declared(self, examined: Examined, found: dict[Key, None], absent: list[str]) -> None:
        for name in examined.depends:
            provider = self._provider(name, examined)
            if provider is not None:
                found[provider] = None
            elif name not in self._image.modules.builtin:
                absent.append(name)

    def _exporting(self, examined: Examined, found: dict[Key, None]) -> None:
        """Given modules whose exports it needs, though it does not name them."""
        for symbol in examined.undefined:
            exporters = self._exporters.get(symbol)
            if exporters is None or not exporters.keys.isdisjoint(found):
                continue
            nearest = exporters.nearest(examined)
            if nearest is not None and not self._is_exported(decode(symbol)):
                found[nearest.module.key] = None

    def _is_exported(self, symbol: str) -> bool:
        try:
            return self._image.exports.get(symbol) is not None
        except KodojoError:  # the kernel tells nothing of its symbols: its verdicts will say so
            return False

    def _of_tree(self, key: Key, found: dict[Key, None]) -> None:
        module, tree = self._modules[key], self._image.modules
        try:
            if module.unused:
                names = tree.dependencies_of_file(module.path)
            else:
                names = tree.dependencies(module_name(key[1]) or "")
        except KodojoError:  # the tree is not complete; symbols that are missing will be reported
            return
        for other in names:
            provider = self._provider(other, None)
            if provider is not None:
                found[provider] = None

    def _provider(self, name: str, user: Examined | None) -> Key | None:
        """The module of that name that should be loaded, if there is one."""
        candidates = self._by_name.get(name)
        nearest = candidates.nearest(user) if candidates is not None else None
        if nearest is not None:
            return nearest.module.key
        if name not in self._image.modules:
            return None
        module = own_module(self._image, name)
        self._modules.setdefault(module.key, module)
        return module.key


def _with_too_many(module: GivenModule) -> GivenModule:
    problem = f"{module.label}: refused: too many modules need each other, one through the other"
    hint = "no kernel is like that: build the modules again, and check fewer at once"
    return module._replace(problem=problem, hint=hint)


def _modules_in(directory: Path) -> dict[str, str]:
    """The module files of a directory, by the names of their modules."""
    try:
        files = sorted(path for path in directory.iterdir() if module_name(path) is not None)
    except OSError:
        return {}
    return {module_name(path) or "": str(path) for path in reversed(files)}
