"""Whole loads on a paper kernel: a target that notes what it is asked to do, and modules with everything in them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kodojo.image.exports import Export
from kodojo.loader.dry import DryTarget
from kodojo.loader.steps import Steps
from kodojo.loader.syscalls import sys_init_module
from kodojo.loader.target import KernelErrno, Module
from tests.support.elf_writer import ALLOC, ElfWriter, module_writer
from tests.support.paper import Btf, Struct, early_module, late_module, paper_image

R_64, R_PC32 = 1, 2
SIZES = {"name": 56, "size": 4, "text_size": 4, "ro_size": 4, "ro_after_init_size": 4, "klp": 1}
TYPES = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")


class Field(NamedTuple):
    offset: int
    size: int


@dataclass
class SizedStruct(Struct):
    """A structure whose members have the sizes that they have in struct module."""

    def field(self, path: str) -> Field:
        return Field(self.members[path], SIZES.get(path.rpartition(".")[2], 8))


class LoadBtf(Btf):
    def enumerators(self, name: str) -> dict[str, int]:
        return {f"MOD_{kind}": number for number, kind in enumerate(TYPES)}


def struct_module(*, late: bool) -> SizedStruct:
    """``struct module`` with all members that the loader writes to."""
    plain = late_module() if late else early_module()
    members = {**plain.members, "klp": 299}
    if late:
        for number in range(7):
            members |= {f"mem[{number}].base": 320 + 72 * number, f"mem[{number}].size": 328 + 72 * number}
    else:
        offsets = {"base": 0, "size": 8, "text_size": 12, "ro_size": 16, "ro_after_init_size": 20}
        for start, layout in ((320, "core_layout"), (400, "init_layout")):
            members |= {f"{layout}.{name}": start + at for name, at in offsets.items()}
    return SizedStruct(plain.size, members)


UNDOING = {
    "vfree", "kfree", "module_memfree", "percpu_modfree", "unlink_module", "wake_module_wq", "module_unload_free",
    "set_string", "module_arch_cleanup", "ftrace_release_mod", "dynamic_debug_remove", "synchronize_rcu",
    "module_bug_cleanup", "set_state", "destroy_params", "notify", "klp_module_going", "mod_sysfs_teardown",
    "free_module_elf", "module_put", "record_unload", "call_exit", "wait_for_async", "after_init",
}  # fmt: skip


class SpyTarget(DryTarget):
    """A paper kernel that notes the calls that undo something, and that can be told to fail.

    :param init: what init returns; None: nothing is run, as in any dry load.
    :param fail: method -> errno that it answers (or the exception that it raises).
    """

    def __init__(self, *exports: Export, late: bool = False, init: int | None = None, **options: Any) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, int | BaseException] = options.pop("fail", {})
        capabilities = options.pop("capabilities", None)
        image = paper_image(*exports, late=late, **options)
        image.btf = LoadBtf(module=struct_module(late=late), mod_kallsyms=Struct(32, {}))
        super().__init__(image, capabilities=capabilities)
        self.runs_code = init is not None
        self.init = init or 0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name not in UNDOING | super().__getattribute__("fail").keys():
            return value

        def noted(*args: Any, **kwargs: Any) -> Any:
            if name in UNDOING:
                extra = args[1].name if name in ("set_state", "notify") else ""
                self.calls.append(f"{name} {extra}".rstrip())
            answer = self.fail.get(name)
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                raise KernelErrno(answer)
            return value(*args, **kwargs)

        noted.__name__ = name
        return noted

    def do_mod_ctors(self, mod: Module) -> None:
        self.calls.append("constructors")

    def do_one_initcall(self, mod: Module) -> int:
        self.calls.append("init")
        return self.init

    @property
    def lines(self) -> list[tuple[int, str]]:
        return [(record.level, record.text) for record in self.log]


def load(target: DryTarget, file: ElfWriter | bytes, args: bytes = b"", steps: Steps | None = None) -> Module:
    """Load a file by init_module."""
    data = file if isinstance(file, bytes) else file.build()
    return sys_init_module(target, target.user_copy(data), len(data), target.user_copy(args + b"\0"), steps)


def loadable(*, late: bool = False, name: str = "paper", has_exit: bool = True, **options: Any) -> ElfWriter:
    """A module with an init and an exit function. Symbols may still be added, then :func:`finish` it."""
    writer = module_writer(name=name, struct_size=1280 if late else 896, **options)
    writer.this_module = [(312, R_64, "init_module", 0)]
    if has_exit:
        writer.symbol("cleanup_module", ".text", 8, type=2, size=8)
        writer.this_module.append((1200 if late else 848, R_64, "cleanup_module", 0))
    return writer


def finish(writer: ElfWriter) -> ElfWriter:
    """Write the relocations of struct module; call it after the last symbol was added."""
    writer.relocations(".gnu.linkonce.this_module", writer.this_module)
    return writer


def module(*, late: bool = False, **options: Any) -> ElfWriter:
    return finish(loadable(late=late, **options))


def export(writer: ElfWriter, name: str, *, gpl: bool = False, crc: int | None = 0x1234, namespace: str = "") -> None:
    """Let a module export its function ``work`` under a name."""
    suffix = "_gpl" if gpl else ""
    texts = f"{name}\0{namespace}\0".encode()
    writer.add(f"__ksymtab_strings_{name}", texts, ALLOC)
    writer.symbol(f"__kstrtab_{name}", f"__ksymtab_strings_{name}")
    writer.symbol(f"__kstrtabns_{name}", f"__ksymtab_strings_{name}", len(name) + 1)
    writer.add(f"__ksymtab{suffix}", bytes(12), ALLOC, align=4)
    if crc is not None:
        writer.add(f"__kcrctab{suffix}", crc.to_bytes(4, "little"), ALLOC, align=4)
    fields = [(0, R_PC32, "work", 0), (4, R_PC32, f"__kstrtab_{name}", 0), (8, R_PC32, f"__kstrtabns_{name}", 0)]
    writer.relocations(f"__ksymtab{suffix}", fields)


def parameters(writer: ElfWriter, params: Mapping[str, tuple[str, int]], *, flags: int = 0) -> None:
    """Give a module parameters: name -> (the type's ops, such as ``int``; offset of the variable in ``.data``).

    The variables of ``.data`` are all zero then. Arrays of int (``array``) have two elements and a counter.
    """
    writer.section(".data").data = bytes(256)
    names = "".join(f"{name}\0" for name in params).encode()
    writer.add(".rodata.params", names, ALLOC)
    writer.symbol("params_names", ".rodata.params")
    writer.symbol("params_data", ".data")
    for kind in {kind for kind, _offset in params.values()} | {"int"}:
        writer.symbol("param_array_ops" if kind == "array" else f"param_ops_{kind}")
    table, entries, special, special_entries, at = bytearray(), [], bytearray(), [], 0
    writer.add(".rodata.special", bytes(32 * len(params)), ALLOC, align=8)
    writer.symbol("params_special", ".rodata.special")
    for name, (kind, offset) in params.items():
        start = len(table)
        table += struct.pack("<QQQHbB4xQ", 0, 0, 0, 0o644, -1, flags, 0)
        ops = "param_array_ops" if kind == "array" else f"param_ops_{kind}"
        entries += [(start, R_64, "params_names", at), (start + 16, R_64, ops, 0)]
        at += len(name) + 1
        if kind in ("array", "string"):
            entries.append((start + 32, R_64, "params_special", len(special)))
            pointers = (8, 16, 24) if kind == "array" else (8,)
            wanted = (("params_data", offset + 64), ("param_ops_int", 0), ("params_data", offset))
            places = wanted if kind == "array" else wanted[2:]
            special_entries += [
                (len(special) + pointer, R_64, symbol, addend)
                for pointer, (symbol, addend) in zip(pointers, places, strict=True)
            ]
            special += struct.pack("<II24x", 2, 4) if kind == "array" else struct.pack("<I28x", 8)
        else:
            entries.append((start + 32, R_64, "params_data", offset))
    writer.section(".rodata.special").data = bytes(special) or b"\0"
    writer.add("__param", bytes(table), ALLOC, align=8)
    writer.relocations("__param", entries)
    if special_entries:
        writer.relocations(".rodata.special", special_entries)
