from __future__ import annotations

from types import SimpleNamespace

import pytest

from kodojo.errors import InputError, MachineError, MachineHang, MissingInformationError, UnmodelledError
from kodojo.kernel.calls import Calls, Place
from kodojo.machine.cpu import RunLimit
from tests.support.bare_machine import RFLAGS_IF, BareMachine

STACK = 0x80000
# name: address and instructions
FUNCTIONS = {
    "kernel_init": (0x7000, "cc" * 16),  # never executed
    "identity": (0x5000, "48 89 f8 c3"),  # mov rax, rdi; ret
    "seventh": (0x5010, "48 8b 44 24 08 48 c1 e0 08 48 03 44 24 10 c3"),  # [rsp+8] << 8, + [rsp+16]
    "length": (0x5020, "31 c0 80 3c 07 00 74 04 ff c0 eb f6 c3"),  # strlen
    "spin": (0x5030, "eb fe"),
    "clobber": (0x5040, "31 db 31 c9 31 ff 45 31 ff b0 07 c3"),  # xor ebx, ebx; ... mov al, 7; ret
    "registers": (0x5050, "90 c3"),
}  # fmt: skip
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


class Symbols(dict):
    def address(self, name: str) -> int:
        if name not in self:
            raise MissingInformationError(f"no symbol {name}")
        return self[name]


@pytest.fixture
def guest() -> BareMachine:
    guest = BareMachine()
    for address, code in FUNCTIONS.values():
        guest.cpu.write(address, bytes.fromhex(code))
    return guest


@pytest.fixture
def calls(guest) -> Calls:
    symbols = Symbols({name: address for name, (address, _code) in FUNCTIONS.items()})
    return Calls(guest.cpu, SimpleNamespace(kallsyms=symbols), Place(STACK), RunLimit(ticks=3))


def entry(guest, calls, function, *arguments, **options):
    """The registers at the function's first instruction."""
    seen = []
    guest.cpu.add_breakpoint(calls.address(function), lambda: seen.append(guest.cpu.read_registers()))
    calls(function, *arguments, **options)
    guest.cpu.remove_breakpoint(calls.address(function))
    return seen[0]


def test_value(calls):
    """RAX is the value, as an unsigned number of 64 bits."""
    assert calls("identity", 0x1234) == 0x1234
    assert calls("identity", -1) == (1 << 64) - 1
    assert calls(0x5000, 7) == 7


def test_argument_registers(guest, calls):
    """The first six arguments are in RDI, RSI, RDX, RCX, R8, R9; RAX is 0 (no vector registers are used)."""
    seen = entry(guest, calls, "registers", 1, 2, 3, 4, 5, -6)
    assert [seen[name] for name in ARGUMENTS] == [1, 2, 3, 4, 5, (1 << 64) - 6]
    assert (seen["rax"], seen["rbp"]) == (0, 0)


def test_arguments_on_the_stack(calls):
    """From the seventh on they are on the stack, in order."""
    assert calls("seventh", 0, 0, 0, 0, 0, 0, 7, 8) == 7 << 8 | 8


@pytest.mark.parametrize("count", range(11))
def test_stack_is_aligned(guest, calls, count):
    """At the entry of a function the stack pointer is 8 more than a multiple of 16: the ABI's alignment."""
    seen = entry(guest, calls, "registers", *range(count), b"abc", "text")
    assert seen["rsp"] % 16 == 8
    assert STACK - 4096 < seen["rsp"] < STACK - 128


def test_texts(guest, calls):
    """Bytes are passed as they are, text with a NUL behind it, both as pointers."""
    assert calls("length", "twelve bytes") == 12
    assert calls("length", "") == 0
    assert calls("length", "\udcff€") == 4
    assert calls("length", b"ab\0cd") == 2
    seen = []
    guest.cpu.add_breakpoint(0x5050, lambda: seen.append(guest.cpu.read(guest.cpu.get("rsi"), 5)))
    calls("registers", "first", b"ab\0cd", "third")
    assert seen == [b"ab\0cd"]


def test_long_text(calls):
    """What does not fit on a kernel's stack is refused before anything is written."""
    assert calls("length", "x" * 2000) == 2000
    with pytest.raises(InputError, match="too long"):
        calls("length", "x" * 3000)


