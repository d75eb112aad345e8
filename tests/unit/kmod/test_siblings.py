from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kodojo.errors import Detail, InputError, Refusal
from kodojo.kmod import siblings as siblings_module
from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.modprobe import resolve
from kodojo.kmod.providers import listed, with_providers
from kodojo.kmod.siblings import Siblings, modules_at, modules_beside, named_as_path
from tests.support import distribution
from tests.support.elf_writer import add_symbols, module_writer


def module(path: Path, *, exports: tuple[str, ...] = (), needs: tuple[str, ...] = (), **info: object) -> Path:
    """A module outside of the tree."""
    writer = module_writer(name=path.name.partition(".")[0].replace("-", "_"), info=info)
    add_symbols(writer, exports, needs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(writer.build()) if path.suffix == ".xz" else writer.build())
    return path


@pytest.fixture
def driver(tmp_path):
    """A driver on a library of its own, which is compressed, and on one of the tree."""
    directory = tmp_path / "driver"
    module(directory / "drv-lib.ko.xz", exports=("drv_help",), needs=("base_get",), alias=["drv-part", "fs-fs"])
    return module(
        directory / "drv.ko",
        needs=("drv_help", "lib_do", "printk"),
        alias="pci:v0000CAFEd*",
        softdep="post: drv-tail",
    )


@pytest.fixture
def known(index, driver):
    module(driver.parent / "drv-tail.ko")
    return Siblings(index, modules_beside(driver))


def test_names_and_paths(known, index, driver):
    """The files are known by the names of their modules, and so is the tree."""
    assert known.path("drv-lib") == known.path("drv_lib") == driver.parent / "drv-lib.ko.xz"
    assert known.path("fs") == index.path("fs")
    assert ("drv" in known, "fs" in known, "nothing" in known) == (True, True, False)
    assert known.root == index.root


def test_dependencies_by_symbols(known):
    """A file needs who exports its symbols, beside it or in the tree, in an order in which all can be loaded."""
    found = known.dependencies("drv")
    assert sorted(found) == ["base", "drv_lib", "lib"]
    assert found.index("base") < min(found.index("lib"), found.index("drv_lib"))
    assert known.dependencies("fs") == ("base", "lib")


def test_dependencies_by_name(index, tmp_path):
    """What a module names in depends= is needed, too, where it is; what is nowhere is told."""
    file = module(tmp_path / "d/user.ko", depends="tail,else-where,core")
    known = Siblings(index, modules_beside(file))
    assert known.dependencies("user") == ("tail",)
    assert known.absent("user") == ("else_where",)


def test_a_file_wins_over_the_tree(index, tmp_path):
    """A file of the same name stands for the tree's module: in dependencies of others, for aliases and symbols."""
    module(tmp_path / "d/base.ko", exports=("base_get", "base_put"), needs=("new_help",))
    file = module(tmp_path / "d/helper.ko", exports=("new_help",))
    known = Siblings(index, modules_beside(file))
    assert known.path("base") == tmp_path / "d/base.ko"
    assert known.dependencies("fs") == ("helper", "base", "lib")
    assert known.by_symbol("symbol:base_get") == ["base"]
    module(tmp_path / "d/fs.ko")
    known = Siblings(index, modules_beside(file))
    assert known.by_alias("fs_fs") == []
    assert "fs" not in dict(known.softdeps)


def test_aliases_and_softdeps(known, index):
    """Aliases of the files match as the tree's do, after them; soft dependencies are added to the tree's."""
    assert known.by_alias("pci:v0000CAFEd00000001") == ["drv"]
    assert known.by_alias("fs_fs") == ["fs", "drv_lib"]
    assert known.by_symbol("symbol:drv_help") == ["drv_lib"]
    assert known.by_symbol("drv_help") == []
    assert ("drv", "post: drv-tail") in known.softdeps
    assert set(index.softdeps) < set(known.softdeps)


def test_a_circle_ends(index, tmp_path):
    """Modules that need each other are found, each once."""
    module(tmp_path / "d/a.ko", exports=("a",), needs=("b",))
    file = module(tmp_path / "d/b.ko", exports=("b",), needs=("a",))
    assert Siblings(index, modules_beside(file)).dependencies("b") == ("a",)


def test_damaged_files_say_nothing(index, tmp_path):
    """A file that is no module, or cannot be read, is known by its name only."""
    file = module(tmp_path / "d/good.ko", needs=("bad_help",), depends="bad")
    (file.parent / "bad.ko").write_bytes(b"\x7fELF and no more")
    (file.parent / "gone.ko.xz").write_bytes(b"\xfd7zXZ\0 and no more")
    known = Siblings(index, modules_beside(file))
    assert known.dependencies("good") == ("bad",)
    assert known.dependencies("gone") == ()


def test_which_of_several_of_one_name(index, tmp_path):
    """Of several files of one name that for the kernel's release counts, else the one that is least deep."""
    old = module(tmp_path / "d/m.ko", vermagic="5.0 SMP ")
    new = module(tmp_path / "d/deep/m.ko", vermagic="9.9-paper SMP ")
    files = modules_at(tmp_path / "d")
    assert Siblings(index, files).path("m") == old
    assert Siblings(index, files, "9.9-paper").path("m") == new
    assert Siblings(index, files, "7.7").path("m") == old


