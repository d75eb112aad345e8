"""What modprobe asks about modules, whoever knows the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

__all__ = ["KnownModules"]


class KnownModules(Protocol):
    """The modules of a kernel's tree, or those and files beside it; dashes and underscores in names are the same.

    Both have it: :class:`kodojo.kmod.index.ModuleIndex`, :class:`kodojo.kmod.siblings.Siblings`.
    """

    @property
    def root(self) -> Path | None:
        """The kernel's module tree, None if there is none."""

    def __contains__(self, name: object) -> bool: ...

    def path(self, name: str) -> Path | None:
        """The file of a module, None if there is no such module."""

    def dependencies(self, name: str) -> tuple[str, ...]:
        """What must be loaded before a module, in load order."""

    def by_symbol(self, alias: str) -> list[str]:
        """The module that exports the symbol in ``symbol:NAME``."""

    def by_alias(self, alias: str) -> list[str]:
        """The modules one of whose aliases matches, in the order in which modprobe loads them."""

    def by_builtin_alias(self, alias: str) -> list[str]:
        """The built-in modules that have this name or a matching alias."""

    def is_builtin(self, name: str) -> bool:
        """Whether a module is built into the kernel."""

    @property
    def softdeps(self) -> list[tuple[str, str]]:
        """The ``softdep`` entries in the modules: name, and text as in modprobe.d."""