@pytest.mark.parametrize(("interrupts", "flag"), [(True, RFLAGS_IF), (False, 0)])
def test_interrupts(guest, calls, interrupts, flag):
    """A function is entered with interrupts on, unless that is not wanted."""
    assert entry(guest, calls, "registers", interrupts=interrupts)["rflags"] & RFLAGS_IF == flag


def test_nested_calls(guest, calls):
    """While Python handles a breakpoint calls nest, and what was interrupted goes on with its registers."""
    values = []

    def nested():
        before = guest.cpu.read_registers()
        values.append(calls("clobber"))
        values.append(calls("length", "four"))
        assert guest.cpu.read_registers() == before

    guest.cpu.add_breakpoint(0x5000, nested)
    assert calls("identity", 42) == 42
    assert values == [7, 4]


def test_nested_calls_leave_the_stack_alone(guest, calls):
    """A nested call writes below the red zone of what it interrupted."""
    inside = []

    def nested():
        stack = guest.cpu.get("rsp")
        guest.cpu.write(stack - 128, b"r" * 128)
        calls("length", "x" * 100)
        inside.append(guest.cpu.read(stack - 128, 128))

    guest.cpu.add_breakpoint(0x5000, nested)
    calls("identity", 1)
    assert inside == [b"r" * 128]


def test_nested_calls_keep_interrupts(guest, calls):
    """Code that runs with interrupts off is not given any by a nested call."""
    seen = []

    def nested():
        seen.append(entry(guest, calls, "registers")["rflags"] & RFLAGS_IF)

    guest.cpu.add_breakpoint(0x5000, nested)
    calls("identity", 1, interrupts=False)
    calls("identity", 1)
    assert seen == [0, RFLAGS_IF]


def test_endless_nesting(guest, calls):
    """Calls that nest without end are a gap of ours, told before the stack is used up."""
    guest.cpu.add_breakpoint(0x5000, lambda: calls("identity", 1))
    with pytest.raises(UnmodelledError, match="nested"):
        calls("identity", 1)


def test_limit(guest, calls):
    """A call that does not return ends at its limit; the machine is then stopped for good."""
    with pytest.raises(MachineHang) as caught:
        calls("spin", limit=RunLimit(ticks=2))
    assert guest.cpu.ticks == 2
    assert calls.stopped is caught.value
    with pytest.raises(MachineError, match="has stopped: "):
        calls("identity", 1)


def test_own_words_for_a_failure(calls):
    """Whoever watches for faults may tell more about one; the first to be told is the one that stays."""
    told = []

    def failed(error):
        told.append(error)
        return MachineError("in other words")

    calls.failed = failed
    with pytest.raises(MachineError, match="in other words"):
        calls("spin")
    assert isinstance(told[0], MachineHang)
    assert str(calls.stopped) == "in other words"


def test_refusals_of_handlers_pass(guest, calls):
    """An exception of a breakpoint's handler that is no failure of the machine goes through; calls go on."""

    def refuse():
        raise InputError("no")

    guest.cpu.add_breakpoint(0x5000, refuse)
    with pytest.raises(InputError):
        calls("identity", 1)
    guest.cpu.remove_breakpoint(0x5000)
    assert calls("identity", 2) == 2
    assert calls.stopped is None


def test_names(calls):
    """Functions are found by name; a name that this kernel has not is told."""
    assert calls.has("identity")
    assert not calls.has("gone")
    assert calls.first("gone", "length", "identity") == "length"
    with pytest.raises(MissingInformationError, match="gone"):
        calls(calls.first("lost", "gone"))


def test_return_address(guest, calls):
    """Functions return to an address where nothing is executed any more, which does not stay on the stack."""
    seen = []
    guest.cpu.add_breakpoint(
        calls.address("registers"),
        lambda: seen.append((guest.cpu.get("rsp"), guest.cpu.read(guest.cpu.get("rsp"), 8))),
    )
    calls("registers")
    [(stack, back)] = seen
    assert int.from_bytes(back, "little") == 0x7000
    assert guest.cpu.read(stack, 8) == bytes(8)
