"""Variables of an arm64 kernel whose symbol table lists functions only (no ``CONFIG_KALLSYMS_ALL``).

Exported ones are in the export tables. The others are read off the kernel's own code and tables: the address that a
certain function hands to another one, that it loads from, or that a table of parameters or sysctls names. Nothing is
guessed: what is not found so, is not there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kodojo.image.arrays import Arrays
    from kodojo.image.btf import Btf
    from kodojo.image.elf import ElfFile
    from kodojo.image.exports import Exports
    from kodojo.image.kallsyms import Kallsyms

__all__ = ["Call", "Load", "events", "find_variables", "index_arrays", "variables_in"]

_MASK = (1 << 64) - 1
_CALLER_SAVED = 19  # x0 to x18
_LARGEST_FUNCTION = 1 << 14
_DELETE_MODULE = "__arm64_sys_delete_module"

# Variable -> (function, function that it calls, number of the argument that is the variable's address)
_ARGUMENTS = {
    "module_mutex": (_DELETE_MODULE, "mutex_lock_interruptible", 0),
    "module_notify_list": ("register_module_notifier", "blocking_notifier_chain_register", 0),
    "module_wq": ("do_init_module", "__wake_up", 0),
    "init_free_list": ("do_init_module", "llist_add_batch", 2),
    "init_free_wq": ("do_init_module", "queue_work_on", 2),
    "last_unloaded_module": (_DELETE_MODULE, "strscpy", 0),
    "system_certificate_list": ("load_system_certificate_list", "x509_load_certificate_list", 0),
    "revocation_certificate_list": ("load_revocation_certificate_list", "x509_load_certificate_list", 0),
}
# Likewise, but the argument is the variable's value.
_VALUES = {
    "saved_command_line": ("cmdline_proc_show", "seq_puts", 1),
    "system_certificate_list_size": ("load_system_certificate_list", "x509_load_certificate_list", 1),
    "revocation_certificate_list_size": ("load_revocation_certificate_list", "x509_load_certificate_list", 1),
    "blacklist_hashes": ("blacklist_init", "key_create_or_update", 2),  # its first element
}
# Variable -> the function whose first load is from it, and (type, member) that this is of it
_LOADS = {
    "usermodehelper_bset": ("call_usermodehelper_exec_async", None),
    "taint_flags": ("module_flags_taint", ("taint_flag", "module")),
    "usermodehelper_disabled": ("call_usermodehelper_exec", None),
    "tainted_mask": ("get_taint", None),
    "ima_policy_flag": ("ima_file_free", None),
    "mod_tree": ("__module_address", ("mod_tree_root", "addr_min")),
}
# Variable -> name in a ctl_table, whose second member is the variable's address (include/linux/sysctl.h)
_SYSCTLS = {"modprobe_path": b"modprobe", "modules_disabled": b"modules_disabled"}
# Variable -> name of a struct kernel_param, whose argument is the variable's address (include/linux/moduleparam.h)
_PARAMETERS = {"module_blacklist": b"module_blacklist", "async_probe": b"module.async_probe"}
_R_AARCH64_RELATIVE = struct.pack("<Q", 0x403)
_SYSCTL_DATA, _PARAMETER_MODULE, _PARAMETER_ARGUMENT = 8, 8, 32


@dataclass(frozen=True, slots=True)
class Load:
    """A load from a known address; of a register: what it holds."""

    address: int


Value = int | Load | None


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function, with what is known of the first eight arguments."""

    target: int
    arguments: tuple[Value, ...]


