import pytest

from kodojo.errors import DamageError, LoadError
from kodojo.loader.elf_checks import check_section_names, elf_validity_check
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.slugs import SLUGS
from tests.support.elf_writer import ALLOC, SHT_NOBITS, SHT_STRTAB, SHT_SYMTAB, module_writer
from tests.support.stages import EARLY, LATE, MIDDLE, STRUCT_SIZE, checked, lines, paper_target

KERNELS = (EARLY, MIDDLE, LATE)
THIS_MODULE = ".gnu.linkonce.this_module"
NAMELESS = "(missing .modinfo section or name field)"


def writer_for(kernel, **options):
    return module_writer(struct_size=STRUCT_SIZE[kernel], **options)


def refused(kernel, file):
    """What the kernel prints while it refuses the file."""
    target = paper_target(kernel)
    with pytest.raises(LoadError) as caught:
        checked(target, file)
    error = caught.value
    assert not isinstance(error, DamageError)
    assert error.errno == 8
    assert error.slug in SLUGS
    assert error.why
    assert error.hint
    return lines(target)


@pytest.mark.parametrize("kernel", KERNELS)
def test_whole(kernel):
    """A whole module passes in silence, and its sections and names are found."""
    writer = writer_for(kernel, name="whole", crcs={})
    writer.add(".data..percpu", bytes(8), ALLOC | 1)
    target = paper_target(kernel)
    info = checked(target, writer)
    assert target.log == []
    assert (info.name, info.module_name) == (b"whole", b"whole")
    found = {name: getattr(info.index, name) for name in ("sym", "str", "mod", "vers", "info", "pcpu")}
    assert found == {
        "sym": writer.index(".symtab"),
        "str": writer.index(".strtab"),
        "mod": writer.index(THIS_MODULE),
        "vers": writer.index("__versions"),
        "info": writer.index(".modinfo"),
        "pcpu": writer.index(".data..percpu"),
    }


# What is the same in all kernels: members of the ELF header, and the line.
HEADER = [
    ({"e_ident": b"\x7fELG"}, "Invalid ELF header magic: != \x7fELF"),
    ({"e_type": 2}, "Invalid ELF header type: 2 != 1"),
    ({"e_machine": 183}, "Invalid architecture in ELF header: 183"),
    ({"e_shentsize": 40}, "Invalid ELF section header size"),
    ({"e_shoff": 1 << 63}, "Invalid ELF section header overflow"),
    ({"e_shnum": 5000}, "Invalid ELF section header overflow"),
    ({"e_shstrndx": 0}, "Invalid ELF section name index: 0 || e_shstrndx (0) >= e_shnum (12)"),
    ({"e_shstrndx": 12}, "Invalid ELF section name index: 12 || e_shstrndx (12) >= e_shnum (12)"),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("members", "line"), HEADER)
