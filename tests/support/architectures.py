"""Modules of every architecture, and kernels of them on paper: what a relocation makes of a place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from kodojo.errors import LoadError, MissingInformationError
from kodojo.image.architecture import architecture_named
from kodojo.image.image import FACTS
from kodojo.loader.dry import DryTarget
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.load_module import load_module
from tests.support.elf_writer import ALLOC, EXEC, WRITE, ElfWriter, modinfo
from tests.support.paper import Config, Kallsyms, PaperImage, Table

ABSOLUTE = 0xFFF1

OPTIONS = {
    "aarch64": ("ARM64_MODULE_PLTS", "RANDOMIZE_BASE"),
    "armv7l": ("ARM_MODULE_PLTS", "ARM_HAS_GROUP_RELOCS"),
    "riscv64": ("MODULE_SECTIONS",),
    "ppc64le": ("PPC64_ELF_ABI_V2",),
}
EMPTY_SECTIONS = {
    # What the kernel's linker script for modules adds.
    "aarch64": (".plt", ".init.plt", ".text.ftrace_trampoline"),
    "armv7l": (".plt", ".init.plt"),
    "riscv64": (".plt", ".got", ".got.plt"),
    "ppc64le": (".stubs", ".toc"),
}


class NoTypes:
    """A kernel that was built without type information."""

    def struct(self, name: str) -> NoReturn:
        raise MissingInformationError(f"no types, and no struct {name}")

    def has(self, name: str) -> NoReturn:
        raise MissingInformationError(f"no types, and no {name}")

    enumerators = struct


def kernel(architecture: str, *texts: bytes, symbols: dict[str, int] | None = None, **options: str) -> DryTarget:
    """A kernel on paper. :param symbols: what kallsyms has. :param options: of its configuration."""
    enabled = ("KALLSYMS", "MODULE_UNLOAD", "SMP", "STRICT_MODULE_RWX", *OPTIONS.get(architecture, ()))
    image = PaperImage(
        texts=frozenset(texts),
        btf=NoTypes(),
        exports=Table(()),
        kallsyms=Kallsyms(symbols or {}),
        config=Config(dict.fromkeys(enabled, "y") | options),
        architecture=architecture,
        describes=FACTS - {"module exports", "types"},
    )
    return DryTarget(image)


def module(architecture: str, code: bytes, *, data: bytes = bytes(64), without: tuple[str, ...] = ()) -> ElfWriter:
    """A module with code in ``.text``, and data. Symbols ``text`` and ``data`` are where they begin.

    :param without: sections to leave out.
    """
    known = architecture_named(architecture)
    writer = ElfWriter(known.format)
    writer.header["e_machine"] = known.machines[0]
    if architecture == "armv7l":
        writer.header["e_flags"] = 5 << 24
    word = known.format.word
    writer.add(".text", code, ALLOC | EXEC, align=16)
    writer.add(".data", data, ALLOC | WRITE, align=16)
    info = {"name": "paper", "license": "GPL", "intree": "Y", "vermagic": PaperImage.vermagic}
    writer.add(".modinfo", modinfo(**info), ALLOC)
    struct = bytes(3 * word) + b"paper".ljust(known.module_name_len, b"\0") + bytes(256)
    writer.add(".gnu.linkonce.this_module", struct, ALLOC | WRITE, align=64)
    for name in EMPTY_SECTIONS.get(architecture, ()):
        if name not in without:
            writer.add(name, b"\0", ALLOC | (0 if name in (".got", ".toc") else EXEC), align=8)
    writer.symbol("text", ".text")
    writer.symbol("data", ".data")
    return writer


@dataclass
class Loaded:
    """A module in memory."""

    info: LoadInfo

    def address(self, section: str) -> int:
        """Where a section is."""
        return int(self.info.sechdrs["sh_addr"][self._index(section)])

    def size(self, section: str) -> int:
        """How large it is there."""
        return int(self.info.sechdrs["sh_size"][self._index(section)])

    def content(self, section: str) -> bytes:
        """What is there."""
        region, offset = self.info.placement[self._index(section)]
        return bytes(region.data[offset : offset + self.size(section)])

    def word(self, section: str, offset: int = 0, size: int = 4) -> int:
        """An unsigned number there, in the byte order of the architecture."""
        return int.from_bytes(self.content(section)[offset : offset + size], self.info.format.byteorder)

    def _index(self, section: str) -> int:
        return self.info.section_names().index(section.encode())


@dataclass
class Damaged:
    """A file as it is, where a writer is wanted."""

    content: bytes

    def build(self) -> bytes:
        return self.content


def load(target: DryTarget, writer: ElfWriter | Damaged) -> Loaded:
    """Load it. LoadError where the kernel refuses it."""
    data = writer.build()
    info = LoadInfo(data, target.vmalloc(len(data)))
    load_module(target, info, target.user_copy(b"\0"), 0)
    return Loaded(info)


def code_of(architecture: str, *words: int, size: int = 4) -> bytes:
    """Instructions as they are in memory."""
    order = architecture_named(architecture).format.byteorder
    return b"".join(word.to_bytes(size, order) for word in words)


def relocated(
    target: DryTarget, code: bytes, kind: int, value: int, addend: int = 0, *, offset: int = 0, relative: bool = False
) -> Loaded:
    """Load a module with one relocation of its code, for a symbol of this value.

    :param relative: the value counts from the beginning of the code.
    """
    architecture = target.image.architecture
    writer = module(architecture, code)
    if relative:
        writer.symbol("target", ".text", value)
    else:
        writer.symbol("target", ABSOLUTE, value)
    writer.relocations(".text", [(offset, kind, "target", addend)], rela=architecture_named(architecture).rela)
    return load(target, writer)


def refusal(target: DryTarget, *arguments: int | bytes, **options: int | bool) -> tuple[int, str, str]:
    """Errno, reason and last line of the refusal of :func:`relocated`; fails if there is none."""
    try:
        relocated(target, *arguments, **options)  # type: ignore[arg-type]
    except LoadError as error:
        return error.errno, error.slug, target.log[-1].text
    raise AssertionError("it was not refused")
