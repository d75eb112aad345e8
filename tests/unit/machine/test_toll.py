"""A guest cannot make a second of its time cost more than a few seconds of this computer."""

from __future__ import annotations

import pytest

from kodojo.errors import MachineHang
from kodojo.machine.code_pages import COUNTED_TOGETHER
from kodojo.machine.cpu import RunLimit
from kodojo.machine.toll import (
    BUS,
    CPUID,
    EARNED_PER_TICK,
    EXCEPTION,
    FLUSH,
    MOST_CREDIT,
    PORT,
    STOP,
    TRANSLATION,
    Toll,
)
from tests.support.bare_arm64 import CODE as CODE_ARM64
from tests.support.bare_arm64 import DAIF, EL1H, BareArm64
from tests.support.bare_machine import BareMachine

TICKS = 3
A_BLOCK = 600  # events of one block, which are not interrupted

EXPENSIVE = {
    "exceptions": ("0f 0b", EXCEPTION),  # ud2; the handler returns to it
    "in": ("e4 61 eb fc", PORT),  # 1: in al, 0x61; jmp 1b
    "out": ("e6 80 eb fc", PORT),
    "cpuid": ("31 c0 0f a2 eb fa", CPUID),
    "cpuid-many-in-a-block": ("31 c0 0f a2" * 100 + "e9 6b fe ff ff", CPUID),
}


def watch(guest: BareMachine) -> list[int]:
    """The prices that the guest pays."""
    paid = []
    pay = guest.cpu.engine.toll.pay

    def watched(price: int) -> bool:
        paid.append(price)
        return pay(price)

    guest.cpu.engine.toll.pay = watched
    return paid


@pytest.mark.parametrize(("code", "price"), EXPENSIVE.values(), ids=EXPENSIVE)
def test_expensive_instructions(code, price):
    """An endless loop of what Python answers comes to its limit when its credit is spent, not its blocks."""
    guest = BareMachine()
    paid = watch(guest)
    guest.code(code)
    guest.cpu.engine.toll.credit = 0
    with pytest.raises(MachineHang):
        guest.cpu.run(0, RunLimit(ticks=TICKS))
    assert price in paid
    assert sum(paid) <= TICKS * (EARNED_PER_TICK + A_BLOCK * price)
    assert guest.cpu.ticks == TICKS


FLUSHING = {
    "cr3": (BareMachine, "0f 20 d8 0f 22 d8 eb f8"),  # 1: mov rax, cr3; mov cr3, rax; jmp 1b
    "cr4": (
        BareMachine,
        "0f 20 e0 48 35 80 00 00 00 0f 22 e0 eb f2",
    ),  # 1: mov rax, cr4; xor rax, PGE; mov cr4, rax; jmp 1b
    "tlbi": (BareArm64, "d508871f 17ffffff"),  # 1: tlbi vmalle1; b 1b
}


@pytest.mark.parametrize(("make", "code"), FLUSHING.values(), ids=FLUSHING)
def test_flushes(make, code):
    """So does one of what makes the engine forget its TLB: it pays for each time."""
    guest = make()
    paid = watch(guest)
    guest.code(code, **({"pstate": DAIF | EL1H} if make is BareArm64 else {}))
    guest.cpu.engine.toll.credit = 0
    ticks = 4 if make is BareArm64 else 50  # without a timer that is one run
    with pytest.raises(MachineHang):
        guest.cpu.run(0, RunLimit(ticks=ticks))
    flushes = sum(price for price in paid if price != STOP) // FLUSH
    assert flushes > 1000
    if make is BareMachine:  # a tick at most comes to its end before it is paid
        assert flushes < ticks * EARNED_PER_TICK // FLUSH + 250_000


# 1: mov byte [rip], 0x90; (the byte that is written) nop; jmp 1b, and 1: str w0, [x1]; (the word) nop; b 1b
WRITING = {
    "x86_64": (BareMachine, "c6 05 00 00 00 00 90 90 eb f6", {}),
    "aarch64": (BareArm64, "b9000020 d503201f 17fffffe", {"x0": 0xD503201F, "pstate": DAIF | EL1H}),
}


@pytest.mark.parametrize(("make", "code", "registers"), WRITING.values(), ids=WRITING)
def test_code_that_changes_itself(make, code, registers):
    """A loop that writes to itself is translated anew each time, and pays for that."""
    guest = make()
    if make is BareArm64:
        registers = {**registers, "x1": CODE_ARM64 + 4}
    guest.code(code, **registers)
    translated = []
    pay = guest.cpu.engine.toll.pay_translations
    guest.cpu.engine.toll.pay_translations = lambda count: (translated.append(count), pay(count))[1]
    guest.cpu.engine.toll.room = 0
    with pytest.raises(MachineHang):
        guest.cpu.run(0, RunLimit(ticks=TICKS))
    assert set(translated) == {COUNTED_TOGETHER}
    assert sum(translated) <= TICKS * EARNED_PER_TICK // TRANSLATION + 2 * COUNTED_TOGETHER


def test_translations_are_no_part_of_the_state():
    """Two machines in the same state are in the same state, whatever each has translated."""
    guest = BareMachine()
    before = guest.cpu.save_state()
    guest.cpu.engine.toll.pay_translations(1000)
    assert guest.cpu.save_state() == before


def test_memory_mapped_devices():
    """On arm64 likewise: a loop that reads a device."""
    guest = BareArm64()
    guest.code("b9400020 17ffffff", x1=0x8000000, pstate=DAIF | EL1H)  # 1: ldr w0, [x1]; b 1b
    guest.cpu.engine.toll.credit = 0
    paid = watch(guest)
    with pytest.raises(MachineHang):
        guest.cpu.run(0, RunLimit(ticks=TICKS))
    assert BUS in paid
    assert sum(paid) <= (TICKS + 1) * EARNED_PER_TICK


def test_ordinary_code_has_credit():
    """A guest that asks for little loses no time: with the credit of a new machine a thousand reads are no tick."""
    guest = BareMachine()
    guest.run("b9 e8 03 00 00 e4 61 e2 fc")  # mov ecx, 1000; 1: in al, 0x61; loop 1b
    assert guest.cpu.ticks == 0
    assert guest.cpu.engine.toll.credit <= MOST_CREDIT - 1000 * PORT


@pytest.mark.parametrize("make", [BareMachine, BareArm64])
def test_a_fork_has_the_same_credit(make):
    """Credit is part of a machine's state: a copy of it is in no better position."""
    guest = make()
    guest.cpu.engine.toll.credit = 12345
    assert guest.machine.fork().cpu.engine.toll.credit == 12345


def test_credit_does_not_grow_for_ever():
    """A guest that waits for a day has no more credit than a new one."""
    toll = Toll()
    toll.earn(MOST_CREDIT * 10)
    assert toll.credit == MOST_CREDIT
    assert not toll.pay(STOP)
