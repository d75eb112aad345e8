import lzma
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodojo.errors import DamageError, LoadError, UnmodelledError
from kodojo.loader.dry import DryTarget
from kodojo.loader.layout import layout_and_allocate
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.target import KernelErrno, Memory
from tests.support.elf_writer import ALLOC, EXEC, SHT_NOBITS, WRITE, module_writer
from tests.support.stages import EARLY, LATE, STRUCT_SIZE, laid_out, lines, paper_target, rewritten

RO_AFTER_INIT = 0x00200000
PAGE = 4096
THIS_MODULE = ".gnu.linkonce.this_module"
ALL_ONES = (1 << 64) - 1
BOTH = pytest.mark.parametrize("kernel", [EARLY, LATE])


def writer_for(kernel, **options):
    return module_writer(struct_size=STRUCT_SIZE[kernel], **options)


def up(size, alignment=PAGE):
    return -(-size // alignment) * alignment


@dataclass
class Places:
    """Where the sections of a module went."""

    writer: object
    mod: object
    info: object

    def __getitem__(self, name):
        region, offset = self.info.placement[self.writer.index(name)]
        return region.kind, offset

    def entsize(self, name):
        return int(self.info.sechdrs["sh_entsize"][self.writer.index(name)])

    def content(self, name, size):
        region, offset = self.info.placement[self.writer.index(name)]
        return bytes(region.data[offset : offset + size])


def places(kernel, writer, *, flags=0, **options):
    target = paper_target(kernel, **options)
    return Places(writer, *laid_out(target, writer, flags=flags))


def test_two_regions():
    """6.1: code, read-only data, data and symbols of the core, each from a page on; init apart."""
    got = places(EARLY, writer_for(EARLY))
    core, init = Memory.CORE, Memory.INIT
    assert got[".text"] == (core, 0)
    assert got[".rodata"] == (core, PAGE)
    assert got[".data"] == (core, 2 * PAGE)
    assert got[THIS_MODULE] == (core, 2 * PAGE + 64)
    assert got[".bss"] == (core, 2 * PAGE + 64 + 896)
    assert got[".init.text"] == (init, 0)
    assert got[".symtab"] == (init, PAGE)
    assert got[".strtab"] == (init, PAGE + 24 * 4)
    region = got.mod.regions[core]
    assert (region.text_size, region.ro_size, region.ro_after_init_size) == (PAGE, 2 * PAGE, 2 * PAGE)
    region = got.mod.regions[init]
    assert (region.text_size, region.ro_size, region.ro_after_init_size) == (PAGE, PAGE, PAGE)
    assert got.entsize(".data") == 2 * PAGE
    assert got.entsize(".strtab") == 1 << 63 | PAGE + 96
    assert got.entsize(".comment") == got.entsize(".modinfo") == ALL_ONES


def test_seven_regions():
    """6.12: a region for each kind of memory, numbered in the upper bits of sh_entsize."""
    writer = writer_for(LATE)
    writer.add(".data..ro_after_init", b"once", ALLOC | WRITE, align=16)
    writer.add("__jump_table", bytes(16), ALLOC | WRITE, align=8)
    writer.add(".init.data", b"init", ALLOC | WRITE)
    writer.add(".init.rodata", b"r", ALLOC)
    got = places(LATE, writer)
    assert got[".text"] == (Memory.TEXT, 0)
    assert got[".rodata"] == (Memory.RODATA, 0)
    assert got[".data"] == (Memory.DATA, 0)
    assert got[THIS_MODULE] == (Memory.DATA, 64)
    assert got[".bss"] == (Memory.DATA, 64 + 1280)
    assert got[".data..ro_after_init"] == (Memory.RO_AFTER_INIT, 0)
    assert got["__jump_table"] == (Memory.RO_AFTER_INIT, 8)
    assert got[".init.text"] == (Memory.INIT_TEXT, 0)
    assert got[".init.data"] == (Memory.INIT_DATA, 0)
    assert got[".symtab"] == (Memory.INIT_DATA, 8)
    assert got[".init.rodata"] == (Memory.INIT_RODATA, 0)
    assert [got.entsize(name) >> 60 for name in (".text", ".data", ".rodata", "__jump_table")] == [0, 1, 2, 3]
    assert [got.entsize(name) >> 60 for name in (".init.text", ".symtab", ".init.rodata")] == [4, 5, 6]
    assert got.entsize("__jump_table") & (1 << 60) - 1 == 8
    kinds = ["text", "data", "rodata", "ro_after_init", "init_text", "init_data", "init_rodata"]
    assert [kind.value for kind in got.mod.regions] == kinds
    assert all(region.size == PAGE for region in got.mod.regions.values())


@BOTH
def test_kept_symbols(kernel):
    """The symbols that stay are those of loaded core sections that have a name, and per-CPU ones."""
    writer = writer_for(kernel)
    writer.add(".data..percpu", bytes(8), ALLOC | WRITE)
    writer.symbol("percpu", ".data..percpu")
    writer.symbol("", ".text")
    writer.symbol("absolute", 0xFFF1)
    writer.symbol("undefined", 0)
    writer.symbol("comment", ".comment")
    writer.symbol("beyond", 400)
    got = places(kernel, writer)
    kept = ["", "work", "counter", "percpu"]
    info = got.info
    assert info.stroffs - info.symoffs == 24 * len(kept)
    assert info.core_typeoffs - info.stroffs == sum(len(name) + 1 for name in kept)
    assert got.info.mod_kallsyms_init_off % 8 == 0
    assert info.init_typeoffs - info.mod_kallsyms_init_off == 32
    region = got.mod.regions[Memory.CORE if kernel == EARLY else Memory.DATA]
    assert region.size == up(info.core_typeoffs + len(kept))
    if kernel == EARLY:
        assert info.symoffs % PAGE == 0


@BOTH
def test_kept_symbols_without_kallsyms_all(kernel):
    """Without CONFIG_KALLSYMS_ALL only those of code stay."""
    info = places(kernel, writer_for(kernel), KALLSYMS_ALL="n").info
    assert info.stroffs - info.symoffs == 24 * 2


@BOTH
def test_livepatch_keeps_all_symbols(kernel):
    """A livepatch keeps its whole symbol table."""
    target = paper_target(kernel)
    mod, info = rewritten(target, writer_for(kernel))
    mod.klp = True
    layout_and_allocate(target, mod, info)
    assert info.stroffs - info.symoffs == 24 * 4
    region, offset = info.placement[info.index.mod]
    assert region.data[offset + 299] == 1


@BOTH
def test_no_kallsyms(kernel):
    """Without CONFIG_KALLSYMS the symbol table is not loaded, and stays a copy of its own."""
    got = places(kernel, writer_for(kernel), KALLSYMS="n")
    assert got.info.index.sym not in got.info.placement
    assert not int(got.info.sechdrs["sh_flags"][got.info.index.sym]) & ALLOC
    assert len(got.info.symbols) == 4


@BOTH
def test_contents(kernel):
    """Every loaded section is at its place, the rest is zero, and addresses are final."""
    writer = writer_for(kernel)
    got = places(kernel, writer)
    assert got.content(".text", 33) == b"\xc3" * 32 + b"\0"
    assert got.content(".data", 16) == b"data" * 4
    assert got.content(".bss", 64) == bytes(64)
    for index, (region, offset) in got.info.placement.items():
        assert got.info.sechdrs["sh_addr"][index] == region.base + offset
        assert len(region.data) == region.size
    comment = writer.index(".comment")
    assert got.info.sechdrs["sh_addr"][comment] < got.mod.regions[next(iter(got.mod.regions))].base


@BOTH
def test_struct_module(kernel):
    """struct module at its final place knows taints and regions; the module knows the place."""
    target = paper_target(kernel)
    mod, info = rewritten(target, writer_for(kernel))
    mod.taints = 0x1001
    layout_and_allocate(target, mod, info)
    region, offset = info.placement[info.index.mod]
    assert mod.address == region.base + offset
    struct = target.image.btf.struct("module")

    def member(path):
        field = struct.field(path)
        start = offset + field.offset
        return int.from_bytes(region.data[start : start + field.size], "little")

    assert member("taints") == 0x1001
    assert region.data[offset + 24 : offset + 30] == b"paper\0"
    if kernel == EARLY:
        for kind, name in ((Memory.CORE, "core_layout"), (Memory.INIT, "init_layout")):
            part = mod.regions[kind]
            assert member(f"{name}.base") == part.base != 0
            assert member(f"{name}.size") == part.size
            assert member(f"{name}.text_size") == part.text_size
            assert member(f"{name}.ro_size") == part.ro_size
            assert member(f"{name}.ro_after_init_size") == part.ro_after_init_size
    else:
        found = [(member(f"mem[{i}].base"), member(f"mem[{i}].size")) for i in range(7)]
        assert found == [(part.base, part.size) for part in mod.regions.values()]
        assert found[3] == found[6] == (0, 0)


@BOTH
def test_symbols_live_in_the_region(kernel):
    """Changing the symbol table changes the module's memory."""
    got = places(kernel, writer_for(kernel))
    got.info.symbols["st_value"][2] = 0x1122334455667788
    assert got.content(".symtab", 24 * 3)[-16:-8] == bytes.fromhex("8877665544332211")


@BOTH
def test_percpu_is_not_loaded(kernel):
    """Per-CPU data gets no place, and keeps its address in the copy."""
    writer = writer_for(kernel)
    writer.add(".data..percpu", bytes(8), ALLOC | WRITE)
    got = places(kernel, writer)
    assert got.info.index.pcpu not in got.info.placement
    assert got.entsize(".data..percpu") == ALL_ONES


@BOTH
@pytest.mark.parametrize("unload", ["y", "n"])
def test_exit_sections(kernel, unload):
    """Without CONFIG_MODULE_UNLOAD exit code is init memory; names count by how they begin."""
    writer = writer_for(kernel)
    writer.add(".exit.text", b"\xc3", ALLOC | EXEC)
    writer.add(".initially", b"x", ALLOC | EXEC)
    got = places(kernel, writer, MODULE_UNLOAD=unload)
    assert got[".exit.text"][0].is_init == (unload == "n")
    assert got[".initially"][0].is_init


@BOTH
@pytest.mark.parametrize(("alignment", "offset"), [(0, 33), (1, 33), (64, 64), (8192, 8192), (3, 33), (1 << 32, 0)])
def test_alignment(kernel, alignment, offset):
    """Alignments are taken as the C macro takes them, in 32 bits, power of two or not."""
    writer = writer_for(kernel)
    writer.section(".text").data += b"\x90"
    writer.add(".text.more", b"\x90", ALLOC | EXEC, align=alignment)
    assert places(kernel, writer)[".text.more"][1] == offset


def test_init_is_never_read_only_after_init():
    """6.12 places an init section with that flag among the init data, in order; 6.1 before it."""
    for kernel in (EARLY, LATE):
        writer = writer_for(kernel)
        writer.add(".init.a", b"aaaa", ALLOC | WRITE)
        writer.add(".init.b", b"bbbb", ALLOC | WRITE | RO_AFTER_INIT)
        got = places(kernel, writer)
        first, second = (".init.a", ".init.b") if kernel == LATE else (".init.b", ".init.a")
        assert got[first][1] + 4 == got[second][1]


@BOTH
def test_writable_code(kernel):
    """A section that is writable and executable is refused, loaded or not, the first one by index."""
    writer = writer_for(kernel)
    writer.section(".comment").flags = WRITE | EXEC
    writer.add("later", b"", ALLOC | WRITE | EXEC)
    target = paper_target(kernel)
    mod, info = rewritten(target, writer)
    with pytest.raises(LoadError) as caught:
        layout_and_allocate(target, mod, info)
    assert (caught.value.errno, caught.value.slug) == (8, "writable-executable-section")
    assert lines(target) == [(3, "paper: section .comment (index 8) has invalid WRITE|EXEC flags")]
    assert target.allocations == {}
    places(kernel, writer, STRICT_MODULE_RWX="n")


def test_parts_without_protection():
    """Without CONFIG_STRICT_MODULE_RWX the parts of a 6.1 region follow each other closely."""
    got = places(EARLY, writer_for(EARLY), STRICT_MODULE_RWX="n")
    assert got[".rodata"] == (Memory.CORE, 32)
    assert got.mod.regions[Memory.CORE].text_size == 32


@BOTH
def test_versions_are_loaded_when_ignored(kernel):
    """Told to ignore __versions, the kernel loads them as read-only data."""
    writer = writer_for(kernel, crcs={"x": 1})
    assert places(kernel, writer, flags=1)["__versions"][0] in (Memory.CORE, Memory.RODATA)
    with pytest.raises(KeyError):
        places(kernel, writer)["__versions"]


@BOTH
def test_no_memory(kernel):
    """A section larger than the machine's memory: ENOMEM, and nothing stays allocated."""
    writer = writer_for(kernel)
    writer.section(".bss").size = 3 << 30
    target = paper_target(kernel)
    mod, info = rewritten(target, writer)
    with pytest.raises(KernelErrno) as caught:
        layout_and_allocate(target, mod, info)
    assert caught.value.errno == 12
    assert target.allocations == {}


@BOTH
@pytest.mark.parametrize("size", [1 << 32, 1 << 62, 1 << 63 | 8])
def test_size_wraps_around(kernel, size):
    """Sizes have 32 bits: a section without contents gets what is left of its size, and that does no harm."""
    plain, wrapped = writer_for(kernel), writer_for(kernel)
    plain.section(".bss").size = size & 0xFFFFFFFF
    wrapped.section(".bss").size = size
    sizes = [{kind: one.size for kind, one in places(kernel, w).mod.regions.items()} for w in (plain, wrapped)]
    assert sizes[0] == sizes[1]


@BOTH
def test_contents_do_not_fit_after_wrapping(kernel):
    """Where a size that wraps around leaves less memory than there are contents before it, copying does damage."""
    writer = writer_for(kernel)
    writer.section(".data").data = bytes(8 * PAGE)
    writer.section(".bss").size = (1 << 32) - 8 * PAGE
    target = paper_target(kernel)
    mod, info = rewritten(target, writer)
    with pytest.raises(DamageError):
        layout_and_allocate(target, mod, info)
    assert target.allocations == {}


@BOTH
def test_symbol_name_outside_the_file(kernel):
    """The name of a symbol that stays is measured: outside the file that is damage."""
    writer = writer_for(kernel)
    writer.symbol("far", ".text", name_offset=1 << 31)
    with pytest.raises(DamageError):
        places(kernel, writer)


@BOTH
def test_sizes_count_on_from_the_file(kernel):
    """The kernel adds to the size that the file's own struct module has for a region."""
    member = "init_layout.size" if kernel is EARLY else "mem[5].size"
    kind = Memory.INIT if kernel is EARLY else Memory.INIT_DATA
    plain = places(kernel, writer_for(kernel)).mod.regions[kind].size
    writer = writer_for(kernel)
    field = paper_target(kernel).image.btf.struct("module").field(member)
    content = bytearray(writer.section(THIS_MODULE).data)
    content[field.offset + 1] = 0x30  # 0x3000 bytes
    writer.section(THIS_MODULE).data = bytes(content)
    assert places(kernel, writer).mod.regions[kind].size == plain + 3 * PAGE


@BOTH
def test_sections_over_struct_module_get_what_the_kernel_wrote(kernel):
    """A section whose contents in the file overlap struct module is copied with the sizes that were entered there."""
    writer = writer_for(kernel)
    writer.section(".data").header["sh_size"] = 16 + 64 + STRUCT_SIZE[kernel]
    member = "core_layout.size" if kernel is EARLY else "mem[1].size"
    kind = Memory.CORE if kernel is EARLY else Memory.DATA
    got = places(kernel, writer)
    field = paper_target(kernel).image.btf.struct("module").field(member)
    sections = got.info.sechdrs["sh_offset"]
    distance = int(sections[writer.index(THIS_MODULE)]) - int(sections[writer.index(".data")])
    copied = got.content(".data", distance + field.offset + field.size)[-field.size :]
    assert int.from_bytes(copied, "little") == got.mod.regions[kind].size


def test_struct_module_without_contents():
    """6.1 would go on with a struct module that is all zero, or is cut off by the end of the memory."""
    for members in ({"type": SHT_NOBITS}, {"data": bytes(64)}):
        writer = writer_for(EARLY)
        for name, value in members.items():
            setattr(writer.section(THIS_MODULE), name, value)
        if "data" in members:
            writer.add("big", bytes(PAGE - 300), ALLOC | WRITE)  # so that it is near the end of its page
            writer.sections.append(writer.sections.pop(writer.index(THIS_MODULE) - 1))
            writer.section(".symtab").data = bytes(24)
        with pytest.raises(DamageError):
            places(EARLY, writer, KALLSYMS="n")


def test_other_architectures():
    """The modules of architectures that nobody has described yet are not modelled, and that is said."""
    target = paper_target()
    mod, info = rewritten(target, writer_for(EARLY))
    target.image.architecture = "sparc64"
    with pytest.raises(UnmodelledError):
        layout_and_allocate(target, mod, info)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated(data):
    """A module with any bytes changed is laid out, refused or called damaging, and nothing else happens."""
    kernel = data.draw(st.sampled_from([EARLY, LATE]))
    content = bytearray(writer_for(kernel, crcs={"x": 1}).build())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    target = paper_target(kernel)
    try:
        laid_out(target, bytes(content), flags=data.draw(st.integers(0, 3)))
    except (LoadError, KernelErrno):
        assert target.allocations == {}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_headers(data):
    """The same, with members of section headers set to numbers that hurt."""
    kernel = data.draw(st.sampled_from([EARLY, LATE]))
    writer = writer_for(kernel)
    section = data.draw(st.sampled_from([*writer.sections, *writer.tables]))
    member = data.draw(st.sampled_from(["sh_type", "sh_flags", "sh_size", "sh_offset", "sh_addralign", "sh_name"]))
    section.header[member] = data.draw(
        st.integers(0, 9) | st.sampled_from([1 << 31, (1 << 32) - 1]) | st.integers(0, 300)
    )
    target = paper_target(kernel)
    try:
        laid_out(target, writer)
    except (LoadError, KernelErrno):
        assert target.allocations == {}


# -- the distribution's kernels ---------------------------------------------------------------------------


def dummy(image, flags=0):
    """Core size of dummy.ko, as /sys/module/dummy/coresize shows it."""
    content = image.modules["dummy"].path.read_bytes()
    if content.startswith(b"\xfd7zXZ"):
        content = lzma.decompress(content)
    target = DryTarget(image)
    mod, info = laid_out(target, content[: content.rindex(b"~Module sig")], flags=flags)
    assert isinstance(info, LoadInfo)
    return sum(region.size for region in mod.regions.values() if not region.kind.is_init)


@pytest.mark.kernel
@pytest.mark.x86_64("those kernels showed their sizes")
def test_dummy(image):
    """dummy.ko has the size that the kernels themselves showed, and one page more with __versions."""
    many = image.btf.struct("module").has("mem")
    assert dummy(image) == (12288 if many else 16384)
    assert dummy(image, flags=1) == (16384 if many else 20480)


@pytest.mark.kernel
def test_kinds_of_memory(image):
    """The kernel's own numbers of the kinds of memory give the order of the regions."""
    content = image.modules["dummy"].path.read_bytes()
    if content.startswith(b"\xfd7zXZ"):
        content = lzma.decompress(content)
    mod, _info = laid_out(DryTarget(image), content)
    kinds = [kind.name for kind in mod.regions]
    if image.btf.struct("module").has("mem"):
        numbers = image.btf.enumerators("mod_mem_type")
        assert [numbers[f"MOD_{kind}"] for kind in kinds] == list(range(7))
    else:
        assert kinds == ["CORE", "INIT"]
    bases = np.array([region.base for region in mod.regions.values() if region.size])
    assert (bases % PAGE == 0).all()


@BOTH
@pytest.mark.parametrize("apart", [True, False])
def test_struct_module_over_the_section_headers(kernel, apart):
    """Where struct module and the section headers share bytes, the kernel overwrites the one with the other."""
    writer = writer_for(kernel)
    target = paper_target(kernel)
    mod, info = rewritten(target, writer)
    size = int(info.sechdrs["sh_size"][info.index.mod])
    end_of_headers = int(info.header["e_shoff"]) + info.sechdrs.nbytes
    info.sechdrs["sh_offset"][info.index.mod] = int(info.header["e_shoff"]) - size if apart else end_of_headers - 1
    if apart:
        layout_and_allocate(target, mod, info)
    else:
        with pytest.raises(DamageError):
            layout_and_allocate(target, mod, info)
