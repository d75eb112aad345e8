from __future__ import annotations

import pytest

from kodojo.errors import MachineError
from kodojo.machine.board_arm64 import SERIAL
from kodojo.machine.machine import Machine, Snapshot
from tests.support.bare_arm64 import (
    ABSENT,
    BASE,
    CODE,
    DATA,
    HIGH,
    L0,
    LARGE,
    MEMORY,
    PAGE,
    READ_ONLY,
    BareArm64,
)

SEVEN, EIGHT = "d28000e0", "d2800100"  # mov x0, #7; mov x0, #8
RET = "d65f03c0"


def test_translation():
    """Both halves of the address space are translated by their tables, pages as well as blocks."""
    guest = BareArm64()
    cpu = guest.cpu
    guest.page(DATA, PAGE, physical=DATA + 0x3000)
    assert cpu.translate(DATA + 5) == DATA + 0x3005
    assert cpu.translate(HIGH + DATA - BASE + 5) == DATA + 0x3005
    assert cpu.translate(LARGE + 0x12345) == LARGE + 0x12345
    assert cpu.translate(HIGH + 0x200000) == LARGE
    assert cpu.translate(ABSENT) is None


@pytest.mark.parametrize("address", [1 << 48, 0xFFFE << 48, BASE + MEMORY, HIGH + (1 << 39)])
def test_outside(address):
    """Addresses of neither half, beyond the memory, and those that no table has, are not mapped."""
    cpu = BareArm64().cpu
    assert cpu.translate(address) is None
    with pytest.raises(MachineError, match="not mapped"):
        cpu.read(address, 1)


def test_reads_and_writes_cross_pages():
    """Bytes on both sides of a page's end are read and written by two translations; read-only pages, too."""
    guest = BareArm64()
    guest.page(DATA + 0x1000, PAGE, physical=DATA + 0x5000)
    guest.cpu.write(DATA + 0xFFE, b"abcd")
    assert guest.ram.read(DATA + 0xFFE, 2) + guest.ram.read(DATA + 0x5000, 2) == b"abcd"
    assert guest.cpu.read(DATA + 0xFFE, 4) == b"abcd"
    guest.cpu.write(READ_ONLY, b"x")
    assert guest.cpu.read(READ_ONLY, 1) == b"x"


def test_table_of_user_space():
    """While the register points elsewhere, the low half is looked up where user space's table is said to be."""
    guest = BareArm64()
    guest.cpu.set("ttbr0_el1", DATA)  # no table there
    assert guest.cpu.translate(CODE) is None
    guest.cpu.user_table = L0
    assert guest.cpu.translate(CODE) == CODE


@pytest.mark.parametrize("through", [CODE, HIGH + CODE - BASE])
def test_code_that_is_written(through):
    """Code that Python writes runs, though what was there has run before, by whichever address."""
    guest = BareArm64()
    guest.run(SEVEN)
    guest.cpu.write(through, bytes.fromhex(EIGHT)[::-1])
    guest.cpu.set("pc", CODE)
    guest.cpu.run(CODE + 4)
    assert guest.cpu.get("x0") == 8


def test_code_that_the_guest_writes():
    """Code that the guest writes runs, too."""
    guest = BareArm64()
    guest.run(SEVEN)
    guest.run("b9000041", at=DATA, x1=int(EIGHT, 16), x2=CODE)  # str w1, [x2]
    guest.cpu.set("pc", CODE)
    guest.cpu.run(CODE + 4)
    assert guest.cpu.get("x0") == 8


def test_breakpoints():
    """A breakpoint calls Python before its instruction; one that was added late, and none that was removed."""
    guest = BareArm64()
    guest.run(f"{SEVEN} {EIGHT}")
    seen = []
    guest.cpu.add_breakpoint(CODE + 4, lambda: seen.append(guest.cpu.get("x0")))
    guest.cpu.set("pc", CODE)
    guest.cpu.run(CODE + 8)
    guest.cpu.remove_breakpoint(CODE + 4)
    guest.cpu.set("pc", CODE)
    guest.cpu.run(CODE + 8)
    assert seen == [7]


def test_serial_port():
    """What is stored in the data register of the serial port is kept."""
    guest = BareArm64()
    guest.run("39000020", x0=ord("k"), x1=SERIAL)  # strb w0, [x1]
    assert bytes(guest.board.serial) == b"k"


def on(guest: BareArm64) -> int:
    """Let a machine go on for a while; its counter then."""
    guest.cpu.set("pc", CODE)
    guest.cpu.run(CODE + 8)
    return guest.cpu.get("x0")


def test_snapshot_fork_and_delta(tmp_path):
    """A machine from a snapshot, its fork, and one that its delta was applied to, go on in the same way."""
    guest = BareArm64()
    guest.open_timer()
    guest.code(f"{'d53be040'} {'d503201f'}", x1=1)  # mrs x0, cntvct_el0; nop
    guest.cpu.trap_time_stamp_reads([CODE])
    on(guest)
    snapshot = Snapshot.write(tmp_path / "snapshot", guest.machine, {})
    first = snapshot.start()
    first.cpu.write(DATA, b"changed")
    twin, applied = first.fork(), Machine.apply(snapshot, first.delta())
    values = [on(BareArm64(machine)) for machine in (guest.machine, first, twin, applied)]
    assert len(set(values)) == 1
    assert [machine.cpu.read(DATA, 7) for machine in (first, twin, applied)] == [b"changed"] * 3
    assert guest.cpu.read(DATA, 7) == bytes(7)
    assert twin.board == first.board == guest.board
