"""Calls in machine code, and frames as the unwinder's tables have them. Encodings: Intel SDM vol. 2, Arm ARM C6.2."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from kodojo.kernel.abi import abi_of
from kodojo.kernel.orc import BY_BASE, BY_POINTER, BY_STACK, Unwinding, unwinding_at
from kodojo.kernel.ways import Site, Spot
from tests.support.flat_memory import FlatMemory

CODE, NEAR, FAR = 0xFFFFFFFF81000000, 0xFFFFFFFF81000100, 0xFFFFFFFF80FFFF00
STACK = 0x7F0000001000


def test_calls_x86_64():
    """E8 is a call and E9 a jump, both relative to the next instruction, forwards and backwards."""
    code = b"\x90\xe8" + struct.pack("<i", 0x100 - 6) + b"\xe9" + struct.pack("<i", -0x100 - 11) + b"\xe8\x00"
    branches = abi_of("x86_64").branches(code, CODE)
    assert branches.behind_call(NEAR) == CODE + 6
    assert branches.behind_call(FAR) is None
    assert FAR in branches.jumps
    assert NEAR not in branches.jumps


def test_calls_arm64():
    """BL has its highest bit set, B has not; the distance is in words."""
    code = struct.pack("<III", 0xD503201F, 0x94000000 | (0x100 - 4) // 4, 0x14000000 | (-0x108 // 4 & 0x3FFFFFF))
    branches = abi_of("aarch64").branches(code, CODE)
    assert branches.behind_call(NEAR) == CODE + 8
    assert branches.behind_call(FAR) is None
    assert FAR in branches.jumps


class Decoder:
    """A kernel whose decoder knows where instructions begin."""

    places = {"__x86_indirect_thunk_rax": NEAR, "can_probe": FAR}  # noqa: RUF012  a table

    def __init__(self, *instructions: int) -> None:
        self._instructions = instructions

    def has(self, name: str) -> bool:
        return name in self.places

    def address(self, name: str) -> int:
        return self.places[name]

    def __call__(self, name: str, address: int) -> int:
        assert name == "can_probe"
        return int(address - CODE in self._instructions)


def test_pointers_x86_64():
    """Calls through registers and memory, and those by way of a thunk; what is no instruction is left out."""
    code = b"\xff\xd0\x41\xff\xd3\xff\x50\x08\xff\xe0\xe8" + struct.pack("<i", 0x100 - 15)
    code += b"\xb8\xff\xd0\x00\x00"  # mov $0xd0ff, %eax
    behind = abi_of("x86_64").indirect_calls(Decoder(0, 2, 5, 8, 10, 15), CODE, code)
    assert [one - CODE for one in behind] == [2, 5, 8, 15]


def test_pointers_arm64():
    """BLR with any register, not BR."""
    code = struct.pack("<III", 0xD63F0000, 0xD61F0000, 0xD63F0340)
    assert abi_of("aarch64").indirect_calls(SimpleNamespace(), CODE, code) == [CODE + 4, CODE + 12]


ENTRIES = {  # address: sp_offset, bp_offset, sp_reg | bp_reg << 4 (arch/x86/include/asm/orc_types.h)
    CODE: ((32, -24, 5 | 1 << 4), Unwinding(BY_STACK, 32, -24)),
    CODE + 0x10: ((8, 0, 5), Unwinding(BY_STACK, 8, None)),
    CODE + 0x20: ((16, -16, 4 | 1 << 4), Unwinding(BY_BASE, 16, -16)),
    CODE + 0x30: ((-24, 0, 8 | 4 << 4), Unwinding(BY_POINTER, -24, 0)),
    CODE + 0x40: ((0, 0, 0), None),  # nothing to unwind
    CODE + 0x50: ((24, 0, 13), None),  # by R13
}


@pytest.mark.parametrize("address", sorted(ENTRIES))
def test_tables(address):
    """The entry of the last address that is not above counts, up to the next one."""
    start, count = CODE - 0x1000, len(ENTRIES)
    words = [one - (start + 4 * index) for index, one in enumerate(sorted(ENTRIES))]
    memory = FlatMemory(0x1000, start)
    entries = b"".join(struct.pack("<hhH", *ENTRIES[one][0]) for one in sorted(ENTRIES))
    memory.write(start, struct.pack(f"<{count}i", *words) + entries)
    stop = start + 4 * count
    places = {"__start_orc_unwind_ip": start, "__stop_orc_unwind_ip": stop, "__start_orc_unwind": stop}
    for within in (0, 7, 15):
        assert unwinding_at(memory, places, address + within) == ENTRIES[address][1]
    assert unwinding_at(memory, {}, address) is None


def test_frames_x86_64():
    """The unwinder finds return address and base pointer where its tables say (unwind_orc.c: unwind_next_frame)."""
    memory, abi = FlatMemory(0x2000, STACK - 0x1000), abi_of("x86_64")

    def word(address: int) -> int:
        return int.from_bytes(memory.read(address, 8), "little")

    spot = Spot(0x1111, STACK, 0x2222)
    below = abi.call_from(memory, spot, Site(0x3333, Unwinding(BY_STACK, 32, -24)))
    assert (below.returns, below.stack, word(STACK - 8), word(STACK - 24)) == (0x3333, STACK - 32, 0x1111, 0x2222)
    below = abi.call_from(memory, spot, Site(0x3333, Unwinding(BY_BASE, 16, -16)))
    assert (below.frame, word(below.frame + 8), word(below.frame)) == (STACK - 16, 0x1111, 0x2222)
    assert below.stack < below.frame
    below = abi.call_from(memory, spot, Site(0x3333, Unwinding(BY_POINTER, -24, 0)))
    assert (word(below.frame - 24), word(below.frame), word(STACK - 8)) == (STACK, 0x2222, 0x1111)
    assert below.stack < below.frame - 24


def test_frames_arm64():
    """A chain of records: the caller's frame pointer, then the return address (AAPCS64, 6.4.6)."""
    memory = FlatMemory(0x2000, STACK - 0x1000)
    below = abi_of("aarch64").call_from(memory, Spot(0x1111, STACK, 0x2222), Site(0x3333))
    assert struct.unpack("<QQ", memory.read(below.frame, 16)) == (0x2222, 0x1111)
    assert below.returns == 0x3333
    assert below.stack <= below.frame < STACK
