from __future__ import annotations

import pytest

from kodojo.errors import MachineError
from tests.support.bare_arm64 import (
    ABSENT,
    CODE,
    DAIF,
    DATA,
    EL1H,
    ERET,
    NO_EXECUTE,
    READ_ONLY,
    STACK,
    SYNCHRONOUS,
    VECTORS,
    BareArm64,
)

READ = "f9400000"  # ldr x0, [x0]
WRITE = "f9000001"  # str x1, [x0]
JUMP = "d61f0000"  # br x0
DATA_ABORT, FETCH_ABORT, BRK, UNKNOWN, SVC = 0x25, 0x21, 0x3C, 0x00, 0x15
WRITES = 1 << 6  # WnR in the syndrome of a data abort
TRANSLATION_FAULT_3, PERMISSION_FAULT_3 = 0x07, 0x0F  # at the last level of the tables

ABORTS = {
    "read-absent": (READ, ABSENT, DATA_ABORT, TRANSLATION_FAULT_3),
    "write-absent": (WRITE, ABSENT, DATA_ABORT, TRANSLATION_FAULT_3 | WRITES),
    "write-read-only": (WRITE, READ_ONLY, DATA_ABORT, PERMISSION_FAULT_3 | WRITES),
    "fetch-absent": (JUMP, ABSENT, FETCH_ABORT, TRANSLATION_FAULT_3),
    "fetch-no-execute": (JUMP, NO_EXECUTE, FETCH_ABORT, PERMISSION_FAULT_3),
}


@pytest.mark.parametrize(("code", "address", "kind", "status"), ABORTS.values(), ids=ABORTS)
def test_abort(code, address, kind, status):
    """An abort reaches the guest's handler with class and status in ESR_EL1 and the address in FAR_EL1."""
    guest = BareArm64()
    guest.code(code, x0=address + 0x120)
    exception = guest.run_to_handler(SYNCHRONOUS)
    assert exception.kind == kind
    assert exception.syndrome & (0x3F | WRITES) == status
    assert exception.address == address + 0x120
    # The instruction that faults is the one to be repeated; of a fetch it is the one that was not fetched.
    assert exception.link == (address + 0x120 if code == JUMP else CODE)


def test_handler_sees_the_state_before():
    """SPSR_EL1 is the state before; the handler begins at EL1 with its own stack and everything masked."""
    guest = BareArm64()
    guest.code(READ, x0=ABSENT, pstate=EL1H | 1 << 30)  # Z
    exception = guest.run_to_handler(SYNCHRONOUS)
    assert exception.saved == EL1H | 1 << 30
    assert guest.cpu.get("pstate") & (DAIF | 0xF) == DAIF | EL1H
    assert guest.cpu.get("sp") == STACK


def test_return():
    """A handler that mends the cause and returns lets the instruction finish."""
    guest = BareArm64()
    guest.ram.write(DATA, (0x1234).to_bytes(8, "little"))
    end = guest.code(READ, x0=ABSENT)
    guest.cpu.add_breakpoint(VECTORS + SYNCHRONOUS, lambda: guest.cpu.set("x0", DATA))
    guest.cpu.run(end)
    assert guest.cpu.get("x0") == 0x1234


def test_faults_one_after_the_other():
    """Every fault is told anew, also the one that comes while the first is being handled."""
    guest = BareArm64()
    guest.code(READ, x0=ABSENT)
    assert guest.run_to_handler(SYNCHRONOUS).address == ABSENT
    guest.code(WRITE, x0=READ_ONLY + 8)
    exception = guest.run_to_handler(SYNCHRONOUS)
    assert (exception.address, exception.syndrome & 0x3F) == (READ_ONLY + 8, PERMISSION_FAULT_3)


@pytest.mark.parametrize(
    ("code", "kind", "immediate", "offset"),
    [
        ("d4210000", BRK, 0x800, 0),  # brk #0x800: how BUG() and WARN() work
        ("d4000541", SVC, 42, 4),  # svc #42: returns behind itself
        ("00000000", UNKNOWN, 0, 0),  # udf #0
    ],
    ids=["brk", "svc", "udf"],
)
def test_instructions_that_raise(code, kind, immediate, offset):
    """BRK, SVC and what is no instruction have class and immediate in ESR_EL1; SVC links to what follows it."""
    guest = BareArm64()
    guest.code(code)
    exception = guest.run_to_handler(SYNCHRONOUS)
    assert (exception.kind, exception.syndrome & 0xFFFF) == (kind, immediate)
    assert exception.link == CODE + offset


@pytest.mark.parametrize("hint", ["d503203f", "d503205f"], ids=["yield", "wfe"])
def test_hints(hint):
    """YIELD and WFE are no exceptions: what follows them runs."""
    guest = BareArm64()
    guest.run(f"{hint} d28000e0")  # mov x0, #7
    assert guest.cpu.get("x0") == 7


def test_no_handlers():
    """An exception while VBAR_EL1 is not mapped ends the run."""
    guest = BareArm64()
    guest.cpu.set("vbar_el1", ABSENT)
    guest.code(READ, x0=ABSENT)
    with pytest.raises(MachineError, match="no handlers in VBAR_EL1"):
        guest.cpu.run(CODE + 4)


@pytest.mark.parametrize(
    ("function", "answer"), [(0x84000000, 0x10000), (0x8400000A, (1 << 64) - 1)], ids=["version", "unknown"]
)
def test_firmware(function, answer):
    """PSCI_VERSION is 1.0; what the firmware does not do, it says."""
    guest = BareArm64()
    guest.run("d4000002", x0=function)  # hvc #0
    assert guest.cpu.get("x0") == answer


def test_power_off():
    """A guest that turns the machine off ends the run."""
    guest = BareArm64()
    guest.code("d4000002", x0=0x84000008)
    with pytest.raises(MachineError, match="turned the machine off"):
        guest.cpu.run(CODE + 4)


def test_eret_is_executed_by_the_engine():
    """What a handler returns with comes from ELR_EL1 and SPSR_EL1."""
    guest = BareArm64()
    end = guest.code(f"{ERET} d503201f d28000e0")
    guest.cpu.set("elr_el1", CODE + 8)
    guest.cpu.set("spsr_el1", EL1H | DAIF)
    guest.cpu.run(end)
    assert guest.cpu.get("x0") == 7
