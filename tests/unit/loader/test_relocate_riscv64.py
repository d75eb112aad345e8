"""Relocations, PLT and GOT of 64-bit RISC-V."""

import pytest

from kodojo.errors import LoadError
from tests.support.architectures import ABSOLUTE, code_of, kernel, load, module, refusal, relocated

RISCV = "riscv64"
MODULES = 0xFFFFFFFF02000000
MORE_TYPES = b"%s: Thread local storage not supported in kernel modules"
R_32, R_64, BRANCH, JAL, CALL, CALL_PLT, GOT_HI20 = 1, 2, 16, 17, 18, 19, 20
PCREL_HI20, PCREL_LO12_I, PCREL_LO12_S, HI20, LO12_I, LO12_S = 23, 24, 25, 26, 27, 28
ADD8, ADD16, ADD32, ADD64, SUB8, SUB16, SUB32, SUB64 = 33, 34, 35, 36, 37, 38, 39, 40
ALIGN, RVC_BRANCH, RVC_JUMP, RELAX, SUB6, SET6, SET8, SET16, SET32, PCREL_32, PLT32 = (
    43, 44, 45, 51, 52, 53, 54, 55, 56, 57, 59,
)  # fmt: skip
SET_ULEB128, SUB_ULEB128 = 60, 61
AUIPC_A0, ADDI_A0, SW_A0, LUI_A0 = 0x00000517, 0x00050513, 0x00A52023, 0x00000537
AUIPC_RA, JALR_RA = 0x00000097, 0x000080E7


@pytest.mark.parametrize(
    ("kind", "before", "value", "relative", "after", "size"),
    [
        (R_32, 0, 0x12345678, False, 0x12345678, 4),
        (R_64, 0, 0x1122334455667788, False, 0x1122334455667788, 8),
        (BRANCH, 0x00000063, 8, True, 0x00000463, 4),  # beq +8
        (BRANCH, 0x00000063, -4 & (1 << 64) - 1, True, 0xFE000EE3, 4),  # beq -4
        (JAL, 0x0000006F, 16, True, 0x0100006F, 4),  # j +16
        (RVC_JUMP, 0xA001, 4, True, 0xA011, 2),  # c.j +4
        (RVC_BRANCH, 0xC101, 4, True, 0xC111, 2),  # c.beqz a0, +4
        (PCREL_HI20, AUIPC_A0, 0x12345, True, 0x00012517, 4),
        (PCREL_HI20, AUIPC_A0, 0x12845, True, 0x00013517, 4),  # the low half is negative then
        (HI20, LUI_A0, 0x12345, False, 0x00012537, 4),
        (LO12_I, ADDI_A0, 0x12345, False, 0x34550513, 4),
        (LO12_S, SW_A0, 0x12345, False, 0x34A522A3, 4),  # sw a0, 0x345(a0)
        (ADD32, 5, 7, False, 12, 4),
        (ADD64, 5, 7, False, 12, 8),
        (SUB32, 5, 7, False, 0xFFFFFFFE, 4),
        (SUB64, 5, 7, False, (1 << 64) - 2, 8),
        (RELAX, 5, 7, False, 5, 4),
    ],
)
def test_places(kind, before, value, relative, after, size):
    """Words and instructions, as early kernels know them."""
    code = before.to_bytes(size, "little")
    loaded = relocated(kernel(RISCV), code, kind, value, relative=relative)
    assert loaded.address(".text") == MODULES
    assert loaded.word(".text", 0, size) == after


@pytest.mark.parametrize("kind", [CALL, CALL_PLT])
def test_calls(kind):
    """A pair of instructions reaches 2 GiB."""
    loaded = relocated(kernel(RISCV), code_of(RISCV, AUIPC_RA, JALR_RA), kind, 0x12346, relative=True)
    assert (loaded.word(".text"), loaded.word(".text", 4)) == (0x00012097, 0x346080E7)


