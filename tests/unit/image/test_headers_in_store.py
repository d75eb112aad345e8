"""Headers packages and build trees in the store."""

import pickle
import shutil

import pytest

from kodojo.errors import CorruptError, ImageError, InputError, MissingInformationError
from kodojo.image.image import Image
from kodojo.image.package import unpack
from kodojo.image.store import Store
from kodojo.kernel.kernel import Kernel
from tests.support.headers import RELEASE, SYMVERS, write_headers
from tests.support.kernel_file import RELEASE as KERNEL_RELEASE
from tests.support.kernel_file import bzimage, small_kernel
from tests.unit.image.test_package import content, cpio, regular, rpm
from tests.unit.image.test_store import make_deb

NAME = f"{RELEASE}+headers"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def package(tmp_path, changes=None, flavour="amd64", version="6.1.7-1"):
    """A .deb as Debian makes it, named as it names it."""
    root = tmp_path / "package"
    shutil.rmtree(root, ignore_errors=True)
    write_headers(root / f"usr/src/linux-headers-{RELEASE}-{flavour}", changes)
    (root / f"lib/modules/{RELEASE}").mkdir(parents=True)
    (root / f"lib/modules/{RELEASE}/build").symlink_to(f"/usr/src/linux-headers-{RELEASE}-{flavour}")
    return make_deb(tmp_path / f"linux-headers-{RELEASE}-{flavour}_{version}_amd64.deb", root)


def whole(tmp_path, release=RELEASE):
    """A kernel of the same release."""
    kernel = small_kernel().replace(KERNEL_RELEASE.encode(), release.encode().ljust(len(KERNEL_RELEASE), b"0"))
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(kernel))
    return path


def test_unpacked(tmp_path):
    """Of ten thousand headers only those are unpacked that describe the kernel."""
    root = write_headers(
        tmp_path / "root/usr/src/linux-headers-x", {"include/linux/list.h": "", "scripts/mod/x.h": ""}
    )
    unpack(make_deb(tmp_path / "x.deb", root.parents[2]), tmp_path / "out")
    names = {name.removeprefix("usr/src/linux-headers-x/") for name in content(tmp_path / "out")}
    assert {"Module.symvers", ".config", "include/linux/module.h"} <= names
    assert not names & {"include/linux/list.h", "scripts/mod/x.h"}


def test_package(store, tmp_path):
    """A headers package is in the store under RELEASE+headers, and neither it nor the tree is needed any more."""
    deb = package(tmp_path)
    image = store.add(deb)
    assert store.names() == [NAME]
    deb.unlink()
    for opened in (image, store.open(RELEASE), Image.open(NAME), pickle.loads(pickle.dumps(image))):
        assert (opened.kind, opened.release, opened.warnings) == ("headers", RELEASE, ())
        assert opened.exports.find("_printk").crc == 1
        assert not opened.has_text(b"Only one .modinfo section must exist.")


def test_rpm(store, tmp_path):
    """An .rpm of kernel-devel does as well."""
    tree = write_headers(tmp_path / f"tree/usr/src/kernels/{RELEASE}").parents[3]
    data = rpm(cpio(regular({f"./{name}": data for name, data in content(tree).items()})))
    (tmp_path / "kernel-devel.rpm").write_bytes(data)
    assert store.add(tmp_path / "kernel-devel.rpm").vermagic.startswith(f"{RELEASE} SMP ")
    assert store.names() == [NAME]


def test_other_half(store, tmp_path):
    """The package with the headers that flavours share is used if it lies beside the flavour's."""
    include = f"include /usr/src/linux-headers-{RELEASE}-common/Makefile\n"
    deb = package(tmp_path, {"include/linux/module.h": None, "Makefile": include})
    assert "messages" not in store.add(deb).describes
    with pytest.raises(MissingInformationError):
        store.open(NAME).has_text(b"Only one .modinfo section must exist.")
    store.remove(NAME)
    shared = write_headers(tmp_path / f"shared/usr/src/linux-headers-{RELEASE}-common", {"Module.symvers": None})
    make_deb(tmp_path / f"linux-headers-{RELEASE}-common_6.1.7-1_all.deb", shared.parents[2])
    assert not store.add(deb).has_text(b"Only one .modinfo section must exist.")


