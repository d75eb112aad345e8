"""A kernel image that is written down in a test: what a loader asks an image, answered from tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kodojo.errors import ImageError
from kodojo.image.exports import Export
from kodojo.image.image import FACTS
from kodojo.image.tree import ModuleTree

EARLY = frozenset(
    {
        b"Skipping invalid relocation target, existing value is nonzero",
    }
)
"""Texts of a kernel such as 6.1."""

LATE = frozenset(
    {
        b"Invalid relocation target, existing value is nonzero",
        b"Only one .modinfo section must exist.",
        b"Invalid ELF section name table type",
        b"execmem: unable to allocate memory",
    }
)
"""Texts of a kernel such as 6.12."""


class Table:
    """Exports or symbols of the paper kernel."""

    def __init__(self, exports: tuple[Export, ...]) -> None:
        self._exports = {export.name: export for export in exports}

    def get(self, name: str) -> Export | None:
        return self._exports.get(name)

    def find(self, name: str, gplok: bool = True) -> Export | None:
        export = self._exports.get(name)
        return export if export is not None and (gplok or not export.gpl) else None


class Kallsyms(dict):
    """Name -> address."""


class Config(dict):
    """Option without prefix -> value."""

    def enabled(self, option: str) -> bool:
        return self.get(option) in ("y", "m")


@dataclass
class Struct:
    """A structure: member -> offset."""

    size: int
    members: Mapping[str, int]

    def has(self, path: str) -> bool:
        return path in self.members

    def offset(self, path: str) -> int:
        return self.members[path]


class Btf(dict):
    """Name -> structure."""

    def has(self, name: str) -> bool:
        return name in self

    def struct(self, name: str) -> Struct:
        return self[name]


class NoMemory:
    """The segments of the paper kernel: there are none."""

    def read(self, address: int, size: int) -> bytes:
        raise ImageError(f"nothing at {address:#x} ({size} bytes)")


COMMON_MEMBERS = {
    "state": 0, "list": 8, "name": 24, "mkobj": 80, "syms": 208, "crcs": 216, "num_syms": 224, "kp": 264,
    "num_kp": 272, "num_gpl_syms": 276, "gpl_syms": 280, "gpl_crcs": 288, "using_gplonly_symbols": 296,
    "sig_ok": 297, "async_probe_requested": 298, "num_exentries": 300, "extable": 304, "init": 312,
}  # fmt: skip


def early_module() -> Struct:
    """``struct module`` with two regions, as in 6.1."""
    members = {
        **COMMON_MEMBERS,
        "core_layout": 320, "core_layout.base": 320, "init_layout": 400, "init_layout.base": 400,
        "arch": 480, "taints": 504, "args": 600, "percpu": 608, "exit": 848, "refcnt": 856,
    }  # fmt: skip
    return Struct(896, members)


def late_module() -> Struct:
    """``struct module`` with seven regions, as in 6.12."""
    members = {
        **COMMON_MEMBERS,
        "mem": 320, "arch": 824, "taints": 848, "args": 944, "percpu": 952, "exit": 1200, "refcnt": 1208,
        "dyndbg_info": 1224, "dyndbg_info.descs": 1224, "dyndbg_info.num_descs": 1240,
    }  # fmt: skip
    return Struct(1280, members)


@dataclass(eq=False)
class PaperImage:
    """Stands where a :class:`kodojo.image.image.Image` stands."""

    texts: frozenset[bytes]
    btf: Btf
    exports: Table
    kallsyms: Kallsyms = field(default_factory=Kallsyms)
    config: Config = field(default_factory=Config)
    release: str = "9.9-paper"
    vermagic: str = "9.9-paper SMP preempt mod_unload modversions "
    architecture: str = "x86_64"
    modules: ModuleTree = field(default_factory=lambda: ModuleTree(None))
    index_directory: None = None
    elf: NoMemory = field(default_factory=NoMemory)
    describes: frozenset[str] = FACTS - {"module exports"}
    unmade: tuple[str, ...] = ()

    def for_dry_load(self) -> PaperImage:
        return self

    def cannot_check(self, what: str) -> None:
        self.unmade = (*self.unmade, what)

    def has_text(self, text: bytes) -> bool:
        return any(text in own for own in self.texts)


OPTIONS = (
    "KALLSYMS", "KALLSYMS_ALL", "LIVEPATCH", "MODULE_FORCE_LOAD", "MODULE_FORCE_UNLOAD", "MODULE_UNLOAD",
    "MODVERSIONS", "SMP", "STRICT_MODULE_RWX",
)  # fmt: skip

PARAM_OPS = (
    "byte", "short", "ushort", "int", "uint", "hexint", "long", "ulong", "ullong", "bool", "bool_enable_only",
    "invbool", "bint", "charp", "string",
)  # fmt: skip


def paper_image(*exports: Export, late: bool, **options: str) -> PaperImage:
    """A kernel with these exports, and the standard parameter types.

    :param late: like 6.12, else like 6.1.
    """
    names = [*(f"param_ops_{kind}" for kind in PARAM_OPS), "param_array_ops", "module_layout"]
    standard = [Export(name, 0xFFFFFFFF82000000 + 64 * i, None, False, None) for i, name in enumerate(names)]
    config = Config(dict.fromkeys(OPTIONS, "y") | options)
    return PaperImage(
        texts=LATE if late else EARLY,
        btf=Btf(module=late_module() if late else early_module()),
        exports=Table((*standard, *exports)),
        kallsyms=Kallsyms({export.name: export.address for export in (*standard, *exports)}),
        config=config,
    )
