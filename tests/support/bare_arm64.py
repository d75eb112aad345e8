"""An arm64 machine with four MiB of memory and no kernel: page tables and exception vectors made by hand.

::

    guest = BareArm64()
    guest.code("f9400000", x0=ABSENT)      # ldr x0, [x0]
    exception = guest.run_to_handler(SYNCHRONOUS)

Instructions are written as 32-bit words with the assembler beside them, so that nothing has to be installed. What is
at each vector at first is ERET.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kodojo.machine.arm64 import Arm64
from kodojo.machine.board_arm64 import DISTRIBUTOR, INTERFACE, VIRTUAL_TIMER, VirtBoard
from kodojo.machine.cpu import RunLimit
from kodojo.machine.machine import Machine
from kodojo.machine.memory import Ram

MEMORY = 4 << 20
BASE = 0x4000_0000
CODE = BASE + 0x1000
DATA = BASE + 0x40000
READ_ONLY = BASE + 0x50000
NO_EXECUTE = BASE + 0x51000
ABSENT = BASE + 0x52000
STACK = BASE + 0x80000
LARGE = BASE + 0x200000  # a block of 2 MiB
HIGH = 0xFFFF_8000_0000_0000  # the memory once more, by the other table
VECTORS = BASE + 0x20000
SYNCHRONOUS, IRQ = 0x200, 0x280  # offsets of the vectors that are used
L0, L1, L2, L3 = (BASE + 0x10000 + 0x1000 * number for number in range(4))
HIGH_L0, HIGH_L1 = BASE + 0x14000, BASE + 0x15000

TABLE, BLOCK, PAGE = 0b11, 0b01, 0b11
FLAGS = 0x700  # accessed, inner shareable
AP_READ_ONLY, PXN = 1 << 7, 1 << 53
TCR = 16 | 16 << 16 | 0b10 << 30  # 48 bits and 4 KiB pages for both halves
EL1H, DAIF, IRQ_MASKED = 0x5, 0x3C0, 0x80
ERET, WFI, NOP = "d69f03e0", "d503207f", "d503201f"


@dataclass(frozen=True)
class Taken:
    """What the processor left for a handler."""

    syndrome: int
    address: int
    link: int
    saved: int

    @property
    def kind(self) -> int:
        """The exception class."""
        return self.syndrome >> 26


class BareArm64:
    """The machine, at rest at EL1 with its page tables on."""

    def __init__(self, machine: Machine | None = None) -> None:
        if machine is not None:
            self.machine = machine
            return
        self.machine = Machine.new(MEMORY, "aarch64")
        self._page_tables()
        for vector in range(0, 0x800, 0x80):
            self.ram.write(VECTORS + vector, bytes.fromhex(ERET)[::-1])
        cpu = self.cpu
        cpu.reset_for_boot(CODE, 0)
        cpu.set("tcr_el1", TCR)
        cpu.set("ttbr0_el1", L0)
        cpu.set("ttbr1_el1", HIGH_L0)
        cpu.set("vbar_el1", VECTORS)
        cpu.set("sctlr_el1", cpu.get("sctlr_el1") | 1)

    @property
    def cpu(self) -> Arm64:
        assert isinstance(self.machine.cpu, Arm64)
        return self.machine.cpu

    @property
    def ram(self) -> Ram:
        return self.machine.ram

    @property
    def board(self) -> VirtBoard:
        assert isinstance(self.machine.board, VirtBoard)
        return self.machine.board

    def _page_tables(self) -> None:
        put = self._entry
        put(L0, 0, L1 | TABLE)
        put(L1, BASE >> 30, L2 | TABLE)
        put(L1, 0, FLAGS | BLOCK)  # the devices
        put(L2, 0, L3 | TABLE)
        put(L2, 1, LARGE | FLAGS | BLOCK)
        put(HIGH_L0, 256, HIGH_L1 | TABLE)
        put(HIGH_L1, 0, L2 | TABLE)
        for page in range(BASE, LARGE, 0x1000):
            self.page(page, PAGE)
        self.page(READ_ONLY, PAGE | AP_READ_ONLY)
        self.page(NO_EXECUTE, PAGE | PXN)
        self.page(ABSENT, 0)

    def _entry(self, table: int, index: int, value: int) -> None:
        self.ram.write(table + 8 * index, struct.pack("<Q", value))

    def page(self, address: int, flags: int, physical: int | None = None) -> None:
        """Write the entry of a page of the first two MiB."""
        frame = address if physical is None else physical
        self._entry(L3, (address - BASE) // 0x1000, (frame | FLAGS | flags) if flags else 0)

    def code(self, text: str, at: int = CODE, **registers: int) -> int:
        """Write instructions and point the processor at them; the address of what follows them."""
        words = [int(word, 16) for word in text.split()]
        self.cpu.write(at, struct.pack(f"<{len(words)}I", *words))
        self.cpu.write_registers({"pc": at, "sp": STACK, "pstate": DAIF | EL1H, **registers})
        return at + 4 * len(words)

    def run(self, text: str, at: int = CODE, ticks: int = 100, **registers: int) -> None:
        """Write instructions and run them to their end."""
        self.cpu.run(self.code(text, at, **registers), RunLimit(ticks=ticks))

    def run_to_handler(self, vector: int, ticks: int = 100) -> Taken:
        """Go on to the first instruction of a vector; what the handler finds in its registers."""
        self.cpu.run(VECTORS + vector, RunLimit(ticks=ticks))
        names = ("esr_el1", "far_el1", "elr_el1", "spsr_el1")
        return Taken(*(self.cpu.get(name) for name in names))

    def open_timer(self) -> None:
        """Switch the interrupt controller on, for the timer."""
        self.board.bus_write(DISTRIBUTOR, 4, 1)
        self.board.bus_write(DISTRIBUTOR + 0x100, 4, 1 << VIRTUAL_TIMER)
        self.board.bus_write(INTERFACE, 4, 1)
        self.board.bus_write(INTERFACE + 4, 4, 0xF0)
