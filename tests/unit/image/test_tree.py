import gzip
import lzma
import os

import pytest
import zstandard

from kodojo.errors import ImageError, InputError, MissingInformationError, ModuleFileError
from kodojo.image.tree import ModuleTree, module_name
from kodojo.kmod.depmod.index_writer import IndexWriter
from tests.support.kernel_file import KernelWriter


def module(depends=""):
    writer = KernelWriter()
    writer.add(".modinfo", b"license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    return writer.elf()


def put(root, path, data):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def put_dep(root, **lines):
    """modules.dep.bin: a line for each name."""
    index = IndexWriter()
    for number, (name, line) in enumerate(lines.items()):
        index.add(name.encode(), line.encode(), number)
    put(root, "modules.dep.bin", index.build())


@pytest.fixture
def tree(tmp_path):
    """Top needs mid-a and mid_b, both need base; packed in all the ways there are."""
    put(tmp_path, "kernel/top.ko", module("mid-a,mid_b"))
    put(tmp_path, "kernel/a/mid-a.ko.xz", lzma.compress(module("base"), check=lzma.CHECK_CRC32))
    put(tmp_path, "kernel/b/mid_b.ko.gz", gzip.compress(module("base")))
    put(tmp_path, "kernel/base.ko.zst", zstandard.compress(module()))
    put(tmp_path, "modules.builtin", b"kernel/fs/ext4.ko\nkernel/lib/crc-x.ko\n")
    return ModuleTree(tmp_path)


@pytest.fixture(params=["walk", "order", "dep"])
def any_tree(request, tree):
    """The same with modules.order, or with modules.dep.bin, in which the module to load first stands last."""
    if request.param == "order":
        order = b"kernel/top.ko\nkernel/a/mid-a.ko\nkernel/b/mid_b.ko\nkernel/base.ko\n"
        put(tree.root, "modules.order", order)
    elif request.param == "dep":
        put_dep(
            tree.root,
            top="kernel/top.ko: kernel/b/mid_b.ko.gz kernel/a/mid-a.ko.xz kernel/base.ko.zst",
            mid_a="kernel/a/mid-a.ko.xz: kernel/base.ko.zst",
            mid_b="kernel/b/mid_b.ko.gz: kernel/base.ko.zst",
            base="kernel/base.ko.zst:",
        )
    return tree


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/snd-pcm.ko", "snd_pcm"),
        ("x.ko.xz", "x"),
        ("x.ko.gz", "x"),
        ("x.ko.zst", "x"),
        ("x.y-z.ko", "x"),
        ("x.ko.debug", None),
        ("x.o", None),
        (".ko", None),
        ("modules.order", None),
    ],
)
def test_module_name(path, name):
    """A module is named after its file, dashes being underscores."""
    assert module_name(path) == name


def test_mapping(any_tree):
    """Modules are found by either spelling, whichever lists the tree has."""
    assert any_tree["mid_a"] == any_tree["mid-a"]
    assert any_tree["mid-a"].name == "mid_a"
    assert any_tree["mid-a"].path == any_tree.root / "kernel/a/mid-a.ko.xz"
    assert "mid-b" in any_tree
    assert "mid" not in any_tree
    with pytest.raises(KeyError):
        any_tree["mid"]
    assert sorted(any_tree) == ["base", "mid_a", "mid_b", "top"]
    assert len(any_tree) == 4


def test_depends(any_tree):
    """Dependencies come in load order, each once, those of dependencies included."""
    assert any_tree["top"].depends == ("base", "mid_a", "mid_b")
    assert any_tree["mid_b"].depends == ("base",)
    assert any_tree["base"].depends == ()


def test_read(any_tree):
    """A module is read decompressed, however it is packed."""
    assert any_tree["top"].read() == module("mid-a,mid_b")
    assert any_tree["mid_a"].read() == any_tree["mid_b"].read() == module("base")
    assert any_tree["base"].read() == module()


def test_builtin(tree):
    """Built-in modules are known by name, and satisfy a dependency without being loaded."""
    assert tree.builtin == {"ext4", "crc_x"}
    put(tree.root, "kernel/needs.ko", module("ext4,base"))
    assert ModuleTree(tree.root)["needs"].depends == ("base",)


def test_cycle(tree):
    """Modules that depend on each other do not hang the search."""
    put(tree.root, "kernel/one.ko", module("two"))
    put(tree.root, "kernel/two.ko", module("one"))
    assert ModuleTree(tree.root)["one"].depends == ("two",)


def test_long_chain(tree):
    """A chain of dependencies longer than Python's recursion limit is followed."""
    for i in range(3000):
        put(tree.root, f"kernel/m{i}.ko", module(f"m{i + 1}"))
    put(tree.root, "kernel/m3000.ko", module())
    assert ModuleTree(tree.root)["m0"].depends == tuple(f"m{i}" for i in range(3000, 0, -1))


def test_missing_dependency(tree):
    """A dependency that is not in the tree is reported by name."""
    put(tree.root, "kernel/lonely.ko", module("nowhere"))
    with pytest.raises(MissingInformationError, match="'nowhere'"):
        _ = ModuleTree(tree.root)["lonely"].depends


