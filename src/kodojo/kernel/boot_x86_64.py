"""What is particular to booting an x86-64 kernel: the 64-bit boot protocol (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import struct

from kodojo.errors import InputError
from kodojo.image.image import Image
from kodojo.machine.cpu import Cpu
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.x86_64 import X86_64

__all__ = ["X86_64Boot"]

_PAGE_TABLES = 0x70000
_GDT = 0x6F000
_BOOT_PARAMS = 0x90000
_COMMAND_LINE = 0x20000
_COMMAND_LINE_LIMIT = 2048
_LOW_MEMORY_END = 0x9FC00
_HIGH_MEMORY = 0x100000
_SETUP_HEADER = 0x1F1
_E820_RAM = 1


class X86_64Boot:  # noqa: N801  the architecture's name
    """See :class:`kodojo.kernel.boot.BootProtocol`."""

    # A bare machine: nothing that needs a device that is not there, nothing random, no mitigations that
    # only slow an emulated processor down. ``lpj`` saves the calibration of the delay loop.
    command_line = (
        "quiet nokaslr mitigations=off nopti nosmap nosmep acpi=off noapic nolapic nosmp notsc "
        "lpj=250000 pci=off no_timer_check panic=-1 randomize_kstack_offset=off"
    )
    elf_machine = 62
    endless_loop = b"\xeb\xfe"
    kernel_offset = 0
    # PID 1 is the first task that leaves for user space, but a helper might come before it.
    passes = "start_thread"
    leaves = "syscall_exit_to_user_mode"

    def enter(self, cpu: Cpu, image: Image, entry: int, cmdline: bytes, initramfs: tuple[int, int]) -> None:
        """Write the boot parameters and point the processor at the kernel's first instruction."""
        if not isinstance(cpu, X86_64):
            raise TypeError("an x86-64 kernel needs an x86-64 processor")
        ram = cpu.ram
        text = cmdline + b"\0"
        if len(text) > _COMMAND_LINE_LIMIT:
            raise InputError(f"the kernel's command line is longer than {_COMMAND_LINE_LIMIT - 1} bytes")
        ram.write(_COMMAND_LINE, text)
        ram.write(_BOOT_PARAMS, _boot_params(image.setup_header, ram.size, *initramfs))
        _write_identity_map(ram)
        gdt = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
        ram.write(_GDT, gdt)
        cpu.reset_for_boot(entry, _PAGE_TABLES, _GDT, len(gdt), _BOOT_PARAMS)

    def resting_place(self, cpu: Cpu) -> tuple[int, int]:
        """The stack pointer and the trap frame at the function that leaves for user space."""
        return cpu.get("rsp"), cpu.get("rdi")


def _boot_params(setup_header: bytes, memory: int, start: int, end: int) -> bytes:
    """``struct boot_params``, the zero page."""
    page = bytearray(PAGE_SIZE)
    page[_SETUP_HEADER : _SETUP_HEADER + len(setup_header)] = setup_header
    page[0x210] = 0xFF  # type_of_loader: undefined
    struct.pack_into("<II", page, 0x218, start, end - start)
    struct.pack_into("<I", page, 0x228, _COMMAND_LINE)
    ranges = ((0, _LOW_MEMORY_END), (_HIGH_MEMORY, memory - _HIGH_MEMORY))
    page[0x1E8] = len(ranges)
    for index, (first, size) in enumerate(ranges):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, first, size, _E820_RAM)
    return bytes(page)


def _write_identity_map(ram: Ram) -> None:
    """Map the first GiB onto itself in pages of 2 MiB."""
    ram.write(_PAGE_TABLES, struct.pack("<Q", (_PAGE_TABLES + 0x1000) | 3))
    ram.write(_PAGE_TABLES + 0x1000, struct.pack("<Q", (_PAGE_TABLES + 0x2000) | 3))
    ram.write(_PAGE_TABLES + 0x2000, struct.pack("<512Q", *((i << 21) | 0x83 for i in range(512))))
