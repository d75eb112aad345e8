"""What depmod finds out about a module tree, from the modules themselves."""

from __future__ import annotations

import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, InputError, decode
from kodojo.image.payload import MODULE_SIZE_LIMIT
from kodojo.image.tree import ModuleFile, ModuleTree, fold, module_name
from kodojo.kmod.elf_parts import NotElfError, Parts, modinfo_strings, module_parts
from kodojo.kmod.names import alias_normalize

if TYPE_CHECKING:
    from kodojo.durable import Progress

__all__ = ["Found", "FoundModule", "examine"]


@dataclass
class FoundModule:
    """A module of the tree.

    :param path: relative to the tree's root.
    :param direct: numbers of the modules whose symbols it needs. :param depends: of all that must be loaded before
        it, in load order.
    """

    name: str
    path: str
    direct: list[int] = field(default_factory=list)
    depends: list[int] = field(default_factory=list)


@dataclass
class Found:
    """What is in a tree. A module's number is its place in ``modules``, which is its priority, too.

    :param aliases: (normalized pattern, number). :param symbols: exported symbol to number.
    :param softdeps: (module's name, text of the entry), in the order of the modules.
    :param builtin_aliases: (pattern, name of a module that is built in).
    :param builtin_info: name of a module that is built in to its .modinfo.
    :param damaged: paths of files that are no modules.
    """

    modules: list[FoundModule]
    aliases: list[tuple[str, int]] = field(default_factory=list)
    symbols: dict[bytes, int] = field(default_factory=dict)
    softdeps: list[tuple[str, str]] = field(default_factory=list)
    builtin: list[str] = field(default_factory=list)
    builtin_aliases: list[tuple[str, str]] = field(default_factory=list)
    builtin_info: dict[str, list[bytes]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def examine(tree: ModuleTree, progress: Progress | None = None) -> Found:
    """Read all modules of a tree, once.

    :param progress: told how many modules have been read.

    A file that is no module is listed in ``damaged`` and otherwise taken for one without information.
    """
    root = tree.root
    if root is None:
        return Found([])
    files = _in_order(tree, root)
    found = Found([FoundModule(file.name, os.path.relpath(file.path, root)) for file in files])
    needs: list[tuple[bytes, ...]] = []
    for number, parts in enumerate(_all_parts(files)):
        if progress is not None:
            progress(number + 1, len(files), "reading the modules")
        if parts is None:
            found.damaged.append(found.modules[number].path)
            needs.append(())
            continue
        _note_modinfo(found, number, parts.modinfo)
        for symbol in parts.exports:
            found.symbols[symbol] = number
        needs.append(parts.undefined)
    for number, names in enumerate(needs):
        owners = dict.fromkeys(found.symbols[name] for name in names if name in found.symbols)
        found.modules[number].direct = [owner for owner in owners if owner != number]
    _order_dependencies(found.modules)
    _note_builtin(found, root)
    return found


def _in_order(tree: ModuleTree, root: Path) -> list[ModuleFile]:
    """By modules.order, which gives the first one that has an alias its precedence; what is not in it comes last."""
    order: dict[str, int] = {}
    with suppress(OSError):
        for line in (root / "modules.order").read_text("utf-8", "surrogateescape").splitlines():
            order.setdefault(line.removesuffix(".ko"), len(order))

    def place(file: ModuleFile) -> tuple[int, str]:
        path = os.path.relpath(file.path, root)
        return order.get(path.partition(".ko")[0], len(order)), path

    return sorted(tree.values(), key=place)


def _all_parts(files: list[ModuleFile]) -> Iterator[Parts | None]:
    """The parts of each module, None for a file that is no module."""
    if all(file.path.suffix == ".ko" for file in files):
        yield from map(_parts_or_none, files)
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  the decompressors let others run meanwhile

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(_parts_or_none, files)


def _parts_or_none(file: ModuleFile) -> Parts | None:
    try:
        return _parts(file)
    except (OSError, NotElfError, ImageError, InputError):
        return None


def _parts(file: ModuleFile) -> Parts:
    with open(file.path, "rb") as opened:  # noqa: PTH123  for speed: there are thousands
        if opened.read(4) == b"\x7fELF" and os.fstat(opened.fileno()).st_size <= MODULE_SIZE_LIMIT:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
                return module_parts(mapping)
    return module_parts(file.read())


def _note_modinfo(found: Found, number: int, modinfo: bytes) -> None:
    for entry in modinfo_strings(modinfo):
        if entry.startswith(b"alias="):
            alias = alias_normalize(decode(entry[6:]))
            if alias:
                found.aliases.append((alias, number))
        elif entry.startswith(b"softdep="):
            found.softdeps.append((found.modules[number].name, decode(entry[8:])))


def _order_dependencies(modules: Sequence[FoundModule]) -> None:
    """Set ``depends``, in the order that depmod gives it (``tools/depmod.c: depmod_calculate_dependencies``).

    All modules are sorted so that users come before what they use; dependencies are loaded from the end of that
    order. Modules in a circle have no place in it, and come first.
    """
    users = [0] * len(modules)
    for module in modules:
        for other in module.direct:
            users[other] += 1
    roots = [number for number, count in enumerate(users) if count == 0]
    place = [len(modules)] * len(modules)
    done = 0
    while roots:
        number = roots.pop()
        place[number] = done
        done += 1
        for other in modules[number].direct:
            users[other] -= 1
            if users[other] == 0:
                roots.append(other)
    for number, module in enumerate(modules):
        reached = _reachable(modules, number)
        module.depends = sorted(reached, key=place.__getitem__, reverse=True)


def _reachable(modules: Sequence[FoundModule], start: int) -> Iterable[int]:
    seen: dict[int, None] = {}
    stack = list(modules[start].direct)
    while stack:
        number = stack.pop()
        if number not in seen and number != start:
            seen[number] = None
            stack.extend(modules[number].direct)
    return seen


def _note_builtin(found: Found, root: Path) -> None:
    with suppress(OSError):
        lines = (root / "modules.builtin").read_text("utf-8", "surrogateescape").splitlines()
        found.builtin = [name for line in lines if (name := module_name(line.strip())) is not None]
    info: defaultdict[str, list[bytes]] = defaultdict(list)
    with suppress(OSError):
        for entry in modinfo_strings((root / "modules.builtin.modinfo").read_bytes()):
            prefix, dot, value = entry.partition(b".")
            if dot:
                info[fold(decode(prefix))].append(value)
    found.builtin_info = dict(info)
    for module, entries in info.items():
        found.builtin_aliases.append((module, module))
        for text in entries:
            if text.startswith(b"alias=") and (alias := alias_normalize(decode(text[6:]))):
                found.builtin_aliases.append((alias, module))
    if not info:
        found.builtin_aliases = [(name, name) for name in found.builtin]
