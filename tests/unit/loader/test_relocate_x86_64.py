from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodojo.errors import DamageError, LoadError
from kodojo.image.elf import RELA, SHDR, SYM
from kodojo.loader.dry import DryTarget
from kodojo.loader.load_info import Index, LoadInfo
from kodojo.loader.relocate import apply_relocations, x86_64
from kodojo.loader.target import Memory, Module, Region
from tests.support.paper import paper_image

BASE = 0xFFFFFFFFC0000000
SECTION = 0x100  # offset of the patched section in its region
SIZE = 0x200  # of the patched section; the region goes on for as much again

NONE, ABS64, PC32, PLT32, ABS32, ABS32S, PC64 = 0, 1, 2, 4, 10, 11, 24


@dataclass
class Scene:
    """A module with one section (index 1), its relocations (2) and its symbols (3)."""

    target: DryTarget
    mod: Module
    info: LoadInfo
    region: Region

    def at(self, offset: int, size: int) -> int:
        start = SECTION + offset
        return int.from_bytes(self.region.data[start : start + size], "little")

    def apply(self) -> int:
        return apply_relocations(self.target, self.mod, self.info)["entries"]

    def refused(self) -> LoadError:
        with pytest.raises(LoadError) as caught:
            self.apply()
        assert caught.value.errno == 8
        return caught.value

    @property
    def lines(self) -> list[tuple[int, str]]:
        return [(record.level, record.text) for record in self.target.log]


def scene(entries, symbols=(0, 0xFFFFFFFF81000000, 0x1234), *, late=False, fill=b"", flags=2, kind=4) -> Scene:
    table = np.zeros(len(entries), RELA)
    for index, (offset, reloc, symbol, addend) in enumerate(entries):
        table[index] = (offset, symbol << 32 | reloc, addend)
    raw = table.tobytes()
    region = Region(Memory.CORE, size=2 * SIZE + SECTION, base=BASE, data=bytearray(2 * SIZE + SECTION))
    region.data[SECTION : SECTION + len(fill)] = fill
    sechdrs = np.zeros(4, SHDR)
    sechdrs[1]["sh_flags"], sechdrs[1]["sh_size"] = flags, SIZE
    sechdrs[1]["sh_addr"] = BASE + SECTION
    sechdrs[2]["sh_type"], sechdrs[2]["sh_info"], sechdrs[2]["sh_size"] = kind, 1, len(raw)
    info = LoadInfo(raw, sechdrs=sechdrs, index=Index(sym=3))
    info.symbols = np.zeros(len(symbols), SYM)
    info.symbols["st_value"] = symbols
    info.placement = {1: (region, SECTION)}
    mod = Module("paper", regions={Memory.CORE: region})
    return Scene(DryTarget(paper_image(late=late)), mod, info, region)


