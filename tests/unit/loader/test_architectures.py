"""Modules and kernels of different architectures: what each says to the other's files."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodojo.errors import LoadError
from kodojo.image.architecture import ARCHITECTURES, architecture_named, architecture_of_module
from tests.support.architectures import ABSOLUTE, Damaged, kernel, load, module
from tests.support.elf_writer import ALLOC

NAMES = tuple(ARCHITECTURES)
WORDS = {name: known.format.word for name, known in ARCHITECTURES.items()}


@pytest.mark.parametrize("architecture", NAMES)
def test_own(architecture):
    """A module is loaded by a kernel of its architecture, and recognised as one."""
    writer = module(architecture, bytes(16))
    assert architecture_of_module(writer.build()) is architecture_named(architecture)
    loaded = load(kernel(architecture), writer)
    first, end = architecture_named(architecture).modules
    assert first <= loaded.address(".text") < end
    assert loaded.content(".data") == bytes(64)


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("architecture", NAMES)
def test_others(architecture, file):
    """A module of another architecture is refused as such, whatever the kernel trips over first."""
    if file == architecture:
        return
    target = kernel(architecture)
    with pytest.raises(LoadError) as refused:
        load(target, module(file, bytes(16)))
    assert (refused.value.errno, refused.value.slug) == (8, "elf-architecture")
    machine, order = ARCHITECTURES[file].machines[0], ARCHITECTURES[file].format.order
    expected = f"Invalid architecture in ELF header: {machine}"
    if order != ARCHITECTURES[architecture].format.order:
        expected = "Invalid ELF header type: 256 != 1"  # the 1 of the other byte order
    assert [record.text for record in target.log] == [expected]
    assert f"is for {file}, the kernel is for {architecture}" in refused.value.why


def test_unknown():
    """A file for what nobody knows is described by its numbers."""
    writer = module("x86_64", bytes(16))
    writer.header["e_machine"] = 4711
    with pytest.raises(LoadError) as refused:
        load(kernel("x86_64"), writer)
    assert "machine 4711 (64 bits, little-endian)" in refused.value.why


@pytest.mark.parametrize(
    ("flags", "entry", "accepted"),
    [(5 << 24, 0, True), (5 << 24, 2, False), (5 << 24, 1, True), (0, 0, True), (8, 0, False)],
)
def test_arm_flags(flags, entry, accepted):
    """ARM looks at the entry and, in files of old ABIs, at their calling convention."""
    writer = module("armv7l", bytes(16))
    writer.header |= {"e_flags": flags, "e_entry": entry}
    if accepted:
        load(kernel("armv7l"), writer)
        return
    with pytest.raises(LoadError) as refused:
        load(kernel("armv7l"), writer)
    assert refused.value.slug == "elf-architecture"


@pytest.mark.parametrize(
    ("architecture", "slug"),
    [("x86_64", "elf-section-header-size"), ("riscv64", "elf-architecture"), ("s390x", "elf-architecture")],
)
def test_class(architecture, slug):
    """A file of the other class is told by its section headers, where nobody looks at the class itself."""
    data = bytearray(module(architecture, bytes(16)).build())
    data[4] = 1
    struct.pack_into(architecture_named(architecture).format.order + "H", data, 58, 40)
    with pytest.raises(LoadError) as refused:
        load(kernel(architecture), Damaged(bytes(data)))
    assert (refused.value.errno, refused.value.slug) == (8, slug)


@pytest.mark.parametrize("architecture", NAMES)
def test_init_and_exit(architecture):
    """Code for init goes away after it; on PowerPC it stays. 32-bit ARM has unwinding tables of both kinds."""
    writer = module(architecture, bytes(16))
    writer.add(".init.text", bytes(16), ALLOC | 4, align=4)
    writer.add(".ARM.exidx.init.text", bytes(16), ALLOC, align=4)
    info = load(kernel(architecture), writer).info
    kinds = [info.placement[writer.index(name)][0].kind.is_init for name in (".init.text", ".ARM.exidx.init.text")]
    assert kinds == [architecture != "ppc64le", architecture == "armv7l"]


@pytest.mark.parametrize("architecture", NAMES)
def test_exports(architecture):
    """Exports are found by modules that come later, in the kernel's own form of table."""
    known = architecture_named(architecture)
    writer = module(architecture, bytes(16))
    writer.add("__ksymtab_strings", b"exported\0\0", ALLOC)
    writer.symbol("strings", "__ksymtab_strings")
    width = 4 if known.prel32 else known.format.word
    writer.add("__ksymtab", bytes(3 * width), ALLOC, align=width)
    absolute = {"i686": 1, "armv7l": 2, "riscv64": 2, "ppc64le": 38, "s390x": 22, "x86_64": 1, "aarch64": 257}
    relative = {"i686": 2, "x86_64": 2, "aarch64": 261}
    kind = (relative if known.prel32 else absolute)[architecture]
    rows = [(0, kind, "text", 0), (width, kind, "strings", 0)]
    writer.relocations("__ksymtab", rows, rela=known.rela)
    target = kernel(architecture)
    loaded = load(target, writer)
    found = target.find_symbol("exported", gplok=False)
    assert (found.address, found.namespace) == (loaded.address(".text"), None)


