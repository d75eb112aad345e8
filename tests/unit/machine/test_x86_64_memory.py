from __future__ import annotations

import struct

import pytest

from kodojo.errors import MachineError
from tests.support.bare_machine import ABSENT, DATA, HIGH, LARGE, MEMORY, PD, PDPT, PML4, READ_ONLY, BareMachine

APART = 0x61000  # two pages that are neighbours only by virtual address


def apart() -> BareMachine:
    guest = BareMachine()
    guest.page(APART, 3, physical=0x70000)
    guest.page(APART + 0x1000, 3, physical=0x6F000)
    return guest


@pytest.mark.parametrize(
    ("address", "physical"),
    [
        (DATA + 0x123, DATA + 0x123),
        (HIGH + DATA + 5, DATA + 5),
        (APART + 0xFFF, 0x70FFF),
        (APART + 0x1000, 0x6F000),
        (LARGE + 0x1FFFFF, LARGE + 0x1FFFFF),
        (HIGH + LARGE + 0x12345, LARGE + 0x12345),
        (ABSENT, None),
        (LARGE + 0x200000, None),
        (1 << 46, None),
        (HIGH - 1, None),
        (DATA | 1 << 63, None),  # not canonical: the processor does not look at the tables
        (HIGH + DATA - (1 << 60), None),
    ],
    ids=lambda value: hex(value) if isinstance(value, int) else "absent",
)
def test_translate(address, physical):
    """Addresses are translated by the guest's tables, pages of 4 KiB and of 2 MiB alike; None if absent."""
    assert apart().cpu.translate(address) == physical


def test_translate_gigabyte_page():
    """A page of one GiB is understood; where it has no memory behind it, there is nothing."""
    guest = BareMachine()
    guest.ram.write(PDPT + 8, struct.pack("<Q", 0x83))
    assert guest.cpu.translate((1 << 30) + DATA) == DATA
    assert guest.cpu.translate((1 << 30) + MEMORY) is None


def test_translate_ignores_attributes():
    """Bits that are no part of the address (NX, PAT, software's) are left out."""
    guest = BareMachine()
    guest.page(DATA, 3 | 1 << 63 | 0xF << 59 | 0xE00 | 0x80)
    assert guest.cpu.translate(DATA + 7) == DATA + 7
    guest.ram.write(PD + 8, struct.pack("<Q", LARGE | 0x83 | 1 << 12 | 1 << 63))  # PAT is bit 12 of a large page
    assert guest.cpu.translate(LARGE + 7) == LARGE + 7


@pytest.mark.parametrize("table", [MEMORY, 1 << 50, 0xFFFFFFFFFF000], ids=hex)
def test_tables_outside_memory(table):
    """A table outside the memory maps nothing, and reading it is no crash."""
    guest = BareMachine()
    guest.ram.write(PML4 + 8, struct.pack("<Q", table & 0xFFFFFFFFFF000 | 3))
    assert guest.cpu.translate(1 << 39) is None


def test_read_and_write_across_pages():
    """What lies across pages is read and written piece by piece, wherever the pages are."""
    guest = apart()
    guest.cpu.write(APART + 0xFFD, b"abcdef")
    assert guest.ram.read(0x70FFD, 3) == b"abc"
    assert guest.ram.read(0x6F000, 3) == b"def"
    assert guest.cpu.read(APART + 0xFFC, 8) == b"\0abcdef\0"


def test_read_and_write_from_small_to_large_pages():
    """A range may begin in pages of 4 KiB and end in one of 2 MiB."""
    guest = BareMachine()
    data = bytes(range(256)) * 48
    guest.cpu.write(LARGE - 0x1800, data)
    assert guest.cpu.read(LARGE - 0x1800, len(data)) == data
    assert guest.ram.read(LARGE - 0x1800, len(data)) == data


def test_write_read_only_pages():
    """Python writes where the guest must not."""
    guest = BareMachine()
    guest.cpu.write(READ_ONLY, b"written")
    assert guest.cpu.read(READ_ONLY, 7) == b"written"


@pytest.mark.parametrize("start", [ABSENT, ABSENT - 2, 1 << 46], ids=hex)
def test_unmapped(start):
    """A range of which a part is not mapped is an error that names the first such address."""
    guest = BareMachine()
    message = f"{max(start, ABSENT):#x} is not mapped"
    with pytest.raises(MachineError, match=message):
        guest.cpu.read(start, 4)
    with pytest.raises(MachineError, match=message):
        guest.cpu.write(start, b"four")


def test_nothing_to_read_or_write():
    """No bytes need no mapping."""
    guest = BareMachine()
    assert guest.cpu.read(ABSENT, 0) == b""
    guest.cpu.write(ABSENT, b"")


def test_guest_and_python_see_the_same_memory():
    """What the guest stores is what Python reads, and the other way round."""
    guest = apart()
    guest.cpu.write(DATA, struct.pack("<Q", 0x1122334455667788))
    # mov rax, [rbx]; mov [rcx], rax: the store lies across the two pages
    guest.run("48 8b 03 48 89 01", rbx=HIGH + DATA, rcx=APART + 0xFFC)
    assert guest.cpu.read(APART + 0xFFC, 8) == struct.pack("<Q", 0x1122334455667788)


def test_nothing_answers_beyond_the_memory():
    """Physical addresses without memory read as all ones, and what is written there is lost."""
    guest = BareMachine()
    guest.page(ABSENT, 3, physical=MEMORY + 0x5000)
    guest.run("48 89 03 48 8b 0b 8a 13", rbx=ABSENT, rax=5, rdx=0)  # mov [rbx], rax; mov rcx, [rbx]; mov dl, [rbx]
    assert (guest.cpu.get("rcx"), guest.cpu.get("rdx")) == ((1 << 64) - 1, 0xFF)


def test_registers():
    """Registers are read and written one by one and all together."""
    guest = BareMachine()
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
    values = {name: 0x8000000000000000 + number for number, name in enumerate(names)}
    guest.cpu.write_registers(values)
    before = guest.cpu.read_registers()
    assert {name: before[name] for name in names} == values
    guest.run("31 c0 45 31 ff 01 c3", rbx=1)  # xor eax, eax; xor r15d, r15d; add ebx, eax
    assert (guest.cpu.get("rax"), guest.cpu.get("r15"), guest.cpu.get("rbx")) == (0, 0, 1)
    guest.cpu.restore_registers(before)
    assert guest.cpu.read_registers() == before
