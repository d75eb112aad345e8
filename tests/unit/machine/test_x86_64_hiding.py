from __future__ import annotations

import pytest

from tests.support.bare_machine import CODE, DATA, BareMachine

TSC, RDTSCP, RDRAND, RDSEED = 1 << 4, 1 << 27, 1 << 30, 1 << 18


def cpuid(guest: BareMachine, leaf: int, subleaf: int = 0) -> tuple[int, ...]:
    guest.run("0f a2", rax=leaf, rcx=subleaf)
    return tuple(guest.cpu.get(name) for name in ("rax", "rbx", "rcx", "rdx"))


def test_time_and_randomness_are_hidden():
    """CPUID shows no time-stamp counter and no source of random numbers: both would be the host's."""
    guest = BareMachine()
    _eax, _ebx, ecx, edx = cpuid(guest, 1)
    assert not ecx & RDRAND
    assert not edx & TSC
    assert not cpuid(guest, 7)[1] & RDSEED
    assert not cpuid(guest, 0x80000001)[3] & (RDTSCP | TSC)


def test_the_rest_is_shown():
    """Everything else is what the CPU model has: an FPU, PAE, SSE2 and long mode."""
    guest = BareMachine()
    edx = cpuid(guest, 1)[3]
    assert all(edx >> bit & 1 for bit in (0, 5, 6, 8, 26))  # FPU, MSR, PAE, CX8, SSE2
    assert cpuid(guest, 0x80000001)[3] >> 29 & 1
    vendor = cpuid(guest, 0)
    assert b"".join(vendor[i].to_bytes(4, "little") for i in (1, 3, 2)) == b"AuthenticAMD"


def test_cpuid_clears_the_upper_halves():
    """CPUID writes 32-bit registers: the upper halves are zero, whether or not a leaf is filtered."""
    guest = BareMachine()
    for leaf in (0, 1, 0x80000001):
        guest.run("0f a2", rax=leaf, rbx=1 << 63, rcx=0, rdx=1 << 63)
        assert all(guest.cpu.get(name) < 1 << 32 for name in ("rax", "rbx", "rcx", "rdx"))


# -- the time-stamp counter ----------------------------------------------------------------------------


def time_stamps(guest: BareMachine, code: str, *offsets: int) -> None:
    guest.cpu.trap_time_stamp_reads([CODE + offset for offset in offsets])
    guest.run(code)


def test_time_stamp_is_the_same_in_every_run():
    """Two machines that do the same read the same time stamp."""
    values = []
    for _ in range(2):
        guest = BareMachine()
        time_stamps(guest, "eb 00 eb 00 0f 31", 4)  # jmp +0; jmp +0; rdtsc
        values.append((guest.cpu.get("rax"), guest.cpu.get("rdx")))
    assert values[0] == values[1]


def test_time_stamp_goes_on():
    """The counter never stands still, and follows the blocks that are executed."""
    guest = BareMachine()
    # rdtsc; mov ebx, eax; rdtsc; mov esi, eax; mov ecx, 1000; 1: loop 1b; rdtsc
    time_stamps(guest, "0f 31 89 c3 0f 31 89 c6 b9 e8 03 00 00 e2 fe 0f 31", 0, 4, 15)
    first, second, third = (guest.cpu.get(name) for name in ("rbx", "rsi", "rax"))
    assert first < second < third
    assert third - second >= 1000 > second - first


def test_time_stamp_is_split():
    """EDX:EAX is the counter in two halves, RDTSCP brings the processor's number, 0, in ECX."""
    guest = BareMachine()
    guest.cpu.blocks = 1 << 31
    guest.cpu.write_registers({"rcx": 5})
    time_stamps(guest, "0f 01 f9", 0)  # rdtscp
    assert guest.cpu.get("rdx") == (1 << 34) >> 32
    assert guest.cpu.get("rax") < 1000
    assert guest.cpu.get("rcx") == 0


def test_time_stamp_sites_are_replaced():
    """Of the addresses trapped before, those that are not named again are executed as they are."""
    guest = BareMachine()
    guest.cpu.trap_time_stamp_reads([CODE, CODE + 2])
    guest.cpu.trap_time_stamp_reads([CODE + 2, CODE + 4])
    assert [guest.cpu.has_breakpoint(CODE + offset) for offset in (0, 2, 4)] == [False, True, True]
    assert guest.cpu.save_state().facts["time_stamp_sites"] == [CODE + 2, CODE + 4]


def test_time_stamp_site_that_holds_something_else():
    """A trapped address whose memory was used again is executed as it is."""
    guest = BareMachine()
    time_stamps(guest, "b8 07 00 00 00", 0)  # mov eax, 7
    assert guest.cpu.get("rax") == 7


def test_time_stamp_site_inside_an_instruction():
    """A trapped address in the middle of an instruction does no harm."""
    guest = BareMachine()
    time_stamps(guest, "b8 0f 31 00 00", 1)  # mov eax, 0x310f
    assert guest.cpu.get("rax") == 0x310F


# -- ports ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "port", "value"),
    [
        ("ec", 0x3FD, 0x60),
        ("ec", 0x40, 0),
        ("ec", 0x70, 0xFF),
        ("66 ed", 0xCF8, 0xFFFF),
        ("ed", 0xCF8, 0xFFFFFFFF),
    ],
    ids=["serial-status", "timer", "byte", "word", "double-word"],
)
def test_port_reads(code, port, value):
    """The serial port is always ready, the timer reads zero, and nothing answers elsewhere."""
    guest = BareMachine()
    guest.run(code, rdx=port, rax=0)
    assert guest.cpu.get("rax") == value


def test_serial_port():
    """What the guest writes to the serial port is kept."""
    guest = BareMachine()
    guest.cpu.write(DATA, b"hello")
    guest.run("f3 6e", rsi=DATA, rcx=5, rdx=0x3F8)  # rep outsb
    assert bytes(guest.board.serial) == b"hello"


def test_interrupt_masks_read_back():
    """Each interrupt controller gives its mask back: by that the kernel finds that it is there."""
    guest = BareMachine()
    # mov al, 0x5a; out 0x21, al; mov al, 0xa5; out 0xa1, al; in al, 0x21; mov bl, al; in al, 0xa1
    guest.run("b0 5a e6 21 b0 a5 e6 a1 e4 21 88 c3 e4 a1", rax=0, rbx=0)
    assert (guest.cpu.get("rbx"), guest.cpu.get("rax")) == (0x5A, 0xA5)
