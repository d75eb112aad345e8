"""Relocations, GOT and PLT of s390x: a big-endian architecture."""

import pytest

from kodojo.errors import LoadError
from tests.support.architectures import ABSOLUTE, kernel, load, module, refusal, relocated

S390 = "s390x"
MODULES = 0x3FF80000000
(R_8, R_12, R_16, R_32, PC32, GOT12, GOT32, PLT32, COPY, GOTOFF32, GOTPC, GOT16, PC16, PC16DBL, PLT16DBL, PC32DBL,
 PLT32DBL, GOTPCDBL, R_64, PC64, GOT64, PLT64, GOTENT, GOTOFF64, PLTOFF16, PLTOFF64, R_20, GOT20) = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 34, 36, 57, 58,
)  # fmt: skip
FAR = 0x123458


@pytest.mark.parametrize(
    ("kind", "before", "value", "relative", "after"),
    [
        (R_8, "ff", 0x7F, False, "7f"),
        (R_12, "f123", 0xABC, False, "fabc"),
        (R_16, "0000", 0x1234, False, "1234"),
        (R_20, "f00000ff", 0x12345, False, "f34512ff"),  # the low twelve bits come first
        (R_32, "00000000", 0x12345678, False, "12345678"),
        (R_64, "0000000000000000", 0x1122334455667788, False, "1122334455667788"),
        (PC16, "0000", 0x10, True, "0010"),
        (PC16DBL, "0000", 0x10, True, "0008"),
        (PC32, "00000000", 0x10, True, "00000010"),
        (PC32DBL, "00000000", 0x10, True, "00000008"),
        (PC32DBL, "00000000", -0x10 & (1 << 64) - 1, True, "fffffff8"),
        (PC64, "0000000000000000", 0x10, True, "0000000000000010"),
    ],
)
def test_places(kind, before, value, relative, after):
    """Numbers, distances, and distances in halfwords."""
    code = bytes.fromhex(before)
    loaded = relocated(kernel(S390), code, kind, value, relative=relative)
    assert loaded.content(".text") == bytes.fromhex(after)


def test_addend():
    """Addends count: an instruction's operand is behind its beginning."""
    loaded = relocated(kernel(S390), bytes.fromhex("c0e500000000"), PC32DBL, 0x10, 2, offset=2, relative=True)
    assert loaded.content(".text").hex() == "c0e500000008"


def got(loaded):
    """The bytes of the GOT, which is at the beginning of module memory."""
    region, _ = loaded.info.placement[1]
    return region.data


def test_got():
    """An address of the GOT's entry; the entry has the symbol's value."""
    loaded = relocated(kernel(S390), bytes(4), GOTENT, FAR)
    assert loaded.address(".text") == MODULES + 16  # behind the GOT, on 16 bytes
    assert loaded.word(".text") == -16 // 2 & 0xFFFFFFFF
    assert got(loaded)[:8] == FAR.to_bytes(8, "big")


@pytest.mark.parametrize(("kind", "size"), [(GOT12, 2), (GOT16, 2), (GOT32, 4), (GOT64, 8)])
def test_offset_in_the_got(kind, size):
    """The offset of an entry: each symbol has one, in the order in which they are asked for."""
    writer = module(S390, bytes(8))
    for name in ("first", "second"):
        writer.symbol(name, ABSOLUTE, FAR)
    writer.relocations(".data", [(0, GOT64, "second", 0), (8, GOT64, "first", 0)])
    writer.relocations(".text", [(0, kind, "first", 0)])
    assert load(kernel(S390), writer).word(".text", 0, size) == 8


def test_addresses_of_the_got():
    """Distances from the GOT, and to it."""
    assert relocated(kernel(S390), bytes(8), GOTOFF64, 0x18, relative=True).word(".text", 0, 8) == 0x18
    assert relocated(kernel(S390), bytes(8), GOTPC, 0, 4).word(".text") == 4
    assert relocated(kernel(S390), bytes(8), GOTPCDBL, 0, 8).word(".text") == 4


