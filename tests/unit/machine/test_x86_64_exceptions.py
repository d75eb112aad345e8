from __future__ import annotations

import struct

import pytest

from kodojo.errors import MachineError
from tests.support.bare_machine import (
    ABSENT,
    BREAKPOINT,
    CODE,
    CODE_SELECTOR,
    DATA,
    DATA_SELECTOR,
    DIVIDE_ERROR,
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    IDT,
    INVALID_OPCODE,
    IST_STACK,
    NO_EXECUTE,
    NON_CANONICAL,
    PAGE_FAULT,
    PRESENT,
    READ_ONLY,
    RFLAGS_IF,
    SEGMENT_NOT_PRESENT,
    STACK,
    TRAP_GATE,
    WRITABLE,
    BareMachine,
    handler,
)

READ = "8a 00"  # mov al, [rax]
WRITE = "c6 00 01"  # mov byte [rax], 1
JUMP = "ff e0"  # jmp rax

# Bits of a page fault's error code: 1 protection (not absence), 2 write, 16 instruction fetch.
PAGE_FAULTS = {
    "read-absent": (READ, ABSENT, 0),
    "write-absent": (WRITE, ABSENT, 2),
    "write-read-only": (WRITE, READ_ONLY, 3),
    "fetch-absent": (JUMP, ABSENT, 16),
    "fetch-no-execute": (JUMP, NO_EXECUTE, 17),
}


@pytest.mark.parametrize(("code", "address", "error_code"), PAGE_FAULTS.values(), ids=PAGE_FAULTS)
def test_page_fault(code, address, error_code):
    """A page fault reaches the guest's handler with its error code, and CR2 has the address."""
    guest = BareMachine()
    guest.code(code, rax=address + 0x123)
    frame = guest.run_to_handler(PAGE_FAULT)
    assert frame.error_code == error_code
    assert guest.cpu.get("cr2") == address + 0x123
    # The instruction that faults is the one to be repeated; of a fetch it is the one that was not fetched.
    assert frame.rip == (address + 0x123 if code == JUMP else CODE)


def test_frame():
    """The frame has what was interrupted: code and stack segments, flags, stack pointer."""
    guest = BareMachine()
    guest.code(WRITE, rax=ABSENT, rflags=2 | RFLAGS_IF | 1, rsp=STACK - 24)
    frame = guest.run_to_handler(PAGE_FAULT)
    assert (frame.cs, frame.ss, frame.rsp) == (CODE_SELECTOR, DATA_SELECTOR, STACK - 24)
    assert frame.rflags == 2 | RFLAGS_IF | 1
    assert guest.cpu.get("rsp") == STACK - 32 - 48  # aligned to 16 bytes, then six words


@pytest.mark.parametrize(("kind", "enabled"), [(0x8E, 0), (TRAP_GATE, RFLAGS_IF)], ids=["interrupt", "trap"])
def test_gates(kind, enabled):
    """An interrupt gate masks interrupts in the handler, a trap gate does not; both clear the trap flag."""
    guest = BareMachine()
    guest.gate(PAGE_FAULT, kind)
    guest.code(READ, rax=ABSENT, rflags=2 | RFLAGS_IF | 1 << 14)
    assert guest.run_to_handler(PAGE_FAULT).rflags & 1 << 14
    assert guest.cpu.get("rflags") & (RFLAGS_IF | 1 << 14) == enabled


def test_return_repeats_the_instruction():
    """After IRETQ the instruction that faulted is executed again, with all registers as they were."""
    guest = BareMachine()
    end = guest.code(WRITE, rax=ABSENT, rbx=77)
    guest.run_to_handler(PAGE_FAULT)
    guest.page(ABSENT, PRESENT | WRITABLE)
    guest.cpu.run(end)
    assert guest.cpu.read(ABSENT, 2) == b"\x01\x00"
    registers = guest.cpu.read_registers()
    assert (registers["rbx"], registers["rsp"], registers["rip"]) == (77, STACK, end)


