"""Long pieces of straight-line guest code, made from a seed: what the engine's translator has to survive.

A block is long only if no instruction of it is invalid or a jump, so each is a few instructions, often one, over and
over. They are taken from families of opcodes with everything else at random: what a family's opcodes do not say is
left to the processor.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

__all__ = ["FAMILIES", "make_block"]

LENGTHS = (130, 300, 600)


def _modrm(rng: random.Random) -> bytes:
    """A register, or memory at RBX or RSP (data), or near them, or anywhere."""
    reg = rng.randrange(8) << 3
    kind = rng.randrange(8)
    if kind < 4:
        return bytes((0xC0 | reg | rng.randrange(8),))
    if kind == 4:
        return bytes((reg | 3,))
    if kind == 5:
        return bytes((0x40 | reg | 3, rng.randrange(256)))
    if kind == 6:
        return bytes((0x44 | reg, 0x24, rng.randrange(0, 256, 16)))
    return bytes((rng.randrange(256),)) + rng.randbytes(5)


def _immediate(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 0, 0, 1, 1, 4)))


def _x87(rng: random.Random) -> bytes:
    return bytes((0xD8 + rng.randrange(8),)) + _modrm(rng)


def _x87_registers(rng: random.Random) -> bytes:
    return bytes((0xD8 + rng.randrange(8), 0xC0 + rng.randrange(64)))


def _mmx(rng: random.Random) -> bytes:
    return bytes((0x0F, rng.randrange(256))) + _modrm(rng) + _immediate(rng)


def _sse(rng: random.Random) -> bytes:
    opcode = rng.choice(
        (bytes((rng.randrange(256),)), bytes((0x38, rng.randrange(256))), bytes((0x3A, rng.randrange(256))))
    )
    prefix = rng.choice((b"", b"\x66", b"\xf2", b"\xf3"))
    return prefix + rng.choice((b"", b"\x48")) + b"\x0f" + opcode + _modrm(rng) + _immediate(rng)


def _string(rng: random.Random) -> bytes:
    opcode = rng.choice(b"\xa4\xa5\xaa\xab\xac\xad\xa6\xa7\xae\xaf\x6c\x6d\x6e\x6f")
    return rng.choice((b"", b"\xf3", b"\xf2")) + rng.choice((b"", b"\x66", b"\x67", b"\x48")) + bytes((opcode,))


def _integer(rng: random.Random) -> bytes:
    prefix = rng.choice((b"", b"\x66", b"\x48", b"\xf0", b"\x4f"))
    opcode = rng.choice(
        b"\x00\x01\x03\x11\x13\x19\x1b\x29\x31\x39\x63\x69\x6b\x85\x87\x89\x8b\x8d\xc1\xd1\xd3\xf7\xfe\xff"
    )
    return prefix + bytes((opcode,)) + _modrm(rng) + _immediate(rng)


def _two_byte(rng: random.Random) -> bytes:
    """Bit tests, double shifts, exchanges, conditional moves, byte swaps, with LOCK and without."""
    opcode = rng.choice(
        (
            0xA3,
            0xA4,
            0xA5,
            0xAB,
            0xAC,
            0xAD,
            0xAF,
            0xB0,
            0xB1,
            0xB3,
            0xBA,
            0xBB,
            0xBC,
            0xBD,
            0xC0,
            0xC1,
            0xC7,
            0xC8,
            0x40 + rng.randrange(16),
            0x90 + rng.randrange(16),
        )
    )
    return (
        rng.choice((b"", b"\xf0", b"\x66", b"\xf3", b"\x48", b"\xf0\x48"))
        + bytes((0x0F, opcode))
        + _modrm(rng)
        + _immediate(rng)
    )


def _system(rng: random.Random) -> bytes:
    opcode = rng.choice(
        (
            b"\x0f\x00",
            b"\x0f\x01",
            b"\x0f\x20",
            b"\x0f\x21",
            b"\x0f\x22",
            b"\x0f\x23",
            b"\x0f\x30",
            b"\x0f\x32",
            b"\x0f\xae",
            b"\x0f\xc7",
            b"\x0f\xa2",
            b"\x0f\x06",
            b"\x0f\x09",
            b"\x0f\x18",
            b"\x0f\x1a",
            b"\x0f\x1b",
            b"\x8e",
            b"\x8c",
            b"\x0f\xb2",
            b"\x9c\x9d",
            b"\xec",
            b"\xee",
            b"\xd7",
            b"\xc8\x10\x00\x03",
            b"\x0f\xa0\x0f\xa1",
        )
    )
    return rng.choice((b"", b"\xf3", b"\x48", b"\x66")) + opcode + _modrm(rng)


def _vex(rng: random.Random) -> bytes:
    lead = rng.choice(
        (
            b"\xc5" + rng.randbytes(1),
            b"\xc4" + bytes((0xE0 | rng.randrange(1, 4), rng.randrange(256))),
            b"\x62" + rng.randbytes(3),
        )
    )
    return lead + rng.randbytes(1) + _modrm(rng) + _immediate(rng)


def _prefixes(rng: random.Random) -> bytes:
    prefixes = bytes(rng.choice(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3") for _ in range(rng.randrange(1, 14)))
    return prefixes + rng.choice((_x87, _mmx, _string, _integer, _two_byte))(rng)


def _any_x86(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 12))


def _words(*patterns: tuple[int, int]) -> Callable[[random.Random], bytes]:
    """Instructions of arm64 by (value, mask of what is fixed)."""

    def instruction(rng: random.Random) -> bytes:
        value, fixed = rng.choice(patterns)
        word = value | rng.getrandbits(32) & ~fixed
        if rng.randrange(2):  # the address in X3 or SP
            word = word & ~(0x1F << 5) | rng.choice((3, 31)) << 5
        return struct.pack("<I", word & 0xFFFFFFFF)

    return instruction


FAMILIES: dict[str, dict[str, Callable[[random.Random], bytes]]] = {
    "x86_64": {
        "x87": _x87,
        "x87 registers": _x87_registers,
        "MMX": _mmx,
        "SSE": _sse,
        "string": _string,
        "integer": _integer,
        "bits and exchanges": _two_byte,
        "system": _system,
        "VEX and EVEX": _vex,
        "prefixes": _prefixes,
        "anything": _any_x86,
    },
    "aarch64": {
        "SIMD": _words((0x0E000000, 0x9F000000), (0x0F000000, 0x9F000000)),
        "SIMD loads and stores": _words((0x0C000000, 0xBE000000), (0x0D000000, 0xBE000000)),
        "scalar and floating point": _words((0x1E000000, 0x7E000000), (0x5E000000, 0xDE000000)),
        "loads and stores": _words((0x08000000, 0x0A000000), (0x38000000, 0x3A000000), (0x28000000, 0x3A000000)),
        "exclusives and atomics": _words((0x08000000, 0x3F000000), (0x38200000, 0x3B200000)),
        "system": _words((0xD5000000, 0xFFC00000), (0xD5100000, 0xFFD00000), (0xD5180000, 0xFFDF0000)),
        "integer": _words((0x0A000000, 0x0E000000), (0x10000000, 0x1C000000)),
        "SVE": _words((0x04000000, 0x1E000000), (0x24000000, 0x3E000000), (0xA4000000, 0xBE000000)),
        "cryptography": _words((0x4E280800, 0xFFFF0C00), (0x5E000000, 0xFFE08C00), (0xCE000000, 0xFF000000)),
        "pointers": _words((0xDAC10000, 0xFFFF0000), (0xD503201F, 0xFFFFF01F), (0x9AC00000, 0xFFE00000)),
        "anything": _words((0, 0)),
    },
}  # fmt: skip


def make_block(architecture: str, family: str, seed: int) -> bytes:
    """One to four instructions of a family, over and over; the same for the same seed."""
    rng = random.Random(f"{architecture} {family} {seed}")
    make = FAMILIES[architecture][family]
    instructions = [make(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
    return b"".join(instructions) * (rng.choice(LENGTHS) // len(instructions))
