"""Relocations and veneers of arm64."""

from struct import pack as struct_pack

import pytest

from kodojo.errors import LoadError
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.load_module import load_module
from kodojo.loader.relocate.arm64 import get_plt_entry, plt_entries_equal
from tests.support.architectures import ABSOLUTE, Loaded, code_of, kernel, load, module, refusal, relocated

ARM64 = "aarch64"
MODULES = 0xFFFF800000000000
LATE = b"Modules: module %s: overflow in relocation type"
CALL26, JUMP26, ABS64, ABS32 = 283, 282, 257, 258
BL, B, NOP = 0x94000000, 0x14000000, 0xD503201F

# name: type, what is there, value (from the beginning of the code, if it is small), what it becomes
INSTRUCTIONS = {
    "adr x0, +4": (274, 0x10000000, 4, 0x10000020 | 0 << 29),
    "adr x0, +7": (274, 0x10000000, 7, 0x70000020),
    "adrp x0, +1 page": (275, 0x90000000, 0x1000, 0xB0000000),
    "adrp x0, +5 pages, unchecked": (276, 0x90000000, 0x5000, 0xB0000020),
    "add x0, x0, #0x10": (277, 0x91000000, 0x10, 0x91004000),
    "ldrb w0, [x0, #5]": (278, 0x39400000, 5, 0x39401400),
    "ldrh w0, [x0, #6]": (284, 0x79400000, 6, 0x79400C00),
    "ldr w0, [x0, #8]": (285, 0xB9400000, 8, 0xB9400800),
    "ldr x0, [x0, #8]": (286, 0xF9400000, 8, 0xF9400400),
    "ldr q0, [x0, #32]": (299, 0x3DC00000, 32, 0x3DC00800),
    "tbz w0, #0, +8": (279, 0x36000000, 8, 0x36000040),
    "b.eq +8": (280, 0x54000000, 8, 0x54000040),
    "ldr x0, +8": (273, 0x58000000, 8, 0x58000040),
    "b +16": (JUMP26, B, 16, 0x14000004),
    "bl +4": (CALL26, BL, 4, 0x94000001),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions(name):
    """Immediates go into the fields of their instructions."""
    kind, before, value, after = INSTRUCTIONS[name]
    loaded = relocated(kernel(ARM64), code_of(ARM64, before), kind, value, relative=True)
    assert loaded.address(".text") == MODULES  # on a page of its own: offsets in the page are those in the code
    assert loaded.word(".text") == after


def test_half_a_word_the_word_and_the_other_half():
    """What is patched several times is so in the order of the file, however the places overlap."""
    writer = module(ARM64, code_of(ARM64, NOP))
    for name in "abc":
        writer.symbol(name, ABSOLUTE, ord(name))
    writer.relocations(".data", [(4, ABS32, "a", 0), (0, ABS64, "b", 0), (0, ABS32, "c", 0)])
    assert load(kernel(ARM64), writer).word(".data", 0, 8) == ord("c")


MOVES = {
    # name: (type, value, what movz x0, #0 becomes)
    "uabs g0": (263, 0x1234, 0xD2824680),
    "uabs g0, unchecked": (264, 0x51234, 0xD2824680),
    "uabs g1": (265, 0x12340000, 0xD2824680),
    "uabs g2": (267, 0x123400000000, 0xD2824680),
    "uabs g3": (269, 0x1234 << 48, 0xD2824680),
    "sabs g0": (270, 0x1234, 0xD2824680),
    "sabs g0 of -2 is movn #1": (270, (1 << 64) - 2, 0x92800020),
    "sabs g1 of -65537 is movn #1": (271, (1 << 64) - 0x10001, 0x92800020),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name):
    """Sixteen bits go into a move; negative numbers make it one that negates."""
    kind, value, after = MOVES[name]
    assert relocated(kernel(ARM64), code_of(ARM64, 0xD2800000), kind, value).word(".text") == after


@pytest.mark.parametrize(
    ("kind", "size", "value", "relative", "expected"),
    [
        (257, 8, 0x1122334455667788, False, 0x1122334455667788),
        (258, 4, 0xFFFFFFFF, False, 0xFFFFFFFF),
        (259, 2, 0xFFFF, False, 0xFFFF),
        (260, 8, 0x20, True, 0x20),
        (261, 4, 0x20, True, 0x20),
        (262, 2, 0x20, True, 0x20),
    ],
)
def test_data(kind, size, value, relative, expected):
    """Numbers in data: absolute, or relative to the place."""
    loaded = relocated(kernel(ARM64), bytes(16), kind, value, relative=relative)
    assert loaded.word(".text", 0, size) == expected
    assert loaded.content(".text")[size:] == bytes(16 - size)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (258, 1 << 32), (259, 1 << 16), (261, 1 << 40), (262, 1 << 40), (263, 0x10000), (270, 0x10000),
        (273, 1 << 40), (274, 1 << 40), (275, 1 << 40), (279, 1 << 40), (280, 1 << 40),
    ],
)  # fmt: skip
def test_overflow(kind, value):
    """A value out of range is refused, by the name of its type."""
    errno, slug, line = refusal(kernel(ARM64), code_of(ARM64, 0), kind, value)
    assert (errno, slug) == (8, "relocation-overflow")
    assert line == f"module paper: overflow in relocation type {kind} val {value:x}"


