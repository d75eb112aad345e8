"""What is loaded before what."""

from __future__ import annotations

from pathlib import Path

import pytest

from kodojo.check.examine import examine
from kodojo.check.plan import Plan
from kodojo.check.sources import Spool, find_modules
from kodojo.image.exports import Export
from kodojo.image.tree import ModuleTree
from tests.support.checking import paper_kernel, simple_module


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Write modules, and examine them."""
    monkeypatch.chdir(tmp_path)

    def make(**contents: bytes):
        for name, content in contents.items():
            path = Path(f"{name.replace('__', '/')}.ko")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        labels = [f"{name.replace('__', '/')}.ko" for name in contents]
        (tmp_path / "spool").mkdir()
        spool = Spool(tmp_path / "spool")
        return examine(find_modules(labels, spool), spool)

    return make


def order(image, examined, label: str) -> list[str]:
    """What comes before a module."""
    nodes = Plan(image, examined).nodes([each.module for each in examined])
    return [name for _own, name in nodes[False, label].before]


def tree(tmp_path: Path, dependencies: dict[str, str]) -> ModuleTree:
    root = tmp_path / "lib/9.9"
    root.mkdir(parents=True)
    lines = []
    for name, needs in dependencies.items():
        (root / f"{name}.ko").write_bytes(b"")
        lines.append(f"{name}.ko: {' '.join(f'{other}.ko' for other in needs.split())}\n")
    (root / "modules.dep").write_text("".join(lines))
    return ModuleTree(root)


def test_declared_dependencies(given):
    """``depends=`` among the given modules, all the way down, providers first."""
    examined = given(c=simple_module("c", depends="b"), b=simple_module("b", depends="a-x"), a_x=simple_module("a_x"))
    assert order(paper_kernel(), examined, "c.ko") == ["a_x.ko", "b.ko"]


def test_exports_that_nobody_declared(given):
    """A given module that exports what another needs comes first, unless the kernel has it."""
    user = simple_module("user", needs=("from_other", "from_kernel"))
    other = simple_module("other", exports=("from_other",))
    third = simple_module("third", exports=("from_kernel",))
    examined = given(user=user, other=other, third=third)
    image = paper_kernel(Export("from_kernel", 0xFFFFFFFF82001000, None, False, None))
    assert order(image, examined, "user.ko") == ["other.ko"]


def test_the_kernels_own_modules(given, tmp_path):
    """Dependencies that were not given come from the tree, with what they need."""
    image = paper_kernel(tree=tree(tmp_path, {"low": "", "mid": "low", "high": "mid low"}))
    assert order(image, given(m=simple_module(depends="high")), "m.ko") == ["low.ko", "mid.ko", "high.ko"]


def test_given_modules_win(given, tmp_path):
    """A given module takes the place of the tree's, even below a module of the tree."""
    image = paper_kernel(tree=tree(tmp_path, {"low": "", "high": "low"}))
    examined = given(new__low=simple_module("low"), m=simple_module(depends="high"))
    assert order(image, examined, "m.ko") == ["new/low.ko", "high.ko"]


def test_the_nearest_of_several(given):
    """Of two modules of one name, that of the kernel's release is taken, else the one in the same directory."""
    vermagic = "{} SMP preempt mod_unload modversions ".format
    examined = given(
        old__a=simple_module("a", vermagic=vermagic("1.0")),
        new__a=simple_module("a", vermagic=vermagic("2.0")),
        old__b=simple_module("b", depends="a"),
    )
    assert order(paper_kernel(release="9.9"), examined, "old/b.ko") == ["old/a.ko"]
    assert order(paper_kernel(release="2.0"), examined, "old/b.ko") == ["new/a.ko"]


def test_circles_are_said(given):
    """Modules that need each other are told of, by name, and do not keep anybody busy for ever."""
    examined = given(
        a=simple_module("a", depends="b"), b=simple_module("b", depends="c"), c=simple_module("c", depends="a")
    )
    nodes = Plan(paper_kernel(), examined).nodes([each.module for each in examined])
    assert ["a, b, c, a" in note for note in nodes[False, "a.ko"].notes] == [True]
    assert nodes[False, "a.ko"].before == ((False, "c.ko"), (False, "b.ko"))


def test_what_is_nowhere(given, tmp_path):
    """A dependency that is neither given nor in the tree is named, unless it is built into the kernel."""
    modules = tree(tmp_path, {"other": ""})
    (modules.root / "modules.builtin").write_text("kernel/inside.ko\n")
    examined = given(m=simple_module("m", depends="gone,inside,other"))
    node = Plan(paper_kernel(tree=modules), examined).nodes([examined[0].module])[False, "m.ko"]
    assert (node.absent, node.before) == (("gone",), ((True, "other.ko"),))


def test_long_chains(given):
    """The length of a chain is bounded by nothing but its modules."""
    count = 1100  # more than Python's recursion limit
    (one,) = given(m=simple_module("m"))
    chain = [
        one._replace(module=one.module._replace(label=f"m{i}.ko"), name=f"m{i}", depends=(f"m{i + 1}",))
        for i in range(count)
    ]
    assert len(order(paper_kernel(), chain, "m0.ko")) == count - 1
