"""A kernel that is not there, only described: by a headers package, a build tree, or a ``Module.symvers``."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from kodojo.errors import ImageError, MissingInformationError, decode
from kodojo.image.architecture import architecture_named
from kodojo.image.described.files import COMPLETE
from kodojo.image.described.index import open_described
from kodojo.image.image import Image
from kodojo.image.tree import ModuleTree

if TYPE_CHECKING:
    from pathlib import Path

    from kodojo.image.arrays import Arrays
    from kodojo.image.config import Config
    from kodojo.image.described.files import DescriptionFiles
    from kodojo.image.elf import ElfFile
    from kodojo.image.exports import Exports
    from kodojo.image.index import Shelf
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.image.keyring import Certificate
    from kodojo.image.oids import OidRegistry

__all__ = ["DescribedImage"]


class DescribedImage(Image):
    """What headers tell about a kernel: enough for a verdict on symbols, CRCs, licence, namespaces, version magic.

    Whatever only the kernel itself could tell raises MissingInformationError.

    :param files: what there is; read when something is first asked for.
    """

    kind: ClassVar[str] = "headers"

    def __init__(self, files: DescriptionFiles, index_directory: Path | None = None) -> None:
        super().__init__(files.directory, files.modules, files.config, index_directory)
        self._files = files

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_files": self._files}

    def __repr__(self) -> str:
        known = self.__dict__.get("_index")
        return f"<DescribedImage {(known and decode(known.facts['release'])) or self.path}>"

    @cached_property
    def _index(self) -> Shelf:  # type: ignore[override]  # there is no vmlinux in it
        return open_described(self._files, self._index_directory)

    def _missing(self, what: str, hint: str = "") -> NoReturn:
        raise MissingInformationError(
            f"{self.path}: {what}",
            hint=hint or f"use the package with the kernel itself: linux-image-{self._text('release') or '...'}",
        )

    # What it is

    @cached_property
    def describes(self) -> frozenset[str]:
        facts = self._index.facts
        known = {name for name in ("release", "architecture", "vermagic", "config") if facts[name]}
        if self._files.types is not None:
            known.add("types")
        if facts["sources"]:
            known.add("messages")
        return frozenset(known | {"exports", "module exports"})

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._text("warnings").splitlines())

    @property
    def release(self) -> str:
        return self._text("release") or self._missing("nothing says which release this is", COMPLETE)

    @property
    def architecture(self) -> str:
        return self._text("architecture") or self._missing("nothing says which architecture this is", COMPLETE)

    @property
    def vermagic(self) -> str:
        return self._text("vermagic") or self._missing("the version magic cannot be told", COMPLETE)

    @property
    def banner(self) -> str:
        self._missing("only the kernel itself has its banner")

    @property
    def build_id(self) -> str:
        return ""

    @property
    def identity(self) -> str:
        """The SHA-256 of the description, in hex."""
        return self._text("source")

    @cached_property
    def config(self) -> Config:
        from kodojo.image.config import parse_config  # noqa: PLC0415

        return parse_config(self._text("config")) if self._index.facts["config"] else self._missing_config()

    def _missing_config(self) -> NoReturn:
        self._missing("the kernel's configuration is not there", "put its .config beside Module.symvers")

    @cached_property
    def modules(self) -> ModuleTree:
        return ModuleTree(self._files.modules)

    # What it exports

    @cached_property
    def exports(self) -> Exports:
        """What the kernel exports; the addresses are invented."""
        return self._table("exports")

    @cached_property
    def module_exports(self) -> Exports:
        return self._table("module_exports")

    def _table(self, name: str) -> Exports:
        from kodojo.image.exports import Exports  # noqa: PLC0415

        def make() -> Any:
            from kodojo.image.described.reading import make_export_tables  # noqa: PLC0415  (once for each description)

            return make_export_tables(self._files)[name].index_arrays()

        try:
            return Exports(self._placed(self._index.arrays(name, make)))
        except (ImageError, KeyError):
            self._index.forget(name)
            return Exports(self._placed(self._index.arrays(name, make)))

    def _placed(self, arrays: Arrays) -> Arrays:
        """The tables with addresses where this architecture has its kernel."""
        known = self._text("architecture") or "x86_64"
        return {**arrays, "addresses": arrays["addresses"] + np.uint64(architecture_named(known).text)}

    # What only some descriptions have

    def _btf_data(self) -> memoryview | bytes:
        if self._files.types is None:
            self._missing("no type information (BTF) is there")
        import mmap  # noqa: PLC0415

        from kodojo.image.elf import ElfFile  # noqa: PLC0415

        with self._files.types.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return ElfFile(data, str(self._files.types)).section_data(".BTF")

    def has_text(self, text: bytes) -> bool:
        """As :meth:`Image.has_text`, told by headers that came with the text, or by the kernel's sources.

        :raises MissingInformationError: nothing tells.
        """
        facts = self._index.facts
        for name, answer in (("present", True), ("absent", False)):
            if text in facts[name].split(b"\0"):
                return answer
        if not facts["sources"]:
            self._missing(f"whether the kernel can print {decode(text)!r} is not known")
        return text in facts["sources"]

    @cached_property
    def oids(self) -> OidRegistry:
        from kodojo.image.oids import OidRegistry, encode  # noqa: PLC0415

        listed = self._text("oids").split()
        return OidRegistry(map(encode, listed)) if listed else OidRegistry.default()

    def for_dry_load(self) -> Image:
        from kodojo.image.described.presumed import PresumedImage  # noqa: PLC0415

        return PresumedImage(self)

    # What none has

    @property
    def setup_header(self) -> bytes:
        self._missing(_ONLY_DESCRIBED)

    @property
    def elf(self) -> ElfFile:
        self._missing(_ONLY_DESCRIBED)

    @property
    def kallsyms(self) -> Kallsyms:
        self._missing(_ONLY_DESCRIBED)

    @property
    def keyring(self) -> tuple[Certificate, ...]:
        self._missing("the description has no trusted keys")


_ONLY_DESCRIBED = "the kernel is only described: modules can be checked against it, but there is nothing to boot"