def test_header(kernel, members, line):
    """Each wrong member of the ELF header is refused with the kernel's line."""
    writer = writer_for(kernel)
    writer.header |= members
    assert refused(kernel, writer) == [(3, line)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("length", [0, 1, 63])
def test_short(kernel, length):
    """A file shorter than an ELF header is refused with its length."""
    data = writer_for(kernel).build()[:length]
    assert refused(kernel, data) == [(3, f"Invalid ELF header len {length}")]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("member", ["sh_type", "sh_size", "sh_addr"])
def test_section_zero(kernel, member):
    """Section 0 must be empty; the line shows its type as a signed number."""
    writer = writer_for(kernel)
    writer.zero[member] = 0xFFFFFFFF
    shown = -1 if member == "sh_type" else 0
    text = f"ELF Spec violation: section 0 type({shown})!=SH_NULL or non-zero len or addr"
    assert refused(kernel, writer) == [(3, text)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrapping_section(kernel):
    """A section whose end wraps around 64 bits is outside the file."""
    writer = writer_for(kernel)
    writer.section(".rodata").header |= {"sh_offset": (1 << 64) - 1, "sh_size": 2}
    assert refused(kernel, writer) == [(3, "Invalid ELF section in module (section 3 type 1)")]


@pytest.mark.parametrize("kernel", KERNELS)
def test_cut_by_the_signature(kernel):
    """Sections are bounded by the image without its signature, not by the file."""
    writer = writer_for(kernel)
    length = len(writer.build())
    writer.tail = b"signature" * 100
    section = writer.section(".comment")
    section.header |= {"sh_offset": 64, "sh_size": length - 64}
    target = paper_target(kernel)
    elf_validity_check(target, LoadInfo(writer.build(), length=length))
    assert target.log == []
    section.header["sh_size"] += 1
    with pytest.raises(LoadError):
        elf_validity_check(target, LoadInfo(writer.build(), length=length))
    assert lines(target) == [(3, "Invalid ELF section in module (section 8 type 1)")]


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_section_in_order(kernel):
    """The first bad section decides, not the first kind of test."""
    writer = writer_for(kernel)
    writer.section(".data").header["sh_size"] = 1 << 40
    writer.section(".rodata").header["sh_offset"] = 1 << 40
    assert refused(kernel, writer) == [(3, "Invalid ELF section in module (section 3 type 1)")]


@pytest.mark.parametrize("kernel", KERNELS)
def test_nobits_is_not_bounded(kernel):
    """Sections without contents may say any size."""
    writer = writer_for(kernel)
    writer.section(".bss").header |= {"sh_size": 1 << 60, "sh_offset": 1 << 60}
    target = paper_target(kernel)
    checked(target, writer)
    assert target.log == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_name_table(kernel):
    """The table of section names may be neither empty nor without a NUL at its end."""
    writer = writer_for(kernel)
    writer.section(".shstrtab").header["sh_size"] = 0
    assert refused(kernel, writer) == [(3, "empty section name table")]
    writer.section(".shstrtab").header["sh_size"] = 2
    text = "ELF Spec violation: section name table isn't null terminated"
    assert refused(kernel, writer) == [(3, text)]


def test_name_table_bounds():
    """A name table outside the file has a line of its own, except where all sections are tested first."""
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.section(".shstrtab").header["sh_offset"] = 1 << 40
        expected = "Invalid ELF section hdr(type 3)"
        if kernel == LATE:
            expected = "Invalid ELF section in module (section 11 type 3)"
        assert refused(kernel, writer) == [(3, expected)]


def test_name_table_type():
    """Only the newest kernel asks whether the name table is a string table."""
    writer = writer_for(LATE)
    writer.section(".shstrtab").type = 1
    assert refused(LATE, writer) == [(3, "Invalid ELF section name table type: 1")]
    writer = writer_for(EARLY)
    writer.section(".shstrtab").type = 1
    checked(paper_target(EARLY), writer)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_section_headers(kernel):
    """Without section headers the newest kernel reads one nevertheless, and it depends on that."""
    writer = writer_for(kernel)
    writer.header |= {"e_shnum": 0}
    text = "Invalid ELF section name index: 11 || e_shstrndx (11) >= e_shnum (0)"
    assert refused(kernel, writer) == [(3, text)]
    writer.header["e_shoff"] = 0
    if kernel == LATE:  # the ELF header as a section header: its type is in e_ident
        text = "ELF Spec violation: section 0 type(65794)!=SH_NULL or non-zero len or addr"
    assert refused(kernel, writer) == [(3, text)]


def test_no_section_headers_at_the_end():
    """The newest kernel then reads behind the end of the file: that is damage."""
    writer = writer_for(LATE)
    size = len(writer.build())
    writer.header |= {"e_shnum": 0, "e_shoff": size - 8}
    with pytest.raises(DamageError):
        checked(paper_target(LATE), writer)


@pytest.mark.parametrize("kernel", KERNELS)
def test_section_name_offset(kernel):
    """The name of a loaded section has to be in the table of names."""
    writer = writer_for(kernel)
    writer.section(".data").header["sh_name"] = 150  # behind the table, but still in the file
    expected = [(3, "Invalid ELF section name in module (section 5 type 1)")]
    assert refused(kernel, writer) == expected


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", [".comment", ".bss"])
def test_section_name_outside(kernel, name):
    """The newest kernel refuses every name outside the table; others compare what is outside the file."""
    writer = writer_for(kernel)
    section = writer.section(name)
    section.header["sh_name"] = 1 << 30
    if kernel == LATE:
        index = writer.index(name)
        expected = f"Invalid ELF section name in module (section {index} type {section.type})"
        assert refused(kernel, writer) == [(3, expected)]
    elif kernel == MIDDLE and name == ".comment":
        with pytest.raises(DamageError):
            checked(paper_target(kernel), writer)
    else:
        with pytest.raises(DamageError):
            check_section_names(checked(paper_target(kernel), writer))


def test_modinfo_twice():
    """Two .modinfo sections: the first that is loaded counts in 6.1; later kernels refuse."""
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.add(".modinfo", b"name=second\0", 0)
        if kernel == EARLY:
            assert checked(paper_target(kernel), writer).name == b"paper"
        else:
            assert refused(kernel, writer) == [(3, "Only one .modinfo section must exist.")]


def test_modinfo_not_loaded():
    """6.1 does not see a .modinfo section without SHF_ALLOC; later kernels do."""
    for kernel in KERNELS:
        writer = writer_for(kernel, name="from_struct", info={"name": "from_modinfo"})
        writer.section(".modinfo").flags = 0
        info = checked(paper_target(kernel), writer)
        assert bool(info.index.info) == (kernel != EARLY)
        assert info.name == (b"from_struct" if kernel == EARLY else b"from_modinfo")


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_symbol_table(kernel):
    """A module without symbols is called stripped, by its name in .modinfo."""
    writer = writer_for(kernel, name="bare")
    writer.section(".symtab").type = 1
    assert refused(kernel, writer) == [(4, "bare: module has no symbols (stripped?)")]
    writer.section(".modinfo").data = b"license=GPL\0"
    assert refused(kernel, writer) == [(4, f"{NAMELESS}: module has no symbols (stripped?)")]


def test_two_symbol_tables():
    """6.1 takes the first of two symbol tables; later kernels call that stripped."""
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.add("more", bytes(24), 0, type=SHT_SYMTAB, link=".strtab")
        if kernel == EARLY:
            assert checked(paper_target(kernel), writer).index.sym == writer.index("more")
        else:
            assert refused(kernel, writer) == [(4, "paper: module has no symbols (stripped?)")]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("link", "shown"), [(0, "0"), (12, "12"), (0xFFFFFFFF, "-1")])
def test_symbol_strings_index(kernel, link, shown):
    """The symbol table has to name a section for its strings; the line shows a signed number."""
    writer = writer_for(kernel)
    writer.section(".symtab").header["sh_link"] = link
    text = f"Invalid ELF sh_link!=SHN_UNDEF({shown}) or (sh_link({shown}) >= hdr->e_shnum(12)"
    assert refused(kernel, writer) == [(3, text)]


def test_symbol_strings_type():
    """Only the newest kernel asks whether the symbols' strings are in a string table."""
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.section(".symtab").link = ".data"
        if kernel == LATE:
            assert refused(kernel, writer) == [(3, "Invalid ELF symbol string table type: 1")]
        else:
            assert checked(paper_target(kernel), writer).index.str == writer.index(".data")


COUNT_LINES = {
    EARLY: (4, "paper: No module found in object"),
    MIDDLE: (3, "module paper: Only one .gnu.linkonce.this_module section must exist."),
    LATE: (3, "module paper: Exactly one .gnu.linkonce.this_module section must exist."),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_struct_module(kernel):
    """An object file without struct module is refused, in each kernel's words."""
    writer = writer_for(kernel)
    writer.remove(THIS_MODULE)
    assert refused(kernel, writer) == [COUNT_LINES[kernel]]


def test_two_struct_modules():
    """6.1 takes the first of two struct modules; later kernels refuse."""
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.add(THIS_MODULE, bytes(STRUCT_SIZE[kernel]))
        if kernel == EARLY:
            assert checked(paper_target(kernel), writer).index.mod == writer.index(THIS_MODULE)
        else:
            assert refused(kernel, writer) == [COUNT_LINES[kernel]]


def test_empty_struct_module():
    """A struct module without contents has a line of its own in the newest kernel; the one before counts none."""
    for kernel in (MIDDLE, LATE):
        writer = writer_for(kernel)
        writer.section(THIS_MODULE).type = SHT_NOBITS
        expected = COUNT_LINES[MIDDLE]
        if kernel == LATE:
            expected = (3, "module paper: .gnu.linkonce.this_module section must have a size set")
        assert refused(kernel, writer) == [expected]


@pytest.mark.parametrize("kernel", [MIDDLE, LATE])
def test_struct_module(kernel):
    """Later kernels want struct module to be loaded, and of their own size."""
    writer = writer_for(kernel)
    section = writer.section(THIS_MODULE)
    section.flags = 0
    start = "module paper: .gnu.linkonce.this_module"
    assert refused(kernel, writer) == [(3, f"{start} must occupy memory during process execution")]
    section.flags = ALLOC
    section.data = section.data[:-8]
    text = f"{start} section size must match the kernel's built struct module size at run time"
    assert refused(kernel, writer) == [(3, text)]


def test_struct_module_of_any_size():
    """6.1 does not look at the size of struct module, but not to load it is no option."""
    writer = writer_for(EARLY)
    section = writer.section(THIS_MODULE)
    section.data = section.data[:200]
    checked(paper_target(EARLY), writer)
    section.flags = 0
    assert refused(EARLY, writer) == [COUNT_LINES[EARLY]]


def test_order_of_the_tests():
    """What is tested first differs: symbol strings, counting, names."""
    texts = {}
    for kernel in KERNELS:
        writer = writer_for(kernel)
        writer.add(".modinfo", b"x=y\0", 0)
        writer.section(".symtab").header["sh_link"] = 0
        writer.remove(THIS_MODULE)
        texts[kernel] = refused(kernel, writer)[0][1][:20]
    assert texts == {
        EARLY: "Invalid ELF sh_link!",
        MIDDLE: "Invalid ELF sh_link!",
        LATE: "Only one .modinfo se",
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_not_checked(kernel):
    """Class, version, flags and the types of most sections are nobody's business."""
    writer = writer_for(kernel)
    writer.header |= {"e_ident": b"\x7fELF\x01\x02", "e_version": 7, "e_flags": 1, "e_ehsize": 3, "e_entry": 1}
    writer.section(".comment").type = SHT_STRTAB
    target = paper_target(kernel)
    checked(target, writer)
    assert target.log == []


def test_foreign_object():
    """Which processor a module is for is said in words."""
    writer = writer_for(EARLY)
    writer.header["e_machine"] = 183
    with pytest.raises(LoadError) as caught:
        checked(paper_target(EARLY), writer)
    assert "aarch64" in caught.value.why
    assert "x86_64" in caught.value.why


@pytest.mark.parametrize(
    ("start", "name"), [(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b", "gzip")]
)
def test_compressed(start, name):
    """A compressed file is recognised in the hint."""
    with pytest.raises(LoadError) as caught:
        checked(paper_target(LATE), start.ljust(100, b"\0"))
    assert name in caught.value.hint
