"""What a person adds to a kernel of the store; kernels are a line of text, as in test_store.py."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from kodojo.errors import ImageError, InputError, StoreError
from kodojo.image import additions as additions_module
from kodojo.image import store as store_module
from kodojo.image.additions import Additions, Kind, given_configuration, given_firmware, given_modules
from kodojo.image.store import Store
from kodojo.image.tree import ModuleTree
from tests.support.elf_writer import module_writer

RELEASE = "6.1-paper"


def open_fake(files, index):
    text = files.vmlinuz.read_text()
    tree = ModuleTree(files.modules)
    return SimpleNamespace(
        describes=frozenset(),
        release=text.split()[1],
        identity=hashlib.sha256(text.encode()).hexdigest(),
        path=files.vmlinuz,
        modules=tree,
        additions=Additions(index.parent, tree.root),
    )


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a kernel whose tree is its own."""
    monkeypatch.setattr(store_module, "_open_image", open_fake)
    return Store(tmp_path / "store")


def package(root: Path) -> Path:
    """An unpacked package, in a .deb that is a directory: what counts is that the tree comes with it."""
    (root / f"lib/modules/{RELEASE}/kernel").mkdir(parents=True)
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{RELEASE}").write_text(f"KERNEL {RELEASE}")
    return root


@pytest.fixture
def name(store, tmp_path):
    """The kernel, placed as `kodojo kernel add PACKAGE` places it."""
    store.add(package(tmp_path / "package"))
    place = store.root / "images" / RELEASE
    (place / f"lib/modules/{RELEASE}/kernel").mkdir(parents=True)
    description = store_module._Description.read(place)._replace(modules=f"lib/modules/{RELEASE}")
    store_module.write_checked(place / "description", description.pack(), "image")
    return RELEASE


def module(path: Path, vermagic: str = f"{RELEASE} SMP ") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(module_writer(name="m", info={"vermagic": vermagic}).build())
    return path


def modules(*paths: Path):
    return given_modules(paths, RELEASE, "x86_64")


def labels(store, name) -> list[str]:
    return [addition.label for addition in store.open(name).additions.listed()]


def test_modules_are_in_updates(store, name, tmp_path):
    """Modules that are installed are in updates of the store's tree, for nobody else to read, and win there."""
    before = store.open(name).identity
    image = store.install(name, modules(module(tmp_path / "a-b.ko"), module(tmp_path / "c.ko")))
    place = store.root / "images" / name / "lib/modules" / RELEASE / "updates"
    assert sorted(path.name for path in place.iterdir()) == ["a-b.ko", "c.ko"]
    assert stat.S_IMODE((place / "c.ko").stat().st_mode) == 0o600
    assert image.modules["a_b"].path == place / "a-b.ko"
    assert image.identity == before
    assert labels(store, name) == ["updates/a-b.ko", "updates/c.ko"]


def test_a_module_is_there_once(store, name, tmp_path):
    """The same module in another form or directory is replaced; so is a file of the same name."""
    place = store.root / "images" / name / "lib/modules" / RELEASE / "updates"
    module(place / "dkms/a_b.ko")
    store.install(name, modules(module(tmp_path / "a-b.ko")))
    assert labels(store, name) == ["updates/a-b.ko"]
    store.install(name, modules(module(tmp_path / "a-b.ko", vermagic=f"{RELEASE} PREEMPT ")))
    assert b"PREEMPT" in (place / "a-b.ko").read_bytes()


def test_what_depmod_wrote_is_forgotten(store, name, tmp_path):
    """Lists that depmod has written of the tree do not outlive a change of it; the build's own lists do."""
    tree = store.root / "images" / name / "lib/modules" / RELEASE
    for each in ("modules.dep", "modules.dep.bin", "modules.alias.bin", "modules.order", "modules.builtin"):
        (tree / each).write_text("")
    store.install(name, modules(module(tmp_path / "m.ko")))
    assert sorted(path.name for path in tree.glob("modules.*")) == ["modules.builtin", "modules.order"]
    (tree / "modules.dep.bin").write_text("")
    store.uninstall(name, ["m"])
    assert not (tree / "modules.dep.bin").exists()