def test_several_faults_in_a_row():
    """Each of several faults of different kinds is the first one to the guest: none becomes a double fault."""
    guest = BareMachine()
    seen = []

    def noted(vector, length):
        def handle():
            error = struct.unpack("<Q", guest.cpu.read(guest.cpu.get("rsp"), 8))[0]
            seen.append((vector, error if vector in (PAGE_FAULT, GENERAL_PROTECTION) else None))
            where = guest.cpu.get("rsp") + (8 if vector in (PAGE_FAULT, GENERAL_PROTECTION) else 0)
            rip = struct.unpack("<Q", guest.cpu.read(where, 8))[0]
            guest.cpu.write(where, struct.pack("<Q", rip + length))

        guest.cpu.add_breakpoint(handler(vector), handle)

    noted(PAGE_FAULT, 3)
    noted(GENERAL_PROTECTION, 3)
    noted(INVALID_OPCODE, 2)
    # write ABSENT; read beyond the address space; write READ_ONLY; ud2; write ABSENT
    guest.run("c6 00 01  48 8b 03  c6 01 01  0f 0b  c6 00 01", rax=ABSENT, rbx=NON_CANONICAL, rcx=READ_ONLY)
    expected = [
        (PAGE_FAULT, 2), (GENERAL_PROTECTION, 0), (PAGE_FAULT, 3), (INVALID_OPCODE, None), (PAGE_FAULT, 2),
    ]  # fmt: skip
    assert seen == expected


def test_fault_inside_a_handler():
    """A fault in the handler of another one is delivered on top of it, and both return."""
    guest = BareMachine()
    # The handler of #UD writes to ABSENT, then skips the UD2 of two bytes: mov byte [rax], 1;
    # add qword [rsp], 2; iretq
    guest.ram.write(handler(INVALID_OPCODE), bytes.fromhex("c60001 4883042402 48cf"))
    end = guest.code("0f 0b", rax=ABSENT)
    frame = guest.run_to_handler(PAGE_FAULT)
    assert (frame.rip, frame.error_code) == (handler(INVALID_OPCODE), 2)
    guest.page(ABSENT, PRESENT | WRITABLE)
    guest.cpu.run(end)
    assert (guest.cpu.get("rsp"), guest.cpu.read(ABSENT, 1)) == (STACK, b"\x01")


OTHERS = {
    "divide": (DIVIDE_ERROR, "31 c9 f7 f1", 2, None),  # xor ecx, ecx; div ecx
    "undefined": (INVALID_OPCODE, "90 0f 0b", 1, None),  # nop; ud2
    "non-canonical": (GENERAL_PROTECTION, "90 48 8b 03", 1, 0),  # nop; mov rax, [rbx]
    "selector": (GENERAL_PROTECTION, "66 b8 38 00 8e d8", 4, 0x38),  # mov ax, 0x38; mov ds, ax
}


@pytest.mark.parametrize(("vector", "code", "offset", "error_code"), OTHERS.values(), ids=OTHERS)
def test_other_faults(vector, code, offset, error_code):
    """#DE, #UD and #GP reach their handlers; the frame points at the instruction, #GP brings its error code."""
    guest = BareMachine()
    guest.code(code, rbx=NON_CANONICAL)
    frame = guest.run_to_handler(vector)
    assert (frame.rip, frame.error_code) == (CODE + offset, error_code)


def test_segment_not_present():
    """#NP has the selector as its error code."""
    guest = BareMachine()
    guest.ram.write(0x14018, struct.pack("<Q", 0x00CF12000000FFFF))  # the data segment without its present bit
    guest.code("66 b8 18 00 8e d8")  # mov ax, DATA_SELECTOR; mov ds, ax
    assert guest.run_to_handler(SEGMENT_NOT_PRESENT).error_code == DATA_SELECTOR


