"""Relocations and veneers of 32-bit ARM."""

import pytest

from kodojo.errors import DamageError, LoadError
from tests.support.architectures import ABSOLUTE, code_of, kernel, load, module, refusal, relocated

ARM = "armv7l"
MODULES = 0xBF000000
ABS32, REL32, CALL, JUMP24, TARGET1, V4BX, PREL31 = 2, 3, 28, 29, 38, 40, 42
MOVW, MOVT, MOVW_PREL, MOVT_PREL = 43, 44, 45, 46
THM_CALL, THM_MOVW, THM_MOVT, ALU_G0, ALU_G1, LDR_G2 = 10, 47, 48, 57, 59, 63
BL = 0xEBFFFFFE  # to itself: the addend is -8


@pytest.mark.parametrize(
    ("kind", "before", "value", "relative", "after"),
    [
        (ABS32, 4, 0xC0001000, False, 0xC0001004),
        (TARGET1, 0xFFFFFFFC, 0xC0001000, False, 0xC0000FFC),
        (REL32, 8, 0x100, True, 0x108),
        (CALL, BL, 0x100, True, 0xEB00003E),
        (JUMP24, 0xEAFFFFFE, 0x100, True, 0xEA00003E),
        (V4BX, 0xE12FFF1E, 0, False, 0xE1A0F00E),  # bx lr becomes mov pc, lr
        (PREL31, 0x80000000, 0x10, True, 0x80000010),
        (PREL31, 0x7FFFFFFC, 0x10, True, 0x0000000C),  # the addend is -4
        (MOVW, 0xE3000000, 0x12345678, False, 0xE3050678),
        (MOVT, 0xE3400000, 0x12345678, False, 0xE3410234),
        (MOVW_PREL, 0xE3000000, 0x1234, True, 0xE3010234),
        (MOVT_PREL, 0xE3400000, 0x1234, True, 0xE3400000),
        (ALU_G0, 0xE28F0000, 0x1234, True, 0xE28F0D48),  # add r0, pc, #0x1200
        (ALU_G1, 0xE2800000, 0x12345, True, 0xE2800FD1),  # add r0, r0, #0x344
        (LDR_G2, 0xE5900000, 0x12345, True, 0xE5900001),  # what the first two leave
    ],
)
def test_places(kind, before, value, relative, after):
    """Words, branches, moves and groups: addends are what is in the place."""
    loaded = relocated(kernel(ARM), code_of(ARM, before), kind, value, relative=relative)
    assert loaded.address(".text") == MODULES
    assert loaded.word(".text") == after


def test_group_backwards():
    """An offset that is negative makes the addition a subtraction."""
    loaded = relocated(kernel(ARM), code_of(ARM, 0xE28F0000), ALU_G0, MODULES - 0x1200)
    assert loaded.word(".text") == 0xE24F0D48


@pytest.mark.parametrize(
    ("kind", "before", "value", "after"),
    [
        (THM_CALL, (0xF7FF, 0xFFFE), 0x101, (0xF000, 0xF87E)),  # the addend is -4; bl +0x100
        (THM_MOVW, (0xF240, 0x0000), 0x5678, (0xF245, 0x6078)),
        (THM_MOVT, (0xF2C0, 0x0000), 0x12340000, (0xF2C1, 0x2034)),
    ],
)
def test_thumb(kind, before, value, after):
    """Thumb code in kernels of Thumb code, elsewhere it is not known."""
    thumb = kernel(ARM, THUMB2_KERNEL="y")
    code = code_of(ARM, *before, size=2)
    loaded = relocated(thumb, code, kind, value, relative=kind == THM_CALL)
    assert (loaded.word(".text", 0, 2), loaded.word(".text", 2, 2)) == after
    assert refusal(kernel(ARM), code, kind, value) == (
        8, "unknown-relocation", f"paper: unknown relocation: {kind}",
    )  # fmt: skip


def line(text, index=0, name="target"):
    """A line about a relocation; the section with them is the seventh."""
    return f"paper: section 7 reloc {index} sym '{name}': {text}"


def test_out_of_range():
    """Without veneers a branch reaches 32 MiB."""
    target = kernel(ARM, ARM_MODULE_PLTS="n")
    assert refusal(target, code_of(ARM, BL), CALL, 0x80000000) == (
        8, "relocation-overflow", line("relocation 28 out of range (0xbf000000 -> 0x80000000)"),
    )  # fmt: skip
    relocated(kernel(ARM, ARM_MODULE_PLTS="n"), code_of(ARM, BL), CALL, MODULES + 0x2000004)
    target = kernel(ARM, ARM_MODULE_PLTS="n")
    assert refusal(target, code_of(ARM, BL), CALL, MODULES + 0x2000008)[1] == "relocation-overflow"
    assert refusal(kernel(ARM), bytes(4), PREL31, 0)[1] == "relocation-overflow"
    assert refusal(kernel(ARM), code_of(ARM, 0xE5900000), LDR_G2, MODULES + 0x12345678)[1] == "relocation-overflow"


