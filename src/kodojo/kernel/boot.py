"""Bring a kernel from its image to the instant before its first user-space instruction.

The machine is entered as the x86 64-bit boot protocol says (Documentation/arch/x86/boot.rst), with an
initramfs whose ``/init`` is a program of two bytes. The boot is over when PID 1 has executed it and is
about to leave for user space: it is then a user process in kernel mode, with credentials, a user
address space and an empty kernel stack of its own, and may sleep. From there every system call works.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kodojo.errors import FaultReport, ImageError, InputError, MachineFault
from kodojo.image.image import Image
from kodojo.kernel.calls import Calls
from kodojo.machine.cpu import RunLimit
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.x86_64 import X86_64

__all__ = [
    "BASE_COMMAND_LINE",
    "DEFAULT_MEMORY",
    "RestingPlace",
    "command_line",
    "load",
    "make_initramfs",
    "run_to_user_space",
    "trap_time_stamp_reads",
]

DEFAULT_MEMORY = 256 << 20

# A bare machine: nothing that needs a device that is not there, nothing random, no mitigations that
# only slow an emulated processor down. ``lpj`` saves the calibration of the delay loop.
BASE_COMMAND_LINE = (
    "quiet nokaslr mitigations=off nopti nosmap nosmep acpi=off noapic nolapic nosmp notsc "
    "lpj=250000 pci=off no_timer_check panic=-1 randomize_kstack_offset=off"
)

_PAGE_TABLES = 0x70000
_GDT = 0x6F000
_BOOT_PARAMS = 0x90000
_COMMAND_LINE = 0x20000
_COMMAND_LINE_LIMIT = 2048
_LOW_MEMORY_END = 0x9FC00
_HIGH_MEMORY = 0x100000
_SETUP_HEADER = 0x1F1
_E820_RAM = 1
_SHF_EXECINSTR = 4
_TIME_STAMP_READ = re.compile(rb"\x0f\x31|\x0f\x01\xf9")
_BOOT_LIMIT = RunLimit(ticks=250 * 600)
_PROGRESS_STEPS = 100


def command_line(extra: str = "") -> str:
    """The kernel's whole command line: the base, then what the user adds."""
    return f"{BASE_COMMAND_LINE} {extra}".strip()


def load(cpu: X86_64, image: Image, cmdline: str) -> None:
    """Put the kernel, its boot parameters and the initramfs into memory and point the CPU at them."""
    ram = cpu.ram
    kernel_end = _load_segments(ram, image)
    initramfs = make_initramfs()
    where = (ram.base + ram.size - len(initramfs)) & ~(PAGE_SIZE - 1)
    if where < kernel_end:
        raise InputError(
            f"{ram.size >> 20} MiB of memory are too small for {image.release}",
            hint="give the machine more memory (--memory)",
        )
    ram.write(where, initramfs)
    text = cmdline.encode() + b"\0"
    if len(text) > _COMMAND_LINE_LIMIT:
        raise InputError(f"the kernel's command line is longer than {_COMMAND_LINE_LIMIT - 1} bytes")
    ram.write(_COMMAND_LINE, text)
    ram.write(_BOOT_PARAMS, _boot_params(image.setup_header, ram.size, where, len(initramfs)))
    _write_identity_map(ram)
    gdt = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
    ram.write(_GDT, gdt)
    cpu.trap_time_stamp_reads(time_stamp_sites(image))
    cpu.reset_for_boot(image.entry, _PAGE_TABLES, _GDT, len(gdt), _BOOT_PARAMS)


def _load_segments(ram: Ram, image: Image) -> int:
    end = 0
    for segment in image.segments:
        end = max(end, segment.paddr + segment.memsz)
        if end > ram.size:
            raise InputError(
                f"{ram.size >> 20} MiB of memory are too small for {image.release}",
                hint="give the machine more memory (--memory)",
            )
        ram.write(segment.paddr, image.segment_data(segment))
    if not end:
        raise ImageError(f"{image.release}: the kernel has nothing to load")
    return end


def _boot_params(setup_header: bytes, memory: int, initramfs: int, initramfs_size: int) -> bytes:
    """``struct boot_params``, the zero page."""
    page = bytearray(PAGE_SIZE)
    page[_SETUP_HEADER : _SETUP_HEADER + len(setup_header)] = setup_header
    page[0x210] = 0xFF  # type_of_loader: undefined
    struct.pack_into("<II", page, 0x218, initramfs, initramfs_size)
    struct.pack_into("<I", page, 0x228, _COMMAND_LINE)
    ranges = ((0, _LOW_MEMORY_END), (_HIGH_MEMORY, memory - _HIGH_MEMORY))
    page[0x1E8] = len(ranges)
    for index, (start, size) in enumerate(ranges):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, start, size, _E820_RAM)
    return bytes(page)


