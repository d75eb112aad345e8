"""Relocations and stubs of 64-bit PowerPC, ABI version 2."""

import pytest

from kodojo.errors import LoadError, UnmodelledError
from tests.support.architectures import code_of, kernel, load, module, refusal, relocated

PPC = "ppc64le"
ADDR32, REL24, REL32, ADDR64, REL64 = 1, 10, 26, 38, 44
TOC16, TOC16_LO, TOC16_HA, TOC, TOC16_DS, TOC16_LO_DS = 47, 48, 50, 51, 63, 64
TOCSAVE, ENTRY, REL16_LO, REL16_HA = 109, 118, 250, 252
BL, BLR, NOP, LD_R2 = 0x48000001, 0x4E800020, 0x60000000, 0xE8410018


def toc(loaded):
    """What register 2 points to."""
    return (loaded.address(".toc") & ~0xFF) + 0x8000


@pytest.mark.parametrize(
    ("kind", "value", "relative", "size", "after"),
    [
        (ADDR32, 0x1_2345_6789, False, 4, 0x23456789),
        (ADDR64, 0x1122334455667788, False, 8, 0x1122334455667788),
        (REL32, 0x20, True, 4, 0x20),
        (REL64, 0x20, True, 8, 0x20),
        (REL16_LO, 0x18123, True, 2, 0x8123),
        (REL16_HA, 0x18123, True, 2, 2),
    ],
)
def test_data(kind, value, relative, size, after):
    """Addresses and distances."""
    loaded = relocated(kernel(PPC), bytes(16), kind, value, relative=relative)
    assert loaded.word(".text", 0, size) == after
    assert loaded.content(".text")[size:] == bytes(16 - size)


def test_calls_inside():
    """A branch to a function of the module, past the entry that sets register 2."""
    assert relocated(kernel(PPC), code_of(PPC, BL), REL24, 0x100, relative=True).word(".text") == BL | 0x100
    writer = module(PPC, code_of(PPC, BL))
    writer.symbol("target", ".text", 0x100, other=3 << 5)
    writer.relocations(".text", [(0, REL24, "target", 0)])
    assert load(kernel(PPC), writer).word(".text") == BL | 0x108


@pytest.mark.parametrize("kind", [TOC16, TOC16_LO, TOC16_DS, TOC16_LO_DS])
def test_table_of_contents(kind):
    """Distances from register 2; instructions for whole words keep the lowest two bits."""
    writer = module(PPC, code_of(PPC, 0xE8620001))
    writer.symbol("target", ".toc", 8)
    writer.relocations(".text", [(0, kind, "target", 0)])
    loaded = load(kernel(PPC), writer)
    distance = loaded.address(".toc") + 8 - toc(loaded) & 0xFFFF
    kept = 1 if kind in (TOC16_DS, TOC16_LO_DS) else 0
    assert loaded.word(".text") == 0xE8620000 | distance | kept


def test_register_2():
    """The value of register 2 itself, in data and as ``.TOC.``."""
    writer = module(PPC, bytes(32))
    writer.symbol(".TOC.")
    writer.relocations(".text", [(0, TOC, "text", 0), (8, ADDR64, ".TOC.", 0), (16, TOC16_HA, ".TOC.", 0x18000)])
    loaded = load(kernel(PPC), writer)
    assert loaded.word(".text", 0, 8) == loaded.word(".text", 8, 8) == toc(loaded)
    assert loaded.word(".text", 16, 2) == 2


def test_entry():
    """A function that loads its table of contents computes it instead."""
    code = code_of(PPC, 0xE84C0000, 0x7C426214)
    loaded = relocated(kernel(PPC), code, ENTRY, 0)
    high, low = loaded.word(".text"), loaded.word(".text", 4)
    assert (high >> 16, low >> 16) == (0x3C4C, 0x3842)
    distance = (high & 0xFFFF) << 16 | 0
    assert distance + (low & 0xFFFF) - (low >> 15 & 1) * 0x10000 == toc(loaded) - loaded.address(".text")
    other = code_of(PPC, 0xE84C0000, NOP)
    assert relocated(kernel(PPC), other, ENTRY, 0).content(".text") == other
    assert relocated(kernel(PPC), other, TOCSAVE, 0).content(".text") == other


EXPORT = 0xC000000000123458


def calls(*words, value=EXPORT, name="exported"):
    """A module that calls something of the kernel, and what comes behind it."""
    writer = module(PPC, code_of(PPC, *words))
    writer.symbol(name)
    writer.relocations(".text", [(0, REL24, name, 0)])
    target = kernel(PPC)
    target.find_symbol = lambda *_, **__: Found(value)
    return target, writer


class Found:
    """An export of the kernel."""

    crc = namespace = owner = None
    gpl = False

    def __init__(self, address):
        self.address = address