@pytest.mark.parametrize(
    ("kind", "instruction", "after"), [(PCREL_LO12_I, ADDI_A0, 0x34550513), (PCREL_LO12_S, SW_A0, 0x34A522A3)]
)
def test_low_half(kind, instruction, after):
    """The low half belongs to the high half at the place that its symbol names."""
    writer = module(RISCV, code_of(RISCV, AUIPC_A0, instruction))
    writer.symbol("target", ".text", 0x12345)
    writer.relocations(".text", [(4, kind, "text", 0), (0, PCREL_HI20, "target", 0)])
    loaded = load(kernel(RISCV), writer)
    assert (loaded.word(".text"), loaded.word(".text", 4)) == (0x00012517, after)


def test_low_half_alone():
    """Without its other half it is refused."""
    assert refusal(kernel(RISCV), code_of(RISCV, ADDI_A0), PCREL_LO12_I, 0, relative=True) == (
        22, "relocation-without-partner", "paper: Can not find HI20 relocation information",
    )  # fmt: skip


def test_got():
    """An address is taken from the GOT, by both halves; the same value has one entry."""
    writer = module(RISCV, code_of(RISCV, AUIPC_A0, ADDI_A0, AUIPC_A0, ADDI_A0))
    writer.symbol("target", ABSOLUTE, 0x1122334455667788)
    writer.symbol("second", ".text", 8)
    entries = [(0, GOT_HI20, "target", 0), (4, PCREL_LO12_I, "text", 0)]
    entries += [(8, GOT_HI20, "target", 0), (12, PCREL_LO12_I, "second", 0)]
    writer.relocations(".text", entries)
    loaded = load(kernel(RISCV), writer)
    assert loaded.size(".got") == 2 * 8
    assert loaded.content(".got") == (0x1122334455667788).to_bytes(8, "little") + bytes(8)
    for at in (0, 8):
        high, low = loaded.word(".text", at) >> 12, loaded.word(".text", at + 4) >> 20
        assert loaded.address(".text") + at + (high << 12) + low - (low >> 11 << 12) == loaded.address(".got")


def test_plt():
    """A call that is too far goes through the PLT, which takes its target from .got.plt."""
    writer = module(RISCV, code_of(RISCV, AUIPC_RA, JALR_RA))
    writer.symbol("target", ABSOLUTE, 0x1122334455667788)
    writer.relocations(".text", [(0, CALL_PLT, "target", 0)])
    loaded = load(kernel(RISCV), writer)
    assert loaded.content(".got.plt")[:8] == (0x1122334455667788).to_bytes(8, "little")
    plt, got = loaded.address(".plt"), loaded.address(".got.plt")
    high, low = loaded.word(".plt") >> 12, loaded.word(".plt", 4) >> 20
    assert plt + (high << 12) + low - (low >> 11 << 12) == got
    assert (loaded.word(".plt") & 0xFFF, loaded.word(".plt", 4) & 0xFFFFF) == (
        0x297,
        0x2B303,
    )  # auipc t0; ld t1, (t0)
    assert loaded.word(".plt", 8) == 0x00030067  # jr t1


def test_out_of_range():
    """What cannot be reached is refused with EINVAL."""
    where = f"from PC = {kernel(RISCV).hashed_pointer(MODULES)}"
    far = "target 1122334455667788 can not be addressed by the 32-bit offset " + where
    for kind in (PCREL_HI20, CALL):
        line = refusal(kernel(RISCV), code_of(RISCV, AUIPC_RA, JALR_RA), kind, 0x1122334455667788)
        assert line == (22, "relocation-overflow", f"paper: {far}")
    assert refusal(kernel(RISCV), bytes(4), R_32, 1 << 32) == (
        22, "relocation-overflow", "paper: value 0000000100000000 out of range for 32-bit field",
    )  # fmt: skip
    without = kernel(RISCV, MODULE_SECTIONS="n")
    assert refusal(without, code_of(RISCV, AUIPC_A0), GOT_HI20, 0x1000)[2] == (
        f"paper: can not generate the GOT entry for symbol = 0000000000001000 {where}"
    )


