"""What is taken for source, with and without ``--build``."""

from __future__ import annotations

import pytest

from kodojo.check.build.recognition import dkms_directory, kind_of, title_of
from kodojo.check.build.sources import find_sources
from kodojo.check.sources import Spool, find_modules
from kodojo.errors import PackageError
from tests.support.archives import deb, entry, files
from tests.support.sources import CONF, write_dkms_package, write_source


@pytest.mark.parametrize(
    ("directory", "title"),
    [
        ("usr/src/vpoll-0.1", "vpoll 0.1"),
        ("usr/src/dm-writeboost-2.2.17", "dm-writeboost 2.2.17"),
        ("usr/src/adv-17v35x-5.0.7.0", "adv-17v35x 5.0.7.0"),
        ("usr/src/linux-apfs-rw-0.3.0-1", "linux-apfs-rw 0.3.0-1"),
        ("usr/src/dpdk-kmods-0~20220829+git", "dpdk-kmods 0~20220829+git"),
        ("usr/src/odd", "odd"),
    ],
)
def test_titles(directory, title):
    """The version begins with the first part that begins as a version does: a number, and no letter behind it."""
    assert title_of(directory) == title


def test_members():
    """Only a dkms.conf directly in a directory of usr/src makes it a source."""
    assert dkms_directory("./usr/src/a-1/dkms.conf") == "usr/src/a-1"
    assert dkms_directory("usr/src/a-1/sub/dkms.conf") is None
    assert dkms_directory("usr/share/doc/a/dkms.conf") is None


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("dkms.conf", "", "dkms"),
        ("Kbuild", "obj-m := x.o\n", "kbuild"),
        ("Makefile", "ifneq ($(KERNELRELEASE),)\n  obj-m += x.o\nendif\n", "kbuild"),
        ("Makefile", "obj-$(CONFIG_X) += x.o\n", "kbuild"),
        ("Makefile", "all: prog.o\n\tcc $^ # obj-m\n", None),
        ("README", "obj-m := x.o\n", None),
    ],
)
def test_directories(tmp_path, name, text, kind):
    """A directory is source by its dkms.conf, or by a Kbuild or Makefile in which something is a module."""
    (tmp_path / name).write_text(text)
    assert kind_of(tmp_path) == kind


def test_without_build(tmp_path, monkeypatch):
    """A package or directory of sources says what it is, and what builds it."""
    monkeypatch.chdir(tmp_path)
    write_dkms_package(tmp_path / "hello.deb")
    write_source(tmp_path / "plain")
    write_source(tmp_path / "dkms", conf=CONF)
    with Spool() as spool:
        found = {
            module.label: (module.problem, module.hint)
            for module in find_modules(["hello.deb", "plain", "dkms"], spool)
        }
    assert found == {
        "hello.deb": (
            "hello.deb: source for DKMS (hello 1.0), which has no modules in it",
            "build it against each kernel: kodojo check --build hello.deb",
        ),
        "plain": ("plain: the source of a module", "build it against each kernel: kodojo check --build plain"),
        "dkms": (
            "dkms: the source of a module for DKMS",
            "build it against each kernel: kodojo check --build dkms",
        ),
    }


def test_find_sources(tmp_path):
    """Sources and other words are told apart; a package may have several; all are copied or unpacked elsewhere."""
    two = tmp_path / "two.deb"
    two.write_bytes(deb(files({f"./usr/src/{name}/dkms.conf": b"" for name in ("a-1", "b-2")} | {"./etc/x": b""})))
    source = write_source(tmp_path / "plain")
    (tmp_path / "copies").mkdir()
    sources, others = find_sources([str(two), "other.ko", str(source)], tmp_path / "copies")
    assert [each.title for each in sources] == ["a 1", "b 2", "plain"]
    assert sources[0].module_label("a.ko") == f"{two}:usr/src/a-1:a.ko"
    assert sources[2].module_label("hello.ko") == f"{source}/hello.ko"
    assert others == ["other.ko"]
    assert all(each.place.is_relative_to(tmp_path / "copies") for each in sources)
    assert not list((tmp_path / "copies").rglob("etc"))


@pytest.mark.parametrize(
    "bad", [entry("usr/src/a-1/../../../x", data=b"x"), entry("usr/src/a-1/x", b"2", "../../../outside")]
)
def test_hostile_packages(tmp_path, bad):
    """Nothing is written outside: a path that leads out is refused, and no file is written through a link."""
    package = tmp_path / "bad.deb"
    through = entry("usr/src/a-1/x/file", data=b"x")
    package.write_bytes(deb([entry("usr/src/a-1/dkms.conf", data=b""), bad, through]))
    place = tmp_path / "copies" / "deep" / "er"
    place.mkdir(parents=True)
    if ".." in bad[0].name:
        with pytest.raises(PackageError, match="leads out of it"):
            find_sources([str(package)], place)
    else:
        find_sources([str(package)], place)
    written = {path.relative_to(place).parts[0] for path in (tmp_path / "copies").rglob("*") if path.is_file()}
    assert written <= {"0"}
