from __future__ import annotations

import pytest

from kodojo.errors import MachineError
from tests.support.bare_machine import ABSENT, CODE, DATA, HIGH, PAGE_FAULT, STACK, BareMachine

LOOP = "ff c3 ff c9 75 fa"  # 1: inc ebx; dec ecx; jnz 1b
DEC = CODE + 2  # in the middle of the loop's only block
FUNCTION = 0x5000


def test_once_for_each_arrival():
    """The handler is called each time the instruction is about to run, before it does."""
    guest = BareMachine()
    seen = []
    guest.cpu.add_breakpoint(DEC, lambda: seen.append((guest.cpu.get("rbx"), guest.cpu.get("rcx"))))
    guest.run(LOOP, rbx=0, rcx=3)
    assert seen == [(1, 3), (2, 2), (3, 1)]
    assert guest.cpu.get("rbx") == 3


def test_instruction_that_jumps_to_itself():
    """A loop of one instruction arrives at its breakpoint again and again."""
    guest = BareMachine()
    seen = []
    guest.cpu.add_breakpoint(CODE, lambda: seen.append(guest.cpu.get("rcx")))
    guest.run("e2 fe", rcx=3)  # 1: loop 1b
    assert seen == [3, 2, 1]


def test_at_the_start_of_a_run():
    """A run that starts at a breakpoint calls it; a run that is there already does nothing."""
    guest = BareMachine()
    seen = []
    guest.cpu.add_breakpoint(CODE, lambda: seen.append(guest.cpu.get("rip")))
    end = guest.code("90 90")
    guest.cpu.run(CODE)
    assert seen == []
    guest.cpu.run(end)
    assert seen == [CODE]


def test_handler_changes_the_program_counter():
    """Execution goes on where the handler says; a breakpoint there is called as well."""
    guest = BareMachine()
    seen = []
    end = guest.code("ff c3 ff c3 ff c3 ff c3", rbx=0)  # inc ebx, four times

    def skip():
        seen.append("skip")
        guest.cpu.set("rip", CODE + 6)

    guest.cpu.add_breakpoint(CODE + 2, skip)
    guest.cpu.add_breakpoint(CODE + 6, lambda: seen.append("there"))
    guest.cpu.run(end)
    assert (seen, guest.cpu.get("rbx")) == (["skip", "there"], 2)


def test_end_with_a_stack():
    """A run that ends with a stack pointer passes by its end with another one."""
    guest = BareMachine()
    guest.code("ff c3 48 83 c4 08 eb f8", rbx=0)  # 1: inc ebx; add rsp, 8; jmp 1b
    end, stack = CODE + 2, guest.cpu.get("rsp") + 5 * 8
    guest.cpu.run(end, stack=stack)
    assert (guest.cpu.get("rip"), guest.cpu.get("rsp"), guest.cpu.get("rbx")) == (end, stack, 6)
    guest.cpu.run(end, stack=stack)
    assert guest.cpu.get("rbx") == 6


def test_handler_goes_to_the_end():
    """A handler that goes to the end of the run ends it."""
    guest = BareMachine()
    end = guest.code("ff c3 ff c3", rbx=0)
    guest.cpu.add_breakpoint(CODE, lambda: guest.cpu.set("rip", end))
    guest.cpu.run(end)
    assert guest.cpu.get("rbx") == 0


def test_handler_changes_registers():
    """What the handler writes to registers is what the instruction finds."""
    guest = BareMachine()
    guest.cpu.add_breakpoint(DEC, lambda: guest.cpu.set("rcx", 1))
    guest.run(LOOP, rbx=0, rcx=1000)
    assert guest.cpu.get("rbx") == 1


def test_nested_run():
    """A handler can run other guest code, over breakpoints of its own, and go back to what it interrupted."""
    guest = BareMachine()
    seen = []
    guest.cpu.write(FUNCTION, bytes.fromhex("01 c0 c3"))  # add eax, eax; ret

    def nested():
        saved = guest.cpu.read_registers()
        guest.cpu.write(saved["rsp"] - 256, (0x6000).to_bytes(8, "little"))
        guest.cpu.write_registers({"rax": 21 + len(seen), "rip": FUNCTION, "rsp": saved["rsp"] - 256})
        guest.cpu.run(0x6000)
        seen.append(guest.cpu.get("rax"))
        guest.cpu.restore_registers(saved)

    inside = []
    guest.cpu.add_breakpoint(FUNCTION, lambda: inside.append(guest.cpu.get("rsp")))
    guest.cpu.add_breakpoint(DEC, nested)
    guest.run(LOOP, rbx=0, rcx=2)
    assert seen == [42, 44]
    assert inside == [STACK - 256] * 2
    assert (guest.cpu.get("rbx"), guest.cpu.get("rcx"), guest.cpu.get("rsp")) == (2, 0, STACK)


def test_exception_in_a_handler():
    """What the handler raises comes out of the run, with the processor in front of the instruction."""
    guest = BareMachine()

    def refuse():
        raise MachineError("enough")

    guest.cpu.add_breakpoint(DEC, refuse)
    end = guest.code(LOOP, rbx=0, rcx=5)
    with pytest.raises(MachineError, match="enough"):
        guest.cpu.run(end)
    assert (guest.cpu.get("rip"), guest.cpu.get("rcx")) == (DEC, 5)
    guest.cpu.remove_breakpoint(DEC)
    guest.cpu.run(end)
    assert guest.cpu.get("rbx") == 5


