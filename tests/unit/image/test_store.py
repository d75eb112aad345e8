"""The store, with kernels that are a line of text where nothing has to look into them."""

import errno
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kodojo.durable import disk_error
from kodojo.errors import CorruptError, ImageError, InputError, PackageError, StoreError
from kodojo.image import fetch as fetch_module
from kodojo.image import package as package_module
from kodojo.image import store as store_module
from kodojo.image.image import FACTS
from kodojo.image.locate import find_kernel
from kodojo.image.store import Store
from kodojo.image.versions import version_key
from tests.support import distribution


@dataclass
class FakeImage:
    """What the store asks of an image: the release is in the "vmlinuz", as in a real one."""

    release: str
    identity: str
    vmlinuz: Path
    config: Path | None
    modules: Path | None
    index: Path
    describes: frozenset = FACTS


def open_fake(files, index):
    text = files.vmlinuz.read_text()
    if not text.startswith("KERNEL "):
        raise ImageError(f"{files.vmlinuz}: not a kernel", hint="give a vmlinuz")
    index.mkdir(exist_ok=True)
    return FakeImage(
        text.split()[1],
        hashlib.sha256(text.encode()).hexdigest(),
        files.vmlinuz,
        files.config,
        files.modules,
        index,
    )


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_open_image", open_fake)
    return Store(tmp_path / "store")


def make_tree(root, release="6.1", text=None):
    """An unpacked package."""
    modules = root / "lib/modules" / release / "kernel"
    modules.mkdir(parents=True)
    (modules / "dummy.ko").write_text("module")
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{release}").write_text(text or f"KERNEL {release} build 1")
    (root / f"boot/config-{release}").write_text("CONFIG_MODULES=y\n")
    return root


def make_deb(path, tree):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as file:
        file.add(tree, ".")
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("data.tar.gz", data.getvalue())):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


