"""The whole modules that damage is done to, with what is where in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kodojo.image.elf import EHDR, RELA, SHDR, SYM
from kodojo.image.image import Image
from tests.support import kbuild
from tests.support.elf_writer import ALLOC, EXEC, WRITE, ElfWriter, module_writer

__all__ = ["MARKER", "Base", "bases", "needed", "paper", "tree_bases"]

MARKER = b"~Module signature appended~\n"
TRAILER = 12  # struct module_signature
RET_ARM64 = bytes.fromhex("c0035fd6")
NEEDED = ("crc32c_generic", "x_tables", "nf_conntrack_broadcast", "llc", "watchdog")
"""Loaded beforehand, and what they need; some kernels have them built in."""

# Small modules of the tree, of many kinds, with the parameters that they have.
DISTRIBUTION = {
    "crc8": "", "cordic": "", "em_nbyte": "", "xt_mark": "", "xt_realm": "", "xt_statistic": "", "xt_limit": "",
    "nf_conntrack_snmp": "timeout=7", "nf_conntrack_netbios_ns": "timeout=1", "dummy": "numdummies=1",
    "mbcache": "", "softdog": "soft_margin=30 nowayout=1", "tcp_westwood": "", "psnap": "",
}  # fmt: skip
BUILT = {
    "kd_hello": "", "kd_export": "", "kd_noexit": "", "kd_positive": "", "kd_proprietary": "", "kd_unknown": "",
    "kd_percpu": "", "kd_trace": "", "kd_misc": "", "kd_noinit": "",
}  # fmt: skip


def needed(image: Image) -> list[str]:
    """Names of the modules to be loaded beforehand, in load order."""
    wanted = [name for name in NEEDED if name in image.modules]
    return list(dict.fromkeys(other for name in wanted for other in (*image.modules[name].depends, name)))


@dataclass(frozen=True)
class Section:
    """A section header, and where it is."""

    index: int
    name: str
    header: dict[str, int]

    @property
    def start(self) -> int:
        return self.header["sh_offset"]

    @property
    def size(self) -> int:
        return self.header["sh_size"]


@dataclass(frozen=True)
class Base:
    """A module that loads.

    :param data: without its signature; ``signed``: with it, if it has one.
    :param arguments: for loading it.
    """

    name: str
    data: bytes
    signed: bytes = b""
    arguments: str = ""
    extra: dict[str, int] = field(default_factory=dict)

    @cached_property
    def header(self) -> dict[str, int]:
        row = np.frombuffer(self.data, EHDR, 1)[0]
        return {name: int(row[name]) for name in EHDR.names if name != "e_ident"}

    @cached_property
    def sections(self) -> list[Section]:
        rows = np.frombuffer(self.data, SHDR, self.header["e_shnum"], self.header["e_shoff"])
        headers = [{name: int(row[name]) for name in SHDR.names} for row in rows]
        names = headers[self.header["e_shstrndx"]]["sh_offset"]
        found = []
        for index, header in enumerate(headers):
            start = names + header["sh_name"]
            found.append(Section(index, self.data[start : self.data.index(b"\0", start)].decode(), header))
        return found

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def of_type(self, kind: int) -> list[Section]:
        return [section for section in self.sections if section.header["sh_type"] == kind and section.size]

    @cached_property
    def relocations(self) -> list[Section]:
        """Of sections that are loaded."""
        flags = [section.header["sh_flags"] for section in self.sections]
        return [one for one in self.of_type(4) if flags[one.header["sh_info"]] & ALLOC]

    @cached_property
    def interesting(self) -> list[Section]:
        """Sections that matter to the loader."""
        return [one for one in self.sections if ".debug" not in one.name]

    def content(self, section: Section) -> bytes:
        return self.data[section.start : section.start + section.size]

    def table(self, section: Section, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(self.content(section), dtype, section.size // dtype.itemsize)

    @cached_property
    def symbols(self) -> np.ndarray:
        return self.table(self.of_type(2)[0], SYM)

    def rela(self, section: Section) -> np.ndarray:
        return self.table(section, RELA)


def without_signature(data: bytes) -> bytes:
    if not data.endswith(MARKER):
        return data
    end = len(data) - len(MARKER) - TRAILER
    return data[: end - int.from_bytes(data[end + 8 : end + 12], "big")]


def tree_bases(image: Image) -> list[Base]:
    """Those of the kernel's own tree."""
    found = []
    for name, arguments in DISTRIBUTION.items():
        file = image.modules.get(name) or image.modules.get(name.replace("_", "-"))
        if file is not None:
            data = file.read()
            found.append(Base(name, without_signature(data), data, arguments))
    return found


def bases(image: Image, series: str) -> list[Base]:
    """Always the same, in the same order."""
    found = tree_bases(image)
    built = kbuild.build(series)
    found += [Base(name, built[name].read_bytes(), b"", arguments) for name, arguments in BUILT.items()]
    found.append(Base("paper", paper(image)))
    return found


def paper(image: Image) -> bytes:
    """A module with sections for every kind of memory and symbols of every kind, by the ELF writer."""
    writer = module_writer(
        name="paper",
        struct_size=image.btf.struct("module").size,
        info={"vermagic": image.vermagic, "version": "1", "import_ns": "KD"},
        crcs={"module_layout": image.exports.get("module_layout").crc, "_printk": image.exports.get("_printk").crc},
    )
    arm64 = image.architecture == "aarch64"
    if arm64:
        _for_arm64(writer)
    writer.add(".init.data", b"abcd" * 4, ALLOC | WRITE, align=8)
    writer.add(".exit.text", writer.section(".text").data[:8], ALLOC | EXEC)
    writer.add(".data..ro_after_init", bytes(24), ALLOC | WRITE, align=32)
    writer.add(".empty", b"", ALLOC, align=256)
    writer.add(".data..percpu", bytes(16), ALLOC | WRITE, align=16)
    writer.add(".pointers", bytes(64), ALLOC | WRITE, align=8)
    writer.symbol("per_cpu", ".data..percpu")
    writer.symbol("absolute", 0xFFF1, 5)
    writer.symbol("comment", ".comment")
    writer.symbol("_printk")
    writer.symbol("weak", bind=2)
    kinds = (257, 261, 276, 260, 0, 264) if arm64 else (1, 2, 4, 24, 0, 11)
    names = ("_printk", "counter", "work", "per_cpu", "weak", "_printk")
    writer.relocations(
        ".pointers", [(8 * i, kind, name, i) for i, (kind, name) in enumerate(zip(kinds, names, strict=True))]
    )
    return writer.build()


def _for_arm64(writer: ElfWriter) -> None:
    """Other instructions, and the sections that the kernel's linker script for modules adds."""
    writer.header["e_machine"] = 183
    for name in (".text", ".init.text"):
        section = writer.section(name)
        section.data = RET_ARM64 * (len(section.data) // len(RET_ARM64))
    for name in (".plt", ".init.plt", ".text.ftrace_trampoline", ".init.text.ftrace_trampoline"):
        writer.add(name, b"\0", ALLOC | EXEC, align=8)
