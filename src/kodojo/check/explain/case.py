"""What an explanation can draw on: the module, the kernel, and the kernel that the module was built for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from kodojo.errors import KodojoError, decode
from kodojo.image.tree import fold
from kodojo.kmod.elf_parts import NotElfError, modinfo_section, modinfo_strings
from kodojo.kmod.index import ModuleIndex
from kodojo.kmod.siblings import Siblings, modules_beside

if TYPE_CHECKING:
    from pathlib import Path

    from kodojo.image.image import Image

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A module that is to be explained to somebody.

    :param image: the kernel that it was tried on.
    :param content: the module, decompressed.
    :param built_for: the kernel that it was built for, if that is at hand; what changed since can be told then.
    :param file: where it lies, if it is a file that somebody named; what it needs may lie beside it.
    """

    image: Image
    content: bytes
    built_for: Image | None = None
    file: Path | None = None

    @cached_property
    def modinfo(self) -> list[tuple[str, str]]:
        """The entries of ``.modinfo``, in order; none if the file is too damaged for that."""
        try:
            section = modinfo_section(self.content)
        except NotElfError:
            section = None
        pairs = (decode(entry).partition("=") for entry in modinfo_strings(section or b""))
        return [(name, value) for name, equals, value in pairs if equals]

    def values(self, tag: str) -> list[str]:
        """All values of a tag of ``.modinfo``."""
        return [value for name, value in self.modinfo if name == tag]

    @property
    def depends(self) -> set[str]:
        """The modules that it says it needs."""
        return {name for value in self.values("depends") for name in value.split(",") if name}

    @property
    def release(self) -> str:
        """The kernel that it was built for, by its version magic; empty if it does not say."""
        return next(iter(self.values("vermagic")), "").partition(" ")[0]

    def providers(self, symbol: str) -> list[str]:
        """The modules of the kernel's tree that export a symbol, or else those beside the file."""
        found = exporters(self.image, symbol)
        return found or ([] if self._siblings is None else self._siblings.by_symbol(f"symbol:{symbol}"))

    def beside(self, name: str) -> Path | None:
        """The file of a module that lies beside this one; None if there is none."""
        return None if self._siblings is None else self._siblings.files.get(name)

    @cached_property
    def _siblings(self) -> Siblings | None:
        if self.file is None:
            return None
        try:
            return Siblings(ModuleIndex.of(self.image), modules_beside(self.file)[1:])
        except KodojoError:  # it is no module by its name, or the directory cannot be read
            return None


def exporters(image: Image, symbol: str) -> list[str]:
    """The modules of a kernel's tree that export a symbol; none if the tree cannot be read.

    Where there is no tree, what Module.symvers lists.
    """
    try:
        found = ModuleIndex.of(image).by_symbol(f"symbol:{symbol}")
        if found or "module exports" not in image.describes:
            return found
        export = image.module_exports.find(symbol, gplok=True)
    except KodojoError:
        return []
    return [fold(export.owner.rpartition("/")[2])] if export is not None else []