def _write_identity_map(ram: Ram) -> None:
    """Map the first GiB onto itself in pages of 2 MiB."""
    ram.write(_PAGE_TABLES, struct.pack("<Q", (_PAGE_TABLES + 0x1000) | 3))
    ram.write(_PAGE_TABLES + 0x1000, struct.pack("<Q", (_PAGE_TABLES + 0x2000) | 3))
    ram.write(_PAGE_TABLES + 0x2000, struct.pack("<512Q", *((i << 21) | 0x83 for i in range(512))))


def make_initramfs(init: bytes | None = None) -> bytes:
    """A cpio archive (newc) with the directories that a system has and ``/init``.

    :param init: the program; by default one that is executed but never runs.
    """
    entries = [(name, 0o040755, b"") for name in ("dev", "proc", "sys", "run", "tmp", "sbin")]
    entries.append(("init", 0o100755, _init_program() if init is None else init))
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{field:08X}" for field in fields).encode()
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _init_program() -> bytes:
    """A static ELF whose only instruction jumps to itself; it is never run."""
    base, header_size = 0x400000, 64 + 56
    code = b"\xeb\xfe"
    size = header_size + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, base + header_size, 64, 0, 0, 64, 56, 1, 64, 0, 0,
    )  # fmt: skip
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, PAGE_SIZE)
    return header + program + code


@dataclass(frozen=True, slots=True)
class RestingPlace:
    """Where PID 1 stands when the boot is over.

    :param stack: the free part of its kernel stack ends here.
    :param frame: address of its ``struct pt_regs``.
    """

    stack: int
    frame: int


def time_stamp_sites(image: Image) -> list[int]:
    """Where the kernel's code may read the time-stamp counter: RDTSC and RDTSCP, and what looks like them.

    An address in the middle of another instruction is never executed, so trapping it costs nothing.
    """
    found: list[int] = []
    for name, section in image.elf.sections.items():
        if section.flags & _SHF_EXECINSTR:
            code = bytes(image.elf.section_data(name))
            found.extend(section.address + match.start() for match in _TIME_STAMP_READ.finditer(code))
    return found


def trap_time_stamp_reads(cpu: X86_64, calls: Calls) -> None:
    """Trap the time-stamp reads in the code as the boot has left it, and nothing that only looks like one.

    The kernel has patched itself (``apply_alternatives()`` moves RDTSC behind a fence) and freed its init code. Its
    own decoder (``arch/x86/kernel/kprobes/core.c: can_probe``) tells which addresses are instructions; a kernel
    without it gets them all.
    """
    start, end = calls.address("_stext"), calls.address("_etext")
    code = cpu.read(start, end - start)
    sites = [start + match.start() for match in _TIME_STAMP_READ.finditer(code)]
    if calls.has("can_probe"):
        sites = [site for site in sites if calls("can_probe", site) & 0xFF]
    cpu.trap_time_stamp_reads(sites)


def run_to_user_space(cpu: X86_64, image: Image, progress: Callable[[float], None] | None = None) -> RestingPlace:
    """Run from :func:`load` to the instant at which PID 1 would leave for user space.

    :param progress: told now and then which share of the kernel's initcalls has begun.
    """
    leave = image.kallsyms.address("syscall_exit_to_user_mode")
    watched = dict.fromkeys(("panic", "start_thread"), lambda: None)
    watched["panic"] = lambda: _give_up(cpu, image)
    # PID 1 is the first task that leaves for user space, but a helper might come before it.
    for name, handler in watched.items():
        cpu.add_breakpoint(image.kallsyms.address(name), handler)
    levels = _watch_initcalls(cpu, image, progress)
    try:
        cpu.run(image.kallsyms.address("start_thread"), _BOOT_LIMIT)
        cpu.run(leave, _BOOT_LIMIT)
    finally:
        for name in watched:
            cpu.remove_breakpoint(image.kallsyms.address(name))
        for address in levels:
            cpu.remove_breakpoint(address)
    return RestingPlace(stack=cpu.get("rsp"), frame=cpu.get("rdi"))


def _watch_initcalls(cpu: X86_64, image: Image, progress: Callable[[float], None] | None) -> list[int]:
    """Breakpoints on a part of the initcalls, which the image lists in the order in which they run.

    They are there whether anybody looks or not: stops are part of the course that the machine takes.
    """
    start, end = image.kallsyms.get("__initcall_start"), image.kallsyms.get("__initcall_end")
    if start is None or end is None:
        return []
    table = image.elf.read(start, end - start)
    entries = [start + 4 * i + value for i, (value,) in enumerate(struct.iter_unpack("<i", table))]
    watched = entries[:: max(1, len(entries) // _PROGRESS_STEPS)]
    unique = list(dict.fromkeys(watched))
    for index, address in enumerate(unique):
        cpu.add_breakpoint(address, partial(progress or _ignore, index / len(unique)))
    return unique


def _ignore(_share: float) -> None:
    """Nobody looks."""


def _give_up(cpu: X86_64, image: Image) -> None:
    raise MachineFault(
        f"{image.release}: the kernel panicked while it booted",
        FaultReport("panic", cpu.read_registers()),
        hint="look at the command line that was given with --cmdline, and at the size of the memory",
    )
