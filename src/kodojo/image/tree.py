"""The tree of modules that belongs to a kernel: ``lib/modules/RELEASE``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.elf import ElfFile
from kodojo.image.payload import SUFFIXES, Payload, read_module

__all__ = ["ModuleFile", "ModuleTree", "fold", "modname", "module_name"]


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


class ModuleTree(Mapping[str, ModuleFile]):
    """The modules by name, dashes and underscores being the same.

    :param root: ``lib/modules/RELEASE``; None for an image that came without one.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._dependencies: dict[str, tuple[str, ...]] = {}
        self._found: dict[str, ModuleFile] = {}

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

    def dependencies(self, name: str) -> tuple[str, ...]:
        """Return what must be loaded before a module, in load order, without what is built into the kernel."""
        name = fold(name)
        order: list[str] = []
        # Depth first, dependencies before dependents, without recursion.
        stack: list[tuple[str, Iterator[str]]] = [(name, iter(self._direct(name)))]
        seen = {name}
        while stack:
            current, rest = stack[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                stack.pop()
                order.append(current)
            else:
                seen.add(following)
                stack.append((following, iter(self._direct(following))))
        return tuple(other for other in order[:-1] if other in self)

    def _direct(self, name: str) -> tuple[str, ...]:
        """Return what modules.dep or, where there is none, the module itself says."""
        if name not in self._dependencies:
            file = self._find(name)
            if file is None:
                if name in self.builtin:
                    return ()
                raise MissingInformationError(
                    f"{self.root}: there is no module {name!r}",
                    hint="get the package that has the kernel's other modules",
                )
            if name in self._modules_dep:
                words = reversed(self._modules_dep[name][1].split())
                self._dependencies[name] = tuple(n for word in words if (n := module_name(word)) is not None)
            else:
                self._dependencies[name] = _depends_field(file)
        return self._dependencies[name]

    @cached_property
    def _modules_dep(self) -> dict[str, tuple[str, str]]:
        """The lines of modules.dep by name: path, and dependencies (the one to load first stands last)."""
        found = {}
        for line in self._lines("modules.dep") or []:
            path, colon, rest = line.partition(":")
            name = module_name(path)
            if colon and name is not None:
                found[name] = path, rest
        return found

    @cached_property
    def _modules_order(self) -> dict[str, str]:
        """The paths in modules.order by name; the files may be compressed, which it does not say."""
        found: dict[str, str] = {}
        for line in self._lines("modules.order") or []:
            if line.endswith(".ko"):
                found.setdefault(fold(line.rpartition("/")[2][:-3]), line)
        return found

    def _find(self, name: str) -> ModuleFile | None:
        """Look a module up, without a walk over the whole tree where a list tells its place."""
        if self.root is None:
            return None
        if name not in self._found and not self._overridden and "_files" not in self.__dict__:
            listed, _ = self._modules_dep.get(name, ("", ""))
            guesses = [listed] if listed else []
            if name in self._modules_order:
                guesses += [self._modules_order[name][:-3] + suffix for suffix in SUFFIXES]
            place = next((self.root / guess for guess in guesses if (self.root / guess).is_file()), None)
            if place is not None:
                self._found[name] = ModuleFile(name, place, self)
        return self._found.get(name) or self._files.get(name)

    @cached_property
    def _overridden(self) -> bool:
        """Whether there is a directory whose modules come before those of the same name elsewhere."""
        return self.root is not None and (self.root / "updates").is_dir()

    @cached_property
    def _files(self) -> dict[str, ModuleFile]:
        if self.root is None:
            return {}
        found: dict[str, ModuleFile] = {}
        for directory, directories, files in os.walk(self.root):
            directories[:] = sorted(d for d in directories if d not in ("build", "source"))
            for base in sorted(files):
                name = module_name(base)
                if name is not None and (name not in found or _preferred(directory, self.root)):
                    found[name] = ModuleFile(name, Path(directory, base), self)
        return found

    def _lines(self, name: str) -> list[str] | None:
        if self.root is None:
            return None
        try:
            return (self.root / name).read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            return None


def _preferred(directory: str, root: Path) -> bool:
    """What is below ``updates`` comes before the rest, as depmod has it by default."""
    return Path(directory).relative_to(root).parts[:1] == ("updates",)


def _depends_field(file: ModuleFile) -> tuple[str, ...]:
    elf = ElfFile(file.read(), str(file.path))
    if ".modinfo" not in elf.sections:
        raise ImageError(f"{file.path}: not a kernel module: no section .modinfo")
    for entry in bytes(elf.section_data(".modinfo")).split(b"\0"):
        if entry.startswith(b"depends="):
            names = entry[8:].decode("utf-8", "surrogateescape").split(",")
            return tuple(fold(name) for name in names if name)
    return ()
