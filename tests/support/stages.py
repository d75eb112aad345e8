"""The stages of the loader on a paper kernel: the kernels, and the way from a file to a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kodojo.errors import decode
from kodojo.image.exports import Export
from kodojo.loader.dry import DryTarget
from kodojo.loader.elf_checks import elf_validity_check
from kodojo.loader.layout import layout_and_allocate
from kodojo.loader.load_info import LoadInfo, rewrite_section_headers, setup_load_info
from kodojo.loader.target import Module
from tests.support.elf_writer import ElfWriter
from tests.support.paper import Btf, Struct, paper_image

ADDRESS = 0xFFFFC90000123000

EARLY, MIDDLE, LATE = "6.1", "6.12.111", "6.12.117"
"""The kernels whose ELF checks differ."""

STRUCT_SIZE = {EARLY: 896, MIDDLE: 1280, LATE: 1280}

LAYOUT = {"base": (0, 8), "size": (8, 4), "text_size": (12, 4), "ro_size": (16, 4), "ro_after_init_size": (20, 4)}
TYPES = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")


class Field(NamedTuple):
    """A member: its offset and size in bytes."""

    offset: int
    size: int


@dataclass
class FullStruct(Struct):
    """A structure of which the sizes of members are known as well."""

    sizes: Mapping[str, int]

    def field(self, path: str) -> Field:
        return Field(self.members[path], self.sizes[path])


class FullBtf(Btf):
    """Structures, and the one enumeration that the layout asks for."""

    def enumerators(self, name: str) -> dict[str, int]:
        assert name == "mod_mem_type"
        return {f"MOD_{kind}": number for number, kind in enumerate(TYPES)}


def struct_module_type(kernel: str) -> FullStruct:
    """``struct module`` of one of the kernels."""
    plain = {"name": (24, 56), "sig_ok": (297, 1), "klp": (299, 1)}
    if kernel == EARLY:
        plain |= {"taints": (504, 8), "core_layout": (320, 80), "init_layout": (400, 80)}
        for start, layout in ((320, "core_layout"), (400, "init_layout")):
            plain |= {f"{layout}.{name}": (start + at, size) for name, (at, size) in LAYOUT.items()}
    else:
        plain |= {"taints": (848, 8), "mem": (320, 504)}
        for number in range(7):
            plain[f"mem[{number}].base"] = (320 + 72 * number, 8)
            plain[f"mem[{number}].size"] = (328 + 72 * number, 4)
    offsets = {path: at for path, (at, _size) in plain.items()}
    return FullStruct(STRUCT_SIZE[kernel], offsets, {path: size for path, (_at, size) in plain.items()})


def paper_target(kernel: str = EARLY, *exports: Export, blacklist: str = "", **options: str) -> DryTarget:
    """A kernel that exists on paper; ``options`` as in its configuration (``LIVEPATCH="n"``)."""
    image = paper_image(*exports, late=kernel != EARLY, **({"MODULE_SIG": "y"} | options))
    image.btf = FullBtf(module=struct_module_type(kernel), mod_kallsyms=Struct(32, {}))
    image.texts |= {b"%s: loading test module taints kernel."}
    if kernel == MIDDLE:
        image.texts -= {b"Invalid ELF section name table type"}
    return DryTarget(image, module_blacklist=blacklist)


def lines(target: DryTarget) -> list[tuple[int, str]]:
    """What the kernel has printed: level and text."""
    return [(record.level, record.text) for record in target.log]


def checked(target: DryTarget, file: ElfWriter | bytes, *, flags: int = 0, sig_ok: bool = True) -> LoadInfo:
    """Let a file pass the ELF checks."""
    data = file if isinstance(file, bytes) else file.build()
    info = LoadInfo(data, address=ADDRESS, flags=flags, sig_ok=sig_ok)
    elf_validity_check(target, info)
    setup_load_info(target, info)
    return info


def rewritten(
    target: DryTarget, file: ElfWriter | bytes, *, flags: int = 0, sig_ok: bool = True
) -> tuple[Module, LoadInfo]:
    """The same, and everything up to the section headers; the module as it is known then."""
    info = checked(target, file, flags=flags, sig_ok=sig_ok)
    rewrite_section_headers(info)
    return Module(decode(info.module_name)), info


def laid_out(target: DryTarget, file: ElfWriter | bytes, *, flags: int = 0) -> tuple[Module, LoadInfo]:
    """The same, and the layout."""
    mod, info = rewritten(target, file, flags=flags)
    layout_and_allocate(target, mod, info)
    return mod, info
