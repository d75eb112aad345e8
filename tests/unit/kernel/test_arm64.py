"""Booting and calling on an arm64 machine, with kernels of a few instructions."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kodojo.errors import InputError, MachineHang, MissingInformationError
from kodojo.image.elf import Segment
from kodojo.kernel import boot
from kodojo.kernel.calls import Calls, Place
from kodojo.machine.cpu import RunLimit
from kodojo.machine.machine import Machine
from tests.support.bare_arm64 import BASE, CODE, DAIF, DATA, EL1H, STACK, BareArm64
from tests.unit.kernel.test_device_tree import read

MEMORY = 16 << 20
KERNEL = BASE + (2 << 20)


class Symbols(dict):
    def address(self, name: str) -> int:
        if name not in self:
            raise MissingInformationError(f"no symbol {name}")
        return self[name]


@dataclass
class PaperKernel:
    """A kernel of a few instructions, linked to where it is loaded."""

    code: bytes
    memsz: int = 0x10000
    release: str = "9.9-paper"
    symbols: dict[str, int] = field(default_factory=dict)

    entry = 0

    @property
    def kallsyms(self) -> Symbols:
        return Symbols(self.symbols)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (Segment(KERNEL, 0, 0, len(self.code), self.memsz, 7),)

    def segment_data(self, segment: Segment) -> bytes:
        return self.code

    @property
    def elf(self) -> SimpleNamespace:
        return SimpleNamespace(sections={}, read=lambda address, size: self.code[address - KERNEL :][:size])


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def loaded(code: bytes, cmdline: str = "quiet", **options) -> Machine:
    machine = Machine.new(MEMORY, "aarch64")
    boot.load(machine.cpu, PaperKernel(code, **options), cmdline)
    return machine


def test_entry():
    """A kernel is entered at its first byte, 2 MiB behind the start of memory, with the device tree in X0."""
    machine = loaded(words(0xAA0003E5, 0xD503201F))  # mov x5, x0; nop
    machine.cpu.run(KERNEL + 4)
    where = machine.cpu.get("x5")
    assert where % 8 == 0
    assert machine.ram.read(where, 4) == bytes.fromhex("d00dfeed")
    assert machine.cpu.get("pstate") & (DAIF | 0xF) == DAIF | EL1H


def tree_of(machine: Machine) -> dict:
    where = machine.cpu.get("x0")
    (size,) = struct.unpack(">I", machine.ram.read(where + 4, 4))
    return read(machine.ram.read(where, size))


def test_device_tree():
    """The tree tells memory, command line and initramfs as they are."""
    machine = loaded(words(0xD503201F), "quiet more words")
    tree = tree_of(machine)
    assert struct.unpack(">QQ", tree["memory@40000000"]["reg"]) == (BASE, MEMORY)
    assert tree["chosen"]["bootargs"] == b"quiet more words\0"
    start, end = (struct.unpack(">Q", tree["chosen"][f"linux,initrd-{name}"])[0] for name in ("start", "end"))
    assert machine.ram.read(start, 6) == b"070701"
    assert KERNEL < start < end <= BASE + MEMORY


@pytest.mark.parametrize("memsz", [MEMORY, MEMORY - (2 << 20)])
def test_too_little_memory(memsz):
    """A kernel that does not fit into the memory is told before it is started."""
    with pytest.raises(InputError, match="too small"):
        loaded(words(0xD503201F), memsz=memsz)


def test_long_command_line():
    """A command line that the kernel would cut is refused."""
    with pytest.raises(InputError, match="longer than 2047 bytes"):
        loaded(words(0xD503201F), "x" * 2048)


# -- calls -----------------------------------------------------------------------------------------------------------
FUNCTIONS = {
    "kernel_init": (CODE, words(*[0xD4200000] * 16)),  # never executed
    "identity": (CODE + 0x100, words(0xD65F03C0)),  # ret
    "ninth": (CODE + 0x110, words(0xF94003E0, 0xD65F03C0)),  # ldr x0, [sp]; ret
    "length": (CODE + 0x120, words(0x39400001, 0xD65F03C0)),  # ldrb w1, [x0]; ret
    "spin": (CODE + 0x130, words(0x14000000)),
    "clobber": (CODE + 0x140, words(0xD2800001, 0xD280000A, 0xD28000E0, 0xD65F03C0)),  # mov x1, #0; x10; x0, #7
}  # fmt: skip


@pytest.fixture
def guest() -> BareArm64:
    guest = BareArm64()
    for address, code in FUNCTIONS.values():
        guest.cpu.write(address, code)
    return guest


@pytest.fixture
def calls(guest) -> Calls:
    symbols = Symbols({name: address for name, (address, _) in FUNCTIONS.items()})
    return Calls(guest.cpu, SimpleNamespace(kallsyms=symbols), Place(STACK), RunLimit(ticks=3))


def test_value(calls):
    """X0 is the value, as an unsigned number of 64 bits."""
    assert calls("identity", -1) == (1 << 64) - 1
    assert calls("clobber") == 7


def test_arguments(guest, calls):
    """Eight arguments are in X0 to X7, the others on the stack, which is aligned to 16 bytes."""
    assert calls("ninth", *range(8), 1234) == 1234
    seen = []
    guest.cpu.add_breakpoint(calls.address("identity"), lambda: seen.append(guest.cpu.read_registers()))
    for count in range(12):
        calls("identity", *range(10, 10 + count))
    assert [seen[8][f"x{number}"] for number in range(8)] == list(range(10, 18))
    assert all(registers["sp"] % 16 == 0 for registers in seen)


def test_interrupts(guest, calls):
    """Functions begin with interrupts enabled, if nothing else is said."""
    seen = []
    guest.cpu.add_breakpoint(calls.address("identity"), lambda: seen.append(guest.cpu.get("pstate") & DAIF))
    calls("identity")
    calls("identity", interrupts=False)
    assert seen == [0, DAIF]


def test_text(guest, calls):
    """A text is on the stack during the call, with its NUL."""
    seen = []
    guest.cpu.add_breakpoint(calls.address("length"), lambda: seen.append(guest.cpu.read(guest.cpu.get("x0"), 4)))
    calls("length", "abc")
    assert seen == [b"abc\0"]


def test_nested(guest, calls):
    """A call from a breakpoint leaves the registers of the code that it interrupted as they were."""
    before, after = [], []

    def nest() -> None:
        before.append(guest.cpu.read_registers())
        assert calls("clobber") == 7
        after.append(guest.cpu.read_registers())

    guest.cpu.add_breakpoint(calls.address("identity"), nest)
    assert calls("identity", 55) == 55
    assert before == after


def test_return_from(guest, calls):
    """A function that is about to begin can be answered by Python."""

    def answer() -> None:
        called = calls.abi.spot_here(guest.cpu, guest.cpu.read_registers())
        guest.cpu.write_registers(calls.abi.coming_back(called, 99))

    guest.cpu.add_breakpoint(calls.address("spin"), answer)
    assert calls("spin") == 99


def test_hang(calls):
    """A function that does not come back is stopped after its limit."""
    with pytest.raises(MachineHang):
        calls("spin")


def test_system_call(guest, calls):
    """A system call is entered with its number in X8, arguments in X0 to X5, and ESR_EL1 as SVC leaves it."""
    function, arguments = calls.abi.begin_system_call(guest.cpu, DATA, 222, [1, 2, 3, 4, 5, 6])
    assert (function, arguments) == ("el0t_64_sync_handler", [DATA])
    frame = struct.unpack("<9Q", guest.cpu.read(DATA, 72))
    assert frame[:6] == (1, 2, 3, 4, 5, 6)
    assert frame[8] == 222
    assert guest.cpu.get("esr_el1") >> 26 == 0x15
    guest.cpu.write(DATA, struct.pack("<q", -22))
    assert calls.abi.system_call_value(guest.cpu, DATA) == -22


def test_calls_that_take_a_directory_now(guest, calls):
    """open and unlink are calls with a directory, the current one."""
    calls.abi.begin_system_call(guest.cpu, DATA, calls.abi.system_calls["open"], [0x1000, 2, 3, 0, 0, 0])
    assert struct.unpack("<qQQQ", guest.cpu.read(DATA, 32)) == (-100, 0x1000, 2, 3)