def test_limits():
    """The largest offsets in both directions fit, and one step more does not."""
    for value in ((1 << 20) - 4, -(1 << 20)):
        relocated(kernel(ARM64), code_of(ARM64, 0x54000000), 280, MODULES + value & (1 << 64) - 1)
    for value in (1 << 20, -(1 << 20) - 4):
        assert refusal(kernel(ARM64), code_of(ARM64, 0x54000000), 280, MODULES + value)[1] == "relocation-overflow"


def test_unknown_type():
    """What the kernel does not know is refused; later kernels say so with another prefix."""
    assert refusal(kernel(ARM64), bytes(4), 311, 0)[2] == "module paper: unsupported RELA relocation: 311"
    late = refusal(kernel(ARM64, LATE, ARM64_MODULE_PLTS="n"), bytes(4), 311, 0)
    assert late == (8, "unknown-relocation", "Modules: module paper: unsupported RELA relocation: 311")


@pytest.mark.parametrize("kind", [0, 256])
def test_nothing(kind):
    """Two types do nothing, whatever their place is."""
    assert relocated(kernel(ARM64), code_of(ARM64, NOP), kind, 5, offset=1 << 40).word(".text") == NOP


FAR = MODULES + 0x12345678  # in reach of adrp, not of bl


def far_calls(*targets):
    writer = module(ARM64, code_of(ARM64, *[BL] * len(targets)))
    for name in sorted(set(targets)):
        writer.symbol(name, ABSOLUTE, FAR + 0x1000 * ord(name))
    writer.relocations(".text", [(4 * i, CALL26, name, 0) for i, name in enumerate(targets)])
    return writer


def test_veneer():
    """A call of what is too far goes to a veneer: adrp x16, add x16, br x16."""
    loaded = load(kernel(ARM64), far_calls("a", "b"))
    text, plt = loaded.address(".text"), loaded.address(".plt")
    assert loaded.size(".plt") == 3 * 12  # one more than is needed
    assert {loaded.word(".text", 0), loaded.word(".text", 4)} == {
        BL | (plt - text) // 4, BL | (plt + 12 - text - 4) // 4,
    }  # fmt: skip
    adrp, add, branch = (loaded.word(".plt", offset) for offset in (0, 4, 8))
    assert (adrp & 0x9F00001F, add & 0xFFC003FF, branch) == (0x90000010, 0x91000210, 0xD61F0200)
    pages = (adrp >> 29 & 3) | (adrp >> 5 & 0x7FFFF) << 2
    reached = ((plt >> 12) + pages << 12) + (add >> 10 & 0xFFF)
    assert reached in (FAR + 0x61000, FAR + 0x62000)


def test_veneers_are_shared():
    """Calls of the same function share a veneer: room is made for each function.

    Where all relocations are such calls, the kernel forgets to sort the last one.
    """
    assert load(kernel(ARM64), far_calls("a", "b", "a", "b", "a")).size(".plt") == (3 + 1) * 12
    writer = module(ARM64, code_of(ARM64, *[BL] * 5, NOP))
    for name in "ab":
        writer.symbol(name, ABSOLUTE, FAR + 0x1000 * ord(name))
    calls = [(4 * i, CALL26, name, 0) for i, name in enumerate("ababa")]
    writer.relocations(".text", [*calls, (20, 256, "a", 0)])
    assert load(kernel(ARM64), writer).size(".plt") == (2 + 1) * 12


