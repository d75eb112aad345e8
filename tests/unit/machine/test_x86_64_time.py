from __future__ import annotations

import pytest

from kodojo.errors import MachineError, MachineHang
from kodojo.machine.cpu import RunLimit
from kodojo.machine.x86_64 import BLOCKS_PER_TICK
from tests.support.bare_machine import ABSENT, DATA, OPEN_TIMER, PAGE_FAULT, TIMER, BareMachine, handler

COUNTING = "48 ff 04 25 00 00 04 00 48 cf"  # inc qword [DATA]; iretq
SPIN = "eb fe"  # jmp $


def counting_guest() -> BareMachine:
    """A guest whose timer handler counts in DATA."""
    guest = BareMachine()
    guest.cpu.write(handler(TIMER), bytes.fromhex(COUNTING))
    return guest


def ticks_seen(guest: BareMachine) -> int:
    return int.from_bytes(guest.cpu.read(DATA, 8), "little")


def test_halt_waits_for_a_tick():
    """HLT ends with the next timer interrupt, and the code after it runs."""
    guest = counting_guest()
    guest.run(OPEN_TIMER + "fb f4 f4 f4")  # sti; hlt; hlt; hlt
    assert (ticks_seen(guest), guest.cpu.ticks, guest.board.ticks) == (3, 3, 3)


def test_waiting_costs_no_blocks():
    """A tick that was waited for comes at once: no blocks are executed for it."""
    guest = counting_guest()
    guest.run(OPEN_TIMER + "fb f4 f4 f4")
    assert guest.cpu.blocks < 20


def test_spinning_code_gets_ticks():
    """Code that waits for a counter without HLT gets ticks by the blocks that it executes."""
    guest = counting_guest()
    guest.run(OPEN_TIMER + "fb 48 83 3c 25 00 00 04 00 02 75 f5")  # sti; 1: cmp qword [DATA], 2; jne 1b
    assert (ticks_seen(guest), guest.cpu.ticks) == (2, 2)
    assert 2 * BLOCKS_PER_TICK <= guest.cpu.blocks < 2 * BLOCKS_PER_TICK + 20


def test_interrupts_off():
    """With IF clear time passes, but no tick is delivered."""
    guest = counting_guest()
    guest.code(OPEN_TIMER + SPIN)
    with pytest.raises(MachineHang, match="did not come back"):
        guest.cpu.run(0, RunLimit(ticks=3))
    assert (ticks_seen(guest), guest.cpu.ticks, guest.board.ticks) == (0, 3, 0)


def test_masked_timer():
    """A spinning guest that masks IRQ 0 gets no tick, though interrupts are on."""
    guest = counting_guest()
    guest.code("fb" + SPIN)  # sti; the controllers mask everything after a reset
    with pytest.raises(MachineHang):
        guest.cpu.run(0, RunLimit(ticks=3))
    assert (ticks_seen(guest), guest.cpu.ticks) == (0, 3)


def test_limit():
    """A run ends after the ticks it may take; the report has the registers, and names the cause."""
    guest = counting_guest()
    guest.code(OPEN_TIMER + "fb" + SPIN, rbx=0x1234)
    with pytest.raises(MachineHang) as caught:
        guest.cpu.run(0, RunLimit(ticks=4))
    assert ticks_seen(guest) == 3  # the fourth period is the one in which it ends
    assert (caught.value.registers["rbx"], caught.value.report.cause) == (0x1234, "limit reached")


def test_limit_counts_from_the_start_of_the_run():
    """Ticks of earlier runs do not count against the limit of a later one."""
    guest = counting_guest()
    for _ in range(3):
        guest.run(OPEN_TIMER + "fb f4 f4", ticks=3)
    assert ticks_seen(guest) == 6


def test_halt_limit():
    """The limit holds for a guest that waits, too."""
    guest = counting_guest()
    guest.code(OPEN_TIMER + "fb f4 eb fd")  # sti; 1: hlt; jmp 1b
    with pytest.raises(MachineHang, match="did not come back"):
        guest.cpu.run(0, RunLimit(ticks=10))
    assert ticks_seen(guest) == 9


@pytest.mark.parametrize(
    ("code", "words"),
    [(OPEN_TIMER + "f4", "interrupts off"), ("fb f4", "every interrupt is masked")],
    ids=["cli", "masked"],
)
def test_halted_for_ever(code, words):
    """A HLT that nothing can end is a hang at once, however much time the run has."""
    guest = counting_guest()
    end = guest.code(code)
    with pytest.raises(MachineHang, match=words) as caught:
        guest.cpu.run(end)
    assert caught.value.report.cause == "halted for ever"
    assert guest.cpu.ticks <= 1


def test_same_twice():
    """Two runs of the same code from the same state take the same blocks and ticks, and leave the same memory."""
    ends = []
    for _ in range(2):
        guest = counting_guest()
        # sti; 1: inc rbx; cmp qword [DATA], 2; jne 1b: how far rbx comes depends on when the ticks come
        guest.run(OPEN_TIMER + "fb 48 ff c3 48 83 3c 25 00 00 04 00 02 75 f2", rbx=0)
        ends.append((guest.cpu.get("rbx"), guest.cpu.blocks, guest.cpu.ticks, guest.ram.pages.tobytes()))
    assert ends[0] == ends[1]
    assert ends[0][0] > BLOCKS_PER_TICK


def test_tick_at_a_breakpoint():
    """Breakpoints in a loop that is interrupted by ticks are met once for each turn."""
    guest = counting_guest()
    turns = []
    # 1: dec ecx; jnz 1b, of which each turn is one block: two ticks fall somewhere into it
    end = guest.code(OPEN_TIMER + "fb eb 00 ff c9 75 fc", rcx=2 * BLOCKS_PER_TICK + 1000)
    guest.cpu._until_tick = 5
    guest.cpu.write_registers({"rcx": 9})
    guest.cpu.add_breakpoint(end - 4, lambda: turns.append(guest.cpu.get("rcx")))
    guest.cpu.run(end)
    assert turns == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert ticks_seen(guest) == 1


NOT_MAPPED = 0xDEAD0000


def test_handlers_that_are_not_mapped():
    """Where every handler is in memory that is not there, no block can run; time passes and the limit comes."""
    guest = BareMachine()
    for vector in range(64):
        guest.gate(vector, at=NOT_MAPPED)
    guest.code("0f 0b")  # ud2
    with pytest.raises(MachineHang, match="did not come back"):
        guest.cpu.run(0, RunLimit(ticks=3))
    assert guest.cpu.ticks == 3


@pytest.mark.parametrize("interrupts", ["fa", "fb"], ids=["off", "on"])
def test_paging_that_finds_nothing(interrupts):
    """A guest that turns off what its page tables need cannot fetch anything any more: its limit comes, too."""
    guest = BareMachine()
    guest.code(OPEN_TIMER + interrupts + "31 c0 0f 22 e0 90")  # xor eax, eax; mov cr4, rax; nop
    with pytest.raises(MachineError):
        guest.cpu.run(0, RunLimit(ticks=3))
    assert guest.cpu.ticks <= 3


def test_first_fetch_after_the_budget():
    """A fetch that fails once, just when the budget of blocks is used up, is no reason for a tick of its own."""
    guest = BareMachine()
    guest.code("e2 fe ff e0", rcx=BLOCKS_PER_TICK - 1, rax=ABSENT)  # 1: loop 1b; jmp rax
    guest.run_to_handler(PAGE_FAULT)
    assert guest.cpu.ticks <= 1
