"""Whatever is in a file, it has a verdict."""

from __future__ import annotations

from functools import lru_cache

from hypothesis import example, given
from hypothesis import strategies as st

from kodojo.errors import DamageError, LoadError
from kodojo.image.elf import SHDR
from kodojo.loader.verdict import Verdict, check
from tests.support.elf_writer import ElfWriter
from tests.support.loading import SpyTarget, export, finish, load, loadable, parameters

R_X86_64 = (1, 2, 4, 10, 11, 24)  # 64, PC32, PLT32, 32, 32S, PC64: what the kernel knows
PARAMETERS = {"number": ("int", 0), "text": ("charp", 8), "list": ("array", 16), "flag": ("bool", 4)}

EXTREMES = st.sampled_from(
    [0, 1, 2, 7, 8, 63, 64, 0xFF, 0xFFF, 0x1000, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
)
HUGE = st.sampled_from([1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1])
LATE = st.booleans()


def module(*, late: bool) -> ElfWriter:
    """A module with everything: parameters, exports, versions, relocations, .bss, init and exit."""
    writer = loadable(late=late, crcs={"module_layout": 1, "param_ops_int": 2})
    parameters(writer, PARAMETERS)
    export(writer, "offered")
    writer.section(".text").data = bytes(32)  # a relocated place has to be zero before
    writer.relocations(
        ".text",
        [(0, R_X86_64[0], "work", 5), (8, R_X86_64[1], "counter", -4), (16, R_X86_64[4], "param_ops_int", 0)],
    )
    return finish(writer)


@lru_cache
def content(*, late: bool) -> bytes:
    return module(late=late).build()


@lru_cache
def image(*, late: bool):
    return SpyTarget(late=late).image


def verdict(file: bytes, *, late: bool, args: str = "number=1 text=x list=1,2 flag") -> Verdict:
    """The verdict, which has to make sense."""
    found = check(image(late=late), file, args)
    assert found.ok == (found.slug == "ok")
    assert found.ok or found.why
    assert found.steps
    assert not found.ok or found.errno == 0
    return found


def test_the_undamaged_file_loads():
    """The file that is damaged here is a good one, for both kinds of kernel."""
    for late in (False, True):
        assert verdict(content(late=late), late=late).ok


# -- bytes ----------------------------------------------------------------------------------------------------
@given(late=LATE, changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6))
def test_changed_bytes(late, changes):
    """Bytes may be changed anywhere."""
    file = bytearray(content(late=late))
    for where, value in changes:
        file[int(where * len(file))] = value
    verdict(bytes(file), late=late)


@given(
    late=LATE,
    where=st.floats(0, 1, exclude_max=True),
    width=st.sampled_from([2, 4, 8]),
    value=st.one_of(EXTREMES, HUGE),
)
def test_changed_words(late, where, width, value):
    """So may the words that headers, symbols and relocations are made of."""
    file = bytearray(content(late=late))
    at = int(where * (len(file) - width)) // width * width
    file[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, "little")
    verdict(bytes(file), late=late)


@given(late=LATE, start=st.floats(0, 1), end=st.floats(0, 1))
@example(late=True, start=0, end=0)
@example(late=True, start=0, end=0.02)
def test_pieces(late, start, end):
    """A piece of a file, from anywhere to anywhere, is a file."""
    file = content(late=late)
    verdict(file[int(start * len(file)) : int(end * len(file))], late=late)


@given(late=LATE, where=st.floats(0, 1), more=st.binary(max_size=40))
def test_inserted_bytes(late, where, more):
    """Bytes that come in between move all that follows."""
    file = content(late=late)
    at = int(where * len(file))
    verdict(file[:at] + more + file[at:], late=late)


@given(late=LATE, data=st.binary(max_size=300), elf=st.booleans())
def test_anything(late, data, elf):
    """Anything at all is a file, with the first bytes of an ELF file or without."""
    file = content(late=late)[:64] + data if elf else data
    verdict(file, late=late)


# -- structure ------------------------------------------------------------------------------------------------
SECTION_MEMBERS = st.sampled_from([name for name in SHDR.names or () if name.startswith("sh_")])
NARROW = {"sh_name", "sh_type", "sh_link", "sh_info"}


