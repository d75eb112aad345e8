"""In which order to load a tree of modules so that most of the work is shared.

A module is tested on a machine that has its dependencies loaded. Written down in one order for all modules, the
lists of dependencies have beginnings in common, so they make a tree: a machine that has come to a node
of it serves everything below. Dependencies that more modules have come first, which is a load order, because whatever
needs a module needs its dependencies too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path

from kodojo.durable import write_atomically
from kodojo.errors import decode
from kodojo.image.elf import ElfFile
from kodojo.image.image import Image
from kodojo.image.tree import fold

# What kernel code asks user space for without saying so in .modinfo: crc32c in init functions of file systems.
HELPERS = ("crc32c_generic",)
ARCHITECTURES = ("amd64", "arm64")
_SOFTDEP = re.compile(r"(pre|post):")


def kernel_names(architecture: str, series: Iterable[str]) -> list[str]:
    """What the tests call the kernels of these series: that for arm64 is ``6.1-arm64``."""
    return [one if architecture == ARCHITECTURES[0] else f"{one}-{architecture}" for one in series]


@dataclass
class Node:
    """A module to be loaded on what is above.

    :param tested: this is the place where its load is looked at; elsewhere it is only a dependency.
    """

    name: str
    tested: bool = False
    children: dict[str, Node] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Loads in this part of the tree."""
        return 1 + sum(child.size for child in self.children.values())


@dataclass(frozen=True)
class Facts:
    """What is to be known of a module before it is loaded."""

    digest: str
    softdeps: tuple[str, ...]
    aliases: tuple[str, ...]


class Modules:
    """The modules of one image, their content's hashes and what must come before each.

    :param cache: a file in which the facts are kept; unpacking and reading a whole tree takes up to half a minute.
    """

    def __init__(self, image: Image, cache: Path) -> None:
        self.image = image
        self.facts = _all_facts(image, cache)
        self._by_alias: dict[str, list[str]] = {}
        for name, facts in self.facts.items():
            for alias in facts.aliases:
                self._by_alias.setdefault(fold(alias), []).append(name)
        self._before: dict[str, tuple[str, ...]] = {}
        self._dependants = Counter(other for name in self.facts for other in self.before(name))

    def sample(self, count: int) -> list[str]:
        """As many modules, always the same ones, without a pattern."""
        return sorted(self.facts, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]

    def before(self, name: str) -> tuple[str, ...]:
        """Dependencies, those in ``softdep=pre:`` and the helpers, in a load order that modprobe could take."""
        if name not in self._before:
            order: list[str] = []
            for start in (*HELPERS, name):
                self._visit(start, order, set())
            self._before[name] = tuple(dict.fromkeys(other for other in order if other != name))
            if name in HELPERS:
                self._before[name] = self.image.modules[name].depends
        return self._before[name]

    def _visit(self, name: str, order: list[str], open_: set[str]) -> None:
        if name in order or name in open_ or name not in self.facts:
            return
        open_.add(name)
        for soft in self.facts[name].softdeps:
            for other in self._resolve(soft):
                self._visit(other, order, open_)
        for other in self.image.modules[name].depends:
            self._visit(other, order, open_)
        order.append(name)

    def _resolve(self, wanted: str) -> list[str]:
        wanted = fold(wanted)
        return [wanted] if wanted in self.facts else self._by_alias.get(wanted, [])

    def plan(self, names: Iterable[str]) -> Node:
        """The tree in which all these modules are tested once."""
        root = Node("")
        for name in names:
            node = root
            # sorted() is stable: what is needed equally often stays in load order.
            for other in sorted(self.before(name), key=lambda other: -self._dependants[other]):
                node = node.children.setdefault(other, Node(other))
            node.children.setdefault(name, Node(name)).tested = True
        return root


def _all_facts(image: Image, cache: Path) -> dict[str, Facts]:
    try:
        kept = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        kept = {}
    found = {}
    for name in sorted(image.modules):
        status = image.modules[name].path.stat()
        mark = [status.st_size, status.st_mtime_ns]
        if name not in kept or kept[name][0] != mark:
            kept[name] = [mark, *astuple(_facts(image.modules[name].read(), name))]
        digest, softdeps, aliases = kept[name][1:]
        found[name] = Facts(digest, tuple(softdeps), tuple(aliases))
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cache, lambda file: file.write(json.dumps(kept).encode()))
    return found


def _facts(data: bytes, name: str) -> Facts:
    elf = ElfFile(data, name)
    softdeps, aliases = [], []
    for entry in _modinfo(elf):
        tag, _, value = entry.partition("=")
        if tag == "softdep":
            softdeps.extend(_softdeps_before(value))
        elif tag == "alias":
            aliases.append(value)
    return Facts(hashlib.sha256(data).hexdigest(), tuple(softdeps), tuple(aliases))


def _modinfo(elf: ElfFile) -> Iterator[str]:
    if ".modinfo" in elf.sections:
        yield from decode(bytes(elf.section_data(".modinfo"))).split("\0")


def _softdeps_before(value: str) -> list[str]:
    words = _SOFTDEP.split(value)
    return [
        name for kind, names in zip(words[1::2], words[2::2], strict=True) if kind == "pre" for name in names.split()
    ]