def test_what_is_beside(tmp_path, monkeypatch):
    """Beside a file are the regular files with a module's name in its directory; links are not followed below one."""
    file = module(tmp_path / "d/m.ko")
    module(tmp_path / "d/below/n.ko")
    (tmp_path / "d/o.ko").mkdir()
    os.mkfifo(tmp_path / "d/p.ko")
    (tmp_path / "d/text").write_text("")
    (tmp_path / "d/around").symlink_to(tmp_path / "d")
    assert modules_beside(file) == [file]
    assert modules_at(file) == [file]
    assert modules_at(tmp_path / "d") == [file, tmp_path / "d/below/n.ko"]
    with pytest.raises(InputError, match="no such file"):
        modules_beside(tmp_path / "d/nothing.ko")
    with pytest.raises(InputError, match="not a module by its name"):
        modules_beside(tmp_path / "d/text")
    with pytest.raises(InputError, match="no such file or directory"):
        modules_at(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no modules"):
        modules_at(tmp_path / "empty")
    monkeypatch.setattr(siblings_module, "_MOST_FILES", 1)
    with pytest.raises(InputError, match="more than 1 modules"):
        modules_at(tmp_path / "d")


def test_files_and_names_are_told_apart(tmp_path, monkeypatch):
    """A word is a file's path as modprobe has it: from the root or from here; other slashes only where a file is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/m.ko").touch()
    paths = ["/m.ko", "./m.ko", "../m.ko", "d/m.ko", Path("m.ko")]
    assert [named_as_path(word) for word in paths] == [True] * 5
    assert [named_as_path(word) for word in ("m", "m.ko", "of:N/m", "d/other.ko")] == [False] * 4


def test_as_depmod_and_modprobe_have_it(tree, driver):
    """What is loaded, in an order that is possible, is what kmod loads when the files are in the tree's updates."""
    module(tree.root / "kernel/base.ko", exports=("base_get", "base_put"))
    module(tree.root / "kernel/lib.ko", exports=("lib_do",), needs=("base_get",))
    module(tree.root / "kernel/fs.ko", needs=("lib_do", "base_put"), alias=["fs-fs"])
    module(driver.parent / "base.ko", exports=("base_get", "base_put"), needs=("deep",))
    module(driver.parent / "deep.ko", exports=("deep",))
    module(driver.parent / "drv-tail.ko")
    tree.order = [f"kernel/{name}.ko" for name in ("base", "lib", "fs")]
    known = Siblings(tree.open(), modules_beside(driver))
    (tree.root / "updates").mkdir()
    for file in driver.parent.iterdir():
        shutil.copy(file, tree.root / "updates")
    program, environment = distribution.kmod()
    root = tree.root.parents[2]

    def kmod(name: str, *words: str) -> str:
        done = subprocess.run(
            [name, *words], executable=program, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kmod("depmod", "-b", str(root), tree.root.name)
    for name in ("drv", "drv-part", "fs", "pci:v0000CAFEd00000001"):
        shown = kmod("modprobe", "-d", str(root), "-S", tree.root.name, "-C", "/dev/null", "-D", name)
        theirs = [Path(line.split()[1]).name for line in shown.splitlines()]
        ours = [action.path.name for action in resolve(known, ModprobeConfig(), name)]
        assert sorted(set(ours)) == sorted(set(theirs))
        assert ours[-1] == theirs[-1]
        assert all(
            ours.index(known.path(needed).name) < place
            for place, action in enumerate(resolve(known, ModprobeConfig(), name))
            for needed in known.dependencies(action.name)
        )


# -- who has a symbol -------------------------------------------------------------------------------------


def unknown(*symbols: str) -> Refusal:
    details = tuple(Detail(symbol) for symbol in symbols)
    return Refusal(2, "simplify_symbols", "unknown-symbol", hint="as it was", details=details)


def test_hint_with_modules_and_commands(known, driver):
    """Who exports what is missing is named, with commands that load it; what others bring along is in none."""
    refusal = with_providers(unknown("drv_help", "lib_do", "base_get"), known, "drv", Path("drv.ko"))
    assert refusal.hint == (
        "Load base, drv_lib and lib first, which export them:"
        f" kodojo modprobe {driver.parent}/drv-lib.ko.xz, kodojo modprobe lib."
        " Or all at once: kodojo modprobe ./drv.ko."
    )
    owners = [detail.facts.get("module") for detail in refusal.details]
    assert owners == ["drv_lib", "lib", "base"]
    assert with_providers(unknown("lib_do"), known).hint == "Load lib first, which exports it: kodojo modprobe lib."


def test_hint_where_not_all_is_known(index, tmp_path):
    """Where nobody exports some of the symbols, no command is said to load it all; a file that is absent is named."""
    file = module(tmp_path / "d/user.ko", depends="gone,lib")
    known = Siblings(index, modules_beside(file))
    refusal = with_providers(unknown("lib_do", "nowhere"), known, "user", file)
    assert refusal.hint == (
        "Load lib first, which exports some of them: kodojo modprobe lib. depends= of the module names gone, which is"
        " neither in the kernel's tree nor beside the file: put the .ko file there."
    )
    assert [detail.facts.get("module") for detail in refusal.details] == ["lib", None]


def test_no_hint_without_knowledge(known, index):
    """Where nobody exports a symbol, and for other refusals, nothing is changed."""
    assert with_providers(unknown("nowhere"), index).hint == "as it was"
    assert with_providers(unknown("drv_help"), known, "drv_lib").hint == "as it was"  # it would have to help itself
    other = Refusal(8, "check_modinfo", "vermagic-mismatch", hint="as it was", details=(Detail("lib_do"),))
    assert with_providers(other, known) == other


def test_hint_about_a_file_that_is_absent(index, tmp_path):
    """A dependency that is named and nowhere to be found is told."""
    file = module(tmp_path / "d/user.ko", depends="a,b,tail")
    hint = with_providers(unknown("nowhere"), Siblings(index, modules_beside(file)), "user").hint
    assert hint.startswith("depends= of the module names a and b, which are neither")


def test_lists_for_people():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
