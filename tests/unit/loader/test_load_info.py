import pytest

from kodojo.errors import DamageError
from kodojo.loader.load_info import LoadInfo, rewrite_section_headers, setup_load_info
from tests.support.elf_writer import ALLOC, SHT_NOBITS, WRITE, module_writer
from tests.support.stages import ADDRESS, EARLY, LATE, STRUCT_SIZE, checked, paper_target, rewritten


def info_with(modinfo, *, behind=b"", size=None, kernel=EARLY):
    """A module whose .modinfo has these bytes, and others directly behind."""
    writer = module_writer(struct_size=STRUCT_SIZE[kernel])
    section = writer.section(".modinfo")
    section.data = modinfo + behind
    section.size = len(modinfo) if size is None else size
    return checked(paper_target(kernel), writer)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"a=1\0tag=2\0tag=3\0", [b"2", b"3"]),
        (b"tag=1\0", [b"1"]),
        (b"\0\0tag=1\0\0\0\0tag=2\0", [b"1", b"2"]),
        (b"xtag=1\0tags=2\0tag\0tag =3\0", []),
        (b"tag=\0", [b""]),
        (b"tag=\0tag=\0x=\0", [b"", b""]),
        (b"tag=a=b\0", [b"a=b"]),
        (b"x=1;tag=2\0", []),
        (b"", []),
        (b"\0", []),
    ],
)
def test_modinfo_values(content, found):
    """Entries are separated by NULs in any number; a value is everything up to the next one."""
    info = info_with(content, behind=b"\0")
    assert info.modinfo_values(b"tag") == found
    assert info.get_modinfo(b"tag") == (found[0] if found else None)


def test_modinfo_without_end():
    """A last entry without NUL counts, and its value goes on into what follows in the file."""
    assert info_with(b"a=1\0tag=val", behind=b"ue\0tag=2\0").modinfo_values(b"tag") == [b"value"]
    assert info_with(b"a=1\0tag=xtag=", behind=b"y\0").modinfo_values(b"tag") == [b"xtag=y"]


def test_modinfo_presence():
    """Whether there is a key can be told without its value, even if that does not end in the file."""
    info = info_with(b"a=1\0tag=\0intree=Y")
    assert info.has_modinfo(b"tag")
    assert not info.has_modinfo(b"ta")
    start = int(info.sechdrs["sh_offset"][info.index.info])
    info.data = info.data[: start + len(b"a=1\0tag=\0intree=Y")]
    assert info.has_modinfo(b"intree")
    with pytest.raises(DamageError):
        info.get_modinfo(b"intree")


def test_modinfo_first_byte():
    """The first entry is looked at even in an empty section."""
    assert info_with(b"", behind=b"tag=1\0").get_modinfo(b"tag") == b"1"
    assert info_with(b"\0", behind=b"tag=1\0").get_modinfo(b"tag") is None


def test_modinfo_ends_inside_a_tag():
    """An entry that begins in the section counts; searching on from there leaves the section for good."""
    info = info_with(b"a=1\0ta", behind=b"g=1\0tag=2\0")
    assert info.get_modinfo(b"tag") == b"1"
    with pytest.raises(DamageError):
        info.modinfo_values(b"tag")


def test_no_modinfo():
    """Without the section nothing is found."""
    writer = module_writer(name="nameless")
    writer.remove(".modinfo")
    info = checked(paper_target(), writer)
    assert info.get_modinfo(b"license") is None
    assert info.name == b"nameless"


def test_no_modinfo_but_section_zero():
    """Without the section the kernel looks once where section 0 is said to be."""
    writer = module_writer()
    writer.remove(".modinfo")
    writer.section(".rodata").data = b"version=7\0"
    writer.zero["sh_offset"] = writer.build().index(b"version=7")
    assert checked(paper_target(), writer).get_modinfo(b"version") == b"7"
    writer.zero["sh_offset"] = 1 << 63
    with pytest.raises(DamageError):
        checked(paper_target(), writer).get_modinfo(b"version")


def test_modinfo_outside_the_file():
    """A .modinfo without contents may be said to be anywhere: reading it would leave the file."""
    writer = module_writer()
    section = writer.section(".modinfo")
    section.type, section.header["sh_offset"], section.header["sh_size"] = SHT_NOBITS, 1 << 40, 100
    with pytest.raises(DamageError):
        checked(paper_target(), writer)


def test_modinfo_at_the_end_of_the_file():
    """A tag that could go on behind the end of the file would be compared there."""
    info = info_with(b"name=x\0vermag")
    end = bytes(info.data).index(b"vermag") + 6
    short = LoadInfo(info.data[:end], sechdrs=info.sechdrs, index=info.index)
    with pytest.raises(DamageError):
        short.get_modinfo(b"vermagic")
    assert short.get_modinfo(b"license") is None


def test_name_without_end():
    """A name whose end is not in the file harms nobody until it is printed."""
    info = info_with(b"license=GPL\0name=cut")
    end = bytes(info.data).index(b"name=cut") + 8
    short = LoadInfo(info.data[:end], name_offset=info.name_offset)
    assert short.name_in_file == "cut"
    with pytest.raises(DamageError):
        _ = short.label