@pytest.mark.parametrize("order", [b"", b"kernel/base.ko\n"])
def test_updates(tree, order):
    """A module below updates replaces the one of the same name elsewhere, as depmod has it."""
    put(tree.root, "modules.order", order)
    put(tree.root, "updates/dkms/base.ko", module())
    assert ModuleTree(tree.root)["base"].path == tree.root / "updates/dkms/base.ko"


def test_modules_dep_bin_decides(tree):
    """What depmod has written is what modprobe goes by, whatever lies in the tree by now."""
    put(tree.root, "updates/base.ko", module())
    put(tree.root, "kernel/new.ko", module())
    put_dep(tree.root, base="kernel/base.ko.zst:", gone="extra/gone.ko: kernel/base.ko.zst")
    listed = ModuleTree(tree.root)
    assert list(listed) == ["base", "gone"]
    assert listed["base"].path == tree.root / "kernel/base.ko.zst"
    assert listed["gone"].depends == ("base",)
    assert "new" not in listed
    with pytest.raises(InputError, match=r"gone\.ko: cannot be read: No such file"):
        listed["gone"].read()


def test_contents(tree):
    """What no look-up finds is in the tree all the same, each file with the reason."""
    put(tree.root, "updates/base.ko", module())
    (tree.root / "kernel/away.ko").symlink_to("../nowhere/away.ko")
    (tree.root / "kernel/round").symlink_to("..")
    os.mkfifo(tree.root / "kernel/pipe.ko")
    put(tree.root, "kernel/odd.ko.bz2", b"BZh")
    contents = ModuleTree(tree.root).contents()
    assert contents.modules["base"].path == tree.root / "updates/base.ko"
    assert contents.others == {tree.root / "kernel/base.ko.zst": "modprobe base loads updates/base.ko instead"}
    assert dict(contents.passed_over) == {
        "kernel/away.ko": "a link to ../nowhere/away.ko, which is not there",
        "kernel/round": "a link to .., a directory that it is in itself",
        "kernel/pipe.ko": "neither a file nor a directory",
        "kernel/odd.ko.bz2": "compressed in a way that kmod does not know",
    }


def test_contents_by_modules_dep_bin(tree):
    """A file that was added after depmod ran is one that modprobe does not find."""
    put_dep(tree.root, base="kernel/base.ko.zst:")
    others = ModuleTree(tree.root).contents().others
    assert others.keys() == {tree.root / f"kernel/{name}" for name in ("top.ko", "a/mid-a.ko.xz", "b/mid_b.ko.gz")}
    assert all("modules.dep.bin does not list it" in why for why in others.values())


def test_linked_directories(tree, tmp_path):
    """Links to directories are followed, inside the tree and out of it, as depmod follows them."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    put(outside, "far.ko", module("base"))
    (tree.root / "extra").symlink_to(outside)
    (tree.root / "kernel/again").symlink_to("a")
    linked = ModuleTree(tree.root)
    assert linked["far"].path == tree.root / "extra/far.ko"
    assert linked["far"].depends == ("base",)
    assert len(linked) == 5


@pytest.mark.parametrize("damage", [b"\0" * 12, b"short", None])
def test_damaged_modules_dep_bin(tree, damage):
    """A damaged modules.dep.bin is an error that names it and the remedy, not a tree without modules."""
    put_dep(tree.root, base="kernel/base.ko.zst:")
    place = tree.root / "modules.dep.bin"
    place.write_bytes(place.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(ImageError, match=r"modules\.dep\.bin: damaged") as caught:
        len(ModuleTree(tree.root))
    assert "depmod" in caught.value.hint


def test_no_tree():
    """An image without modules has an empty tree."""
    nothing = ModuleTree(None)
    assert list(nothing) == []
    assert "base" not in nothing
    assert nothing.builtin == frozenset()


def test_damage(tree):
    """A damaged or vanished file, or one that is no module, is an error that names it."""
    middle = tree["mid-a"]
    middle.path.write_bytes(middle.path.read_bytes()[:-5])
    with pytest.raises(ModuleFileError, match=r"mid-a\.ko\.xz: the xz data is cut off"):
        middle.read()
    base = tree["base"]
    base.path.unlink()
    with pytest.raises(InputError, match=r"base\.ko\.zst: cannot be read"):
        base.read()
    put(tree.root, "kernel/not.ko", KernelWriter().elf())
    with pytest.raises(ImageError, match=r"not\.ko: not a kernel module"):
        _ = ModuleTree(tree.root)["not"].depends


@pytest.mark.kernel
def test_real_tree(image):
    """A module of a real tree has the vermagic that its kernel compares, and dependencies that are there."""
    data = image.modules["dummy"].read()
    assert b"\0vermagic=" + image.vermagic.encode() + b"\0" in data
    assert image.modules["af-key"].depends == ("xfrm_algo",)
    assert len(image.modules) > 3000
    assert all(name in image.modules for name in image.modules["btrfs"].depends)
