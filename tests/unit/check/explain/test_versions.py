from __future__ import annotations

import pytest

from kodojo.check.explain.case import Case
from kodojo.check.explain.versions import MOST_SYMBOLS, module_layout_crc, symbol_version
from kodojo.errors import Detail
from kodojo.image.btf import Btf
from kodojo.image.exports import Export
from tests.support.elf_writer import module_writer
from tests.unit.check.explain.conftest import Exports, case, kernel, problem
from tests.unit.image.test_btf import SIGNED, Writer


def btf(*members: str, size: int) -> bytes:
    """Types of a kernel: ``struct module`` with these members, and a function that has a pointer to one."""
    writer = Writer()
    integer = writer.int("int", 4, SIGNED)
    module = writer.struct("module", size, *((name, integer, 32 * i) for i, name in enumerate(members)))
    writer.function("use", integer, ("mod", writer.add(2, "", module)))
    return writer.bytes()


NEW = btf("state", "name", "extra", size=12)
OLD = btf("state", "name", size=8)


def checksums(name: str) -> Detail:
    return Detail(name, facts={"owner": "vmlinux", "crc": 0x1234, "kernel crc": 0xABCD1234})


def subjects(found) -> list[str]:
    return [detail.subject for detail in found.details]


def module(section: str = ".BTF", more: str = "") -> bytes:
    writer = module_writer()
    writer.add(section, OLD, 0)
    if more:
        writer.add(more, OLD, 0)
    return writer.build()


@pytest.mark.parametrize("explainer", [symbol_version, module_layout_crc])
def test_checksums(explainer):
    """Both checksums are told; without types it is said that more cannot be told, and what would help."""
    found = explainer(case(kernel(btf=Btf(NEW)), vermagic="5.0 "), problem("symbol-version", checksums("use")))
    assert subjects(found) == ["use", "what has changed"]
    assert found.details[0].text == "0x00001234 in the module, 0xabcd1234 in the kernel"
    assert "kodojo kernel add 5.0" in found.details[1].more[-1]
    assert found.hint == "Build the module for 9.9-paper: it was built for 5.0."


def test_checksums_of_another_module():
    """The owner of the symbol is named, and a symbol without a checksum said to have none."""
    details = (Detail("a", facts={"owner": "other", "crc": 1, "kernel crc": 2}), Detail("b", facts={"kernel crc": 2}))
    found = symbol_version(case(kernel(btf=Btf(NEW))), problem("symbol-version", *details))
    assert found.details[0].text.endswith("in module other")
    assert found.details[1].text == "the module has no checksum for it"
    assert found.hint == "hint"


def test_types_of_the_module():
    """A module that brings all its types with it (BTF) is compared by them."""
    image = kernel(btf=Btf(NEW))
    found = symbol_version(Case(image, module()), problem("symbol-version", checksums("use")))
    assert subjects(found) == ["struct module", "use"]
    assert found.details[0].more == ("+ int extra; at offset 8",)
    assert found.details[0].facts == {"size": 8, "kernel size": 12, "compared with": "the module's BTF"}
    assert found.details[1].more == ("leads to struct module (see above)",)
    found = module_layout_crc(Case(image, module()), problem("module-layout-crc", checksums("module_layout")))
    assert subjects(found) == ["struct module", "module_layout"]


def test_types_that_need_others():
    """A module that has only what it adds to its kernel's types cannot be compared by them."""
    image = kernel(btf=Btf(NEW))
    for content in (module(more=".BTF.base"), module(section=".nothing")):
        found = symbol_version(Case(image, content), problem("symbol-version", checksums("use")))
        assert subjects(found) == ["use", "what has changed"]


def test_kernel_that_it_was_built_for():
    """That kernel's types count if it has the module's checksums, and not otherwise."""
    old = kernel(release="5.0", btf=Btf(OLD))
    for crc, expected in ((0x1234, ["struct module", "use"]), (1, ["use", "what has changed"])):
        old.exports = Exports([Export("use", 0, crc, False, None)])
        one = case(kernel(btf=Btf(NEW)), old)
        assert subjects(symbol_version(one, problem("symbol-version", checksums("use")))) == expected


def test_kernel_whose_types_are_not_known():
    """A kernel that is only described has nothing to compare with."""
    image = kernel(describes=frozenset({"exports"}))
    found = symbol_version(Case(image, module()), problem("symbol-version", checksums("use")))
    assert found.details[1].text == "cannot be told: the types of this kernel are not known"


def test_no_change_to_be_seen():
    """Where the types are the same, that is said."""
    found = symbol_version(Case(kernel(btf=Btf(OLD)), module()), problem("symbol-version", checksums("use")))
    assert subjects(found) == ["use"]
    assert "are the same" in found.details[0].more[0]


def test_many_symbols():
    """So many symbols are compared; the others have their checksums."""
    details = [checksums("use") for _ in range(MOST_SYMBOLS + 1)]
    found = symbol_version(Case(kernel(btf=Btf(NEW)), module()), problem("symbol-version", *details))
    assert [bool(detail.more) for detail in found.details[1:]] == [True] * MOST_SYMBOLS + [False]
    assert found.details[-1].text