@pytest.mark.parametrize("architecture", NAMES)
def test_refused_relocation(architecture):
    """A refusal of a relocation says which one it is: where in the file, and what it would patch, for whom."""
    known = architecture_named(architecture)
    writer = module(architecture, bytes(64))
    plain = {"i686": 1, "armv7l": 2, "riscv64": 2, "ppc64le": 38, "s390x": 22, "x86_64": 1, "aarch64": 257}
    rows = [(0, plain[architecture], "text", 0), (24, 251, "data", 0)]
    writer.relocations(".text", rows, rela=known.rela)
    content = writer.build()
    with pytest.raises(LoadError) as caught:
        load(kernel(architecture), writer)
    assert caught.value.slug == "unknown-relocation"
    (detail,) = caught.value.refusal.details
    facts = detail.facts
    assert detail.subject == ".text+0x18"
    assert (facts["relocation"], facts["type"], facts["symbol"], facts["offset"]) == (1, 251, "data", 24)
    assert facts["section"] == (".rela.text" if known.rela else ".rel.text")
    entry = np.frombuffer(content, known.format.rela if known.rela else known.format.rel, 1, facts["file offset"])[0]
    assert entry["r_offset"] == 24


KINDS = {
    "aarch64": (257, 261, 263, 270, 275, 277, 279, 283), "armv7l": (2, 3, 10, 28, 42, 43, 46, 48, 57, 63),
    "i686": (1, 2, 4), "riscv64": (2, 16, 19, 20, 23, 24, 35, 39, 45, 60, 61),
    "ppc64le": (1, 10, 38, 47, 50, 63, 118, 252), "s390x": (1, 2, 19, 20, 22, 24, 26, 34, 57), "x86_64": (1, 2, 10),
}  # fmt: skip


@pytest.mark.parametrize("architecture", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged(architecture, data):
    """Whatever the relocations are, and whichever bytes are wrong: there is a verdict, and nothing else happens."""
    known = architecture_named(architecture)
    writer = module(architecture, data.draw(st.binary(min_size=64, max_size=64)))
    writer.symbol("absolute", ABSOLUTE, data.draw(st.integers(0, known.format.mask)))
    entry = st.tuples(
        st.integers(0, 60), st.sampled_from(KINDS[architecture]), st.sampled_from(("absolute", "text", "data"))
    )
    rows = [(*row, 0) for row in data.draw(st.lists(entry, max_size=12))]
    writer.relocations(".text", rows, rela=known.rela)
    content = bytearray(writer.build())
    for place, octet in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = octet
    target = kernel(architecture, **data.draw(st.sampled_from(({}, {"THUMB2_KERNEL": "y"}))))
    try:
        load(target, Damaged(bytes(content)))
    except LoadError:
        refused = True
    else:
        refused = False
    assert len(target.modules()) == (not refused)