def wrap(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


@pytest.mark.parametrize(
    ("kind", "size", "value"),
    [
        (ABS64, 8, 0xFFFFFFFF81000010),
        (PC32, 4, 0xFFFFFFFF81000010 - (BASE + SECTION + 8)),
        (PLT32, 4, 0xFFFFFFFF81000010 - (BASE + SECTION + 8)),
        (ABS32S, 4, 0xFFFFFFFF81000010),
        (PC64, 8, 0xFFFFFFFF81000010 - (BASE + SECTION + 8)),
    ],
)
def test_each_type_writes_its_formula(kind, size, value):
    """S + A, minus P for the types relative to the place, in as many bytes as the type has."""
    it = scene([(8, kind, 1, 16)])
    assert it.apply() == 1
    assert it.at(8, size) == wrap(value, size)
    assert it.at(8 + size, 8) == 0


def test_32_zero_extends():
    """R_X86_64_32 takes what fits into 32 bits without a sign."""
    it = scene([(0, ABS32, 2, 0x70000000)])
    it.apply()
    assert it.at(0, 4) == 0x70001234


def test_none_writes_nothing_wherever_it_points():
    """R_X86_64_NONE has no place."""
    it = scene([(1 << 63, NONE, 1, 5), (0, ABS64, 2, 0)])
    assert it.apply() == 2
    assert it.at(0, 8) == 0x1234


@pytest.mark.parametrize("kind", [NONE, 999])
def test_symbol_is_read_first(kind):
    """The kernel reads the symbol whatever the type: one that does not exist does damage, with any type."""
    with pytest.raises(DamageError, match="symbol 77 of 3"):
        scene([(0, kind, 77, 5)]).apply()


def test_symbol_behind_the_table():
    """What is behind the symbol table in the module's own memory is a symbol to the kernel."""
    it = scene([(0, ABS64, 4, 1)])
    start = SECTION + SIZE
    it.info.placement[3] = (it.region, start)
    place = start + 4 * SYM.itemsize + 8
    it.region.data[place : place + 8] = (0x5678).to_bytes(8, "little")
    assert it.apply() == 1
    assert it.at(0, 8) == 0x5679


def test_pc32_is_truncated_without_a_check():
    """The distance of PC32 may not fit: the kernel does not look."""
    it = scene([(0, PC32, 1, 0)], symbols=(0, 0x1234567890))
    it.apply()
    assert it.at(0, 4) == wrap(0x1234567890 - (BASE + SECTION), 4)


@pytest.mark.parametrize("late", [False, True])
def test_unknown_type(late):
    """An unknown type is refused with its number; what came before it stays applied."""
    it = scene([(0, ABS64, 2, 0), (8, 9, 1, 0), (16, ABS64, 2, 0)], late=late)
    assert it.refused().slug == "unknown-relocation"
    assert it.lines == [(3, "module: paper: Unknown rela relocation: 9")]
    assert (it.at(0, 8), it.at(16, 8)) == (0x1234, 0)


def test_nonzero_target_early_kernel():
    """6.1 says 'Skipping', and shows S + A for the types relative to the place."""
    it = scene([(4, PC32, 2, 1)], fill=b"\0\0\0\0\1")
    assert it.refused().slug == "relocation-target-nonzero"
    text = "Skipping invalid relocation target, existing value is nonzero for type 2, loc (____ptrval____), val"
    assert it.lines == [(3, f"module: x86/modules: {text} 1235")]


def test_nonzero_target_late_kernel():
    """6.12 says 'Invalid', and shows the value that it would have written."""
    it = scene([(4, PC32, 2, 1)], fill=b"\0\0\0\0\1", late=True)
    it.refused()
    value = wrap(0x1235 - (BASE + SECTION + 4), 8)
    text = "Invalid relocation target, existing value is nonzero for type 2, loc (____ptrval____), val"
    assert it.lines == [(3, f"module: x86/modules: {text} {value:x}")]


@pytest.mark.parametrize(
    ("kind", "addend"), [(ABS32, -1), (ABS32, 1 << 32), (ABS32S, 1 << 31), (ABS32S, -(1 << 31) - 1)]
)
@pytest.mark.parametrize("late", [False, True])
def test_overflow(kind, addend, late):
    """What does not fit is refused: by 6.1 after it wrote the low half, by 6.12 before it writes."""
    it = scene([(0, kind, 0, addend)], late=late)
    assert it.refused().slug == "relocation-overflow"
    assert it.lines == [
        (3, f"module: overflow in relocation type {kind} val {wrap(addend, 8):x}"),
        (3, "module: `paper' likely not compiled with -mcmodel=kernel"),
    ]
    assert it.at(0, 4) == (0 if late else wrap(addend, 4))


@pytest.mark.parametrize(("late", "slug"), [(False, "relocation-target-nonzero"), (True, "relocation-overflow")])
def test_overflow_or_nonzero_first(late, slug):
    """With both faults, 6.1 reports the nonzero place and 6.12 the overflow."""
    it = scene([(0, ABS32S, 0, 1 << 40)], fill=b"\1", late=late)
    assert it.refused().slug == slug


def test_same_place_twice():
    """The second relocation of a place finds it nonzero."""
    it = scene([(0, ABS64, 2, 0), (4, ABS32, 1, 0), (8, ABS64, 2, 0)], symbols=(0, 5, 1 << 40 | 7))
    assert it.refused().slug == "relocation-target-nonzero"
    assert it.at(8, 8) == 0


def test_same_place_twice_with_zero():
    """Two relocations may share a place if the first writes zero."""
    it = scene([(0, ABS64, 0, 0), (0, ABS64, 2, 0)])
    it.apply()
    assert it.at(0, 8) == 0x1234


def test_a_word_and_then_its_halves():
    """Three relocations of one word: the second and the third touch bytes of the first, not each other's."""
    it = scene([(0, ABS64, 0, 0), (4, ABS32, 2, 0), (0, ABS32, 2, 1)])
    assert it.apply() == 3
    assert it.at(0, 8) == 0x1234_00001235


def test_place_outside_the_section():
    """The kernel patches whatever is at the place: behind the section is fine, behind the memory is not."""
    it = scene([(SIZE + 8, ABS64, 2, 0)])
    it.apply()
    assert it.at(SIZE + 8, 8) == 0x1234
    with pytest.raises(DamageError):
        scene([(2 * SIZE - 4, ABS64, 2, 0)]).apply()
    with pytest.raises(DamageError):
        scene([((1 << 64) - SECTION - 1, ABS32, 2, 0)]).apply()


def test_place_before_the_section():
    """An offset that wraps around is a place before the section."""
    it = scene([((1 << 64) - 8, ABS64, 2, 0)])
    it.apply()
    assert it.at(-8, 8) == 0x1234


def test_symbol_index_out_of_range():
    """A relocation for a symbol that the table does not have makes the kernel read behind it."""
    with pytest.raises(DamageError):
        scene([(0, ABS64, 3, 0)]).apply()


def test_relocated_symbol_table():
    """A relocation that changes the symbol table changes what those after it see."""
    it = scene([])
    entries = np.zeros(2, RELA)
    entries[0] = (24 + 8, 2 << 32 | ABS64, 0)  # symbol 1: st_value
    entries[1] = (48, 1 << 32 | ABS64, 0)
    it.info.data = entries.tobytes()
    it.info.sechdrs[2]["sh_size"] = len(it.info.data)
    it.info.index.sym = 1
    table = np.frombuffer(it.region.data, SYM, 3, SECTION)
    table["st_value"] = (0, 0, 0x77)
    table["st_name"][2] = 0
    it.info.symbols = table
    it.region.data[SECTION + 48 : SECTION + 56] = bytes(8)
    it.apply()
    assert it.at(48, 8) == 0x77


def test_sections_that_are_not_loaded_are_skipped():
    """Relocations for a section without SHF_ALLOC are not even looked at."""
    assert scene([(1 << 50, 99, 99, 0)], flags=0).apply() == 0


def test_rel_is_not_supported():
    """SHT_REL is refused by name."""
    it = scene([(0, ABS64, 2, 0)], kind=9)
    it.info.data += b"\0.rel.text\0"
    it.info.secstrings = len(it.info.data) - len(b".rel.text\0") - 1
    it.info.sechdrs[2]["sh_name"] = 1
    assert it.refused().slug == "rel-relocations"
    assert it.lines == [(3, "module paper: REL relocation unsupported")]


ENTRY = st.tuples(
    st.one_of(st.integers(0, 48).map(lambda n: 8 * n), st.integers(-SECTION, 2 * SIZE).map(lambda n: wrap(n, 8))),
    st.sampled_from([NONE, ABS64, PC32, PLT32, ABS32, ABS32S, PC64, 9]),
    st.integers(0, 4),
    st.one_of(st.integers(-8, 8), st.integers(-(1 << 63), (1 << 63) - 1)),
)


@given(entries=st.lists(ENTRY, max_size=12), late=st.booleans(), fill=st.binary(max_size=40))
def test_arrays_and_single_steps_agree(entries, late, fill):
    """Whatever the entries are, patching many at once ends as patching one after the other does."""
    symbols = (0, 0xFFFFFFFF81000000, 0x1234, 1 << 63)
    many, single = (scene(entries, symbols, late=late, fill=fill) for _ in range(2))
    outcomes = []
    for it, apply in ((many, many.apply), (single, lambda: one_by_one(single))):
        try:
            apply()
            outcomes.append(None)
        except LoadError as error:
            outcomes.append((type(error), error.slug))
        outcomes.extend((bytes(it.region.data), it.lines))
    assert outcomes[:3] == outcomes[3:]


def one_by_one(it: Scene, relsecs=(2,)) -> None:
    for relsec in relsecs:
        patch = x86_64._patch(it.mod, it.info, relsec)
        x86_64._apply_one_by_one(it.target, it.mod, it.info, relsec, patch, 0)


TABLE = SECTION + SIZE + 0x40  # where the symbols are if they are in the region, too


def pair(first, second, start, kind, *, fill=b"", placed=False) -> Scene:
    """A module with two sections (1 and 2), their relocations (3 and 4) and its symbols (5).

    :param start: of the second section, in a region of this kind. :param placed: the symbols are in the first region.
    """
    it = scene([], (0, 0xFFFFFFFF81000000, 0x1234, 1 << 63), fill=fill)
    raw = [np.array([(o, s << 32 | k, a) for o, k, s, a in each], RELA).tobytes() for each in (first, second)]
    init = Region(Memory.INIT, size=len(it.region.data), base=BASE + 0x10000, data=bytearray(len(it.region.data)))
    regions = it.mod.regions = {Memory.CORE: it.region, Memory.INIT: init}
    it.info.placement = {1: (it.region, SECTION), 2: (regions[kind], start)}
    sechdrs = it.info.sechdrs = np.zeros(6, SHDR)
    for index, (region, offset) in it.info.placement.items():
        sechdrs[index]["sh_flags"], sechdrs[index]["sh_size"] = 2, SIZE
        sechdrs[index]["sh_addr"] = region.base + offset
        relsec = sechdrs[index + 2]
        relsec["sh_type"], relsec["sh_info"], relsec["sh_size"] = 4, index, len(raw[index - 1])
    sechdrs[4]["sh_offset"] = len(raw[0])
    it.info.data, it.info.index.sym = b"".join(raw), 5
    if placed:
        it.region.data[TABLE : TABLE + it.info.symbols.nbytes] = it.info.symbols.tobytes()
        it.info.symbols = np.frombuffer(it.region.data, SYM, 4, TABLE)
        it.info.placement[5] = (it.region, TABLE)
    return it


def test_sections_together():
    """The ordinary sections of a module are patched in one pass."""
    it = pair([(0, ABS64, 2, 0)], [(8, PC32, 1, 4), (16, ABS32S, 1, 0)], 0x20, Memory.INIT, placed=True)
    assert x86_64.apply_together(it.info, [3, 4]) == 3
    assert it.at(0, 8) == 0x1234
    init = it.mod.regions[Memory.INIT]
    distance = wrap(0xFFFFFFFF81000004 - (init.base + 0x28), 4)
    assert init.data[0x28:0x2C] == distance.to_bytes(4, "little")
    assert init.data[0x30:0x34] == (0x81000000).to_bytes(4, "little")


def test_symbols_changed_by_the_section_before():
    """Where a section lies over the symbol table, the relocations of the next one see what it has done there."""
    change = TABLE - SECTION + 8  # symbol 0: st_value
    it = pair([(change, ABS64, 2, 0)], [(0, ABS64, 0, 1)], 0, Memory.INIT, placed=True)
    it.info.sechdrs[1]["sh_size"] = TABLE + it.info.symbols.nbytes - SECTION
    assert it.apply() == 2
    assert it.mod.regions[Memory.INIT].data[:8] == (0x1235).to_bytes(8, "little")


STARTS = st.sampled_from([SECTION + SIZE, SECTION + SIZE - 8, SECTION, SECTION - 4, 0])
USUAL = st.tuples(
    st.integers(0, 30).map(lambda n: 8 * n),
    st.sampled_from([ABS64, PC32, PLT32, ABS32S]),
    st.integers(0, 2),
    st.integers(0, 8),
)
ENTRIES = st.one_of(st.lists(USUAL, max_size=6, unique_by=lambda entry: entry[0]), st.lists(ENTRY, max_size=4))


@given(ENTRIES, ENTRIES, STARTS, st.sampled_from([Memory.CORE, Memory.INIT]), st.binary(max_size=20), st.booleans())
def test_sections_together_and_single_steps_agree(first, second, start, kind, fill, placed):
    """However two sections lie, and whatever their entries are: together or one after the other is the same."""
    together, single = (pair(first, second, start, kind, fill=fill, placed=placed) for _ in range(2))
    outcomes = []
    for it, apply in ((together, together.apply), (single, lambda: one_by_one(single, (3, 4)))):
        try:
            apply()
            outcomes.append(None)
        except LoadError as error:
            outcomes.append((type(error), error.slug))
        outcomes.extend((*(bytes(region.data) for region in it.mod.regions.values()), it.lines))
    assert outcomes[:4] == outcomes[4:]