def listing(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")) if root.exists() else []


def test_package(store, tmp_path):
    """A package is in the store under its release, and does not need the package any more."""
    package = make_deb(tmp_path / "k.deb", make_tree(tmp_path / "tree"))
    shutil.rmtree(tmp_path / "tree")
    assert store.add(package).release == "6.1"
    package.unlink()
    image = store.open("6.1")
    assert image.vmlinuz == store.root / "images/6.1/boot/vmlinuz-6.1"
    assert image.config.read_text() == "CONFIG_MODULES=y\n"
    assert (image.modules / "kernel/dummy.ko").read_text() == "module"
    assert image.index == store.root / "images/6.1/index"


def test_unpacked_directory(store, tmp_path):
    """Of a directory, kernel and configuration are copied; the module tree is used where it is."""
    tree = make_tree(tmp_path / "tree")
    image = store.add(tree)
    assert image.vmlinuz.is_relative_to(store.root)
    assert image.config.is_relative_to(store.root)
    assert image.modules == tree / "lib/modules/6.1"


def test_module_tree_that_has_gone(store, tmp_path):
    """An image whose module tree was given as a directory says so when that has gone."""
    tree = make_tree(tmp_path / "tree")
    store.add(tree)
    shutil.rmtree(tree)
    with pytest.raises(StoreError, match="no longer there") as caught:
        store.open("6.1")
    assert str(tree / "lib/modules/6.1") in str(caught.value)
    assert "kodojo kernel remove 6.1" in caught.value.hint


def test_bare_vmlinuz(store, tmp_path):
    """A vmlinuz alone is enough; modules and configuration may be given beside it."""
    kernel = tmp_path / "some-file"
    kernel.write_text("KERNEL 6.1 build 1")
    alone = store.add(kernel)
    assert (alone.config, alone.modules) == (None, None)
    other = make_tree(tmp_path / "tree")
    image = store.add(kernel, modules=other, config=other / "boot/config-6.1")
    assert image.modules == other / "lib/modules/6.1"
    assert image.config.read_text() == "CONFIG_MODULES=y\n"


def test_vmlinuz_in_its_place(store, tmp_path):
    """A vmlinuz in a boot directory brings the configuration and the modules of its release."""
    tree = make_tree(tmp_path / "tree")
    image = store.add(tree / "boot/vmlinuz-6.1")
    assert image.config is not None
    assert image.modules == tree / "lib/modules/6.1"


def test_adding_again(store, tmp_path):
    """The same content again is the same image, whichever archive it came in."""
    tree = make_tree(tmp_path / "tree")
    store.add(make_deb(tmp_path / "a.deb", tree))
    before = listing(store.root)
    store.add(tmp_path / "a.deb")
    (tree / "unrelated").touch()
    store.add(make_deb(tmp_path / "b.deb", tree))
    assert listing(store.root) == before


def test_the_same_package_is_not_unpacked_again(store, tmp_path, monkeypatch):
    """A package that the store knows is recognised before it is unpacked."""
    package = make_deb(tmp_path / "k.deb", make_tree(tmp_path / "tree"))
    store.add(package)
    monkeypatch.setattr(package_module, "unpack", None)
    assert store.add(package).release == "6.1"


def test_another_kernel_of_the_same_release(store, tmp_path):
    """Another content under the same release gets a name of its own, and both can be opened."""
    store.add(make_tree(tmp_path / "a"))
    store.add(make_tree(tmp_path / "b", text="KERNEL 6.1 build 2"))
    first, second = store.names()
    assert first == store.resolve("6") == store.resolve("newest") == store.current_name() == "6.1"
    assert second.startswith("6.1+")
    assert store.open(first).vmlinuz.read_text().endswith("1")
    assert store.open(second).vmlinuz.read_text().endswith("2")


def test_everything_is_private(store, tmp_path):
    """No other user can read the store."""
    store.add(make_tree(tmp_path / "tree"))
    store.set_current("6.1")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    for path in [*store.root.rglob("boot/*"), store.root / "current", store.root / "images/6.1/description"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names(store, tmp_path):
    """An image is found by its release, a unique beginning, or "newest"; releases sort as people count."""
    for release in ("6.12.3-amd64", "6.9.1-amd64", "6.1.0-9-amd64"):
        store.add(make_tree(tmp_path / release, release))
    assert store.names() == ["6.1.0-9-amd64", "6.9.1-amd64", "6.12.3-amd64"]
    assert [image.release for image in store.images()] == store.names()
    assert store.open("newest").release == "6.12.3-amd64"
    assert store.open("6.9").release == "6.9.1-amd64"
    assert store.open("6.1").release == "6.1.0-9-amd64"
    with pytest.raises(InputError, match=r"any of 6\.1\.0-9-amd64, 6\.9\.1-amd64, 6\.12\.3-amd64"):
        store.open("6.")
    with pytest.raises(InputError, match=r"6\.9\.1-amd64") as caught:
        store.open("5.10")
    assert "kodojo kernel add" in caught.value.hint


def test_a_name_is_no_path(store, tmp_path):
    """Names that lead out of the store name nothing."""
    store.add(make_tree(tmp_path / "tree"))
    for name in ("../../tree", "/etc", ".", ".."):
        with pytest.raises(InputError):
            store.open(name)
        with pytest.raises(InputError):
            store.remove(name)


def test_empty_store(store):
    """An empty store says how to fill it, and asking creates nothing."""
    assert store.names() == []
    assert store.images() == []
    for ask in (store.current, store.current_name, lambda: store.open("6.1")):
        with pytest.raises(InputError, match="no kernel in the store") as caught:
            ask()
        assert "kodojo kernel add" in caught.value.hint
    assert not store.root.exists()


def test_current(store, tmp_path):
    """The current image is the newest until one is chosen, and again when that one is removed."""
    for release in ("6.1.0", "6.12.3"):
        store.add(make_tree(tmp_path / release, release))
    assert store.current_name() == "6.12.3"
    store.set_current("6.1.0")
    assert store.current().release == "6.1.0"
    store.remove("6.1.0")
    assert store.current_name() == "6.12.3"
    with pytest.raises(InputError):
        store.set_current("6.1.0")


def test_remove(store, tmp_path):
    """Removing an image removes its files, its snapshots and its headers, and nothing of the others."""
    for release in ("6.1.0", "6.12.3"):
        (store.headers_directory / f"{release}-x86_64" / "usr").mkdir(parents=True)
        snapshots = store.snapshots_directory(store.add(make_tree(tmp_path / release, release)))
        snapshots.mkdir(parents=True)
        (snapshots / "state").touch()
    kept = store.snapshots_directory(store.open("6.12.3"))
    assert store.remove("6.1") == "6.1.0"
    assert store.names() == ["6.12.3"]
    assert list((store.root / "snapshots").iterdir()) == [kept]
    assert [path.name for path in store.headers_directory.iterdir()] == ["6.12.3-x86_64"]
    assert not list((store.root / "images").glob(".*"))
    assert (tmp_path / "6.1.0/lib/modules/6.1.0/kernel/dummy.ko").exists()


def test_snapshots_are_shared_by_images_of_one_kernel(store, tmp_path):
    """Snapshots go with the last image of their kernel."""
    kernel = make_tree(tmp_path / "tree") / "boot/vmlinuz-6.1"
    (tmp_path / "bare").write_text(kernel.read_text())
    snapshots = store.snapshots_directory(store.add(kernel))
    store.add(tmp_path / "bare")
    snapshots.mkdir(parents=True)
    first, second = store.names()
    store.remove(first)
    assert snapshots.exists()
    store.remove(second)
    assert not snapshots.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "absent"])
