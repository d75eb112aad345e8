"""Modules that a description knows by their exports only: they stand in for the files that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.image.architecture import architecture_named
from kodojo.image.tree import fold
from kodojo.loader.kernel_symbol import ExportTable
from kodojo.loader.target import Module, ModuleState, Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kodojo.image.exports import Export
    from kodojo.image.image import Image

__all__ = ["DescribedModules"]


class DescribedModules:
    """The dependencies of a module that are taken as loaded, as far as ``Module.symvers`` lists their exports.

    :param image: of a kernel, or what describes one: then ``active``.
    """

    def __init__(self, image: Image) -> None:
        self.active = "module exports" in image.describes and "kernel" not in image.describes
        self._image = image
        # Of whatever is exported by nobody knows whom: in reach of relocations, like the kernel itself.
        self._somewhere = architecture_named(image.architecture).text
        self._any = False
        self._unlisted: list[Module] = []
        self._owners: dict[str, str] | None = None

    def stand_ins(self, names: list[str]) -> Iterator[tuple[Module, tuple[ExportTable, ExportTable]]]:
        """Modules that count as loaded, and the two export tables of each.

        :param names: folded.
        """
        self._image.cannot_check(
            f"dependencies: {', '.join(names)}: not checked, for the description has no module files; taken as loaded"
        )
        self._any = True
        for name in names:
            mod = Module(name=name, state=ModuleState.LIVE)
            owner = self._owner_named(name)
            exports = self._image.module_exports.of_owner(owner) if owner is not None else []
            if owner is None:
                self._unlisted.append(mod)
            symbols = [_symbol(export, mod) for export in exports]
            yield (
                mod,
                (
                    ExportTable(each for each in symbols if not each.gpl),
                    ExportTable(each for each in symbols if each.gpl),
                ),
            )

    @property
    def unlisted(self) -> tuple[str, ...]:
        """The dependencies that the description does not know: no modules of that kernel."""
        return tuple(mod.name for mod in self._unlisted)

    def presume(self, name: str, *, gplok: bool) -> Symbol | None:
        """A symbol that nothing exports which is known to be loaded, but that may be there all the same."""
        if name == "module_layout":
            self._image.cannot_check("the checksum of struct module: Module.symvers does not list module_layout")
            return Symbol(name, self._somewhere, None, gpl=False, namespace=None, owner=None)
        if not self._any:  # the module depends on nothing: what is loaded is known
            return None
        export = self._image.module_exports.find(name, gplok=gplok)
        if export is not None:
            path = export.owner
            self._image.cannot_check(
                f"{name}: belongs to {path}, which the module does not name among those that it depends on;"
                " whether one of them loads it is not known"
            )
            return _symbol(export, Module(name=_name(path), state=ModuleState.LIVE))
        if self._unlisted:
            owner = self._unlisted[0]
            self._image.cannot_check(
                f"{name}: not listed; it may belong to {owner.name}, whose exports are not known"
            )
            return Symbol(name, self._somewhere, None, gpl=False, namespace=None, owner=owner)
        return None

    def _owner_named(self, name: str) -> str | None:
        if self._owners is None:
            self._owners = {_name(path): path for path in self._image.module_exports.owners()}
        return self._owners.get(name)


def _name(path: str) -> str:
    return fold(path.rpartition("/")[2])


def _symbol(export: Export, owner: Module) -> Symbol:
    return Symbol(export.name, export.address, export.crc, export.gpl, export.namespace, owner)
