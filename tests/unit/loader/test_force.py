"""A module that is forced through init_module: its facts about versions are out, everything else is as it was."""

from __future__ import annotations

import pytest

from kodojo.image.elf import ElfFile
from kodojo.loader.force import without_version_facts
from tests.support.elf_writer import module_writer

MODVERSIONS, VERMAGIC = 1, 2


def sample() -> bytes:
    return module_writer(name="m", crcs={"printk": 7}).build()


@pytest.mark.parametrize("flags", [0, MODVERSIONS, VERMAGIC, MODVERSIONS | VERMAGIC])
def test_only_what_is_ignored_goes(flags):
    """The section of the CRCs loses its ALLOC flag, the version magic its bytes; the rest is untouched."""
    data = sample()
    forced = without_version_facts(data, flags)
    before, after = ElfFile(data, "before"), ElfFile(forced, "after")
    assert after.sections["__versions"].flags & 2 == (0 if flags & MODVERSIONS else 2)
    info = bytes(after.section_data(".modinfo"))
    assert (b"vermagic=" in info) == (not flags & VERMAGIC)
    changed = {at for at in range(len(data)) if data[at] != forced[at]}
    vermagic = data.index(b"vermagic=")
    allowed = set(range(vermagic, data.index(b"\0", vermagic))) if flags & VERMAGIC else set()
    header = before.section_table + before.sections["__versions"].index * before.format.shdr.itemsize
    allowed |= set(range(header, header + before.format.shdr.itemsize)) if flags & MODVERSIONS else set()
    assert len(forced) == len(data)
    assert changed <= allowed
    assert bool(changed) == bool(flags)


@pytest.mark.parametrize("cut", [0, 3, 63, 200, -1])
def test_a_damaged_file_is_left_to_the_kernel(cut):
    """What cannot be read is passed on as it is."""
    data = sample()[:cut]
    assert without_version_facts(data, MODVERSIONS | VERMAGIC) == data


def test_a_module_without_such_facts():
    """There is nothing to take out."""
    data = module_writer(name="m", info={"vermagic": None}).build()
    assert without_version_facts(data, MODVERSIONS | VERMAGIC) == data
