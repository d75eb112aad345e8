from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from kodojo.errors import InputError
from kodojo.image.tree import ModuleTree
from kodojo.kmod.index import ModuleIndex


def test_dependencies_come_from_the_symbols_in_load_order(index):
    """What is needed by what is needed is loaded first; symbols of the kernel need no module."""
    assert index.dependencies("fs") == ("base", "lib")
    assert index.dependencies("base") == ()
    assert index.dependencies("nosuch") == ()


def test_modules_that_need_each_other_have_no_index(tree):
    """A circle of dependencies, which no kernel could load, is named, as depmod names it."""
    tree.add("a", exports=("a_do",), needs=("b_do",))
    tree.add("b", exports=("b_do",), needs=("a_do",))
    with pytest.raises(InputError, match="Cycle detected: a -> b -> a"):
        tree.open()


def test_candidates_come_in_the_order_of_modules_order(index):
    assert index.by_alias("crypto_sum") == ["sum_fast", "sum_plain"]


def test_the_order_is_that_of_modules_order_not_of_names(tree):
    tree.add("z", alias=["same"])
    tree.add("a", alias=["same"])
    assert tree.open().by_alias("same") == ["z", "a"]


def test_aliases_are_patterns(index):
    assert index.by_alias("pci:v00008086d000010D3sv0") == ["fs"]
    assert index.by_alias("pci:v00008087d000010D3sv0") == []


def test_a_literal_alias_matches_nothing_longer(index):
    assert index.by_alias("fs_fs") == ["fs"]
    assert index.by_alias("fs_fss") == []


def test_symbols_are_found_by_who_exports_them(index):
    assert index.by_symbol("symbol:lib_do") == ["lib"]
    assert index.by_symbol("symbol:printk") == []
    assert index.by_symbol("lib_do") == []


def test_names_are_folded(index):
    assert "sum-fast" in index
    assert index.path("sum-fast") == index.path("sum_fast")
    assert index.path("sum_fast").name == "sum-fast.ko"


def test_built_in_modules_have_names_aliases_and_facts(index):
    assert index.is_builtin("core")
    assert not index.is_builtin("fs")
    assert index.by_builtin_alias("net_pf_1") == ["core"]
    assert index.by_builtin_alias("core") == ["core"]
    assert index.builtin_modinfo("core") == [b"license=GPL", b"alias=net-pf-1", b"parm=x:an x"]


def test_a_compressed_module_is_indexed_like_any_other(tree):
    path = tree.add("packed", alias=["some-thing"])
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert tree.open().by_alias("some_thing") == ["packed"]


@pytest.mark.parametrize("content", [b"", b"junk", b"\x7fELF" + b"\xff" * 100])
def test_a_file_that_is_no_module_does_not_spoil_the_tree(tree, content):
    tree.add("good", alias=["x"])
    (tree.root / "kernel/bad.ko").write_bytes(content)
    index = tree.open()
    assert index.by_alias("x") == ["good"]
    assert "bad" in index


def test_every_truncation_of_a_module_can_be_indexed(tree):
    whole = tree.add("cut", exports=("cut_do",), alias=["x"]).read_bytes()
    for length in range(0, len(whole), 61):
        (tree.root / "kernel/cut.ko").write_bytes(whole[:length])
        assert "cut" in tree.open()


def test_an_image_without_modules_has_an_empty_index():
    index = ModuleIndex.open(ModuleTree(None), None)
    assert (len(index), index.by_alias("x"), index.path("x"), index.softdeps) == (0, [], None, [])


# -- on disk ----------------------------------------------------------------------------------------------


def _kept(directory: Path) -> Path:
    (file,) = directory.iterdir()
    return file


def test_the_index_is_read_back_without_reading_the_modules(tree, tmp_path):
    """A module whose bytes change in place, unseen by its directory, is still known by what it was."""
    path = tree.add("m", alias=["old"])
    tree.open(tmp_path / "kept")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"alias=old", b"alias=new"))
    again = ModuleIndex.open(ModuleTree(tree.root), tmp_path / "kept")
    assert again.by_alias("old") == ["m"]
    fresh = ModuleIndex.open(ModuleTree(tree.root), tmp_path / "kept", refresh=True)
    assert (fresh.by_alias("old"), fresh.by_alias("new")) == ([], ["m"])


def test_a_new_module_makes_a_new_index(tree, tmp_path):
    tree.add("m")
    tree.open(tmp_path / "kept")
    tree.add("n")
    os.utime(tree.root / "kernel", ns=(1, 1))  # whatever the file system's clock
    assert "n" in ModuleIndex.open(ModuleTree(tree.root), tmp_path / "kept")


def test_a_damaged_index_is_made_anew(tree, tmp_path):
    """Wherever one byte of the file is wrong, the answer is right."""
    tree.add("m", alias=["x"], exports=("m_do",))
    tree.open(tmp_path / "kept")
    file = _kept(tmp_path / "kept")
    good = file.read_bytes()
    for at in range(0, len(good), 97):
        file.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        index = ModuleIndex.open(ModuleTree(tree.root), tmp_path / "kept")
        assert (index.by_alias("x"), index.by_symbol("symbol:m_do")) == (["m"], ["m"])


def test_a_truncated_index_is_made_anew(tree, tmp_path):
    tree.add("m", alias=["x"])
    tree.open(tmp_path / "kept")
    file = _kept(tmp_path / "kept")
    file.write_bytes(file.read_bytes()[:-1])
    assert ModuleIndex.open(ModuleTree(tree.root), tmp_path / "kept").by_alias("x") == ["m"]
