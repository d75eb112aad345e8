"""What was written is what runs next, by whatever mapping it was written."""

from __future__ import annotations

import random
import struct

import pytest

from kodojo.machine import code_pages
from tests.support import bare_arm64, bare_machine
from tests.support.bare_arm64 import BareArm64
from tests.support.bare_machine import BareMachine

PLACE = 0x3000  # of a page of functions, from the beginning of the memory
SIZE = 64  # of a function
FUNCTIONS = 16
NX, WRITABLE = 1 << 63, 3


class Guest:
    """A page of functions that return numbers, seen by two mappings; everything is done by guest code."""

    def __init__(self) -> None:
        self.expected = [0] * FUNCTIONS

    def rewrite(self, number: int, value: int) -> None:
        """Make a function return a value, by writing through the alias."""
        content = self.function(value)
        for offset in range(0, len(content), 8):
            self.store(self.alias + SIZE * number + offset, int.from_bytes(content[offset : offset + 8], "little"))
        self.expected[number] = value

    def returned(self) -> list[int]:
        return [self.call(self.code + SIZE * number) for number in range(FUNCTIONS)]


class X86Guest(Guest):
    def __init__(self, executable: bool) -> None:
        super().__init__()
        self.guest = BareMachine()
        self.code, self.alias = bare_machine.HIGH + PLACE, bare_machine.ABSENT
        self.guest.page(self.alias, WRITABLE | (0 if executable else NX), physical=PLACE)

    @staticmethod
    def function(value: int) -> bytes:
        return struct.pack("<BIB2x", 0xB8, value, 0xC3)  # mov eax, value; ret

    @staticmethod
    def jump(start: int, end: int) -> bytes:
        return struct.pack("<Bi", 0xE9, end - (start + 5 + 5))  # behind the MOV

    def store(self, address: int, value: int) -> None:
        self.guest.run("48 89 18", rax=address, rbx=value)  # mov [rax], rbx

    def call(self, address: int) -> int:
        self.guest.run("ff d0", rax=address)  # call rax
        return self.guest.cpu.get("rax")


class Arm64Guest(Guest):
    def __init__(self, executable: bool) -> None:
        super().__init__()
        self.guest = BareArm64()
        self.code, self.alias = bare_arm64.HIGH + PLACE, bare_arm64.ABSENT
        flags = bare_arm64.PAGE | (0 if executable else bare_arm64.PXN)
        self.guest.page(self.alias, flags, physical=bare_arm64.BASE + PLACE)

    @staticmethod
    def function(value: int) -> bytes:
        return struct.pack("<2I", 0x52800000 | value << 5, 0xD65F03C0)  # mov w0, value; ret

    @staticmethod
    def jump(start: int, end: int) -> bytes:
        return struct.pack("<I", 0x14000000 | (end - (start + 4)) >> 2 & 0x3FFFFFF)  # behind the MOV

    def store(self, address: int, value: int) -> None:
        self.guest.run("f9000001", x0=address, x1=value)  # str x1, [x0]

    def call(self, address: int) -> int:
        self.guest.run("d63f0000", x0=address)  # blr x0
        return self.guest.cpu.get("x0")


GUESTS = {"x86_64": X86Guest, "aarch64": Arm64Guest}


@pytest.fixture(params=["native", "python"])
def routine(request, monkeypatch):
    """Both ways to notice new code: machine code, and a Python function where that cannot be had."""
    if request.param == "python":
        monkeypatch.setattr(code_pages, "_ROUTINES", {})


@pytest.fixture(params=[(name, executable) for name in GUESTS for executable in (False, True)])
def guest(request, routine):
    """Both processors; the alias can be executed itself, or not."""
    name, executable = request.param
    return GUESTS[name](executable)


def test_every_write_counts(guest):
    """Functions on one page are written again and again through another mapping; each call runs the newest."""
    rng = random.Random(1)
    for number in range(FUNCTIONS):
        guest.rewrite(number, number + 1)
    assert guest.returned() == guest.expected
    for round_ in range(30):
        for number in rng.sample(range(FUNCTIONS), 3):
            guest.rewrite(number, 100 * (round_ + 1) + number)
        assert guest.returned() == guest.expected


def test_one_after_the_other(guest):
    """The entry of the alias is in the TLB when code appears on the page, and the second write finds it there."""
    for number in range(FUNCTIONS):
        guest.rewrite(number, number)
    guest.returned()
    for number in range(FUNCTIONS):
        guest.rewrite(number, 1000 + number)
    assert guest.returned() == guest.expected


@pytest.mark.parametrize("name", GUESTS)
def test_memory_that_was_forgotten(name, monkeypatch):
    """With too many ranges of code the engine begins anew, and notices writes as before."""
    monkeypatch.setattr(code_pages, "_MOST_RANGES", 2)
    guest = GUESTS[name](executable=False)
    for round_ in range(5):
        for number in range(FUNCTIONS):
            guest.rewrite(number, 100 * round_ + number)
        assert guest.returned() == guest.expected
        for far in range(4):
            place = guest.code - PLACE + 0x100000 + 0x2000 * (4 * round_ + far)
            guest.guest.cpu.write(place, guest.function(7))
            assert guest.call(place) == 7


@pytest.mark.parametrize("name", GUESTS)
def test_a_fork_sees_writes(name):
    """A machine that goes on in a new engine sees writes to code that it runs first of all."""
    guest = GUESTS[name](executable=False)
    guest.rewrite(0, 1)
    guest.call(guest.code)
    guest.guest = type(guest.guest)(guest.guest.machine.fork())
    assert guest.call(guest.code) == 1
    guest.rewrite(1, 5)
    guest.rewrite(0, 2)
    assert [guest.call(guest.code), guest.call(guest.code + SIZE)] == [2, 5]


@pytest.mark.parametrize("by", ["code", "alias"])
def test_what_python_writes_counts(guest, by):
    """Python may write by either mapping; where nothing was translated, the engine is not asked."""
    rng = random.Random(2)
    for round_ in range(30):
        for number in rng.sample(range(FUNCTIONS), 3):
            guest.expected[number] = 100 * round_ + number + 1
            guest.guest.cpu.write(getattr(guest, by) + SIZE * number, guest.function(guest.expected[number]))
        for number in rng.sample(range(FUNCTIONS), 3):
            if guest.expected[number]:
                assert guest.call(guest.code + SIZE * number) == guest.expected[number]


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.usefixtures("routine")
def test_a_run_of_one_block(name):
    """The only code on its page is the first that a run meets, in the first run and in all others."""
    guest = GUESTS[name](executable=False)
    cpu = guest.guest.cpu
    start, end = guest.code - PLACE + 0x100000, guest.code - PLACE + 0x180000
    for page in range(8):
        place = start + 0x2000 * page
        for value in (1, 2, 3):
            cpu.write(place, guest.function(value)[: 5 if name == "x86_64" else 4] + guest.jump(place, end))
            cpu.set(cpu.program_counter, place)
            cpu.run(end)
            assert cpu.get("rax" if name == "x86_64" else "x0") == value


@pytest.mark.parametrize("name", GUESTS)
def test_pages_without_code(name):
    """Only what code was translated from is known to hold any, on each of the pages that it lies on."""
    guest = GUESTS[name](executable=False)
    guest.rewrite(0, 1)
    engine, page = guest.guest.cpu.engine, guest.guest.cpu.translate(guest.code)
    assert not engine.has_code(page, 0x1000)
    guest.call(guest.code)
    assert engine.has_code(page, 1)
    assert engine.has_code(page - 0x1000, 0x1001)
    assert not engine.has_code(page + 0x1000, 0x3000)
