"""The tree of modules that belongs to a kernel: ``lib/modules/RELEASE``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from kodojo.errors import ImageError, MissingInformationError, decode, encode
from kodojo.image.depmod_config import DepmodConfig
from kodojo.image.elf import ElfFile
from kodojo.image.kmod_index import KmodIndex
from kodojo.image.module_search import Found, PassedOver, read_order, search
from kodojo.image.payload import SUFFIXES, Payload, read_module
from kodojo.image.regular import read_regular

__all__ = ["MOST_NEEDED", "ModuleFile", "ModuleTree", "TreeContents", "fold", "load_order", "modname", "module_name"]


MOST_NEEDED = 5_000
"""Modules that one module may need, directly or through others; of distributions' modules none needs 50."""


def fold(name: str) -> str:
    """Return a module's name as the kernel writes it: dashes are underscores."""
    return name.replace("-", "_")


def modname(path: str | os.PathLike[str]) -> str:
    """A module's name by its file's (``shared/util.c: path_to_modname``): up to the first dot, folded."""
    return fold(os.path.basename(path).partition(".")[0])  # noqa: PTH119 - strings, for speed: there are thousands


def module_name(path: str | os.PathLike[str]) -> str | None:
    """Likewise; None if kmod would not look at a file of that name (``shared/util.c: path_ends_with_kmod_ext``)."""
    return (modname(path) or None) if os.fspath(path).endswith(SUFFIXES) else None


@dataclass(frozen=True)
class ModuleFile:
    """A module of the tree. ``name`` is folded, ``path`` the file, compressed or not."""

    name: str
    path: Path
    _tree: ModuleTree = field(repr=False, compare=False)

    @property
    def depends(self) -> tuple[str, ...]:
        """The names of all modules that must be loaded before it, in load order.

        :raises MissingInformationError: one of them is not in the tree.
        """
        return self._tree.dependencies(self.name)

    def payload(self) -> Payload:
        """Return the module's file as kmod reads it (:func:`kodojo.image.payload.read_module`)."""
        return read_module(self.path)

    def read(self) -> bytes:
        """Return the module, unpacked.

        :raises InputError: the file cannot be read.
        :raises ImageError: it is damaged (ModuleFileError), or larger than any module.
        """
        return self.payload().module()


class TreeContents(NamedTuple):
    """All that is in a tree.

    :param modules: those that modprobe would load, by name. :param others: further files, with the reason why not.
    :param passed_over: what was not looked at.
    """

    modules: dict[str, ModuleFile]
    others: dict[Path, str]
    passed_over: list[PassedOver]


