from __future__ import annotations

import pytest

from kodojo.errors import MachineHang
from kodojo.machine.arm64 import COUNTS_PER_READ, COUNTS_PER_TICK
from kodojo.machine.board_arm64 import DISTRIBUTOR, INTERFACE, VIRTUAL_TIMER
from kodojo.machine.cpu import RunLimit
from tests.support.bare_arm64 import CODE, DAIF, EL1H, IRQ, IRQ_MASKED, PAGE, PXN, VECTORS, WFI, BareArm64

COUNT = "d53be040"  # mrs x0, cntvct_el0
SET_COMPARE = "d51be341"  # msr cntv_cval_el0, x1
SET_CONTROL = "d51be322"  # msr cntv_ctl_el0, x2
GET_CONTROL = "d53be323"  # mrs x3, cntv_ctl_el0
SET_TIMER = "d51be301"  # msr cntv_tval_el0, x1
LOOP = "14000000"  # b .


def timed(text: str, **registers: int) -> tuple[BareArm64, int]:
    """A machine about to run these instructions, with all accesses to the timer trapped; their end."""
    guest = BareArm64()
    guest.open_timer()
    end = guest.code(text, **registers)
    guest.cpu.trap_time_stamp_reads(guest.cpu.time_stamp_reads(guest.cpu.read(CODE, end - CODE), CODE))
    return guest, end


def test_sites():
    """The accesses to counter and timers are found, and those of nothing else."""
    guest = BareArm64()
    others = "d53be001 d538d080 d503201f"  # mrs x1, cntfrq_el0; mrs x0, tpidr_el1; nop
    end = guest.code(f"{COUNT} {SET_COMPARE} {others} {SET_CONTROL} {GET_CONTROL} {SET_TIMER}")
    found = guest.cpu.time_stamp_reads(guest.cpu.read(CODE, end - CODE), CODE)
    assert found == [CODE, CODE + 4, CODE + 20, CODE + 24, CODE + 28]


def test_counter_is_what_was_executed():
    """The counter is the number of basic blocks, and of its own readings: it is the same in every run."""
    counts = []
    for _ in range(2):
        # mov x3, #1000; 1: subs x3, x3, #1; b.ne 1b; mrs x0, cntvct_el0
        guest, end = timed(f"d2807d03 f1000463 54ffffe1 {COUNT}")
        guest.cpu.run(end)
        counts.append(guest.cpu.get("x0"))
    assert counts[0] == counts[1]
    assert 1000 <= counts[0] - COUNTS_PER_READ < 1100


def test_reading_the_counter_takes_time():
    """Code that waits by reading the counter is interrupted when the timer is due, not when it has waited."""
    # 1: mrs x0, cntvct_el0; b 1b
    guest, _ = timed(f"{SET_COMPARE} {SET_CONTROL} {COUNT} 17ffffff", x1=50_000, x2=1, pstate=EL1H)
    guest.run_to_handler(IRQ)
    assert 50_000 <= guest.cpu.counter < 50_000 + 2 * COUNTS_PER_READ
    assert guest.cpu.blocks < 50_000 // COUNTS_PER_READ * 4


def test_limit_while_reading_the_counter():
    """The limit holds for code that waits by reading the counter, too."""
    guest, end = timed(f"{COUNT} 17ffffff")
    with pytest.raises(MachineHang, match="within the limit"):
        guest.cpu.run(end, RunLimit(ticks=1))
    assert 0 <= guest.cpu.counter - COUNTS_PER_TICK < 2 * COUNTS_PER_READ


def test_waiting_skips_to_the_timer():
    """WFI with an enabled timer takes the time until it is due, and nothing of the host's."""
    due = 5 * COUNTS_PER_TICK
    guest, _ = timed(f"{SET_COMPARE} {SET_CONTROL} {WFI} {LOOP}", x1=due, x2=1, pstate=EL1H)
    exception = guest.run_to_handler(IRQ)
    assert exception.link == CODE + 12
    assert guest.cpu.counter >= due
    assert guest.cpu.ticks == 5


def test_timer_interrupts_code_that_does_not_wait():
    """Code that spins is interrupted when the timer is due."""
    guest, _ = timed(f"{SET_COMPARE} {SET_CONTROL} {LOOP}", x1=20_000, x2=1, pstate=EL1H)
    guest.run_to_handler(IRQ)
    assert 20_000 <= guest.cpu.counter < 20_100


