"""What is particular to booting an arm64 kernel (Documentation/arch/arm64/booting.rst).

The kernel is told of a bare machine by a device tree: memory, one processor, the firmware's calls (PSCI), an
interrupt controller, the generic timer and a serial port.
"""

from __future__ import annotations

from kodojo.errors import InputError
from kodojo.image.image import Image
from kodojo.kernel.device_tree import Node, cells, flatten
from kodojo.machine.arm64 import Arm64
from kodojo.machine.board_arm64 import DISTRIBUTOR, GIC_SIZE, INTERFACE, SERIAL, SERIAL_SIZE
from kodojo.machine.cpu import Cpu

__all__ = ["Arm64Boot", "machine_tree"]

_COMMAND_LINE_LIMIT = 2048  # COMMAND_LINE_SIZE
_DEVICE_TREE_OFFSET = 0x10_0000
_GIC, _CLOCK = 1, 2  # phandles
_PPI, _SPI = 1, 0
_LEVEL_HIGH = 4
_SECURE, _PHYSICAL, _VIRTUAL, _HYPERVISOR = 13, 14, 11, 10  # PPIs of the generic timer
_SERIAL_INTERRUPT = 1
_SERIAL_HERTZ = 24_000_000


class Arm64Boot:
    """See :class:`kodojo.kernel.boot.BootProtocol`."""

    # A bare machine: nothing random, no mitigations that only slow an emulated processor down.
    command_line = "quiet nokaslr mitigations=off arm64.nopauth nosmp lpj=250000 panic=-1 randomize_kstack_offset=off"
    elf_machine = 183
    endless_loop = bytes.fromhex("00000014")  # b .
    kernel_offset = 2 << 20  # a multiple of 2 MiB, and room for the device tree
    passes = "finalize_exec"
    leaves = "asm_exit_to_user_mode"

    def enter(self, cpu: Cpu, image: Image, entry: int, cmdline: bytes, initramfs: tuple[int, int]) -> None:
        """Write the device tree and point the processor at the kernel's first instruction."""
        del image
        if not isinstance(cpu, Arm64):
            raise TypeError("an arm64 kernel needs an arm64 processor")
        if len(cmdline) >= _COMMAND_LINE_LIMIT:
            raise InputError(f"the kernel's command line is longer than {_COMMAND_LINE_LIMIT - 1} bytes")
        ram = cpu.ram
        where = ram.base + _DEVICE_TREE_OFFSET
        ram.write(where, flatten(machine_tree(ram.base, ram.size, cmdline, initramfs)))
        cpu.reset_for_boot(entry, where)

    def resting_place(self, cpu: Cpu) -> tuple[int, int]:
        """The stack pointer and the trap frame at the function that leaves for user space."""
        return cpu.get("sp"), cpu.get("x0")


def _wide(*values: int) -> bytes:
    return cells(*(half for value in values for half in (value >> 32, value & 0xFFFF_FFFF)))


def machine_tree(base: int, memory: int, cmdline: bytes, initramfs: tuple[int, int]) -> Node:
    """The device tree of the machine.

    :param base: where its memory begins, and ``memory``: how much there is, in bytes.
    :param initramfs: first physical address, and the one behind the last.
    """
    timers = (_SECURE, _PHYSICAL, _VIRTUAL, _HYPERVISOR)
    return {
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "compatible": "linux,dummy-virt",
        "model": "linux,dummy-virt",
        "interrupt-parent": cells(_GIC),
        "chosen": {
            "bootargs": cmdline + b"\0",
            "linux,initrd-start": _wide(initramfs[0]),
            "linux,initrd-end": _wide(initramfs[1]),
            "stdout-path": f"/pl011@{SERIAL:x}",
        },
        f"memory@{base:x}": {"device_type": "memory", "reg": _wide(base, memory)},
        "cpus": {
            "#address-cells": cells(1),
            "#size-cells": cells(0),
            "cpu@0": {
                "device_type": "cpu",
                "compatible": "arm,cortex-a72",
                "reg": cells(0),
                "enable-method": "psci",
            },
        },
        "psci": {"compatible": b"arm,psci-1.0\0arm,psci-0.2\0", "method": "hvc"},
        f"intc@{DISTRIBUTOR:x}": {
            "compatible": "arm,cortex-a15-gic",
            "interrupt-controller": b"",
            "#interrupt-cells": cells(3),
            "reg": _wide(DISTRIBUTOR, GIC_SIZE, INTERFACE, GIC_SIZE),
            "phandle": cells(_GIC),
        },
        "timer": {
            "compatible": b"arm,armv8-timer\0arm,armv7-timer\0",
            "always-on": b"",
            "interrupts": cells(*(cell for number in timers for cell in (_PPI, number, _LEVEL_HIGH))),
        },
        "apb-pclk": {
            "compatible": "fixed-clock",
            "#clock-cells": cells(0),
            "clock-frequency": cells(_SERIAL_HERTZ),
            "clock-output-names": "clk24mhz",
            "phandle": cells(_CLOCK),
        },
        f"pl011@{SERIAL:x}": {
            "compatible": b"arm,pl011\0arm,primecell\0",
            "reg": _wide(SERIAL, SERIAL_SIZE),
            "interrupts": cells(_SPI, _SERIAL_INTERRUPT, _LEVEL_HIGH),
            "clocks": cells(_CLOCK, _CLOCK),
            "clock-names": b"uartclk\0apb_pclk\0",
        },
    }