class ModuleTree(Mapping[str, ModuleFile]):
    """The modules by name, dashes and underscores being the same.

    Which file is the module of a name is decided by ``modules.dep.bin``, as for modprobe; where there is none, by
    depmod's rules.

    :param root: ``lib/modules/RELEASE``; None for an image that came without one.
    :param config: what depmod.d says; None: as it is in the root that the tree belongs to.

    Look-ups raise InputError if the tree cannot be read, ImageError if ``modules.dep.bin`` is damaged.
    """

    def __init__(self, root: Path | None, config: DepmodConfig | None = None) -> None:
        self.root = root
        self._config = config
        self._dependencies: dict[str, tuple[str, ...]] = {}
        self._near: dict[str, ModuleFile] = {}

    def __getitem__(self, name: str) -> ModuleFile:
        found = self._find(fold(name))
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(fold(name)) is not None

    def __repr__(self) -> str:
        return f"<ModuleTree {self.root}>"

    @cached_property
    def builtin(self) -> frozenset[str]:
        """The names of the modules that are built into the kernel (``modules.builtin``)."""
        lines = self._lines("modules.builtin") or []
        return frozenset(name for line in lines if (name := module_name(line.strip())) is not None)

    @cached_property
    def config(self) -> DepmodConfig:
        """What depmod.d says for this tree."""
        if self._config is not None:
            return self._config
        return DepmodConfig() if self.root is None else DepmodConfig.beside(self.root)

    @cached_property
    def found(self) -> Found:
        """What depmod would find in the tree now, whatever ``modules.dep.bin`` says."""
        return Found() if self.root is None else search(self.root, self.config, module_name)

    @cached_property
    def dep_index(self) -> KmodIndex | None:
        """``modules.dep.bin``, None if there is none."""
        return None if self.root is None else KmodIndex.open(self.root / "modules.dep.bin")

    def contents(self) -> TreeContents:
        """Everything that lies in the tree, also what no look-up finds."""
        others = {}
        chosen = {file.path for file in self._files.values()}
        for file in (*self.found.modules.values(), *self.found.shadowed):
            path = self._place(file.path)
            if path not in chosen:
                winner = self._files.get(file.name)
                others[path] = (
                    f"modprobe {file.name} loads {os.path.relpath(winner.path, self.root)} instead"
                    if winner is not None
                    else "modules.dep.bin does not list it: modprobe does not find it before depmod has run"
                )
        return TreeContents(self._files, others, self.found.passed_over)

    def dependencies(self, name: str) -> tuple[str, ...]:
        """Return what must be loaded before a module, in load order, without what is built into the kernel."""
        name = fold(name)
        if self.dep_index is not None:
            line = self.dep_index.search(encode(name))
            if line is not None:
                words = reversed(decode(line).partition(":")[2].split())
                return tuple(other for word in words if (other := module_name(word)) is not None)
        return self._walk(name, iter(self._direct(name)))

    def dependencies_of_file(self, path: Path) -> tuple[str, ...]:
        """The same for a file that is not the module of its name: by what it says itself.

        :raises ImageError: it is no module. InputError: it cannot be read. MissingInformationError: as
            :meth:`dependencies`.
        """
        name = module_name(path) or ""
        return self._walk(name, iter(_depends_field(ModuleFile(name, path, self))))

    def _walk(self, name: str, direct: Iterator[str]) -> tuple[str, ...]:
        order = load_order(name, direct, self._direct)
        return tuple(other for other in order if other in self)

    def _direct(self, name: str) -> tuple[str, ...]:
        """What the module itself says."""
        if name not in self._dependencies:
            file = self._find(name)
            if file is None:
                if name in self.builtin:
                    return ()
                raise MissingInformationError(
                    f"{self.root}: there is no module {name!r}",
                    hint="get the package that has the kernel's other modules",
                )
            self._dependencies[name] = _depends_field(file)
        return self._dependencies[name]

    def _find(self, name: str) -> ModuleFile | None:
        if self.root is None:
            return None
        if self.dep_index is not None:
            line = self.dep_index.search(encode(name))
            return None if line is None else self._listed(name, line)
        if "_files" not in self.__dict__ and self._is_plain:
            if name not in self._near and (place := self._guess(name)) is not None:
                self._near[name] = ModuleFile(name, place, self)
            if name in self._near:
                return self._near[name]
        return self._files.get(name)

    def _listed(self, name: str, line: bytes) -> ModuleFile:
        return ModuleFile(name, self._place(decode(line.partition(b":")[0])), self)

    def _place(self, path: str) -> Path:
        return Path(self.root or "", path)  # external modules have absolute paths

    def _guess(self, name: str) -> Path | None:
        """Where modules.order says that a module is, without a walk over the whole tree."""
        line = self._modules_order.get(name)
        guesses = (f"{self.root}/{line[:-3]}{suffix}" for suffix in SUFFIXES) if line else ()
        place = next(filter(os.path.isfile, guesses), None)
        return None if place is None else Path(place)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether nothing but ``kernel/`` has modules, and no depmod.d says more: then modules.order is enough."""
        if self.root is None or self.config != DepmodConfig():
            return False
        try:
            with os.scandir(self.root) as entries:
                directories = {entry.name for entry in entries if entry.is_dir()}
        except OSError:
            return False
        return directories <= {"kernel", "build", "source"}

    @cached_property
    def _modules_order(self) -> dict[str, str]:
        """The paths in modules.order by name, of names that are there once; which do not say how files are packed."""
        found: dict[str, str] = {}
        for line in read_order(self.root) if self.root is not None else ():
            if line.endswith(".ko"):
                name = fold(line.rpartition("/")[2][:-3])
                found[name] = "" if name in found else line
        return found

    @cached_property
    def _files(self) -> dict[str, ModuleFile]:
        if self.dep_index is not None:
            lines = {key: (priority, value) for key, priority, value in self.dep_index.items()}
            return {
                decode(key): self._listed(decode(key), value)
                for key, (_, value) in sorted(lines.items(), key=lambda item: item[1][0])
            }
        return {name: ModuleFile(name, self._place(file.path), self) for name, file in self.found.modules.items()}

    def _lines(self, name: str) -> list[str] | None:
        if self.root is None:
            return None
        try:
            return decode(read_regular(self.root / name)).splitlines()
        except OSError:
            return None


def load_order(name: str, direct: Iterator[str], of: Callable[[str], Iterable[str]]) -> tuple[str, ...]:
    """What must be loaded before a module: dependencies before dependents, each once.

    :param direct: what the module itself needs. :param of: what another one needs.
    :raises ImageError: they are more than any module needs.
    """
    order: list[str] = []
    stack = [(name, direct)]
    seen = {name}
    while stack:  # depth first, without recursion: chains can be as long as somebody likes
        current, rest = stack[-1]
        following = next((other for other in rest if other not in seen), None)
        if following is None:
            stack.pop()
            order.append(current)
        else:
            seen.add(following)
            if len(seen) > MOST_NEEDED:
                raise ImageError(
                    f"{name}: it needs more than {MOST_NEEDED} modules, one through the other: refused",
                    hint="no kernel is like that: build the modules again, or take them out of the tree",
                )
            stack.append((following, iter(of(following))))
    return tuple(order[:-1])


def _depends_field(file: ModuleFile) -> tuple[str, ...]:
    elf = ElfFile(file.read(), str(file.path))
    if ".modinfo" not in elf.sections:
        raise ImageError(f"{file.path}: not a kernel module: no section .modinfo")
    for entry in bytes(elf.section_data(".modinfo")).split(b"\0"):
        if entry.startswith(b"depends="):
            names = entry[8:].decode("utf-8", "surrogateescape").split(",")
            return tuple(fold(name) for name in names if name)
    return ()