def test_unknown_types():
    """Early kernels know fewer types, and say less about those that they do not know."""
    early, late = kernel(RISCV), kernel(RISCV, MORE_TYPES)
    where = f"PC = {early.hashed_pointer(MODULES)}"
    assert refusal(early, bytes(8), SET32, 0) == (22, "unknown-relocation", "paper: Unknown relocation type 56")
    assert refusal(early, bytes(8), 200, 0)[2] == "paper: Unknown relocation type 200"
    align = f"paper: The unexpected relocation type 'R_RISCV_ALIGN' from {where}"
    assert {refusal(target, bytes(8), ALIGN, 0)[2] for target in (early, late)} == {align}
    assert refusal(late, bytes(8), 3, 0)[2] == f"paper: Dynamic linking not supported in kernel modules {where}"
    assert refusal(late, bytes(8), 29, 0)[2] == f"paper: Thread local storage not supported in kernel modules {where}"


def test_sums():
    """Later kernels add up what belongs to one place, from 0, in the order of the file."""
    writer = module(RISCV, bytes(16), data=b"\xff" * 32)
    writer.symbol("end", ABSOLUTE, 0x1234)
    writer.symbol("start", ABSOLUTE, 0x1200)
    pairs = [(ADD8, SUB8), (ADD16, SUB16), (ADD32, SUB32), (SET8, SUB8), (SET16, SUB16), (SET32, SUB32), (SET6, SUB6)]
    entries = []
    for number, (first, second) in enumerate(pairs):
        entries += [(4 * number, first, "end", 0), (4 * number, second, "start", 0)]
    writer.relocations(".data", entries)
    loaded = load(kernel(RISCV, MORE_TYPES), writer)
    widths = (1, 2, 4, 1, 2, 4, 1)
    assert [loaded.word(".data", 4 * n, width) for n, width in enumerate(widths)] == [0x34] * 7
    assert loaded.content(".data")[28:] == b"\xff" * 4


def test_lengths():
    """A length in ULEB128 takes the bytes that it needs."""
    writer = module(RISCV, bytes(16), data=bytes(16))
    writer.symbol("end", ABSOLUTE, 0x1234)
    writer.symbol("start", ABSOLUTE, 0x1000)
    writer.relocations(".data", [(0, SET_ULEB128, "end", 0), (0, SUB_ULEB128, "start", 0)])
    loaded = load(kernel(RISCV, MORE_TYPES), writer)
    assert loaded.content(".data")[:4] == b"\xb4\x04\0\0"  # 0x234 = 0x34 + (4 << 7)


def test_more_places():
    """Later kernels know distances in data, one of them through the PLT."""
    for kind in (PCREL_32, PLT32):
        assert relocated(kernel(RISCV, MORE_TYPES), bytes(4), kind, 0x20, relative=True).word(".text") == 0x20
    loaded = relocated(kernel(RISCV, MORE_TYPES), bytes(4), PLT32, 0x1122334455667788)
    assert loaded.word(".text") == loaded.address(".plt") - loaded.address(".text")


def test_error_values():
    """A symbol whose value is an error number stops it, unless it is weak: then its places stay as they are."""
    error = (1 << 64) - 2
    assert refusal(kernel(RISCV), bytes(8), R_64, error) == (2, "unknown-symbol", "paper: Unknown symbol target")
    writer = module(RISCV, bytes(8))
    writer.symbol("weak", ABSOLUTE, error, bind=2)
    writer.relocations(".text", [(0, R_64, "weak", 0)])
    assert load(kernel(RISCV), writer).content(".text") == bytes(8)


@pytest.mark.parametrize(("name", "word"), [(".plt", "PLT"), (".got", "GOT"), (".got.plt", "GOT.PLT")])
def test_missing_sections(name, word):
    """A module that was not linked for this kernel is refused."""
    target = kernel(RISCV)
    with pytest.raises(LoadError) as refused:
        load(target, module(RISCV, bytes(4), without=(name,)))
    assert (refused.value.errno, refused.value.slug) == (8, "no-plt-section")
    assert target.log[-1].text == f"paper: module {word} section(s) missing"