@pytest.mark.parametrize(
    ("target", "adrp"),
    [
        (MODULES + 0x5000, 0xB0000030),
        (MODULES - 0x1000, 0xF0FFFFF0),
        (MODULES + (1 << 44) + 0x5000, 0xB0000030),
        (MODULES + (1 << 43), 0xD4202000),
    ],
)
def test_veneers_have_distances_of_32_bits(target, adrp):
    """The kernel counts pages in 32 bits: what is 16 TiB further is taken for near, and what is too far is a BRK."""
    assert int.from_bytes(get_plt_entry(target, MODULES + 0x10)[:4], "little") == adrp


def test_equal_veneers():
    """Veneers on different pages are equal if they lead to the same place, not if they look alike."""
    here, there = (MODULES + offset for offset in (0xFF4, 0x1000))
    veneer = get_plt_entry(FAR, here)
    assert plt_entries_equal((veneer, here), (get_plt_entry(FAR, there), there))
    assert not plt_entries_equal((veneer, here), (veneer, there))
    assert not plt_entries_equal((veneer, here), (get_plt_entry(FAR + 4, here), here))
    broken = get_plt_entry(MODULES + (1 << 43), here)
    assert plt_entries_equal((broken, here), (broken, here))
    assert not plt_entries_equal((broken, here), (broken, there))


def test_what_is_behind_a_refused_entry_leaves_struct_module_alone():
    """Undoing reads struct module: entries before the refused one have changed it, and that one, but none behind."""
    target = kernel(ARM64)
    writer = module(ARM64, bytes(4))
    struct = ".gnu.linkonce.this_module"
    writer.symbol("far", ABSOLUTE, 1 << 40)
    writer.symbol("near", ABSOLUTE, 0x11223344)
    entries = [(100, 258, "near", 0), (104, 258, "far", 0x55), (108, 258, "near", 0), (112, 258, "far", 0)]
    writer.relocations(struct, entries)
    data = writer.build()
    info = LoadInfo(data, target.vmalloc(len(data)))
    with pytest.raises(LoadError) as refused:
        load_module(target, info, target.user_copy(b"\0"), 0)
    assert refused.value.slug == "relocation-overflow"
    assert Loaded(info).content(struct)[100:116] == struct_pack("<4I", 0x11223344, 0x55, 0, 0)


def test_no_veneers():
    """A kernel without randomized addresses makes no room, and refuses the first call that is too far."""
    target = kernel(ARM64, RANDOMIZE_BASE="n")
    with pytest.raises(LoadError) as refused:
        load(target, far_calls("a"))
    assert (refused.value.errno, refused.value.slug) == (8, "no-veneer-left")
    target = kernel(ARM64, ARM64_MODULE_PLTS="n")
    with pytest.raises(LoadError) as refused:
        load(target, far_calls("a"))
    assert refused.value.slug == "relocation-overflow"


def test_calls_inside():
    """Calls inside a section need no veneer."""
    loaded = relocated(kernel(ARM64), code_of(ARM64, BL, NOP), CALL26, 4, relative=True)
    assert loaded.size(".plt") == 12


@pytest.mark.parametrize("name", [".plt", ".init.plt"])
def test_missing_sections(name):
    """A module that was not linked for this kernel is refused."""
    target = kernel(ARM64)
    with pytest.raises(LoadError) as refused:
        load(target, module(ARM64, bytes(4), without=(name,)))
    assert (refused.value.errno, refused.value.slug) == (8, "no-plt-section")
    assert target.log[-1].text == "paper: module PLT section(s) missing"
    load(kernel(ARM64, ARM64_MODULE_PLTS="n"), module(ARM64, bytes(4), without=(name,)))


def test_trampolines():
    """Early kernels reserve two ways to the tracer, those without ftrace_regs_caller one."""
    both = kernel(ARM64, DYNAMIC_FTRACE_WITH_REGS="y")
    assert load(both, module(ARM64, bytes(4))).size(".text.ftrace_trampoline") == 24
    assert load(kernel(ARM64), module(ARM64, bytes(4))).size(".text.ftrace_trampoline") == 12
