"""Modules by the ELF writer, whole, odd and damaged: our answer and the native loader's are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kodojo.image.image import Image
from tests.damage.outcomes import without_traces
from tests.differential.compare import differences, native_init_module, our_init_module, outcome_of, without_counts
from tests.support.elf_writer import ALLOC, EXEC, WRITE, ElfWriter, versions
from tests.support.paper_modules import module_for

THIS_MODULE = ".gnu.linkonce.this_module"

HEADERS = [
    {"e_ident": b"\x7fELG"}, {"e_ident": b"\x7fELF\x01\x02"}, {"e_type": 3}, {"e_machine": 40}, {"e_shentsize": 40},
    {"e_shoff": 1 << 63}, {"e_shnum": 0}, {"e_shnum": 5000}, {"e_shstrndx": 0}, {"e_shstrndx": 99},
]  # fmt: skip

SECTIONS = [
    (".rodata", {"sh_offset": 1 << 40}), (".rodata", {"sh_offset": (1 << 64) - 1, "sh_size": 2}),
    (".rodata", {"sh_addralign": 3}), (".rodata", {"sh_addralign": 8192}), (".data", {"sh_addralign": 0}),
    (".shstrtab", {"sh_size": 0}), (".shstrtab", {"sh_size": 2}), (".shstrtab", {"sh_offset": 1 << 40}),
    (".shstrtab", {"sh_type": 1}), (".data", {"sh_name": 150}), (".symtab", {"sh_link": 0}),
    (".symtab", {"sh_link": 0xFFFFFFFF}), (".symtab", {"sh_type": 1}), (THIS_MODULE, {"sh_flags": 0}),
    (".modinfo", {"sh_flags": 0}), (".modinfo", {"sh_size": 20}), (".comment", {"sh_flags": 5}),
    (".bss", {"sh_size": 3 << 30}),
]  # fmt: skip

MODINFO = [
    {}, {"intree": None}, {"license": None}, {"license": "Proprietary"}, {"retpoline": None}, {"test": ""},
    {"staging": "Y"}, {"livepatch": "Y"}, {"vermagic": None}, {"vermagic": "6.1 UP "}, {"name": "shown"},
    {"version": "1.2", "srcversion": "ABC"}, {"name": None},
    {"intree": None, "staging": "Y", "test": "Y", "license": "x", "livepatch": "Y"},
]  # fmt: skip


def add_sections(writer: ElfWriter) -> None:
    """Sections for every kind of memory, with gaps and alignments, and symbols of every kind."""
    writer.add(".init.data", b"abc", ALLOC | WRITE)
    writer.add(".exit.text", b"\xc3", ALLOC | EXEC)
    writer.add(".data..ro_after_init", b"once" * 3, ALLOC | WRITE, align=32)
    writer.add(".initially", b"\xc3" * 5, ALLOC | EXEC)
    writer.add(".empty", b"", ALLOC, align=256)
    writer.add(".data..percpu", bytes(16), ALLOC | WRITE, align=16)
    writer.symbol("per_cpu", ".data..percpu")
    writer.symbol("absolute", 0xFFF1, 5)
    writer.symbol("comment", ".comment")


def second_modinfo(writer: ElfWriter) -> None:
    writer.add(".modinfo", b"name=second\0", 0)


def second_symtab(writer: ElfWriter) -> None:
    writer.add("more", bytes(24), 0, type=2, link=".strtab")


CHANGES = {
    "all-sections": add_sections,
    "second-modinfo": second_modinfo,
    "second-symtab": second_symtab,
    "no-this-module": lambda writer: writer.remove(THIS_MODULE),
    "no-versions": lambda writer: writer.remove("__versions"),
    "no-modinfo": lambda writer: writer.remove(".modinfo"),
    "no-crc": lambda writer: setattr(writer.section("__versions"), "data", versions({"other": 1})),
    "other-crc": lambda writer: setattr(writer.section("__versions"), "data", versions({"module_layout": 1})),
}


def malformed(image: Image, change: Callable[[ElfWriter], object], info=None, name="paper") -> bytes:
    """A module for this kernel, changed."""
    writer = module_for(image, name=name, info=info)
    change(writer)
    return writer.build()


def same(kernel, change, info=None, name="paper") -> None:
    data = malformed(kernel.image, change, info, name)
    ours = outcome_of(kernel.fork(), our_init_module, data, "", name)
    native = outcome_of(kernel.fork(), native_init_module, data, "", name)
    assert not native.fault
    for side in (ours, native):
        side.log = [(level, without_counts(text)) for level, text in without_traces(side.log)]
    assert differences(kernel, ours, native) == []


@pytest.mark.kernel
@pytest.mark.parametrize("members", HEADERS)
def test_elf_header(kernel, members):
    """Each odd ELF header gets the same answer."""
    same(kernel, lambda writer: writer.header.update(members))


@pytest.mark.kernel
@pytest.mark.parametrize("member", ["sh_type", "sh_size", "sh_addr"])
def test_section_zero(kernel, member):
    """Each odd section 0 gets the same answer."""
    same(kernel, lambda writer: writer.zero.update({member: 0xFFFFFFFF}))


@pytest.mark.kernel
@pytest.mark.parametrize(("name", "members"), SECTIONS)
def test_section_header(kernel, name, members):
    """Each odd section header gets the same answer."""
    same(kernel, lambda writer: writer.section(name).header.update(members))


@pytest.mark.kernel
@pytest.mark.parametrize("info", MODINFO)
def test_modinfo(kernel, info):
    """Each set of .modinfo values has the same effect."""
    same(kernel, lambda _writer: None, info)


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["ndiswrapper", "driverloader", "lve"])
def test_special_name(kernel, name):
    """The names that taint do so in the same way."""
    same(kernel, lambda _writer: None, name=name)


@pytest.mark.kernel
@pytest.mark.parametrize("change", CHANGES)
def test_sections(kernel, change):
    """What is missing, doubled or added has the same effect."""
    same(kernel, CHANGES[change])