def test_interworking():
    """A call of Thumb code from ARM code is refused."""
    assert refusal(kernel(ARM), code_of(ARM, BL), CALL, 0xC0000001) == (
        8, "interworking-call", line("unsupported interworking call (ARM -> Thumb)"),
    )  # fmt: skip


def test_bounds():
    """A place outside the section is refused before anything else is looked at."""
    for kind in (0, ABS32, 200):
        assert refusal(kernel(ARM), bytes(8), kind, 0, offset=5) == (
            8, "relocation-bounds", line("out of bounds relocation, offset 5 size 8"),
        )  # fmt: skip
    assert refusal(kernel(ARM), bytes(8), ABS32, 0, offset=0xFFFFFFFC)[2].endswith("offset -4 size 8")


def test_symbols():
    """A symbol that there is not is refused, the first behind the end of the table excepted: that is damage."""

    def with_symbol(number):
        writer = module(ARM, bytes(8))
        section = writer.relocations(".text", [(0, ABS32, "text", 0)], rela=False)
        section.data = (0).to_bytes(4, "little") + (number << 8 | ABS32).to_bytes(4, "little")
        return writer

    target = kernel(ARM)
    with pytest.raises(LoadError) as refused:
        load(target, with_symbol(4))
    assert (refused.value.errno, refused.value.slug) == (8, "relocation-bounds")
    assert target.log[-1].text == "paper: section 7 reloc 0: bad relocation sym offset"
    with pytest.raises(DamageError):
        load(kernel(ARM), with_symbol(3))


def far_calls(*targets):
    writer = module(ARM, code_of(ARM, *[BL] * len(targets)))
    for name in sorted(set(targets)):
        writer.symbol(name, ABSOLUTE, 0x80000000 + 0x1000 * ord(name))
    writer.relocations(".text", [(4 * i, CALL, name, 0) for i, name in enumerate(targets)], rela=False)
    return writer


def test_veneers():
    """What is too far is reached through a veneer that loads the address from the next cache line."""
    loaded = load(kernel(ARM), far_calls("a", "b", "a"))
    assert loaded.size(".plt") == 128
    plt, text = loaded.address(".plt"), loaded.address(".text")
    calls = [(loaded.word(".text", at) & 0xFFFFFF) * 4 + text + at + 8 - plt for at in (0, 4, 8)]
    assert calls == [0, 4, 0]
    assert [loaded.word(".plt", at) for at in (0, 4)] == [0xE59FF000 | 64 - 8] * 2
    assert [loaded.word(".plt", 64 + at) for at in (0, 4)] == [0x80061000, 0x80062000]


def test_tracers():
    """Kernels with ftrace have the first two veneers of a section for it."""
    symbols = {"ftrace_caller": 0x80061000, "__gnu_mcount_nc": 0x70000000}
    loaded = load(kernel(ARM, symbols=symbols, DYNAMIC_FTRACE="y"), far_calls("a", "b"))
    plt, text = loaded.address(".plt"), loaded.address(".text")
    calls = [(loaded.word(".text", at) & 0xFFFFFF) * 4 + text + at + 8 - plt for at in (0, 4)]
    assert calls == [0, 8]  # the first is the tracer's own address


@pytest.mark.parametrize("name", [".plt", ".init.plt"])
def test_missing_sections(name):
    """A module that was not linked for this kernel is refused."""
    target = kernel(ARM)
    with pytest.raises(LoadError) as refused:
        load(target, module(ARM, bytes(4), without=(name,)))
    assert (refused.value.errno, refused.value.slug) == (8, "no-plt-section")
    assert target.log[-1].text == "paper: module PLT section(s) missing"


def test_addends():
    """Relocations with addends are not for this architecture."""
    writer = module(ARM, bytes(4))
    writer.relocations(".text", [(0, ABS32, "text", 0)])
    target = kernel(ARM)
    with pytest.raises(LoadError) as refused:
        load(target, writer)
    assert (refused.value.errno, refused.value.slug) == (8, "rel-relocations")
    assert target.log[-1].text == "module paper: RELA relocation unsupported"
