"""What is loaded before what."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st

from kodojo.check.examine import Examined, examine
from kodojo.check.plan import Plan
from kodojo.check.sources import GivenModule, Spool, find_modules
from kodojo.image.exports import Export
from kodojo.image.tree import ModuleTree
from kodojo.kmod.depmod.index_writer import IndexWriter
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
    index = IndexWriter()
    for name, needs in dependencies.items():
        (root / f"{name}.ko").write_bytes(b"")
        line = f"{name}.ko: {' '.join(f'{other}.ko' for other in needs.split())}"
        index.add(name.encode(), line.encode())
    (root / "modules.dep.bin").write_bytes(index.build())
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


LABELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)


@given_by(
    modules=st.lists(st.tuples(LABELS, st.sampled_from(("9.9-paper", "5.0"))), max_size=8, unique_by=lambda m: m[0]),
    which=st.integers(0, 8),
)
def test_nearest(modules, which):
    """Of several modules of a name, that for the kernel's release, else the nearest by path, else the first given."""
    examined = [Examined(GivenModule(f"{path}/m.ko", Path()), "m", release=release) for path, release in modules]
    if which < len(examined):
        examined[which] = user = examined[which]._replace(depends=("m",))
    else:
        user = Examined(GivenModule("a/b/user.ko", Path()), "user", depends=("m",))
        examined.append(user)
    others = [other for other in examined if other is not user]

    def nearness(other: Examined) -> tuple[bool, int]:
        pairs = zip(other.module.label.split("/"), user.module.label.split("/"), strict=False)
        return other.release == "9.9-paper", len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    node = Plan(paper_kernel(), examined).nodes([user.module])[user.module.key]
    nearest = max(others, key=nearness, default=None)
    assert [name for _own, name in node.before] == ([nearest.module.label] if nearest else [])
