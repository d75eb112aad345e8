"""Reading the modules: every file once, in depmod's order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, InputError, decode, encode
from kodojo.image.module_search import SearchedFile, read_order
from kodojo.image.payload import MODULE_SIZE_LIMIT
from kodojo.image.tree import ModuleFile, ModuleTree
from kodojo.kmod.depmod.kmod_hash import hash_order
from kodojo.kmod.elf_parts import LinkParts, NotElfError, link_parts, modinfo_strings

if TYPE_CHECKING:
    from kodojo.durable import Progress

__all__ = ["ScannedModule", "in_order", "scan"]

_ELF = b"\x7fELF"
_BUCKETS = 512  # of depmod's hash of modules, which gives those their order that modules.order does not list


@dataclass
class ScannedModule:
    """A module. Its number is its place in the list, which is its priority, too.

    :param path: as modules.dep has it: relative to the tree, or absolute. :param file: where it is.
    :param aliases: as they stand in it; ``softdeps``, ``weakdeps``: likewise.
    :param exports: symbol to CRC. :param needs: symbol to CRC, and whether it is weak.
    :param problem: why it could not be read; empty if all is well.
    """

    name: str
    path: str
    file: Path
    aliases: list[bytes] = field(default_factory=list)
    softdeps: list[bytes] = field(default_factory=list)
    weakdeps: list[bytes] = field(default_factory=list)
    exports: dict[bytes, int] = field(default_factory=dict)
    needs: dict[bytes, tuple[int, bool]] = field(default_factory=dict)
    problem: str = ""


def scan(
    tree: ModuleTree,
    files: Mapping[str, SearchedFile] | None = None,
    *,
    checksums: bool = False,
    progress: Progress | None = None,
) -> list[ScannedModule]:
    """Read modules, those of the whole tree by depmod's rules unless some are given.

    :param checksums: read what ``-e`` and ``-E`` compare, too.
    :param progress: told how many modules have been read.
    :raises InputError: the tree cannot be read.

    A file that is no module has a ``problem``, and is otherwise taken for one without information.
    """
    if tree.root is None:
        return []
    chosen = in_order(tree.found.modules if files is None else files, read_order(tree.root))
    found = []
    places = [ModuleFile(file.name, tree.root / file.path, tree) for file in chosen]
    for file, place, parts in zip(chosen, places, _all_parts(places, checksums=checksums), strict=True):
        module = ScannedModule(file.name, file.path, place.path)
        if isinstance(parts, str):
            module.problem = parts
        else:
            _take(module, parts)
        found.append(module)
        if progress is not None:
            progress(len(found), len(chosen), "reading the modules")
    return found


def in_order(modules: Mapping[str, SearchedFile], order: Mapping[str, int]) -> list[SearchedFile]:
    """As modules.order has them, then the rest, in the order of depmod's hash of names."""
    hashed = [modules[decode(name)] for name in hash_order(map(encode, modules), _BUCKETS)]
    last = max(order.values(), default=0) + 1
    return sorted(hashed, key=lambda file: order.get(file.uncompressed, last) if file.inside else last)


def _take(module: ScannedModule, parts: LinkParts) -> None:
    module.exports, module.needs = parts.exports, parts.needs
    lists = {b"alias": module.aliases, b"softdep": module.softdeps, b"weakdep": module.weakdeps}
    for entry in modinfo_strings(parts.modinfo):
        key, equals, value = entry.partition(b"=")
        if equals and key in lists:
            lists[key].append(value)


def _all_parts(files: Sequence[ModuleFile], *, checksums: bool) -> Iterator[LinkParts | str]:
    """The parts of each module; of a file that is no module what is wrong with it."""

    def parts(file: ModuleFile) -> LinkParts | str:
        try:
            return _parts(file, checksums=checksums)
        except NotElfError:
            return "Exec format error"
        except OSError as error:
            return error.strerror or str(error)
        except (ImageError, InputError) as error:
            return error.message

    if all(file.path.suffix == ".ko" for file in files):
        yield from map(parts, files)
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  the decompressors let others run meanwhile

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _batches(files):  # what has been read waits for its turn: never for long
            yield from pool.map(parts, batch)


def _batches(files: Sequence[ModuleFile], size: int = 256) -> Iterable[Sequence[ModuleFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _parts(file: ModuleFile, *, checksums: bool) -> LinkParts:
    with open(file.path, "rb") as opened:  # noqa: PTH123  for speed: there are thousands
        size = os.fstat(opened.fileno()).st_size
        if not 0 < size <= MODULE_SIZE_LIMIT:
            raise NotElfError
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            if mapping[:4] == _ELF:  # by its content, as kmod has it, whatever its name is
                return link_parts(mapping, checksums=checksums)
    return link_parts(file.read(), checksums=checksums)
