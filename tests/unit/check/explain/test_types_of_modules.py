"""What compilers and kernels say of types: our modules' debugging information against kernels' BTF."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kodojo.check.explain import Case, explain
from kodojo.check.explain.changes import Changes
from kodojo.check.explain.dwarf import DwarfTypes
from kodojo.errors import ImageError
from kodojo.image.type_graph import BtfTypes, spell
from kodojo.loader.verdict import check
from tests.conftest import image_of
from tests.support import kbuild

SHARED = ("module", "list_head", "task_struct", "file_operations", "inode", "super_block")


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["kd_hello", "kd_proc", "kd_timer"])
def test_own_kernel(image, built, name):
    """The compiler's types and those of the kernel that a module was built for are the same, all that it leads to."""
    types, kernel = DwarfTypes(built[name].read_bytes()), BtfTypes(image.btf)
    changes = Changes(types, kernel)
    symbols = [symbol for symbol in types._symbols if kernel.symbol(symbol) is not None]
    assert symbols
    for symbol in symbols:
        assert (symbol, changes.of_prototype(symbol), changes.reachable(symbol)) == (symbol, None, [])
    compared = [tag for tag in SHARED if types.tag(tag) and kernel.tag(tag)]
    assert "module" in compared
    for tag in compared:
        assert changes.of_type((types.tag(tag), kernel.tag(tag))) is None


@pytest.mark.kernel
def test_spelling_is_the_same(image):
    """A struct's members are spelled as the other reader of BTF spells them, parameters of functions aside."""
    types, struct = BtfTypes(image.btf), image.btf.struct("module")
    node = types.node(types.tag("module"))
    pairs = [
        (spell(types, part.type), member.type)
        for part, member in zip(node.parts, struct.members, strict=True)
        if "(" not in member.type
    ]
    assert len(pairs) > 30
    assert [ours for ours, _theirs in pairs] == [theirs for _ours, theirs in pairs]


def explained(origin: str, destination: str, name: str):
    image = image_of(destination)
    content = kbuild.build(origin)[name].read_bytes()
    verdict = explain(Case(image, content), check(image, content))
    return {problem.slug: problem for problem in verdict.problems}


@pytest.mark.kernel
@pytest.mark.parametrize(("origin", "destination", "gone", "new"), [("6.1", "6.12", "core_layout", "mem[7]")])
def test_other_kernel(origin, destination, gone, new):
    """A module of another kernel: the members of struct module that have gone and come are named."""
    found = explained(origin, destination, "kd_hello")
    detail = next(one for one in found["module-layout-crc"].details if one.subject == "struct module")
    assert any(line.startswith("- ") and gone in line for line in detail.more)
    assert any(line.startswith("+ ") and new in line for line in detail.more)
    sizes = (image_of(series).btf.struct("module").size for series in (origin, destination))
    assert (detail.facts["size"], detail.facts["kernel size"]) == tuple(sizes)
    symbols = {one.subject: one for one in found["symbol-version"].details}
    assert "struct module" in symbols["param_ops_int"].more[0]


@pytest.mark.kernel
def test_kernel_that_it_was_built_for():
    """A module without types is explained by the kernel that it was built for, if its checksums are that one's."""
    old, new = image_of("6.1"), image_of("6.12")
    content = old.modules["dummy"].read()
    verdict = check(new, content)
    with_it = explain(Case(new, content, old), verdict)
    details = {detail.subject: detail for problem in with_it.problems for detail in problem.details}
    assert details["struct net_device"].facts["compared with"] == old.release
    assert "net_device" in details["register_netdevice"].more[0]
    without = explain(Case(new, content), verdict)
    assert "what has changed" in {detail.subject for problem in without.problems for detail in problem.details}
    wrong = explain(Case(new, content, new), verdict)
    assert "struct net_device" not in {detail.subject for problem in wrong.problems for detail in problem.details}


@pytest.mark.kernel
def test_damaged_debugging_information(built):
    """Whatever is in there: types, or an ImageError."""
    content = built["kd_hello"].read_bytes()
    place = content.index(b".debug_info")  # the table of names; what matters is before it
    source = random.Random(3)
    outcomes: Counter[str] = Counter()
    for _ in range(40):
        damaged = bytearray(content)
        for _change in range(source.choice([1, 20, 500, 5000])):
            damaged[source.randrange(64, place)] = source.randrange(256)
        try:
            types = DwarfTypes(bytes(damaged))
            for symbol in types._symbols:
                spell(types, types.symbol(symbol))
            outcomes["types"] += 1
        except ImageError:
            outcomes["damage"] += 1
    assert outcomes["types"]
    assert outcomes["damage"]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no module"])
def test_no_debugging_information(content):
    """A file that has none, or is no ELF file."""
    with pytest.raises(ImageError):
        DwarfTypes(content)
