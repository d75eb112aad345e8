from __future__ import annotations

import struct

import pytest

from kodojo.check.explain import Case, explain
from kodojo.check.explain.elf import struct_module_size
from kodojo.errors import Detail
from kodojo.image.elf import FORMATS
from kodojo.image.payload import Payload
from kodojo.loader.verdict import check, judge
from tests.support.elf_writer import ElfWriter, module_writer
from tests.support.loading import SpyTarget
from tests.unit.check.explain.conftest import case, problem

SHOFF, SHNUM, SHSTRNDX, MACHINE = 40, 60, 62, 18


def explained(data: bytes, *, late: bool = False):
    """The details of the refusal of a damaged file."""
    image = SpyTarget(late=late).image
    verdict = explain(Case(image, data), check(image, data))
    return verdict.slug, verdict.problems[0].details


def patched(place: int, form: str, value: int) -> bytes:
    data = bytearray(module_writer().build())
    struct.pack_into(f"<{form}", data, place, value)
    return bytes(data)


def section_header(index: int) -> int:
    return struct.unpack_from("<Q", module_writer().build(), SHOFF)[0] + 64 * index


@pytest.mark.parametrize(
    ("place", "form", "value", "slug", "field"),
    [
        (0, "B", 0, "elf-magic", "e_ident"),
        (MACHINE, "H", 40, "elf-architecture", "e_machine"),
        (SHOFF, "Q", 1 << 40, "elf-section-table", "e_shoff"),
        (SHSTRNDX, "H", 999, "elf-section-names", "e_shstrndx"),
    ],
)
def test_header(place, form, value, slug, field):
    """The field of the ELF header that is wrong, its offset in the file and its value."""
    found, details = explained(patched(place, form, value))
    assert found == slug
    assert details[0].subject == field
    assert details[0].facts["offset"] == place
    assert details[0].facts.get("value", value) == value


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"!<arch>\n", "kodojo check looks at the modules in it"),
        (b"070701", "initramfs"),
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"#!/bin/sh", "the .ko file that kbuild makes"),
    ],
)
def test_what_is_no_module(start, words):
    """What begins as something else that is known is called that, with what to do."""
    image = SpyTarget().image
    verdict = judge(image, Payload("file", start.ljust(200, b"x")), (), lambda target: None)[0]
    assert (verdict.slug, words in verdict.hint) == ("elf-magic", True)


def test_byte_order():
    """A file of the other byte order is told by the byte that says so, not by numbers that are none."""
    data = bytearray(ElfWriter(FORMATS[2, 2]).build())
    slug, (detail,) = explained(bytes(data))
    assert slug == "elf-architecture"
    assert (detail.facts["offset"], detail.facts["value"]) == (5, 2)
    assert "big-endian" in detail.text


@pytest.mark.parametrize("late", [False, True])
def test_section(late):
    """The section whose contents are not in the file: index, name, and where its header says so."""
    place = section_header(3)
    slug, details = explained(patched(place + 32, "Q", 1 << 50), late=late)
    assert slug == "elf-section-bounds"
    size = next(detail for detail in details if detail.subject.startswith("sh_size"))
    assert size.facts["offset"] == place + 32
    assert (size.facts["section"], size.facts["value"]) == (3, 1 << 50)
    assert size.facts["name"] == ".rodata"


def test_damaged_names():
    """Names that cannot be read are left out, and nothing else is."""
    data = bytearray(patched(section_header(3) + 32, "Q", 1 << 50))
    struct.pack_into("<I", data, section_header(3), 0xFFFFFFF0)
    _slug, details = explained(bytes(data))
    assert {detail.facts["name"] for detail in details} == {""}


def test_cut_off():
    """A file without a whole header has nothing to look at, and one without section headers has its header."""
    data = module_writer().build()
    assert explained(data[:40])[0] == "elf-too-short"
    slug, details = explained(data[:200])
    assert (slug, details[0].facts["file size"]) == ("elf-section-table", 200)


def test_struct_module_size():
    """Both sizes, and whether the release is another one."""
    sizes = Detail("struct module", facts={"size": 896, "kernel size": 1280})
    (other,) = struct_module_size(case(vermagic="5.0 SMP "), problem("struct-module-size", sizes)).details
    (same,) = struct_module_size(case(vermagic="9.9-paper SMP "), problem("struct-module-size", sizes)).details
    assert "896 bytes in the module, 1280" in other.text
    assert "built for 5.0" in other.more[-1]
    assert "another configuration" in same.more[-1]