def test_relative_timer():
    """CNTV_TVAL_EL0 counts from now."""
    guest, _ = timed(f"{SET_TIMER} {SET_CONTROL} {LOOP}", x1=3_000, x2=1, pstate=EL1H)
    guest.run_to_handler(IRQ)
    assert 3_000 <= guest.cpu.counter < 3_100


def test_saved_state_is_of_then():
    """What the timer is set to after the state was saved is forgotten when it is restored."""
    guest, end = timed(f"{SET_COMPARE} {SET_CONTROL} {GET_CONTROL}", x1=COUNTS_PER_TICK, x2=1)
    state = guest.cpu.save_state()
    guest.cpu.run(end)
    guest.cpu.restore_state(state)
    guest.code(GET_CONTROL, x3=5)
    guest.cpu.run(CODE + 4)
    assert guest.cpu.get("x3") == 0


def test_masked_interrupt_is_pending():
    """An interrupt that comes while they are masked is taken as soon as they are not, for however short a time."""
    # wfi with interrupts masked comes back; then nothing, then two instructions between unmasking and masking
    unmask, mask = "d50342ff", "d50342df"  # msr daifclr, #2; msr daifset, #2
    guest, _ = timed(
        f"{SET_COMPARE} {SET_CONTROL} {WFI} d503201f {unmask} {mask} {LOOP}", x1=9_000, x2=1, pstate=DAIF | EL1H
    )
    exception = guest.run_to_handler(IRQ)
    assert exception.link == CODE + 20
    assert not exception.saved & IRQ_MASKED


def test_status_and_mask():
    """CNTV_CTL_EL0 tells that the timer is due; a masked one interrupts nobody."""
    guest, end = timed(f"{SET_COMPARE} {SET_CONTROL} {GET_CONTROL}", x1=0, x2=3, pstate=EL1H)
    guest.cpu.run(end)
    assert guest.cpu.get("x3") == 7
    assert guest.board.interrupt() is None


def test_waiting_for_nothing():
    """A guest that waits while no timer is set, waits for ever."""
    guest, end = timed(WFI, pstate=EL1H)
    with pytest.raises(MachineHang, match="every interrupt is masked"):
        guest.cpu.run(end)


def test_limit():
    """A guest that does not come back is stopped after its limit, whether it computes or waits."""
    guest, end = timed(LOOP)
    with pytest.raises(MachineHang, match="within the limit"):
        guest.cpu.run(end, RunLimit(ticks=2))
    assert guest.cpu.ticks == 2


def test_exceptions_take_time():
    """Code that faults for ever comes to its limit, too."""
    guest, end = timed("d4200000")  # brk #0; the handler returns to it
    with pytest.raises(MachineHang, match="within the limit"):
        guest.cpu.run(end, RunLimit(ticks=1))


def test_interrupt_is_acknowledged():
    """The controller names the timer once, and again when its end has been written and the line is still up."""
    guest, _ = timed(f"{SET_COMPARE} {SET_CONTROL} {LOOP}", x1=500, x2=1, pstate=EL1H)
    guest.run_to_handler(IRQ)
    board = guest.board
    assert board.bus_read(INTERFACE + 0xC, 4) == VIRTUAL_TIMER
    assert board.bus_read(INTERFACE + 0xC, 4) == 1023
    board.bus_write(INTERFACE + 0x10, 4, VIRTUAL_TIMER)
    assert board.bus_read(INTERFACE + 0xC, 4) == VIRTUAL_TIMER


def test_software_interrupt():
    """An interrupt that software sends to itself is taken at the next basic block."""
    guest = BareArm64()
    guest.open_timer()
    store = "b9000020"  # str w0, [x1]
    guest.code(f"{store} 14000001 {LOOP}", x0=5, x1=DISTRIBUTOR + 0xF00, pstate=EL1H)
    exception = guest.run_to_handler(IRQ)
    assert exception.link in (CODE + 4, CODE + 8)
    assert guest.board.bus_read(INTERFACE + 0xC, 4) == 5
    assert guest.cpu.get("pc") == VECTORS + IRQ


def test_handlers_that_cannot_run():
    """Where the handlers are in memory that is not executable, no block can run; the limit comes all the same."""
    guest, end = timed("d4200000")  # brk #0
    guest.page(VECTORS, PAGE | PXN)
    with pytest.raises(MachineHang, match="within the limit"):
        guest.cpu.run(end, RunLimit(ticks=1))