def find_variables(elf: ElfFile, kallsyms: Kallsyms, exports: Exports, btf: Btf) -> dict[str, int]:
    """The addresses of variables by name."""
    found = {export.name: export.address for export in exports if kallsyms.get(export.name) is None}
    for name, (function, callee, number) in _ARGUMENTS.items():
        for value in _arguments(elf, kallsyms, function, callee, number):
            if isinstance(value, int):
                found.setdefault(name, value)
    for name, (function, callee, number) in _VALUES.items():
        for value in _arguments(elf, kallsyms, function, callee, number):
            if isinstance(value, Load):
                found.setdefault(name, value.address)
    for name, (function, member) in _LOADS.items():
        loads = [event for event in _events(elf, kallsyms, function) if isinstance(event, Load)]
        if loads:
            found[name] = loads[0].address - (btf.struct(member[0]).offset(member[1]) if member else 0)
    _find_modules(elf, kallsyms, found)
    _find_prb(elf, kallsyms, found)
    _find_in_tables(elf, found)
    return found


def index_arrays(variables: Mapping[str, int]) -> Arrays:
    """The variables as arrays, to be saved and given to :func:`variables_in`."""
    names = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in variables)
    return {
        "names": np.frombuffer(names, np.uint8),
        "addresses": np.fromiter(variables.values(), "<u8", len(variables)),
    }


def variables_in(arrays: Arrays) -> dict[str, int]:
    """The inverse of :func:`index_arrays`."""
    names = decode(arrays["names"].tobytes()).split("\0")
    return dict(zip(names, arrays["addresses"].tolist(), strict=False))


def _find_modules(elf: ElfFile, kallsyms: Kallsyms, found: dict[str, int]) -> None:
    """``kernel/module/procfs.c: m_start``, which locks ``module_mutex`` and begins at ``modules``."""
    mutex, lock, start = found.get("module_mutex"), kallsyms.get("mutex_lock"), kallsyms.get("seq_list_start")
    for address in kallsyms.get_all("m_start"):
        calls = [event for event in _events_at(elf, kallsyms, address) if isinstance(event, Call)]
        locks = any(call.target == lock and call.arguments[0] == mutex for call in calls)
        heads = [call.arguments[0] for call in calls if call.target == start]
        if locks and heads and isinstance(heads[0], int):
            found["modules"] = heads[0]


def _find_prb(elf: ElfFile, kallsyms: Kallsyms, found: dict[str, int]) -> None:
    """``kernel/printk/printk.c: log_buf_vmcoreinfo_setup``, which tells crash tools of it by name."""
    append = kallsyms.get("vmcoreinfo_append_str")
    for event in _events(elf, kallsyms, "log_buf_vmcoreinfo_setup"):
        if isinstance(event, Call) and event.target == append:
            name, value = event.arguments[1:3]
            if isinstance(name, int) and isinstance(value, int) and elf.string(name) == b"prb":
                found["prb"] = value


def _find_in_tables(elf: ElfFile, found: dict[str, int]) -> None:
    for variable, name in _SYSCTLS.items():
        for place in _references(elf, name):
            _enter(elf, found, variable, place + _SYSCTL_DATA)
    for variable, name in _PARAMETERS.items():
        for place in _references(elf, name):
            if not _word(elf, place + _PARAMETER_MODULE):
                _enter(elf, found, variable, place + _PARAMETER_ARGUMENT)


def _enter(elf: ElfFile, found: dict[str, int], variable: str, place: int) -> None:
    """A table's pointer, if it is one: some have a number there."""
    value = _word(elf, place)
    if value >> 63:
        found.setdefault(variable, value)


def _references(elf: ElfFile, text: bytes) -> Iterator[int]:
    """Where pointers to a string are."""
    segment = elf.segments[0]
    data = bytes(elf.segment_data(segment))
    at = data.find(b"\0" + text + b"\0")
    while at >= 0:
        pointer = struct.pack("<Q", segment.vaddr + at + 1)
        where = data.find(pointer)
        while where >= 0:
            # A relocation names the string, too.
            if where % 8 == 0 and data[where - 8 : where] != _R_AARCH64_RELATIVE:
                yield segment.vaddr + where
            where = data.find(pointer, where + 1)
        at = data.find(b"\0" + text + b"\0", at + 1)


def _word(elf: ElfFile, address: int) -> int:
    return int.from_bytes(elf.read(address, 8), "little")


