from __future__ import annotations

import pytest

from kodojo.errors import MachineError
from kodojo.machine import engine as engine_module
from kodojo.machine.engine import Engine, Stop, engine_identity
from kodojo.machine.memory import Ram

# The engine in its state after a reset: x86-64 without paging, so addresses are physical.
CODE = 0x1000
BLOCKS = "eb 00 eb 00 eb 00 f4"  # jmp +0, three times; hlt


def x86(code: str) -> Engine:
    ram = Ram(1 << 20)
    ram.write(CODE, bytes.fromhex(code))
    return Engine("x86_64", "QEMU64", ram)


@pytest.fixture(params=["native", "python"])
def counter(request, monkeypatch):
    """Both ways to count blocks: machine code, and a Python function where that cannot be had."""
    if request.param == "python":
        monkeypatch.setattr(engine_module, "_COUNTING_ROUTINES", {})


def test_halt(counter):
    """HLT brings the engine to rest; the blocks until there are counted."""
    engine = x86(BLOCKS)
    stop, _vector, blocks = engine.start(CODE, 1000)
    assert (stop, blocks) == (Stop.HALTED, 4)


def test_count(counter):
    """The engine stops at the beginning of the block with the given number."""
    engine = x86(BLOCKS)
    stop, _vector, blocks = engine.start(CODE, 3)
    assert (stop, blocks, engine.get("rip")) == (Stop.COUNTED, 3, CODE + 4)
    stop, _vector, blocks = engine.start(CODE + 4, 1000)
    assert (stop, blocks) == (Stop.HALTED, 2)


def test_long_count(counter):
    """A block that is executed again and again counts each time."""
    engine = x86("e2 fe f4")  # 1: loop 1b; hlt
    engine.set("rcx", 5000)
    assert engine.start(CODE, 2000)[::2] == (Stop.COUNTED, 2000)
    assert engine.get("rcx") == 5000 - 1999
    assert engine.start(CODE, 1_000_000)[0] is Stop.HALTED


def test_exception():
    """An exception stops the engine and tells its number."""
    engine = x86("cc")
    assert engine.start(CODE, 1000)[:2] == (Stop.EXCEPTION, 3)


def test_invalid_instruction():
    """So does an instruction that there is not."""
    engine = x86("90 0f ff")
    assert engine.start(CODE, 1000)[0] is Stop.INVALID
    assert engine.get("rip") == CODE + 1


def test_breakpoint():
    """The engine stops before the instruction at a breakpoint, unless it starts there."""
    engine = x86("90 90 90 f4")
    engine.add_breakpoint(CODE + 2)
    assert engine.start(CODE, 1000)[0] is Stop.BREAKPOINT
    assert engine.get("rip") == CODE + 2
    assert engine.start(CODE + 2, 1000)[0] is Stop.HALTED


def test_same_breakpoint_twice():
    """A breakpoint that is set twice is removed by removing it once."""
    engine = x86("90 90 f4")
    engine.add_breakpoint(CODE + 1)
    engine.add_breakpoint(CODE + 1)
    engine.remove_breakpoint(CODE + 1)
    assert engine.start(CODE, 1000)[0] is Stop.HALTED


def test_state():
    """A saved state brings all registers back, in another engine too."""
    engine, other = x86("f4"), x86("f4")
    engine.set("rax", 0x123456789ABCDEF0)
    engine.set("xmm3", 1 << 127 | 5)
    state = engine.save_state()
    engine.set("rax", 0)
    for each in (engine, other):
        each.restore_state(state)
        assert (each.get("rax"), each.get("xmm3")) == (0x123456789ABCDEF0, 1 << 127 | 5)


@pytest.mark.parametrize("change", [b"", b"x"], ids=["empty", "longer"])
def test_foreign_state(change):
    """A state of another size is not of this emulator."""
    engine = x86("f4")
    state = engine.save_state() + change if change else b""
    with pytest.raises(MachineError, match="not from this emulator"):
        engine.restore_state(state)


def test_register_batch():
    """Several registers are read and written in one call."""
    engine = x86("48 ff c0 f4")  # inc rax; hlt
    batch = engine.batch(("rax", "rbx"))
    batch.write({"rax": (1 << 64) - 2, "rbx": 7})
    engine.start(CODE, 1000)
    assert batch.read() == {"rax": (1 << 64) - 1, "rbx": 7}


def test_devices_on_the_bus():
    """Physical addresses of devices call Python, with the offset from the start of the range."""
    engine = x86("a1 00 00 20 00 00 00 00 00 88 0c 25 08 00 20 00 f4")  # mov eax, [0x200000]; mov [0x200008], cl
    written = []
    engine.map_bus(
        0x200000, 0x201000, lambda offset, size: 0xABC0 + size + offset, lambda *args: written.append(args)
    )
    engine.set("rcx", 0x5A)
    engine.start(CODE, 1000)
    assert engine.get("rax") == 0xABC4
    assert written == [(8, 1, 0x5A)]


def test_nothing_mapped():
    """Where neither memory nor a device is, the emulator cannot go on, and says so."""
    engine = x86("a1 00 00 20 00 00 00 00 00")
    with pytest.raises(MachineError, match="cannot go on"):
        engine.start(CODE, 1000)


def test_another_architecture():
    """The engine knows no architecture: it runs 64-bit ARM as well."""
    ram = Ram(1 << 20)
    ram.write(CODE, bytes.fromhex("a00080d2 00040091 020000d4"))  # mov x0, #5; add x0, x0, #1; hvc #0
    engine = Engine("aarch64", "A72", ram)
    assert engine.start(CODE, 1000)[0] in {Stop.EXCEPTION, Stop.INVALID}
    assert engine.get("x0") == 6


def test_identity():
    """The identity names the emulator and its version: states are good for the same one only."""
    assert engine_identity().startswith("unicorn-2.")