def test_find_sec():
    """A section is found if it is loaded at that moment, the first of its name, and never section 0."""
    writer = module_writer()
    for flags in (0, ALLOC, ALLOC):
        writer.add("many", b"x", flags)
    info = checked(paper_target(), writer)
    first = writer.index("many")
    assert info.find_sec(b"many") == first + 1
    info.sechdrs["sh_flags"][first + 1] = 0
    assert info.find_sec(b"many") == first + 2
    assert info.find_any_sec(b"many") == first
    assert info.find_any_unique_sec(b"many") == -3
    assert info.find_any_unique_sec(b".text") == 1
    assert info.find_sec(b"none") == info.find_any_sec(b"none") == info.find_any_unique_sec(b"none") == 0
    assert info.find_sec(b"") == 0


def test_find_sec_compares_names_outside():
    """A name outside the file is compared if the section is loaded and comes first: then it is damage."""
    writer = module_writer()
    writer.section(".bss").header |= {"sh_name": 1 << 30, "sh_flags": 0}
    info = checked(paper_target(EARLY), writer)
    info.sechdrs["sh_flags"][writer.index(".bss")] = ALLOC
    with pytest.raises(DamageError):
        info.find_sec(b"missing")
    assert info.find_sec(b".data") == writer.index(".data")
    info.sechdrs["sh_flags"][writer.index(".bss")] = 0
    assert info.find_sec(b"missing") == 0
    with pytest.raises(DamageError):
        info.find_any_sec(b"missing")


def test_section_objs():
    """Address and number of objects, the rest of a division dropped; nothing gives (0, 0)."""
    writer = module_writer()
    writer.add("table", bytes(25))
    _mod, info = rewritten(paper_target(), writer)
    address = ADDRESS + info.data.index(bytes(25))
    assert info.section_objs(b"table", 8) == (int(info.sechdrs["sh_addr"][writer.index("table")]), 3)
    assert info.section_objs(b"table", 8)[0] >= address
    assert info.section_objs(b"none", 8) == (0, 0)


def test_rewrite_section_headers():
    """Addresses are those of the copy; .modinfo and __versions are not loaded."""
    writer = module_writer(crcs={"x": 1})
    info = checked(paper_target(), writer)
    info.sechdrs["sh_addr"][1:] = 77
    rewrite_section_headers(info)
    assert info.sechdrs["sh_addr"][0] == 0
    assert (info.sechdrs["sh_addr"][1:] == info.sechdrs["sh_offset"][1:] + ADDRESS).all()
    lost = [name for name in (".modinfo", "__versions", ".data") if not info.find_sec(name.encode())]
    assert lost == [".modinfo", "__versions"]


def test_ignored_versions():
    """With MODULE_INIT_IGNORE_MODVERSIONS nothing is known of __versions, so it stays loaded."""
    writer = module_writer(crcs={"x": 1})
    _mod, info = rewritten(paper_target(), writer, flags=1)
    assert info.index.vers == 0
    assert info.find_sec(b"__versions") == writer.index("__versions")


def test_percpu_needs_smp():
    """Without SMP the per-CPU section is a section like others."""
    writer = module_writer()
    writer.add(".data..percpu", bytes(8), ALLOC | WRITE)
    assert checked(paper_target(SMP="n"), writer).index.pcpu == 0
    assert checked(paper_target(), writer).index.pcpu == writer.index(".data..percpu")


def test_two_names():
    """The name in .modinfo is for messages; the name in struct module is the module's."""
    writer = module_writer(name="real", info={"name": "shown"})
    info = checked(paper_target(), writer)
    assert (info.name, info.module_name, info.label) == (b"shown", b"real", "shown")


def test_struct_module_outside_the_file():
    """6.1 takes a struct module without contents wherever it is said to be: outside the file is damage."""
    writer = module_writer()
    section = writer.section(".gnu.linkonce.this_module")
    section.type, section.header["sh_offset"] = SHT_NOBITS, 1 << 62
    with pytest.raises(DamageError):
        checked(paper_target(EARLY), writer)


@pytest.mark.parametrize("kernel", [EARLY, LATE])
def test_symbol_names(kernel):
    """Names come from the string table, and one outside the file is damage."""
    writer = module_writer(struct_size=STRUCT_SIZE[kernel])
    writer.symbol("far", ".text", name_offset=1 << 31)
    info = checked(paper_target(kernel), writer)
    assert [info.symbol_name(i) for i in range(4)] == [b"", b"init_module", b"work", b"counter"]
    with pytest.raises(DamageError):
        info.symbol_name(4)


def test_symbols_are_a_copy():
    """Changing the table does not change the file, and a piece of an entry at its end is no entry."""
    writer = module_writer()
    writer.section(".symtab").header["sh_size"] = 24 * 4 - 1
    info = checked(paper_target(), writer)
    info.symbols["st_value"] = 5
    assert len(info.symbols) == 3
    assert info.symbols["st_value"][2] == 5
    assert info.data == writer.build()


def test_section_file_data():
    """Contents are those of the file; what is not in the file is damage."""
    writer = module_writer()
    writer.section(".bss").header |= {"sh_offset": 0, "sh_size": 1 << 40}
    info = checked(paper_target(), writer)
    assert bytes(info.section_file_data(writer.index(".rodata"))) == b"read only data"
    with pytest.raises(DamageError):
        info.section_file_data(writer.index(".bss"))


def test_setup_twice():
    """Setting up again changes nothing."""
    target = paper_target(LATE)
    info = checked(target, module_writer(struct_size=1280))
    before = info.index
    setup_load_info(target, info)
    assert info.index == before
