"""``kodojo depmod``, as depmod is called."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from kodojo.image.tree import ModuleTree
from tests.support.module_tree import RELEASE, TreeWriter


@pytest.fixture
def tree(tmp_path):
    """Two modules, one of which needs the other."""
    written = TreeWriter(tmp_path / "root")
    written.add("kernel/base.ko", exports=("base_get",))
    written.add("kernel/user.ko", needs=("base_get",), alias="some-thing")
    written.order("kernel/base.ko", "kernel/user.ko")
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        written.put(name, b"")
    return written


def stored(cards, root, modules):
    """A kernel of the store, which lies at ``root``."""
    cards.root = root
    cards.images[RELEASE] = SimpleNamespace(release=RELEASE, modules=ModuleTree(modules))


def test_it_writes_what_modprobe_needs_and_says_nothing(run, tree):
    result = run("depmod", "-b", str(tree.top), RELEASE)
    assert (result.exit_code, result.output) == (0, "")
    assert (tree.root / "modules.dep").read_text() == "kernel/base.ko:\nkernel/user.ko: kernel/base.ko\n"
    assert ModuleTree(tree.root)["user"].depends == ("base",)


def test_the_release_need_not_be_given_where_there_is_one(run, tree):
    assert run("depmod", "-b", str(tree.top)).exit_code == 0
    (tree.root.parent / "1.2").mkdir()
    result = run("depmod", "-b", str(tree.top))
    assert (result.exit_code, "1.2, 9.9-paper" in result.stderr) == (1, True)


@pytest.mark.parametrize("option", ["-n", "--show", "--dry-run"])
def test_n_prints_and_writes_nothing(run, tree, option):
    before = sorted(tree.root.iterdir())
    result = run("depmod", option, "-b", str(tree.top), RELEASE)
    assert result.stdout.startswith("kernel/base.ko:\nkernel/user.ko: kernel/base.ko\n# Aliases extracted")
    assert result.stdout.endswith("alias symbol:base_get base\n")
    assert sorted(tree.root.iterdir()) == before


def test_o_writes_elsewhere(run, tree, tmp_path):
    assert run("depmod", "-b", str(tree.top), "-o", str(tmp_path / "out"), RELEASE).exit_code == 0
    written = {path.name for path in (tmp_path / "out/lib/modules" / RELEASE).iterdir()}
    assert {"modules.dep.bin", "modules.alias", "modules.devname"} <= written
    assert not (tree.root / "modules.dep").exists()


def test_m_names_another_directory(run, tree):
    tree.root.parent.rename(tree.top / "mods")
    assert run("depmod", "-b", str(tree.top), "-m", "/mods", RELEASE).exit_code == 0
    assert (tree.top / "mods" / RELEASE / "modules.dep").exists()


def test_big_a_does_nothing_if_nothing_is_newer(run, tree):
    (tree.root / "modules.dep").write_text("old")
    os.utime(tree.root / "modules.dep", (2_000_000_000, 2_000_000_000))
    assert run("depmod", "-A", "-b", str(tree.top), RELEASE).exit_code == 0
    assert (tree.root / "modules.dep").read_text() == "old"
    os.utime(tree.root / "modules.dep", (1, 1))
    assert run("depmod", "-A", "-b", str(tree.top), RELEASE).exit_code == 0
    assert (tree.root / "modules.dep").read_text() != "old"


def test_files_are_looked_at_alone(run, tree):
    result = run("depmod", "-n", "-b", str(tree.top), RELEASE, f"{tree.root}/kernel/user.ko")
    assert result.stdout.startswith("kernel/user.ko:\n# Aliases")
    result = run("depmod", "-n", "-b", str(tree.top), RELEASE, "kernel/user.ko")
    assert (result.exit_code, result.stderr) == (1, "depmod: FATAL: kernel/user.ko: not absolute path.\n")


def test_a_circle_is_an_error_and_nothing_is_written(run, tree):
    tree.add("kernel/base.ko", exports=("base_get",), needs=("user_get",))
    tree.add("kernel/user.ko", exports=("user_get",), needs=("base_get",))
    result = run("depmod", "-b", str(tree.top), RELEASE)
    assert result.exit_code == 1
    assert result.stderr == (
        "depmod: ERROR: Cycle detected: base -> user -> base\ndepmod: ERROR: Found 2 modules in dependency cycles!\n"
    )
    assert not (tree.root / "modules.dep").exists()


def test_two_files_of_one_name_are_named_with_the_one_that_counts(run, tree):
    tree.add("updates/user.ko")
    (tree.root / "kernel/away.ko").symlink_to("nowhere.ko")
    result = run("depmod", "-b", str(tree.top), RELEASE)
    assert result.exit_code == 0
    assert result.stderr == (
        "depmod: ERROR: kernel/away.ko: passed over: a link to nowhere.ko, which is not there\n"
        "depmod: WARNING: two files are called user: updates/user.ko goes first, kernel/user.ko is left out\n"
    )


def test_e_needs_the_kernels_symbols(run, tree, tmp_path):
    tree.add("kernel/lost.ko", needs=("nowhere",))
    result = run("depmod", "-e", "-b", str(tree.top), RELEASE)
    assert (result.exit_code, result.stderr) == (0, "depmod: WARNING: -e needs -E or -F\n")
    (tmp_path / "map").write_text("")
    result = run("depmod", "-e", "-F", str(tmp_path / "map"), "-b", str(tree.top), RELEASE)
    assert result.stderr == f"depmod: WARNING: {tree.root}/kernel/lost.ko needs unknown symbol nowhere\n"
    result = run("depmod", "-e", "-E", str(tmp_path / "none"), "-b", str(tree.top), RELEASE)
    text = f"depmod: FATAL: could not load {tmp_path}/none: No such file or directory\n"
    assert (result.exit_code, result.stderr) == (1, text)


def test_v_prints_who_needs_whom(run, tree):
    result = run("depmod", "-v", "-b", str(tree.top), RELEASE)
    assert result.stdout == f'{tree.root}/kernel/user.ko needs "base_get": {tree.root}/kernel/base.ko\n'


def test_no_tree_and_wrong_words(run, tmp_path):
    result = run("depmod", "-b", str(tmp_path), "9.9")
    where = f"{tmp_path}/lib/modules/9.9"
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"depmod: ERROR: could not open directory {where}: No such file or directory",
        "depmod: FATAL: could not search modules: No such file or directory",
    ]
    assert run("depmod", "-b", str(tmp_path), "nine").stderr == "depmod: ERROR: Bad version passed nine\n"
    result = run("depmod", "-P", "ab", "-b", str(tmp_path), "9.9")
    assert (result.exit_code, result.stderr) == (1, "depmod: FATAL: -P only takes a single char\n")


def test_a_kernel_of_the_store_is_written_to(run, cards, tree):
    stored(cards, tree.top, tree.root)
    assert run("depmod").exit_code == 0
    assert (tree.root / "modules.dep.bin").exists()
    (tree.root / "modules.dep.bin").unlink()
    for words in (("--kernel", RELEASE), (RELEASE,)):
        assert run("depmod", *words).exit_code == 0


def test_a_tree_that_the_store_only_refers_to_is_not_written_to(run, cards, tree, tmp_path):
    stored(cards, tmp_path / "store", tree.root)
    result = run("depmod", "--kernel", RELEASE)
    assert result.exit_code == 1
    assert "only refers to it; nothing was written" in result.stderr
    assert "kodojo depmod -b ROOT RELEASE" in result.stderr
    assert not (tree.root / "modules.dep").exists()
    assert run("depmod", "-n", "--kernel", RELEASE).exit_code == 0


def test_json_has_the_modules_and_what_was_said(run, tree):
    tree.add("updates/user.ko", needs=("base_get",))
    answer = json.loads(run("--json", "depmod", "-b", str(tree.top), RELEASE).stdout)
    assert answer["modules"]["user"] == {"path": "updates/user.ko", "depends": ["base"]}
    assert (answer["ok"], answer["cycles"], len(answer["written"])) == (True, [], 11)
    assert [message["priority"] for message in answer["messages"]] == ["WARNING"]


def test_version(run):
    assert run("depmod", "-V").output.startswith("kodojo version ")
