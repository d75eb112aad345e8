"""``struct kernel_symbol``, an entry of the export tables of a module; and where the kernel's own symbols are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kodojo.errors import DamageError, MissingInformationError
from kodojo.image.architecture import architecture_named
from kodojo.loader.module_memory import read_string, read_word, self_relative

if TYPE_CHECKING:
    from kodojo.image.elf import Format
    from kodojo.image.image import Image
    from kodojo.loader.target import Module

__all__ = ["KernelSymbols", "kernel_symbols", "known_address"]

VALUE, NAME, NAMESPACE = range(3)


@dataclass(frozen=True, slots=True)
class KernelSymbols:
    """The entries as a kernel has them: value, name, namespace.

    :param relative: each is the distance from itself in 32 bits (``CONFIG_HAVE_ARCH_PREL32_RELOCATIONS``), else an
        address.
    """

    format: Format
    relative: bool

    @property
    def size(self) -> int:
        """Of an entry in bytes."""
        return 3 * self._width

    @property
    def _width(self) -> int:
        return 4 if self.relative else self.format.word

    def address(self, mod: Module, entry: int, member: int = VALUE) -> int:
        """What a member points to. :param entry: the address of the entry."""
        place = entry + member * self._width
        if self.relative:
            return self_relative(mod, place, self.format)
        return read_word(mod, place, self.format)

    def name(self, mod: Module, entry: int) -> bytes:
        """The symbol's name."""
        return read_string(mod, self.address(mod, entry, NAME))

    def namespace(self, mod: Module, entry: int) -> bytes | None:
        """Its namespace, which may be empty; None where the entry points nowhere, or not into the module.

        A kernel does not look before somebody uses the symbol, so that does no harm by itself.
        """
        address = self.address(mod, entry, NAMESPACE)
        nothing = entry + NAMESPACE * self._width if self.relative else 0
        if address == nothing:
            return None
        with suppress(DamageError):
            return read_string(mod, address)
        return None


def known_address(image: Image, name: str) -> int | None:
    """Where a symbol of the kernel is: one that it exports is known even where kallsyms lists functions only."""
    address = image.kallsyms.get(name)
    if address is None:
        export = image.exports.get(name)
        address = None if export is None else export.address
    return address


@lru_cache(maxsize=16)
def kernel_symbols(image: Image) -> KernelSymbols:
    """The entries of a kernel's modules; addresses where nothing says otherwise."""
    architecture = architecture_named(image.architecture)
    relative = architecture.prel32
    if not relative:
        with suppress(MissingInformationError):
            relative = image.config.enabled("HAVE_ARCH_PREL32_RELOCATIONS")
    return KernelSymbols(architecture.format, relative)