def test_removal():
    """A removed breakpoint is not called any more, and can be set again."""
    guest = BareMachine()
    seen = []
    guest.cpu.add_breakpoint(DEC, lambda: seen.append(1))
    guest.run(LOOP, rcx=2)
    guest.cpu.remove_breakpoint(DEC)
    guest.run(LOOP, rcx=2)
    assert seen == [1, 1]
    guest.cpu.add_breakpoint(DEC, lambda: seen.append(2))
    guest.run(LOOP, rcx=2)
    assert seen == [1, 1, 2, 2]


def test_removal_by_its_own_handler():
    """A handler may remove its own breakpoint; the run goes on."""
    guest = BareMachine()
    seen = []

    def once():
        seen.append(guest.cpu.get("rcx"))
        guest.cpu.remove_breakpoint(DEC)

    guest.cpu.add_breakpoint(DEC, once)
    guest.run(LOOP, rbx=0, rcx=3)
    assert (seen, guest.cpu.get("rbx")) == ([3], 3)


def test_replacement():
    """A second breakpoint at the same address takes the place of the first."""
    guest = BareMachine()
    seen = []
    guest.cpu.add_breakpoint(DEC, lambda: seen.append("old"))
    guest.cpu.add_breakpoint(DEC, lambda: seen.append("new"))
    guest.run(LOOP, rcx=1)
    assert seen == ["new"]


def test_on_code_that_ran_before():
    """A breakpoint works in code that was translated before it was set, in the middle of a block too."""
    guest = BareMachine()
    seen = []
    for _ in range(3):
        guest.run(LOOP, rcx=50)
    guest.cpu.add_breakpoint(DEC, lambda: seen.append(guest.cpu.get("rcx")))
    end = guest.code("", rcx=2) + 6
    guest.cpu.run(end)
    assert seen == [2, 1]


def test_set_while_the_code_runs():
    """A handler can set a breakpoint in the block that it interrupted."""
    guest = BareMachine()
    seen = []

    def first():
        if not seen:
            guest.cpu.add_breakpoint(CODE + 4, lambda: seen.append("second"))
        seen.append("first")

    guest.cpu.add_breakpoint(DEC, first)
    guest.run(LOOP, rcx=2)
    assert seen == ["first", "second", "first", "second"]


@pytest.mark.parametrize("address", [ABSENT, 0x700000000000, DATA, 0x800000000000], ids=hex)
def test_where_nothing_runs(address):
    """A breakpoint at an address that is not mapped leaves no page fault behind that never happened."""
    guest = BareMachine()
    guest.run("90")
    guest.cpu.add_breakpoint(address, lambda: None)
    guest.code("c6 00 01", rax=ABSENT)
    frame = guest.run_to_handler(PAGE_FAULT)
    assert (frame.rip, frame.error_code) == (CODE, 2)


def test_code_that_python_writes():
    """Code that was executed and is overwritten by Python is executed as it is now."""
    guest = BareMachine()
    guest.run("b8 01 00 00 00")  # mov eax, 1
    assert guest.cpu.get("rax") == 1
    guest.cpu.write(CODE + 1, b"\x02")
    guest.cpu.set("rip", CODE)
    guest.cpu.run(CODE + 5)
    assert guest.cpu.get("rax") == 2


def test_code_that_python_writes_at_another_address():
    """It is the memory that counts, not the address by which it was written."""
    guest = BareMachine()
    guest.run("b8 01 00 00 00")
    guest.cpu.write(HIGH + CODE + 1, b"\x03")
    guest.cpu.set("rip", CODE)
    guest.cpu.run(CODE + 5)
    assert guest.cpu.get("rax") == 3


def test_code_in_pages_that_lie_apart():
    """What is written across pages that are not neighbours in physical memory is forgotten in both."""
    guest = BareMachine()
    guest.page(0x61000, 3, physical=0x70000)
    guest.page(0x62000, 3, physical=0x6F000)
    for value in (1, 2):
        # mov eax, VALUE, of which the last four bytes are in the second page; mov ebx, VALUE
        guest.run(f"b8 {value:02x} 00 00 00 bb {value:02x} 00 00 00", at=0x61FFF)
        assert (guest.cpu.get("rax"), guest.cpu.get("rbx")) == (value, value)
    assert guest.ram.read(0x70FFF, 1) == b"\xb8"
    assert guest.ram.read(0x6F000, 1) == b"\x02"


def test_code_that_is_written_where_it_cannot_be_executed():
    """Code that ran is also forgotten if it is overwritten by way of a page that forbids execution."""
    guest = BareMachine()
    guest.run("b8 01 00 00 00")
    guest.page(0x61000, 3 | 1 << 63, physical=CODE)
    guest.cpu.write(0x61001, b"\x05")
    guest.cpu.set("rip", CODE)
    guest.cpu.run(CODE + 5)
    assert guest.cpu.get("rax") == 5


def test_code_that_the_guest_writes():
    """So is code that the guest itself overwrites."""
    guest = BareMachine()
    guest.cpu.write(FUNCTION, bytes.fromhex("b8 01 00 00 00 c3"))  # mov eax, 1; ret
    # call rbx; mov byte [rbx+1], 4; call rbx
    guest.run("ff d3 c6 43 01 04 ff d3", rbx=FUNCTION)
    assert guest.cpu.get("rax") == 4


def test_code_that_a_handler_writes():
    """A handler can change the very instruction that it was called for."""
    guest = BareMachine()
    guest.cpu.add_breakpoint(CODE + 5, lambda: guest.cpu.write(CODE + 6, b"\x09"))
    guest.run("b8 01 00 00 00 bb 02 00 00 00")  # mov eax, 1; mov ebx, 2
    assert guest.cpu.get("rbx") == 9