def test_damaged_description(store, tmp_path, damage):
    """A damaged description is refused, does not hide other images, and can be removed or replaced."""
    tree = make_tree(tmp_path / "tree")
    store.add(tree)
    store.add(make_tree(tmp_path / "other", "6.2"))
    description = store.root / "images/6.1/description"
    data = description.read_bytes()
    if damage == "absent":
        description.unlink()
    else:
        description.write_bytes(data[:-10] if damage == "cut" else data.replace(b"boot", b"root", 1))
    with pytest.raises(StoreError, match="description") as caught:
        store.open("6.1")
    assert isinstance(caught.value, CorruptError) == (damage != "absent")
    assert "kodojo kernel remove 6.1" in caught.value.hint
    assert store.open("6.2").release == "6.2"
    store.add(tree)
    assert store.open("6.1").release == "6.1"
    assert store.names() == ["6.1", "6.2"]


def test_vmlinuz_that_has_gone(store, tmp_path):
    """An image without its kernel is refused by name."""
    store.add(make_tree(tmp_path / "tree")).vmlinuz.unlink()
    with pytest.raises(CorruptError, match=r"vmlinuz-6\.1: has gone"):
        store.open("6.1")
    store.remove("6.1")


def refused(store, error, source, **options):
    before = listing(store.root / "images")
    with pytest.raises(error) as caught:
        store.add(source, **options)
    assert listing(store.root / "images") == before
    return caught.value


def test_what_cannot_be_added(store, tmp_path):
    """Whatever is refused is named as the user gave it, and leaves nothing in the store."""
    no_kernel = tmp_path / "text"
    no_kernel.write_text("no kernel")
    truncated = make_deb(tmp_path / "k.deb", make_tree(tmp_path / "tree"))
    truncated.write_bytes(truncated.read_bytes()[:-100])
    empty = tmp_path / "empty"
    empty.mkdir()
    two = make_tree(tmp_path / "two")
    (two / "boot/vmlinuz-6.2").write_text("KERNEL 6.2")
    os.mkfifo(tmp_path / "fifo")
    for source, error in [
        (no_kernel, ImageError),
        (truncated, PackageError),
        (empty, InputError),
        (two, InputError),
        (tmp_path / "absent", InputError),
        (tmp_path / "fifo", InputError),
    ]:
        raised = refused(store, error, source)
        assert str(source) in str(raised)
        assert raised.hint
    refused(store, InputError, no_kernel, modules=tmp_path / "absent")
    refused(store, InputError, no_kernel, config=tmp_path / "absent")