@given(
    late=LATE,
    changes=st.lists(
        st.tuples(st.integers(0, 100), SECTION_MEMBERS, st.one_of(EXTREMES, HUGE)), min_size=1, max_size=3
    ),
)
def test_section_headers(late, changes):
    """A section's header may say anything."""
    writer = module(late=late)
    sections = [*writer.sections, *writer.tables]
    for number, member, value in changes:
        width = 1 << 32 if member in NARROW else 1 << 64
        sections[number % len(sections)].header[member] = value % width
    verdict(writer.build(), late=late)


@given(
    late=LATE,
    number=st.integers(0, 100),
    section=st.one_of(EXTREMES, st.integers(0, 30)),
    value=st.one_of(EXTREMES, HUGE),
    kind=st.integers(0, 15),
    bind=st.integers(0, 15),
    name=st.one_of(st.none(), EXTREMES),
)
def test_symbols(late, number, section, value, kind, bind, name):
    """A symbol may be anything, anywhere, of any name."""
    writer = module(late=late)
    symbol = writer.symbols[number % len(writer.symbols)]
    symbol.section, symbol.value, symbol.name_offset = section % 65536, value, name
    symbol.type, symbol.bind = kind, bind
    verdict(writer.build(), late=late)


@given(
    late=LATE,
    target=st.sampled_from([".text", ".init.text", ".data", ".bss", ".modinfo", ".rodata"]),
    offset=st.one_of(EXTREMES, HUGE),
    kind=st.one_of(st.sampled_from(R_X86_64), st.integers(0, 300)),
    addend=st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_relocations(late, target, offset, kind, addend):
    """A relocation may be of any kind, of any place; it is applied, or refused, or it would do damage."""
    writer = module(late=late)
    writer.relocations(target, [(offset, kind, "work", addend)])
    verdict(writer.build(), late=late)


@given(late=LATE, info=st.binary(max_size=80), name=st.sampled_from([".modinfo", "__versions", "__param"]))
def test_tables_of_text(late, info, name):
    """The tables that the kernel reads strings from may hold anything."""
    writer = module(late=late)
    writer.section(name).data = info
    verdict(writer.build(), late=late)


# -- arguments --------------------------------------------------------------------------------------------------
@given(late=LATE, args=st.binary(max_size=60).filter(lambda raw: b"\0" not in raw))
@example(late=True, args=b'text="')
@example(late=True, args=b'"number=1 list=1,,2')
@example(late=False, args=b" = =")
def test_arguments(late, args):
    """Any string is a string of arguments."""
    verdict(content(late=late), late=late, args=args.decode("utf-8", "surrogateescape"))


@given(
    args=st.lists(
        st.tuples(
            st.sampled_from([*PARAMETERS, "num-ber", "unknown", "dyndbg", "paper.dyndbg", ""]),
            st.sampled_from(["=", "", "=="]),
            st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=12),
        ),
        max_size=4,
    )
)
def test_values(args):
    """Any value may be given to any parameter."""
    verdict(content(late=True), late=True, args=" ".join(name + sign + value for name, sign, value in args))


# -- what is left behind ------------------------------------------------------------------------------------------
@given(
    late=LATE,
    number=st.integers(0, 100),
    member=SECTION_MEMBERS,
    value=st.one_of(EXTREMES, HUGE),
    args=st.sampled_from([b"", b"number=x", b"unknown=1"]),
)
def test_a_refusal_leaves_nothing(late, number, member, value, args):
    """A file that is refused leaves no memory allocated and no module in the list."""
    writer = module(late=late)
    sections = [*writer.sections, *writer.tables]
    sections[number % len(sections)].header[member] = value % (1 << 32 if member in NARROW else 1 << 64)
    target = SpyTarget(late=late, init=0)
    refusal = None
    try:
        load(target, writer.build(), args)
    except LoadError as error:
        refusal = error
    # From where damage is done a real kernel would not have come back.
    if refusal is not None and not isinstance(refusal, DamageError):
        assert refusal.errno > 0
        assert target.allocations == {}
        assert target.modules() == []
