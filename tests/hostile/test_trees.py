"""Trees of modules and lists beside them: only regular files are read, and no list or chain is without an end."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from kodojo.check.examine import Examined
from kodojo.check.plan import Plan
from kodojo.check.sources import GivenModule, find_modules
from kodojo.errors import ImageError, InputError, KodojoError
from kodojo.image.regular import read_regular
from kodojo.image.tree import ModuleTree, load_order
from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.depmod import graph
from kodojo.kmod.depmod.scan import ScannedModule
from kodojo.kmod.depmod.symbols import KernelSymbols
from kodojo.kmod.index import ModuleIndex
from tests.support.checking import paper_kernel, simple_module
from tests.support.module_tree import TreeWriter


def fifo(path):
    os.mkfifo(path)


def zeroes(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):  # a socket's path is short
        made.bind(path.name)


def circle(path):
    path.symlink_to(path.name)


NO_FILES = {"fifo": fifo, "/dev/zero": zeroes, "socket": listening, "a link to itself": circle}


@pytest.fixture
def tree(tmp_path):
    writer = TreeWriter(tmp_path / "root")
    (writer.root / "kernel").mkdir()
    (writer.root / "kernel/good.ko").write_bytes(simple_module("good"))
    return writer.root


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_no_file_is_no_module(tree, spool, make):
    """What is no file is named and passed over, and nobody waits for it (S7)."""
    make(tree / "kernel/x.ko")
    found = ModuleTree(tree)
    assert set(found) == {"good"}
    assert "x" not in found
    (over,) = found.contents().passed_over
    assert over.path == "kernel/x.ko"
    assert over.why
    given = {Path(each.label).name: each.problem for each in find_modules([str(tree)], spool)}
    assert given["good.ko"] == ""
    assert "x.ko" in given["x.ko"]
    assert ModuleIndex.open(found, None).names == ["good"]


@contextlib.contextmanager
def sentence_about(name):
    """If it is refused, then with a sentence that names the file, and a next step."""
    caught = None
    try:
        yield
    except KodojoError as error:
        caught = error
    assert caught is None or (name in caught.message and caught.hint)


LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo", "modules.dep.bin", "modules.softdep")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_no_file_is_no_list(tree, make, name):
    """The lists beside them likewise: a sentence, or as if it were not there."""
    make(tree / name)
    with sentence_about(name):
        found = ModuleTree(tree)
        assert set(found) == {"good"}
        assert found.builtin == set()
        ModuleIndex.open(found, None).builtin_modinfo("x")


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_gigabytes(tree, name):
    """A list that is larger than any is not read."""
    with (tree / name).open("wb") as file:
        file.truncate(4 << 30)
    with sentence_about(name):
        assert set(ModuleTree(tree)) == {"good"}
        assert ModuleTree(tree).builtin == set()


def test_lists_without_lines(tree):
    """The largest list that is read is no more than some of it in memory: a million of lines pass."""
    (tree / "modules.order").write_bytes(b"kernel/good.ko\n" + b"\n" * 1_000_000)
    (tree / "modules.builtin").write_bytes(b"\n" * 1_000_000)
    assert set(ModuleTree(tree)) == {"good"}
    assert ModuleTree(tree).builtin == set()


def test_read_regular(tmp_path):
    """A list has a size."""
    path = tmp_path / "list"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(OSError, match="larger than 16 MiB"):
        read_regular(path)


# -- System.map -----------------------------------------------------------------------------------------------


def test_system_map(tmp_path):
    """One of nonsense has a bounded number of complaints; one of gigabytes is refused."""
    path = tmp_path / "System.map"
    path.write_bytes(b"x\n" * 100_000 + b"0 T __ksymtab_good\n")
    found = KernelSymbols.from_system_map(path)
    assert b"good" in found.crcs
    assert len(found.problems) == 1000
    with path.open("wb") as file:
        file.truncate(4 << 30)
    for read in (KernelSymbols.from_system_map, KernelSymbols.from_symvers):
        with pytest.raises(InputError, match="larger than") as caught:
            read(path)
        assert caught.value.hint


# -- chains and circles ---------------------------------------------------------------------------------------

CHAIN = 20_000


def test_depmod_and_a_long_chain():
    """20,000 modules, each of which needs the next one: no list of 200 million dependencies is made."""
    chain = [
        ScannedModule(f"m{n}", f"kernel/m{n}.ko", f"kernel/m{n}.ko", exports={b"s%d" % n: 0},
                      needs={b"s%d" % (n + 1): (0, False)})
        for n in range(CHAIN)
    ]  # fmt: skip
    with pytest.raises(InputError, match="more than 1000000 others") as caught:
        graph.link(chain)
    assert caught.value.hint


def examined(name, needs):
    return Examined(GivenModule(f"{name}.ko", f"{name}.ko"), name, needs)


def test_check_and_a_long_chain():
    """The same for modules that are given: what is too much has a problem, and is not worked out."""
    given = [examined(f"m{n}", (f"m{n + 1}",) if n < CHAIN - 1 else ()) for n in range(CHAIN)]
    nodes = Plan(paper_kernel(), given).nodes(each.module for each in given)
    assert len(nodes) == CHAIN
    assert sum(len(node.before) for node in nodes.values()) <= 1_000_000
    first = next(iter(nodes.values()))
    assert first.module.problem == "m0.ko: refused: too many modules need each other, one through the other"
    assert first.module.hint


def test_a_tree_with_a_long_chain():
    """Modules of a tree without modules.dep.bin: who needs more than any module is told so."""
    with pytest.raises(ImageError, match="m: it needs more than 5000 modules") as caught:
        load_order("m", iter(["m0"]), lambda name: [f"m{int(name[1:]) + 1}"])
    assert caught.value.hint


def test_circles_of_soft_dependencies(tmp_path):
    """Soft dependencies in a circle, and in a chain of 20,000, end."""
    from kodojo.kmod.modprobe import Candidate, Flags, _Plan

    class Index:
        root = None
        softdeps = ()

        def __contains__(self, name):
            return True

        def dependencies(self, name):
            return ()

        def path(self, name):
            return tmp_path / f"{name}.ko"

        def is_builtin(self, name):
            return False

        def by_builtin_alias(self, alias):
            return []

        def by_symbol(self, alias):
            return []

        def by_alias(self, alias):
            return []

    def plan(text):
        (tmp_path / "x.conf").write_text(text)
        return _Plan(Index(), ModprobeConfig.read([tmp_path / "x.conf"]), Flags())

    circle = plan("softdep a pre: b post: c\nsoftdep b pre: a c\nsoftdep c pre: a b post: a\n")
    assert {action.name for action in circle.actions(Candidate("a"), "")} == {"a", "b", "c"}
    chain = plan("".join(f"softdep m{n} pre: m{n + 1}\n" for n in range(CHAIN)))
    with pytest.raises(InputError, match="nested more than"):
        chain.actions(Candidate("m0"), "")
