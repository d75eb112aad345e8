"""``struct module`` as a kernel has it: from the kernel's types, or what can be told without them.

Many kernels, of 32 bits above all, are built without BTF. Which members there are then follows from the
configuration, and the size from the modules of the kernel's own tree; where the members are stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from kodojo.errors import KodojoError, MissingInformationError
from kodojo.image.architecture import architecture_named
from kodojo.image.elf import ElfFile

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = ["Outline", "StructModule", "struct_module"]

OWN_STRUCTURE = ".gnu.linkonce.this_module"
COUNTS_SECTIONS = b"Only one .modinfo section must exist."
"""The message came in Linux 6.4, as the array ``mem`` did (ac3b43283923)."""

MEMBERS = {
    # member: the option without which it is not there
    "exit": "MODULE_UNLOAD",
    "percpu": "SMP",
    "klp": "LIVEPATCH",
    "sig_ok": "MODULE_SIG",
    "ctors": "CONSTRUCTORS",
    "tracepoints_ptrs": "TRACEPOINTS",
    "srcu_struct_ptrs": "TREE_SRCU",
    "bpf_raw_events": "BPF_EVENTS",
    "btf_data": "DEBUG_INFO_BTF_MODULES",
    "btf_base_data": "DEBUG_INFO_BTF_MODULES",
    "jump_entries": "JUMP_LABEL",
    "trace_bprintk_fmt_start": "TRACING",
    "trace_events": "EVENT_TRACING",
    "trace_evals": "EVENT_TRACING",
    "ftrace_callsites": "FTRACE_MCOUNT_RECORD",
    "ei_funcs": "FUNCTION_ERROR_INJECTION",
    "kprobes_text_start": "KPROBES",
    "kprobe_blacklist": "KPROBES",
    "printk_index_start": "PRINTK_INDEX",
    "static_call_sites": "HAVE_STATIC_CALL_INLINE",
    "kunit_suites": "KUNIT",
    "kunit_init_suites": "KUNIT",
    "dyndbg_info": "DYNAMIC_DEBUG_CORE",
}


class Member(NamedTuple):
    """Where a member is, in bytes."""

    offset: int
    size: int


class Placed(Protocol):
    """What is asked about a member whose place is known."""

    @property
    def offset(self) -> int: ...

    @property
    def size(self) -> int: ...


class StructModule(Protocol):
    """What the loader asks about ``struct module``; :class:`kodojo.image.btf.Struct` answers it all."""

    @property
    def size(self) -> int: ...

    def has(self, path: str, /) -> bool: ...

    def field(self, path: str, /) -> Placed: ...


@dataclass(frozen=True)
class Outline:
    """``struct module`` of a kernel that does not describe its types.

    :param size: in bytes; 0 if the kernel has no module from which it could be learned.
    :param known: the members whose places that module shows.
    :param absent: the members that the kernel's configuration leaves out.
    """

    size: int
    known: dict[str, Member]
    absent: frozenset[str]

    def has(self, path: str) -> bool:
        """Tell whether there is a member of that path."""
        return path.partition(".")[0].partition("[")[0] not in self.absent

    def field(self, path: str) -> Member:
        """Return where a member is; its size is 0 if nothing tells."""
        return self.known.get(path, Member(0, 0))


def struct_module(image: Image) -> StructModule:
    """``struct module`` of a kernel: from its types if it has them."""
    try:
        return image.btf.struct("module")
    except MissingInformationError:
        return _outline(image)


@lru_cache(maxsize=16)
def _outline(image: Image) -> Outline:
    absent = {member for member, option in MEMBERS.items() if not _enabled(image, option)}
    absent.add("data_layout")  # of 32-bit PowerPC only
    absent |= {"core_layout", "init_layout"} if image.has_text(COUNTS_SECTIONS) else {"mem", "dyndbg_info"}
    size, known = _example(image)
    return Outline(size, known, frozenset(absent))


def _enabled(image: Image, option: str) -> bool:
    """Whether an option is set; of a kernel that came without its configuration, anything may be."""
    try:
        return image.config.enabled(option)
    except MissingInformationError:
        return True


def _example(image: Image) -> tuple[int, dict[str, Member]]:
    """Size and places as a module of the kernel's own tree has them."""
    for module in image.modules.values():
        try:
            elf = ElfFile(module.read(), module.name)
            known = _functions(elf, image)
            if len(known) == 2:
                return elf.sections[OWN_STRUCTURE].size, known
        except (KodojoError, KeyError):
            continue
    return 0, {}


def _functions(elf: ElfFile, image: Image) -> dict[str, Member]:
    """Where ``init`` and ``exit`` are: a module has relocations for them and for nothing else."""
    elf_format = architecture_named(image.architecture).format
    rela = architecture_named(image.architecture).rela
    content = elf.section_data((".rela" if rela else ".rel") + OWN_STRUCTURE)
    entries = np.frombuffer(content, elf_format.rela if rela else elf_format.rel)
    places = zip(("init", "exit"), np.sort(entries["r_offset"]).tolist(), strict=False)
    return {member: Member(offset, elf_format.word) for member, offset in places}