def test_configuration_and_firmware(store, name, tmp_path):
    """modprobe.d, depmod.d and firmware have places of their own; a directory of firmware keeps its layout."""
    conf = tmp_path / "own.conf"
    conf.write_text("options m a=1\n")
    (tmp_path / "fw/vendor").mkdir(parents=True)
    (tmp_path / "fw/vendor/a.bin").write_bytes(b"a")
    (tmp_path / "b.bin").write_bytes(b"b")
    image = store.install(
        name,
        [
            *given_configuration(Kind.MODPROBE_D, [conf]),
            *given_configuration(Kind.DEPMOD_D, [conf]),
            *given_firmware([tmp_path / "fw", tmp_path / "b.bin"]),
        ],
    )
    expected = ["modprobe.d/own.conf", "depmod.d/own.conf", "firmware/b.bin", "firmware/vendor/a.bin"]
    assert labels(store, name) == expected
    place = store.root / "images" / name
    assert image.additions.modprobe_d == (place / "etc/modprobe.d",)
    assert image.additions.depmod_d == (place / "etc/depmod.d",)
    assert [(file.name, file.path.read_bytes()) for file in image.additions.firmware] == [
        ("b.bin", b"b"),
        ("vendor/a.bin", b"a"),
    ]


def test_a_kernel_without_additions(store, name):
    """Nothing is listed for a kernel to which nothing was added, or that is not of a store."""
    for additions in (store.open(name).additions, Additions(None, None)):
        assert (additions.listed(), additions.modprobe_d, additions.firmware) == ((), (), ())


def test_uninstall(store, name, tmp_path):
    """What was installed goes by the module's or the file's name, or its label; all that is named, or nothing."""
    conf = tmp_path / "own.conf"
    conf.write_text("")
    store.install(name, modules(*(module(tmp_path / f"{each}.ko") for each in ("a-b", "c", "d"))))
    store.install(name, given_configuration(Kind.MODPROBE_D, [conf]))
    with pytest.raises(InputError, match="nothing of that name"):
        store.uninstall(name, ["a_b", "nosuch"])
    assert len(labels(store, name)) == 4
    removed = store.uninstall(name, ["a_b", "d.ko", "modprobe.d/own.conf"])
    assert [addition.label for addition in removed] == ["updates/a-b.ko", "updates/d.ko", "modprobe.d/own.conf"]
    assert labels(store, name) == ["updates/c.ko"]
    assert "a_b" not in store.open(name).modules


def test_uninstall_takes_only_what_is_below_updates(store, name, tmp_path):
    """The kernel's own modules cannot be removed, whatever is given for a name."""
    module(store.root / "images" / name / "lib/modules" / RELEASE / "kernel/own.ko")
    store.install(name, modules(module(tmp_path / "m.ko")))
    for word in ("own", "../kernel/own.ko", "updates/../kernel/own.ko", "/etc/passwd", ""):
        with pytest.raises(InputError):
            store.uninstall(name, [word])
    assert "own" in store.open(name).modules


