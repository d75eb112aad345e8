"""A machine with four MiB of memory and no kernel: page tables, descriptor tables and stacks made by hand.

::

    guest = BareMachine()
    guest.code("c6 00 01", rax=ABSENT)     # mov byte [rax], 1
    frame = guest.run_to_handler(PAGE_FAULT)

Instructions are written as bytes with the assembler beside them, so that nothing has to be installed. The handler
of vector V is at ``handler(V)``; what is there at first is IRETQ, after the error code where the vector has one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kodojo.machine.board import PcBoard
from kodojo.machine.cpu import RunLimit
from kodojo.machine.machine import Machine
from kodojo.machine.memory import Ram
from kodojo.machine.x86_64 import X86_64

DIVIDE_ERROR, BREAKPOINT, INVALID_OPCODE, DOUBLE_FAULT = 0, 3, 6, 8
SEGMENT_NOT_PRESENT, GENERAL_PROTECTION, PAGE_FAULT, TIMER = 11, 13, 14, 0x30
WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17}

MEMORY = 4 << 20
CODE = 0x1000  # to DATA
DATA = 0x40000
READ_ONLY = 0x50000  # a page without the write bit
NO_EXECUTE = 0x51000
ABSENT = 0x52000  # a page that is in the tables, not present
STACK = 0x80000  # grows down
IST_STACK = 0x90000
LARGE = 0x200000  # a page of 2 MiB, at itself
HIGH = 0xFFFFFFFF80000000  # the first two MiB once more
NON_CANONICAL = 0x800000000000

PML4, PDPT, PD, PT = 0x10000, 0x11000, 0x12000, 0x13000
GDT, IDT, TSS = 0x14000, 0x15000, 0x16000
HANDLERS = 0x18000
CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR = 0x10, 0x18, 0x20

PRESENT, WRITABLE, LARGE_PAGE, NX = 1, 2, 0x80, 1 << 63
RFLAGS_IF = 1 << 9
INTERRUPT_GATE, TRAP_GATE = 0x8E, 0x8F
OPEN_TIMER = "b0 fe e6 21 "  # mov al, 0xfe; out 0x21, al: all masked but the timer


@dataclass(frozen=True)
class Frame:
    """What the processor pushed for a handler."""

    error_code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


def handler(vector: int) -> int:
    """Address of a vector's handler."""
    return HANDLERS + 16 * vector


class BareMachine:
    """The machine, at rest in 64-bit mode."""

    def __init__(self, machine: Machine | None = None) -> None:
        if machine is not None:
            self.machine = machine
            return
        self.machine = Machine.new(MEMORY)
        self._page_tables()
        gdt = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
        self.ram.write(GDT, gdt + struct.pack("<HHBBBBIxxxx", 0x67, TSS & 0xFFFF, TSS >> 16, 0x89, 0, 0, 0))
        for vector in range(64):
            self.gate(vector)
            skip = b"\x48\x83\xc4\x08" if vector in WITH_ERROR_CODE else b""  # add rsp, 8
            self.ram.write(handler(vector), skip + b"\x48\xcf")  # iretq
        self.ram.write(TSS + 0x24, struct.pack("<Q", IST_STACK))  # IST 1
        self.ram.write(TSS + 0x1000 - 10, struct.pack("<HQ", 64 * 16 - 1, IDT))
        self.cpu.reset_for_boot(CODE, PML4, GDT, len(gdt) + 16, 0)
        # lidt [TSS + 0x1000 - 10]; mov eax, TSS_SELECTOR; ltr ax; nop
        self.code(
            "0f 01 1c 25" + struct.pack("<I", TSS + 0x1000 - 10).hex() + "b8 20 00 00 00 0f 00 d8 90", at=0x3F000
        )
        self.cpu.run(0x3F000 + 16)

    @property
    def cpu(self) -> X86_64:
        return self.machine.cpu

    @property
    def ram(self) -> Ram:
        return self.machine.ram

    @property
    def board(self) -> PcBoard:
        return self.machine.board

    def _page_tables(self) -> None:
        self.ram.write(PML4, struct.pack("<Q", PDPT | 3))
        self.ram.write(PML4 + 511 * 8, struct.pack("<Q", PDPT | 3))
        self.ram.write(PDPT, struct.pack("<Q", PD | 3))
        self.ram.write(PDPT + 510 * 8, struct.pack("<Q", PD | 3))
        self.ram.write(PD, struct.pack("<QQ", PT | 3, LARGE | LARGE_PAGE | 3))
        for page in range(0, LARGE, 0x1000):
            self.page(page, PRESENT | WRITABLE)
        self.page(READ_ONLY, PRESENT)
        self.page(NO_EXECUTE, PRESENT | WRITABLE | NX)
        self.page(ABSENT, 0)

    def page(self, address: int, flags: int, physical: int | None = None) -> None:
        """Write the entry of a page of the first two MiB."""
        frame = address if physical is None else physical
        self.ram.write(PT + address // 0x1000 * 8, struct.pack("<Q", frame | flags))

    def gate(self, vector: int, kind: int = INTERRUPT_GATE, ist: int = 0, at: int | None = None) -> None:
        """Write an entry of the interrupt descriptor table."""
        where = handler(vector) if at is None else at
        entry = (where & 0xFFFF, CODE_SELECTOR, ist, kind, where >> 16 & 0xFFFF, where >> 32, 0)
        self.ram.write(IDT + 16 * vector, struct.pack("<HHBBHII", *entry))

    def code(self, text: str, at: int = CODE, **registers: int) -> int:
        """Write instructions and point the processor at them; the address of what follows them."""
        instructions = bytes.fromhex(text)
        self.cpu.write(at, instructions)
        self.cpu.write_registers({"rip": at, "rsp": STACK, **registers})
        return at + len(instructions)

    def run(self, text: str, at: int = CODE, ticks: int = 100, **registers: int) -> None:
        """Write instructions and run them to their end."""
        self.cpu.run(self.code(text, at, **registers), RunLimit(ticks=ticks))

    def run_to_handler(self, vector: int, ticks: int = 100) -> Frame:
        """Go on to the first instruction of the vector's handler; the frame that it finds."""
        self.cpu.run(handler(vector), RunLimit(ticks=ticks))
        stack = self.cpu.get("rsp")
        if vector in WITH_ERROR_CODE:
            return Frame(*struct.unpack("<6Q", self.cpu.read(stack, 48)))
        return Frame(None, *struct.unpack("<5Q", self.cpu.read(stack, 40)))