def test_a_bad_kernel_in_a_package(store, tmp_path):
    """The error names the package and the file in it, not the place where it was unpacked."""
    package = make_deb(tmp_path / "k.deb", make_tree(tmp_path / "tree", text="no kernel"))
    error = refused(store, ImageError, package)
    assert str(error) == error.message == f"{package}/boot/vmlinuz-6.1: not a kernel"


def test_a_release_that_is_no_name(store, tmp_path):
    """A kernel's release becomes a name in the store only if it can be one."""
    for release in ("../../evil", ".hidden", "a/b"):
        kernel = tmp_path / "kernel"
        kernel.write_text(f"KERNEL {release} build 1")
        refused(store, ImageError, kernel)


def test_a_kernel_that_cannot_be_read_is_not_added(store, tmp_path, monkeypatch):
    """Of a kernel whose symbols nobody understands nothing stays, and the error names one to take instead."""

    class Unreadable(FakeImage):
        @property
        def describes(self):
            raise ImageError("the kernel's symbols have no addresses that kodojo understands")

    opened = []
    monkeypatch.setattr(FakeImage, "__init__", lambda image, *args: opened.append(args))
    monkeypatch.setattr(store_module, "_open_image", lambda *_args: Unreadable())
    with pytest.raises(ImageError, match="no addresses") as caught:
        store.add(make_tree(tmp_path / "tree", "7.0"))
    assert "kodojo kernel add linux-image-" in caught.value.hint
    assert store.names() == []
    assert list((store.root / "images").iterdir()) == []


def test_package_by_name(store, tmp_path, monkeypatch):
    """What is no file but could be a package's name is fetched; nothing at all is the newest."""
    asked = []

    def fetch(name, destination, progress):
        asked.append(name)
        destination.mkdir()
        return make_deb(destination / "k.deb", make_tree(tmp_path / f"tree{len(asked)}", f"6.{len(asked)}"))

    monkeypatch.setattr(fetch_module, "fetch_package", fetch)
    monkeypatch.setattr(fetch_module, "fetch_newest", lambda *args: fetch(None, *args))
    assert store.add("linux-image-6.12").release == "6.1"
    assert store.add().release == "6.2"
    assert store.add("linux-image-6.12/bookworm").release == "6.3"
    assert asked == ["linux-image-6.12", None, "linux-image-6.12/bookworm"]


