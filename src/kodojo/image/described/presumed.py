"""A described kernel as a dry load asks it: what the description leaves open is presumed, and account is kept.

A fact that has two answers gets the one that is usual, and is noted: whoever wants to know whether it matters loads
once more with the other answer. What has more than two (the size of a structure, a key) is not used by any check;
the check says that it was not made.
"""

# ruff: noqa: ARG002  (what has no place is asked by its path)

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, cast

from kodojo.errors import MissingInformationError, decode
from kodojo.image.btf import Field
from kodojo.image.config import Config
from kodojo.image.described.image import DescribedImage

if TYPE_CHECKING:
    from kodojo.image.btf import Btf, Struct
    from kodojo.image.image import Image
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["PresumedImage"]

SECTIONS_COUNTED = b"Only one .modinfo section must exist."
"""A message that came in the release in which ``struct module`` got its array ``mem``."""

_USUAL_OPTIONS = frozenset(
    {"SMP", "MODULE_UNLOAD", "KALLSYMS", "KALLSYMS_ALL", "STRICT_MODULE_RWX", "MODULE_SIG", "LIVEPATCH",
     "FORTIFY_SOURCE"}
)  # fmt: skip
_MEMORY_TYPES = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")
_MOD_KALLSYMS_SIZE = 32
_SHARED = ("exports", "module_exports", "config", "btf", "describes")


class PresumedImage(DescribedImage):
    """A description with answers to everything that a dry load asks.

    :param image: what is known.
    :param contrary: facts (keys of :attr:`asked`) to answer the other way.
    """

    def __init__(self, image: DescribedImage, contrary: Iterable[str] = ()) -> None:
        super().__init__(image._files, image._index_directory)
        for name in _SHARED:
            with suppress(MissingInformationError):
                getattr(image, name)
        self.__dict__.update(image.__dict__)
        self._contrary = frozenset(contrary)
        self._known = image
        self.asked: dict[str, bool] = {}
        """Facts with two answers that were asked for and are not known, in plain words: what was presumed."""
        self._unmade: dict[str, None] = {}

    def otherwise(self, fact: str) -> PresumedImage:
        """The same with the other answer to one fact."""
        return PresumedImage(self._known, {fact})

    @property
    def unmade(self) -> tuple[str, ...]:
        """The checks that could not be made, and why, in the order in which they were due."""
        return tuple(self._unmade)

    def cannot_check(self, what: str) -> None:
        self._unmade[what] = None

    def presume(self, fact: str, *, usual: bool) -> bool:
        """The answer to a fact that is not known."""
        answer = self.asked[fact] = usual != (fact in self._contrary)
        return answer

    def for_dry_load(self) -> Image:
        return self

    @property
    def architecture(self) -> str:
        if "architecture" in self.describes:
            return super().architecture
        self.cannot_check("architecture: the description does not say for which one it is; taken for x86_64")
        return "x86_64"

    def has_text(self, text: bytes) -> bool:
        try:
            return super().has_text(text)
        except MissingInformationError:  # most kernels in use are newer than the message
            return self.presume(f"whether this kernel has the message {decode(text)!r}", usual=True)

    @cached_property
    def config(self) -> Config:
        return _PresumedConfig(self)

    @cached_property
    def btf(self) -> Btf:
        return cast("Btf", _PresumedTypes(self))

    @cached_property
    def kallsyms(self) -> Kallsyms:
        return cast("Kallsyms", _ExportedSymbols(self))


class _PresumedConfig(Config):
    """A configuration of which only CONFIG_MODVERSIONS can be told: there are checksums, or there are none."""

    def __init__(self, image: PresumedImage) -> None:
        super().__init__({})
        self._image = image

    def enabled(self, name: str) -> bool:
        option = name.removeprefix("CONFIG_")
        if option == "MODVERSIONS":
            return self._image.exports.has_crcs()
        return self._image.presume(f"whether CONFIG_{option} is set", usual=option in _USUAL_OPTIONS)


class _PresumedTypes:
    """What the loader asks of the kernel's types, and can be answered without knowing them."""

    def __init__(self, image: PresumedImage) -> None:
        self._image = image

    def has(self, name: str) -> bool:
        return name in ("module", "mod_kallsyms")

    def struct(self, name: str) -> Struct:
        if not self.has(name):
            raise MissingInformationError(f"{self._image.path}: no type information (BTF) is there")
        return cast("Struct", _PresumedStruct(name, self._image))

    def enumerators(self, enum_name: str) -> dict[str, int]:
        if enum_name != "mod_mem_type":
            raise MissingInformationError(f"{self._image.path}: no type information (BTF) is there")
        return {f"MOD_{name}": number for number, name in enumerate(_MEMORY_TYPES)}


class _PresumedStruct:
    """A structure whose members have no place: reading one gives nothing, and writing one changes nothing."""

    def __init__(self, name: str, image: PresumedImage) -> None:
        self._name = name
        self._image = image

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not known and matters."""
        if self._name == "mod_kallsyms":
            return _MOD_KALLSYMS_SIZE
        self._image.cannot_check("struct module's size: the description has no type information")
        return 0

    def has(self, path: str) -> bool:
        member = path.partition(".")[0].partition("[")[0]
        if member in ("mem", "core_layout", "init_layout"):
            return self._image.has_text(SECTIONS_COUNTED) == (member == "mem")
        return member != "data_layout"  # of 32-bit powerpc only

    def field(self, path: str) -> Field:
        return Field(0, 0, 0, 0, "")

    def offset(self, path: str) -> int:
        return 0


class _ExportedSymbols:
    """The kernel's symbols as far as they are exported."""

    def __init__(self, image: PresumedImage) -> None:
        self._image = image

    def get(self, name: str) -> int | None:
        export = self._image.exports.get(name)
        return export.address if export is not None else None