def test_plt():
    """A function that is too far is called through the PLT, one that is near directly."""
    near = relocated(kernel(S390), bytes.fromhex("c0e500000000"), PLT32DBL, 0x100, 2, offset=2, relative=True)
    assert near.word(".text", 2) == 0x80
    loaded = relocated(kernel(S390), bytes.fromhex("c0e500000000"), PLT32DBL, FAR, 2, offset=2)
    assert loaded.address(".text") == MODULES + 32  # behind 22 bytes of PLT
    assert loaded.word(".text", 2) == -32 // 2 & 0xFFFFFFFF
    # basr %r1,0; lg %r1,12(%r1); br %r1; the address
    assert got(loaded)[:22].hex() == "0d10e310100c000407f100000000" + FAR.to_bytes(8, "big").hex()


def test_plt_against_speculation():
    """Kernels with expolines jump from the PLT by way of one more entry."""
    loaded = relocated(kernel(S390, EXPOLINE="y"), bytes(4), PLT32DBL, FAR)
    assert loaded.address(".text") == MODULES + 48  # behind two entries
    branch, distance = got(loaded)[8:10], int.from_bytes(got(loaded)[10:14], "big")
    assert (branch.hex(), 8 + 2 * distance) == ("c0f4", 22)
    off = kernel(S390, EXPOLINE="y", EXPOLINE_OFF="y")
    assert relocated(off, bytes(4), PLT32DBL, FAR).address(".text") == MODULES + 32


def test_plt_offsets():
    """The offset of a function's entry from the GOT."""
    writer = module(S390, bytes(16))
    writer.symbol("function", ABSOLUTE, FAR)
    writer.symbol("variable", ABSOLUTE, FAR)
    writer.relocations(".text", [(0, GOT64, "variable", 0), (8, PLTOFF64, "function", 0)])
    assert load(kernel(S390), writer).word(".text", 8, 8) == 8
    assert relocated(kernel(S390), bytes(8), PLT64, FAR).word(".text", 0, 8) == -32 & (1 << 64) - 1


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        (R_8, 0x100, 0x100), (R_12, 0x1000, 0x1000), (R_16, 0x10000, 0x10000), (R_20, 0x80000, 0x80000),
        (R_32, 1 << 32, 1 << 32), (PC16, 0, -MODULES), (PC32, 0, -MODULES), (PC32DBL, 0, -MODULES),
        (PC32DBL, MODULES + 1, 1),
    ],
)  # fmt: skip
def test_overflow(kind, value, shown):
    """A value that does not fit, or is not on a halfword, is refused."""
    line = f"relocation error for symbol target (r_type {kind}, value 0x{shown & (1 << 64) - 1:x})"
    expected = (8, "relocation-overflow", f"module paper: {line}")
    assert refusal(kernel(S390), bytes(8), kind, value) == expected


def test_limits():
    """The largest values fit, and one more does not."""
    relocated(kernel(S390), bytes(8), R_20, 0x7FFFF)
    relocated(kernel(S390), bytes(8), PC32DBL, MODULES + 0xFFFFFFFE)
    assert refusal(kernel(S390), bytes(8), PC32DBL, MODULES + 0x100000000)[1] == "relocation-overflow"


def test_unknown_types():
    """What is not known is said; what is for the dynamic linker is refused without a word."""
    assert refusal(kernel(S390), bytes(8), 37, 0) == (
        8, "unknown-relocation", "module paper: unknown relocation: 37",
    )  # fmt: skip
    target = kernel(S390)
    with pytest.raises(LoadError) as refused:
        relocated(target, bytes(8), COPY, 0)
    assert (refused.value.errno, refused.value.slug, target.log) == (8, "unknown-relocation", [])


def test_table_symbol():
    """The GOT's own symbol need not be defined."""
    writer = module(S390, bytes(8))
    writer.symbol("_GLOBAL_OFFSET_TABLE_")
    load(kernel(S390), writer)