def test_error_code_does_not_linger():
    """The error code of an earlier fault is not taken for that of a later one."""
    guest = BareMachine()
    guest.code("66 b8 38 00 8e d8")
    assert guest.run_to_handler(GENERAL_PROTECTION).error_code == 0x38
    guest.code(READ, rax=ABSENT)
    assert guest.run_to_handler(PAGE_FAULT).error_code == 0


@pytest.mark.parametrize(("vector", "code"), [(BREAKPOINT, "cc"), (0x20, "cd 20")], ids=["int3", "int 0x20"])
def test_software_interrupts(vector, code):
    """INT3 and INT n are traps: the frame points behind them, and IRETQ goes on there."""
    guest = BareMachine()
    end = guest.code(code)
    assert guest.run_to_handler(vector).rip == end
    guest.cpu.run(end)
    assert guest.cpu.get("rsp") == STACK


def test_interrupt_stack_table():
    """A vector with an IST number gets the stack that the TSS names, whatever the stack pointer was."""
    guest = BareMachine()
    guest.gate(PAGE_FAULT, ist=1)
    end = guest.code(WRITE, rax=ABSENT, rsp=STACK - 8)
    frame = guest.run_to_handler(PAGE_FAULT)
    assert (guest.cpu.get("rsp"), frame.rsp, frame.rip) == (IST_STACK - 48, STACK - 8, CODE)
    guest.page(ABSENT, PRESENT | WRITABLE)
    guest.cpu.run(end)
    assert guest.cpu.get("rsp") == STACK - 8


def test_double_fault():
    """Where the stack is not mapped the processor turns to the double fault's handler, on its own stack."""
    guest = BareMachine()
    guest.gate(DOUBLE_FAULT, ist=1)
    guest.code("50", rsp=ABSENT + 0x800)  # push rax
    frame = guest.run_to_handler(DOUBLE_FAULT)
    assert (frame.error_code, frame.rip, frame.rsp) == (0, CODE, ABSENT + 0x800)
    assert guest.cpu.get("rsp") == IST_STACK - 48


def test_triple_fault():
    """Where the double fault's stack is not mapped either, nothing is left: the machine says so."""
    guest = BareMachine()
    end = guest.code("50", rsp=ABSENT + 0x800)
    with pytest.raises(MachineError, match="triple fault"):
        guest.cpu.run(end)


@pytest.mark.parametrize("table", [ABSENT, NON_CANONICAL])
def test_table_that_is_not_there(table):
    """An exception whose IDT is not mapped can be delivered in no way: that is a triple fault."""
    guest = BareMachine()
    guest.ram.write(DATA, struct.pack("<HQ", 64 * 16 - 1, table))
    with pytest.raises(MachineError, match="triple fault: exception 6"):
        guest.run("0f 01 1c 25" + struct.pack("<I", DATA).hex() + "0f 0b")  # lidt [DATA]; ud2


def test_no_handler():
    """An exception whose IDT entry is empty is told with its number and place."""
    guest = BareMachine()
    guest.ram.write(IDT + 16 * INVALID_OPCODE, bytes(16))
    end = guest.code("90 0f 0b")
    with pytest.raises(MachineError, match=rf"exception {INVALID_OPCODE} at {CODE + 1:#x}"):
        guest.cpu.run(end)


def test_interrupts_below_the_stack_leave_data_alone():
    """A frame is written below the stack pointer, and nothing else is changed."""
    guest = BareMachine()
    guest.cpu.write(STACK, b"above the stack pointer")
    guest.cpu.write(DATA, b"data")
    guest.code("0f 0b")
    guest.run_to_handler(INVALID_OPCODE)
    assert guest.cpu.read(STACK, 23) == b"above the stack pointer"
    assert guest.cpu.read(DATA, 4) == b"data"
    assert guest.cpu.read(STACK - 48, 8) == bytes(8)