def test_a_full_disk_changes_nothing(store, name, tmp_path, monkeypatch):
    """When the second of two files cannot be written, neither is there, and no half of one."""
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(additions_module.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.install(name, modules(module(tmp_path / "a.ko"), module(tmp_path / "b.ko")))
    assert list((store.root / "images" / name / "lib/modules" / RELEASE / "updates").iterdir()) == []


def test_a_tree_outside_of_the_store_is_not_written_to(store, tmp_path):
    """A tree that is only referred to is refused, and so is a kernel that is only described."""
    store.add(package(tmp_path / "package"))
    with pytest.raises(InputError, match="outside of the store"):
        store.install(RELEASE, modules(module(tmp_path / "m.ko")))
    assert list((tmp_path / "package").rglob("*.ko")) == []
    place = store.root / "images" / RELEASE
    description = store_module._Description.read(place)._replace(headers="headers")
    store_module.write_checked(place / "description", description.pack(), "image")
    with pytest.raises(InputError, match="only described"):
        store.install(RELEASE, modules(module(tmp_path / "m.ko")))


def test_a_kernel_without_a_tree_gets_one(store, tmp_path):
    """For a kernel that came without modules a tree is made, with what is installed."""
    (tmp_path / "boot").mkdir()
    (tmp_path / f"boot/vmlinuz-{RELEASE}").write_text(f"KERNEL {RELEASE}")
    store.add(tmp_path / f"boot/vmlinuz-{RELEASE}")
    image = store.install(RELEASE, modules(module(tmp_path / "m.ko")))
    assert list(image.modules) == ["m"]
    assert store.add(tmp_path / f"boot/vmlinuz-{RELEASE}").modules["m"]  # the same kernel is the same image


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("m.txt", b"", "not a module by its name"),
        ("m.ko", b"only text", "no kernel module"),
        ("m.ko", module_writer(name="m", info={})
            .build().replace(b".modinfo", b".nodinfo"), "no section .modinfo"),
        ("-m.ko", b"", "not a name that is stored"),
        (".m.ko", b"", "not a name that is stored"),
        ("m\n.ko", b"", "not a name that is stored"),
    ],
)  # fmt: skip
def test_what_is_no_module(tmp_path, file, content, message):
    """Only modules are installed as modules, under names that mean nothing else."""
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(modules(tmp_path / file))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    """What is not there, no regular file, damaged or too large is refused before anything is written."""
    os.mkfifo(tmp_path / "p.ko")
    (tmp_path / "d.ko.xz").write_bytes(b"\xfd7zXZ\0 and no more")
    with pytest.raises(InputError, match="no such file"):
        list(modules(tmp_path / "m.ko"))
    with pytest.raises(InputError, match="not a regular file"):
        list(modules(tmp_path / "p.ko"))
    with pytest.raises(ImageError):
        list(modules(tmp_path / "d.ko.xz"))
    (tmp_path / "x.bin").write_bytes(bytes(9))
    monkeypatch.setitem(additions_module._LIMITS, Kind.FIRMWARE, 8)
    with pytest.raises(InputError, match="refused: more than"):
        list(given_firmware([tmp_path / "x.bin"]))
    (tmp_path / "conf").write_text("")
    with pytest.raises(InputError, match=r"end with \.conf"):
        list(given_configuration(Kind.MODPROBE_D, [tmp_path / "conf"]))


def test_firmware_of_a_directory_has_plain_names(tmp_path, monkeypatch):
    """No hidden file of a directory is installed, an empty directory is an error, and so are too many files."""
    (tmp_path / "fw/.git").mkdir(parents=True)
    with pytest.raises(InputError, match="has no files"):
        list(given_firmware([tmp_path / "fw"]))
    (tmp_path / "fw/.git/config").write_text("")
    with pytest.raises(InputError, match="not a name that is stored"):
        list(given_firmware([tmp_path / "fw"]))
    monkeypatch.setattr(additions_module, "_MOST_FIRMWARE", 0)
    with pytest.raises(InputError, match="has 1 files"):
        list(given_firmware([tmp_path / "fw"]))


@pytest.mark.parametrize(
    ("release", "architecture", "words"),
    [(RELEASE, "x86_64", ""), ("5.0", "x86_64", "built for 6.1-paper, not for 5.0"), (RELEASE, "aarch64", "x86_64")],
)
def test_warnings(tmp_path, release, architecture, words):
    """A module for another kernel, or another architecture, is said to be one."""
    (given,) = given_modules([module(tmp_path / "m.ko")], release, architecture)
    assert words in given.warning
    assert bool(words) == bool(given.warning)