def test_same_again(store, tmp_path):
    """The same headers again, packed or not, are the same kernel; others of the release get a name of their own."""
    first = store.add(package(tmp_path))
    assert store.add(package(tmp_path)).path == first.path
    assert store.add(write_headers(tmp_path / "tree")).path == first.path
    other = store.add(
        write_headers(tmp_path / "other", {"Module.symvers": SYMVERS.replace("0x00000001", "0x00000009")})
    )
    assert other.exports.find("_printk").crc == 9
    assert store.names() == [NAME, f"{NAME}+{other.identity[:8]}"]
    assert store.open(RELEASE).exports.find("_printk").crc == 1


def test_with_the_kernel(store, tmp_path):
    """Where the kernel itself is in the store, too, it is what its release means, and what commands use."""
    store.add(package(tmp_path))
    store.add(whole(tmp_path))
    release = next(name for name in store.names() if name != NAME)
    assert {store.open(name).kind for name in (None, "newest", release)} == {"kernel"}
    assert store.open(NAME).kind == "headers"
    store.remove(NAME)
    assert store.names() == [release]


def test_newest(store, tmp_path):
    """A newer kernel that is only described is not what commands use when none is named."""
    newer = {"include/generated/utsrelease.h": '#define UTS_RELEASE "99.0"\n'}
    store.add(write_headers(tmp_path / "tree", newer))
    assert store.current_name() == "99.0+headers"
    store.add(whole(tmp_path))
    assert store.current().kind == "kernel"


def test_build_tree(store, tmp_path):
    """What describes a kernel is copied from a build tree, another configuration if one is given."""
    tree = write_headers(tmp_path / "tree")
    (tmp_path / "config").write_text((tree / ".config").read_text() + "CONFIG_LIVEPATCH=y\n")
    store.add(tree / "Module.symvers", config=tmp_path / "config")
    shutil.rmtree(tree)
    assert store.open(NAME).config.enabled("LIVEPATCH")


def test_modules_beside(store, tmp_path):
    """The modules beside lib/modules/RELEASE/build belong to it, and are referred to."""
    modules = tmp_path / f"lib/modules/{RELEASE}"
    write_headers(modules / "build")
    (modules / "modules.dep").write_text("kernel/dummy.ko:\n")
    (modules / "kernel").mkdir()
    (modules / "kernel/dummy.ko").write_bytes(b"module")
    assert store.add(tmp_path).modules["dummy"].read() == b"module"


def test_no_release(store, tmp_path):
    """What has no release can have no name, and says what is missing."""
    (tmp_path / "Module.symvers").write_text(SYMVERS)
    with pytest.raises(ImageError, match="which release") as caught:
        store.add(tmp_path / "Module.symvers")
    assert "utsrelease.h" in caught.value.hint
    assert str(store.root) not in caught.value.message
    assert store.names() == []


def test_damaged(store, tmp_path):
    """An error about a file of the package names the package, and nothing is added."""
    deb = package(tmp_path, {"Module.symvers": SYMVERS[:-10]})
    with pytest.raises(ImageError, match=r"linux-headers.*\.deb/headers/Module\.symvers:7: cut off"):
        store.add(deb)
    assert store.names() == []


def test_gone(store, tmp_path):
    """Headers whose Module.symvers has gone from the store say so."""
    image = store.add(package(tmp_path))
    (image.path / "Module.symvers").unlink()
    with pytest.raises(CorruptError, match="has gone"):
        store.open(NAME)


def test_not_booted(store, tmp_path):
    """Booting a kernel that is only described fails at once, and names the package that could be booted."""
    image = store.add(package(tmp_path))
    with pytest.raises(MissingInformationError, match="only described") as caught:
        Kernel.boot(image)
    assert f"linux-image-{RELEASE}" in caught.value.hint


def test_nothing_of_a_kernel(store, tmp_path):
    """A directory with neither kernel nor Module.symvers is still an error."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no kernel"):
        store.add(tmp_path / "empty")
