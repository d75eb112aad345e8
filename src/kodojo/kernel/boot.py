"""Bring a kernel from its image to the instant before its first user-space instruction.

The machine is entered as the x86 64-bit boot protocol says (Documentation/arch/x86/boot.rst), with an
initramfs whose ``/init`` is a program of two bytes. The boot is over when ``start_thread()`` is about
to send that program to user space: PID 1 is then a user process in kernel mode, with credentials, a
user address space and a kernel stack of its own, and may sleep. From there every system call works.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, MachineError, MachineFault
from kodojo.machine.cpu import RunLimit
from kodojo.machine.memory import PAGE_SIZE, Ram

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.machine.x86_64 import X86_64

__all__ = ["BASE_COMMAND_LINE", "DEFAULT_MEMORY", "command_line", "load", "make_initramfs"]

DEFAULT_MEMORY = 256 << 20

# A bare machine: nothing that needs a device that is not there, nothing random, no mitigations that
# only slow an emulated processor down. ``lpj`` saves the calibration of the delay loop.
BASE_COMMAND_LINE = (
    "quiet nokaslr mitigations=off nopti nosmap nosmep acpi=off noapic nolapic nosmp notsc "
    "lpj=250000 pci=off no_timer_check panic=-1"
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
        raise MachineError(
            f"{ram.size >> 20} MiB of memory are too small for {image.release}",
            hint="give the machine more memory (--memory)",
        )
    ram.write(where, initramfs)
    text = cmdline.encode() + b"\0"
    if len(text) > _COMMAND_LINE_LIMIT:
        raise MachineError(f"the kernel's command line is longer than {_COMMAND_LINE_LIMIT - 1} bytes")
    ram.write(_COMMAND_LINE, text)
    ram.write(_BOOT_PARAMS, _boot_params(image.setup_header, ram.size, where, len(initramfs)))
    _write_identity_map(ram)
    gdt = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
    ram.write(_GDT, gdt)
    cpu.reset_for_boot(image.entry, _PAGE_TABLES, _GDT, len(gdt), _BOOT_PARAMS)


def _load_segments(ram: Ram, image: Image) -> int:
    end = 0
    for segment in image.segments:
        end = max(end, segment.paddr + segment.memsz)
        if end > ram.size:
            raise MachineError(
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


def make_initramfs() -> bytes:
    """A cpio archive (newc) with the directories that a system has and ``/init``."""
    entries = [(name, 0o040755, b"") for name in ("dev", "proc", "sys", "run", "tmp", "sbin")]
    entries.append(("init", 0o100755, _init_program()))
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


def run_to_user_space(
    cpu: X86_64, image: Image, progress: Callable[[str], None] | None = None
) -> int:
    """Run from :func:`load` to the entry of ``start_thread``; that address.

    :param progress: told the name of each initcall level that begins, where the image has them.
    """
    stop = image.kallsyms.address("start_thread")
    _watch_levels(cpu, image, progress)
    panic = image.kallsyms.get("panic")
    if panic is not None:
        cpu.add_breakpoint(panic, lambda: _give_up(cpu))
    try:
        cpu.run(stop, RunLimit())
    finally:
        if panic is not None:
            cpu.remove_breakpoint(panic)
    return stop


def _watch_levels(cpu: X86_64, image: Image, progress: Callable[[str], None] | None) -> None:
    if progress is None:
        return
    del cpu, image


def _give_up(cpu: X86_64) -> None:
    from kodojo.errors import FaultReport

    raise MachineFault("the kernel panicked while booting", FaultReport("panic", cpu.read_registers()))
