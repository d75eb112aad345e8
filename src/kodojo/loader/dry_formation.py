"""What a kernel's subsystems have against a file when a module comes: told from the image, without running them.

sysfs knows the names of what is there already; static calls and trace events look at the module's tables. What they
print, a dry load prints too, but for backtraces: those show who called.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.module_memory import find_place, read_bytes
from kodojo.loader.parameters import kernel_param_layout
from kodojo.loader.refusal import would_damage
from kodojo.loader.target import Errno, KernelErrno, Memory, ModuleState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.parameters import KernelParam
    from kodojo.loader.target import Module, Target

__all__ = ["builtin_kobjects", "mod_sysfs_setup", "static_call_add_module", "trace_module_add_events"]

SHF_ALLOC = 2
NAME_SIZE = 128
PERMISSIONS = 0o10664  # SYSFS_PREALLOC | 0664
CUT_HERE = "------------[ cut here ]------------"
# Taints with which a module may have trace events: out of tree, staging, unsigned, test; later livepatch, too.
HARMLESS, TAINT_LIVEPATCH = (1 << 12) | (1 << 10) | (1 << 13) | (1 << 18), 1 << 15


# -- sysfs --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def builtin_kobjects(image: Image) -> frozenset[str]:
    """Names in /sys/module that belong to the kernel: of what is built in and has parameters or a version.

    Built-in drivers add their names when they find their bus; those are not seen here.
    Source: ``kernel/params.c: param_sysfs_builtin, version_sysfs_builtin``.
    """
    names: set[str] = set()
    if "kernel" not in image.describes:
        return frozenset()
    elf_format = architecture_named(image.architecture).format
    layout = kernel_param_layout(elf_format)
    start, stop = image.kallsyms.get("__start___param"), image.kallsyms.get("__stop___param")
    if start is not None and stop is not None:
        for name, _mod, _ops, perm, *_rest in layout.iter_unpack(image.elf.read(start, stop - start)):
            if perm:
                module, dot, _ = _string(image, name).partition(".")
                names.add(module if dot else "kernel")
    start, stop = image.kallsyms.get("__start___modver"), image.kallsyms.get("__stop___modver")
    known = "types" in image.describes and image.btf.has("module_version_attribute")
    if start is not None and stop is not None and known:
        version = image.btf.struct("module_version_attribute")
        for entry in range(start, stop, version.size):
            pointer = image.elf.read(entry + version.offset("module_name"), elf_format.word)
            names.add(_string(image, int.from_bytes(pointer, elf_format.byteorder)))
    return frozenset(names)


def _string(image: Image, address: int) -> str:
    return decode(image.elf.read(address, NAME_SIZE).partition(b"\0")[0])


def mod_sysfs_setup(target: Target, mod: Module, info: LoadInfo, params: Iterable[KernelParam]) -> None:
    """Make the module's directory; KernelErrno where the kernel cannot (``kernel/module/sysfs.c``)."""
    if mod.name in builtin_kobjects(target.image):
        target.printk(3, f"{mod.name}: module is already loaded")
        raise KernelErrno(Errno.EINVAL)
    if not mod.name:
        target.printk(
            4, f"{CUT_HERE}\nkobject: ({target.hashed_pointer(0)}): attempted to be registered with empty name!"
        )
        raise KernelErrno(Errno.EINVAL)
    directory = f"/module/{mod.name.replace('/', '!')}"
    _module_param_sysfs_setup(target, directory, params)
    if not _create_files(target, f"{directory}/sections", _loaded_sections(info)) and _sections_must_be(target.image):
        raise KernelErrno(Errno.EEXIST)


def _module_param_sysfs_setup(target: Target, directory: str, params: Iterable[KernelParam]) -> None:
    seen: set[str] = set()
    for param in params:
        if not param.perm:
            continue
        name = decode(param.name)
        if param.perm & ~PERMISSIONS:
            target.printk(4, f"{CUT_HERE}\nAttribute {name}: Invalid permissions 0{param.perm:o}")
        if not _create_files(target, f"{directory}/parameters", [name], seen):
            raise KernelErrno(Errno.EEXIST)


def _loaded_sections(info: LoadInfo) -> list[str]:
    """Names of sections that are loaded and not empty (``sect_empty``)."""
    loaded = (info.sechdrs["sh_flags"] & np.uint64(SHF_ALLOC) != 0) & (info.sechdrs["sh_size"] != 0)
    return [decode(info.section_name(int(index))) for index in np.flatnonzero(loaded)]


