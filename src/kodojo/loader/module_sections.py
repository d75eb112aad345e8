"""The optional tables of a module, entered into its ``struct module``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError
from kodojo.image.architecture import architecture_named
from kodojo.loader.kernel_symbol import kernel_symbols
from kodojo.loader.refusal import refuse
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = ["TABLES", "Table", "find_module_sections"]

SHF_ALLOC = 2


@dataclass(frozen=True, slots=True)
class Table:
    """A section that the kernel looks for.

    :param size: of one object in bytes, without its pointers (these structures are the same in all supported
        kernels); ``words``: how many pointers and longs it has besides.
    :param align: of an object in bytes; 0: as its pointers are.
    :param start: the member of ``struct module`` for its address.
    :param count: the member for the number of objects; empty if there is none.
    :param loaded: must the section be loaded (SHF_ALLOC) to be found?
    """

    section: bytes
    size: int
    start: str
    count: str
    loaded: bool = True
    words: int = 0
    align: int = 0

    def object_size(self, word: int) -> int:
        """``sizeof`` of one object. :param word: ``sizeof(long)``."""
        if not self.words:
            return self.size
        align = self.align or word
        return -(-(self.size + self.words * word) // align) * align


EXPORTS = (b"__ksymtab", b"__ksymtab_gpl")
POINTERS = b"__tracepoints_ptrs"
EXCEPTIONS = b"__ex_table"
"""Tables whose objects differ more than in the size of pointers; their sizes here are those of x86-64."""
CALLSITES, PATCHABLE_ENTRIES = b"__mcount_loc", b"__patchable_function_entries"
PATCHABLE = frozenset({"aarch64", "riscv64"})

TABLES = (
    Table(b"__param", 4, "kp", "num_kp", words=4),
    Table(b"__ksymtab", 12, "syms", "num_syms"),
    Table(b"__kcrctab", 4, "crcs", ""),
    Table(b"__ksymtab_gpl", 12, "gpl_syms", "num_gpl_syms"),
    Table(b"__kcrctab_gpl", 4, "gpl_crcs", ""),
    Table(b".ctors", 0, "ctors", "num_ctors", words=1),
    Table(b".noinstr.text", 1, "noinstr_text_start", "noinstr_text_size"),
    Table(POINTERS, 4, "tracepoints_ptrs", "num_tracepoints"),
    Table(b"___srcu_struct_ptrs", 0, "srcu_struct_ptrs", "num_srcu_structs", words=1),
    Table(b"__bpf_raw_tp_map", 32, "bpf_raw_events", "num_bpf_raw_events"),
    Table(b".BTF", 1, "btf_data", "btf_data_size", loaded=False),
    Table(b".BTF.base", 1, "btf_base_data", "btf_base_data_size", loaded=False),
    Table(b"__jump_table", 8, "jump_entries", "num_jump_entries", words=1),
    Table(b"_ftrace_events", 0, "trace_events", "num_trace_events", words=1),
    Table(b"_ftrace_eval_map", 0, "trace_evals", "num_trace_evals", words=1),
    Table(b"__trace_printk_fmt", 0, "trace_bprintk_fmt_start", "num_trace_bprintk_fmt", words=1),
    Table(CALLSITES, 0, "ftrace_callsites", "num_ftrace_callsites", words=1),
    Table(b"_error_injection_whitelist", 0, "ei_funcs", "num_ei_funcs", words=2),
    Table(b".kprobes.text", 1, "kprobes_text_start", "kprobes_text_size"),
    Table(b"_kprobe_blacklist", 0, "kprobe_blacklist", "num_kprobe_blacklist", words=1),
    Table(b".printk_index", 0, "printk_index_start", "printk_index_size", words=1),
    Table(b".static_call_sites", 8, "static_call_sites", "num_static_call_sites"),
    Table(b".kunit_test_suites", 0, "kunit_suites", "num_kunit_suites", words=1),
    Table(b".kunit_init_test_suites", 0, "kunit_init_suites", "num_kunit_init_suites", words=1),
    Table(EXCEPTIONS, 12, "extable", "num_exentries"),
    Table(b"__dyndbg", 4, "dyndbg_info.descs", "dyndbg_info.num_descs", words=6, align=8),
)
"""In the kernel's order. A kernel built without one of the subsystems has no such member."""


def find_module_sections(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Enter every optional table into ``struct module``; the facts are the tables with objects.

    Source: ``kernel/module/main.c: find_module_sections``.
    """
    module = struct_module(target.image)
    facts: dict[str, int | str] = {}
    for table in _tables(target):
        if not module.has(table.start):
            continue
        if table.section == b".ctors":
            table = _constructors(target, mod, info, table)  # noqa: PLW2901
        address, count = info.section_objs(table.section, table.size)
        if not table.loaded:
            address, count = _any_section_objs(info, table)
        target.set_field(mod, table.start, address)
        if table.count:
            target.set_field(mod, table.count, count)
        if count:
            facts[table.section.decode()] = count
    if info.section_objs(b"__obsparm", 1)[0]:
        target.printk(4, f"{mod.name}: Ignoring obsolete parameters")
    return facts


def _tables(target: Target) -> tuple[Table, ...]:
    return _tables_of(target.image)


@lru_cache(maxsize=16)
def _tables_of(image: Image) -> tuple[Table, ...]:
    """The tables with the sizes that objects have on the kernel's architecture."""
    architecture, exports = architecture_named(image.architecture), kernel_symbols(image)
    sizes = dict.fromkeys(EXPORTS, exports.size)
    sizes[POINTERS] = exports.size // 3
    sizes[EXCEPTIONS] = architecture.exception_entry
    names = {CALLSITES: PATCHABLE_ENTRIES} if _has_patchable_entries(image) else {}
    tables = [
        replace(
            table,
            section=names.get(table.section, table.section),
            size=sizes.get(table.section) or table.object_size(architecture.format.word),
            words=0,
        )
        for table in TABLES
    ]
    with suppress(MissingInformationError):
        if image.btf.has("ddebug_class_map"):
            size = image.btf.struct("ddebug_class_map").size
            tables.append(Table(b"__dyndbg_classes", size, "dyndbg_info.classes", "dyndbg_info.num_classes"))
    return tuple(tables)


def _has_patchable_entries(image: Image) -> bool:
    """Whether the compiler lists the calls of ftrace (``-fpatchable-function-entry``), which changes the name."""
    return image.architecture in PATCHABLE and image.has_text(PATCHABLE_ENTRIES)


def _constructors(target: Target, mod: Module, info: LoadInfo, table: Table) -> Table:
    """``.ctors``, or else ``.init_array``: there is no compiler that makes both."""
    if not info.section_objs(b".ctors", info.format.word)[0]:
        return replace(table, section=b".init_array")
    if info.find_sec(b".init_array"):
        target.printk(4, f"{mod.name}: has both .ctors and .init_array.")
        raise refuse(
            mod.name,
            Errno.EINVAL,
            "two-constructor-tables",
            "it has constructors in .ctors and in .init_array",
            "Build all parts of the module with the same compiler and linker.",
        )
    return table


def _any_section_objs(info: LoadInfo, table: Table) -> tuple[int, int]:
    index = info.find_any_sec(table.section)
    section = info.sechdrs[index]
    return int(section["sh_addr"]), int(section["sh_size"]) // table.size