def test_stub():
    """The kernel is called through a stub that has its address; register 2 is restored afterwards."""
    target, writer = calls(BL, NOP)
    loaded = load(target, writer)
    assert loaded.size(".stubs") == 2 * 40
    text, stub = loaded.address(".text"), loaded.address(".stubs")
    assert loaded.word(".text") == BL | (stub - text & 0x03FFFFFC)
    assert loaded.word(".text", 4) == LD_R2
    assert loaded.word(".stubs", 32, 8) == EXPORT
    assert loaded.word(".stubs", 28) == 0x73747562
    high, low = loaded.word(".stubs"), loaded.word(".stubs", 4)
    distance = (high & 0xFFFF) - (high >> 15 & 1) * 0x10000 << 16
    assert toc(loaded) + distance + (low & 0xFFFF) - (low >> 15 & 1) * 0x10000 == stub
    assert (high >> 16, low >> 16) == (0x3D62, 0x396B)


def test_stub_without_place():
    """A call has to leave a place for restoring register 2; a jump, or one of the tracer's, need not."""
    target, writer = calls(BL, BLR)
    with pytest.raises(LoadError) as refused:
        load(target, writer)
    assert (refused.value.errno, refused.value.slug) == (8, "call-without-restore")
    assert target.log[-1].text.startswith("module_64: paper: Expected nop after call, got 4e800020 at 0x")
    assert load(*calls(BL & ~1, BLR)).word(".text", 4) == BLR
    assert load(*calls(BL, BLR, name="_mcount")).word(".text", 4) == BLR


def test_stubs_are_counted():
    """Room is made for one stub for each function and addend, one more, and those of the tracer."""
    assert load(kernel(PPC), module(PPC, bytes(4))).size(".stubs") == 40
    both = {"DYNAMIC_FTRACE": "y", "DYNAMIC_FTRACE_WITH_REGS": "y"}
    assert load(kernel(PPC, **both), module(PPC, bytes(4))).size(".stubs") == 3 * 40
    writer = module(PPC, code_of(PPC, *[BL] * 4))
    for name in ("a", "b"):
        writer.symbol(name, ".text")
    writer.relocations(".text", [(0, REL24, "a", 0), (4, REL24, "b", 0), (8, REL24, "a", 0), (12, REL24, "a", 4)])
    assert load(kernel(PPC), writer).size(".stubs") == (3 + 1) * 40


@pytest.mark.parametrize(
    ("kind", "value", "line"),
    [
        (REL24, 0x2000000, "REL24 33554432 out of range!"),
        (REL24, -0x2000004, "REL24 -33554436 out of range!"),
        (REL24, 2, "REL24 2 out of range!"),
        (REL32, 0x80000000, "REL32 2147483648 out of range!"),
    ],
)
def test_out_of_range(kind, value, line):
    """Branches reach 32 MiB, and whole instructions only."""
    assert refusal(kernel(PPC), code_of(PPC, BL), kind, value & (1 << 64) - 1, relative=True) == (
        8, "relocation-overflow", f"module_64: paper: {line}",
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(TOC16, "TOC16"), (TOC16_DS, "TOC16_DS"), (TOC16_LO_DS, "TOC16_LO_DS")])
def test_bad_table_of_contents(kind, name):
    """What is too far from register 2, or not on a whole word, is refused."""
    target = kernel(PPC)
    errno, slug, line = refusal(target, code_of(PPC, 0), kind, 0x13)
    assert (errno, slug) == (8, "relocation-overflow")
    assert line.startswith(f"module_64: paper: bad {name} relocation (0x")


def test_unknown_type():
    """Even a relocation of type 0 is unknown."""
    for kind in (0, 255):
        assert refusal(kernel(PPC), bytes(4), kind, 0) == (
            8, "unknown-relocation", f"module_64: paper: Unknown ADD relocation: {kind}",
        )  # fmt: skip


def test_missing_section():
    """A module that was not linked for this kernel is refused."""
    target = kernel(PPC)
    with pytest.raises(LoadError) as refused:
        load(target, module(PPC, bytes(4), without=(".stubs",)))
    assert (refused.value.errno, refused.value.slug) == (8, "no-plt-section")
    assert target.log[-1].text == "module_64: paper: doesn't contain .stubs."
    with pytest.raises(UnmodelledError):
        load(kernel(PPC, PPC_KERNEL_PCREL="y"), module(PPC, bytes(4)))


def test_addresses_are_of_this_abi():
    """Kernels that ask for the ABI refuse modules of the other one."""
    writer = module(PPC, bytes(4))
    target = kernel(PPC, b"Invalid module architecture in ELF header: %u")
    with pytest.raises(LoadError) as refused:
        load(target, writer)
    assert (refused.value.errno, refused.value.slug) == (8, "elf-architecture")
    assert target.log[-1].text == "Invalid module architecture in ELF header: 21"
    writer.header["e_flags"] = 2
    load(target, writer)