def _create_files(target: Target, directory: str, names: Iterable[str], seen: set[str] | None = None) -> bool:
    """False at the first name that is there already, which ``sysfs_warn_dup`` prints."""
    seen = set() if seen is None else seen
    for name in names:
        if name in seen:
            target.printk(4, f"sysfs: cannot create duplicate filename '{directory}/{name}'")
            target.dump_stack()
            return False
        seen.add(name)
    return True


def _sections_must_be(image: Image) -> bool:
    """Whether a module without its directory ``sections`` is refused.

    Both came at about the same time: errors that are returned, and a function of sysfs in place of this one.
    """
    return "symbols" in image.describes and image.kallsyms.get("module_notes_read") is None


# -- notifiers ----------------------------------------------------------------------------------------


def static_call_add_module(target: Target, mod: Module, info: LoadInfo, start: int, count: int) -> None:
    """Static calls may name keys, or trampolines of the kernel that it has a key for.

    Source: ``kernel/static_call_inline.c: static_call_add_module``.
    """
    if "kernel" not in target.image.describes or not target.image.config.enabled("HAVE_STATIC_CALL_INLINE"):
        return
    for site in range(start, start + 8 * count, 8):
        code, key = struct.unpack("<ii", read_bytes(mod, site, 8))
        address = site + 4 + key & ~3
        if not _is_kernel_text(target, address) or address in _trampolines(target.image):
            continue
        _check_undoing(target, mod, address)
        where = _symbol_name(mod, info, site + code)
        target.printk(4, f"Failed to fixup __raw_static_call() usage at: {where}")
        target.printk(4, "Failed to allocate memory for static calls")
        raise KernelErrno(Errno.EINVAL)


def _check_undoing(target: Target, mod: Module, address: int) -> None:
    """``static_call_del_module`` takes code for a key, and what lies 8 bytes behind its start for a pointer."""
    place = find_place(mod, address + 8, 8)
    word = place.region.data[place.offset :][:8] if place is not None else target.image.elf.read(address + 8, 8)
    pointer = int.from_bytes(word, "little")
    if pointer and not pointer & 1:
        raise would_damage(mod.name, f"a static call's key is said to be at {address:#x}, where code is")


def _is_kernel_text(target: Target, address: int) -> bool:
    """``kernel_text_address`` after the boot, of the kernel and its modules."""
    kallsyms = target.image.kallsyms
    if kallsyms.address("_stext") <= address < kallsyms.address("_etext"):
        return True
    for mod in target.modules():
        place = find_place(mod, address, 1) if mod.state != ModuleState.UNFORMED else None
        if place is not None:
            region, offset = place
            if region.kind in (Memory.TEXT, Memory.INIT_TEXT) or offset < region.text_size:
                return True
    return False


@lru_cache(maxsize=4)
def _trampolines(image: Image) -> frozenset[int]:
    """The trampolines of static calls whose keys are not exported (``tramp_key_lookup``)."""
    start = image.kallsyms.address("__start_static_call_tramp_key")
    content = image.elf.read(start, image.kallsyms.address("__stop_static_call_tramp_key") - start)
    pairs = enumerate(struct.iter_unpack("<ii", content))
    return frozenset(start + 8 * number + trampoline for number, (trampoline, _key) in pairs)


def _symbol_name(mod: Module, info: LoadInfo, address: int) -> str:
    """What ``%ps`` prints for an address in a module (``find_kallsyms_symbol``)."""
    values = info.symbols["st_value"].astype(np.uint64)
    usable = (info.symbols["st_shndx"] != 0) & (values <= np.uint64(address))
    for index in np.flatnonzero(usable)[np.argsort(-values[usable].astype(np.float64), kind="stable")]:
        name = info.symbol_name(int(index))
        if name and find_place(mod, int(values[index]), 1):
            return f"{decode(name)} [{mod.name}]"
    return f"{address:#x}"


def trace_module_add_events(target: Target, mod: Module, count: int) -> None:
    """Modules with bad taints get no trace events (``kernel/trace/trace_events.c: trace_module_add_events``)."""
    if not count or "kernel" not in target.image.describes:
        return
    address = target.image.kallsyms.get("trace_module_has_bad_taint")
    if address is None:
        return
    livepatch_too = ~(HARMLESS | TAINT_LIVEPATCH) & 0xFFFFFFFF
    code = target.image.elf.read(address, 64)
    harmless = HARMLESS | (TAINT_LIVEPATCH if livepatch_too.to_bytes(4, "little") in code else 0)
    if mod.taints & ~harmless:
        target.printk(3, f"{mod.name}: module has bad taint, not creating trace events")