def test_what_a_killed_process_left_is_removed(store, tmp_path):
    """Half-prepared images of killed processes go at the next occasion; those in use stay."""
    images = store.root / "images"
    (images / ".incoming-dead/image").mkdir(parents=True)
    (images / ".incoming-busy").mkdir()
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), 2); print(flush=True); input()"
    command = [sys.executable, "-c", program, images / ".incoming-busy"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        store.add(make_tree(tmp_path / "tree"))
        assert sorted(path.name for path in images.iterdir()) == [".incoming-busy", "6.1"]
        process.communicate(b"\n")


def test_adding_at_the_same_time(store, tmp_path):
    """Several that add the same package at once end with one image, and none of them fails."""
    package = make_deb(tmp_path / "k.deb", make_tree(tmp_path / "tree"))
    with ThreadPoolExecutor(4) as pool:
        added = [future.result() for future in [pool.submit(store.add, package) for _ in range(4)]]
    assert [image.release for image in added] == ["6.1"] * 4
    assert listing(store.root / "images")[0] == "6.1"
    assert store.names() == ["6.1"]


def test_full_disk(store, tmp_path, monkeypatch):
    """A full disk while an image is added names the place in the store, and leaves nothing there."""

    def full(files, index):
        raise disk_error(index, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(store_module, "_open_image", full)
    for source in (make_tree(tmp_path / "tree"), make_deb(tmp_path / "k.deb", tmp_path / "tree")):
        error = refused(store, StoreError, source)
        assert str(store.root) in str(error)
        assert "KODOJO_STORE" in error.hint


def test_default_place(monkeypatch, tmp_path):
    """The store is where KODOJO_STORE says, else where XDG has data, else below the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("KODOJO_STORE", "/chosen")
    assert Store.default().root == Path("/chosen")
    monkeypatch.delenv("KODOJO_STORE")
    assert Store.default().root == Path("/data/kodojo")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert Store.default().root == tmp_path / ".local/share/kodojo"
    assert Store.default().machine_directory.parent == Store.default().root


def test_store_that_cannot_be_written(tmp_path, monkeypatch):
    """A store below a file is an error that names it."""
    monkeypatch.setattr(store_module, "_open_image", open_fake)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/store"):
        Store(tmp_path / "file/store").add(make_tree(tmp_path / "tree"))


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


@pytest.mark.parametrize(
    ("present", "vmlinuz", "config", "modules"),
    [
        (["boot/vmlinuz-6.1", "boot/config-6.1", "lib/modules/6.1/a.ko"],) * 2
        + ("boot/config-6.1", "lib/modules/6.1"),
        (["usr/lib/modules/6.1/vmlinuz", "usr/lib/modules/6.1/config"],) * 2
        + ("usr/lib/modules/6.1/config", "usr/lib/modules/6.1"),
        (["boot/vmlinuz-6.1", "lib/modules/6.1/vmlinuz", "lib/modules/6.1/config"],) * 2
        + ("lib/modules/6.1/config", "lib/modules/6.1"),
        (["vmlinuz", "config", "modules.dep"],) * 2 + ("config", "."),
        (["vmlinuz-6.1", "vmlinuz", "config-6.1", "kernel/a.ko.xz"],) * 2 + ("config-6.1", "."),
        (["arch/x86/boot/bzImage", ".config", "vmlinux"],) * 2 + (".config", "."),
        (["vmlinuz"], ["vmlinuz"], None, None),
    ],
)
def test_layouts(tmp_path, present, vmlinuz, config, modules):
    """The kernel, its configuration and its modules are found in every layout that distributions have."""
    put(tmp_path, *present)
    files = find_kernel(tmp_path)
    assert files.vmlinuz == tmp_path / vmlinuz[0]
    assert files.config == (tmp_path / config if config else None)
    assert files.modules == (tmp_path / modules if modules else None)


def test_module_directory_with_its_kernel(tmp_path):
    """A module directory that holds its own kernel, as Fedora's does, is recognised by itself."""
    put(tmp_path, "lib/modules/6.1/vmlinuz", "lib/modules/6.1/config", "lib/modules/6.1/modules.dep")
    directory = tmp_path / "lib/modules/6.1"
    files = find_kernel(directory)
    assert (files.vmlinuz, files.config, files.modules) == (
        directory / "vmlinuz",
        directory / "config",
        directory,
    )


def test_order_of_releases():
    """Releases sort as people count: by number, with candidates before the release."""
    ordered = [
        "5.10",
        "6.1.0-9",
        "6.1.0-56",
        "6.9",
        "6.12.1",
        "6.12.117+deb12",
        "6.13-rc2",
        "6.13~rc3",
        "6.13",
        "6.13.1",
    ]
    assert sorted(ordered[5:] + ordered[:5], key=version_key) == ordered


@pytest.mark.kernel
@pytest.mark.parametrize("series", distribution.SERIES)
def test_real_package(tmp_path, series):
    """A distribution's package becomes an image that knows its release, exports and modules."""
    package = distribution.kernel_of(series).image_deb
    store = Store(tmp_path / "store")
    image = store.add(package)
    assert package.name.startswith(f"linux-image-{image.release}_")
    assert store.names() == [image.release]
    assert len(image.modules) > 3000
    assert "dummy" in image.modules
    assert len(image.exports) > 10_000
    assert image.config.enabled("MODULES")