def _arguments(elf: ElfFile, kallsyms: Kallsyms, function: str, callee: str, number: int) -> Iterator[Value]:
    target = kallsyms.get(callee)
    for event in _events(elf, kallsyms, function):
        if isinstance(event, Call) and event.target == target:
            yield event.arguments[number]


def _events(elf: ElfFile, kallsyms: Kallsyms, function: str) -> Iterator[Call | Load]:
    address = kallsyms.get(function)
    return iter(()) if address is None else _events_at(elf, kallsyms, address)


def _events_at(elf: ElfFile, kallsyms: Kallsyms, address: int) -> Iterator[Call | Load]:
    located = kallsyms.symbol_at(address)
    size = min(located.size if located else 0, _LARGEST_FUNCTION)
    return events(elf.read(address, size), address)


def events(code: bytes, address: int) -> Iterator[Call | Load]:
    """Go through the instructions from first to last and tell calls, jumps out of the function, and loads.

    Only addresses that the code makes itself (ADRP, ADD) are followed, through moves of registers. What stands behind
    an unconditional jump or a return begins with the registers of the first jump there.
    """
    registers: list[Value] = [None] * 32
    at_target: dict[int, list[Value]] = {}
    reached = True
    for index, (word,) in enumerate(struct.iter_unpack("<I", code[: len(code) // 4 * 4])):
        here = address + 4 * index
        if not reached:
            registers = at_target.get(here, registers)
        reached = True
        distance = _jump(word)
        if distance is not None:
            target = here + distance & _MASK
            if word >> 26 == 0x25 or not address <= target < address + len(code):
                yield Call(target, tuple(registers[:8]))
            else:
                at_target.setdefault(target, registers.copy())
            if word >> 26 == 0x25:  # BL
                registers[:_CALLER_SAVED] = [None] * _CALLER_SAVED
            reached = word >> 26 != 0x05  # B
        elif word & 0xFFFF_FC1F == 0xD65F_0000:  # RET
            reached = False
        else:
            value = _computed(word, here, registers)
            if isinstance(value, Load):
                yield value
            if not _is_store(word):
                registers[word & 31] = value


def _jump(word: int) -> int | None:
    """How far B, BL, B.cond, CBZ, CBNZ, TBZ or TBNZ jumps, None for what is none of them."""
    if word >> 26 in (0x25, 0x05):
        return 4 * _signed(word, 26)
    if word >> 24 == 0x54 or word & 0x7E00_0000 == 0x3400_0000:
        return 4 * _signed(word >> 5, 19)
    return 4 * _signed(word >> 5, 14) if word & 0x7E00_0000 == 0x3600_0000 else None


def _computed(word: int, here: int, registers: list[Value]) -> Value:
    """What an instruction leaves in the register that its lowest bits name, if it is known."""
    base = registers[word >> 5 & 31]
    if word & 0x9F00_0000 == 0x9000_0000:  # ADRP
        pages = _signed(word >> 5, 19) << 2 | word >> 29 & 3
        return (here & ~0xFFF) + (pages << 12) & _MASK
    if word & 0xFFE0_FFE0 == 0xAA00_03E0:  # MOV
        return registers[word >> 16 & 31]
    if isinstance(base, int):
        if word & 0xFFC0_0000 == 0x9100_0000:  # ADD, immediate
            return base + (word >> 10 & 0xFFF) & _MASK
        offset = _loaded_from(word)
        return None if offset is None else Load(base + offset & _MASK)
    return None


def _loaded_from(word: int) -> int | None:
    """The offset of LDR (immediate, unsigned) and LDP; None for what is no load."""
    if word & 0x3BC0_0000 == 0x3940_0000:
        return (word >> 10 & 0xFFF) << (word >> 30)
    if word & 0xFFC0_0000 == 0xA940_0000:
        return 8 * _signed(word >> 15 & 0x7F, 7)
    return None


def _is_store(word: int) -> bool:
    """STR and STP: their lowest bits name a register that stays as it is."""
    return word & 0x3BC0_0000 == 0x3900_0000 or word & 0x3A40_0000 == 0x2800_0000


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
