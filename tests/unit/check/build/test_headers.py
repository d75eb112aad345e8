"""Where the headers of a kernel are looked for, and in which order."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from kodojo.check.build.headers import given_headers, headers_for
from kodojo.errors import InputError
from tests.support.archives import deb, entry, files

RELEASE = "9.9-test"
BUILD = f"usr/src/linux-headers-{RELEASE}"


def contents(release: str = RELEASE, build: str = BUILD) -> dict[str, bytes]:
    return {
        f"{build}/Module.symvers": b"0x1\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t\n",
        f"{build}/Makefile": b"include /usr/src/linux-headers-9.9-common/Makefile\n",
        f"{build}/.config": b'CONFIG_MODULES=y\nCONFIG_CC_VERSION_TEXT="gcc-12 (Debian) 12"\n',
        f"{build}/include/config/kernel.release": f"{release}\n".encode(),
    }


def packages(directory, release: str = RELEASE):
    """Three packages as Debian's, which refer to each other."""
    directory.mkdir()
    build = f"usr/src/linux-headers-{release}"
    links = [entry(f"{build}/scripts", b"2", "../../lib/linux-kbuild-9.9/scripts")]
    parts = {
        f"linux-headers-{release}": files(contents(release, build)) + links,
        "linux-headers-9.9-common": files({"usr/src/linux-headers-9.9-common/Makefile": b"all:\n"}),
        "linux-kbuild-9.9": files({"usr/lib/linux-kbuild-9.9/scripts/mod/modpost": b"program"}),
    }
    for name, entries in parts.items():
        (directory / f"{name}_1_all.deb").write_bytes(deb(entries))
    return sorted(directory.iterdir())


def image(tmp_path):
    return SimpleNamespace(release=RELEASE, architecture="x86_64", path=tmp_path / "vmlinuz")


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What was asked of the package manager, which has the headers."""
    asked = []
    debs = packages(tmp_path / "debs")

    def fetch(release, machine, *_):
        asked.append((release, machine))
        return debs

    monkeypatch.setattr("kodojo.check.build.headers.fetch_headers", fetch)
    (tmp_path / "store").mkdir()
    return asked


def test_fetched_once(fetched, tmp_path):
    """Headers are fetched the first time, unpacked into the store by their release, and found there from then on."""
    first = headers_for(image(tmp_path), {}, tmp_path / "store")
    assert headers_for(image(tmp_path), {}, tmp_path / "store") == first
    assert fetched == [(RELEASE, "x86_64")]
    assert first.build == tmp_path.resolve() / f"store/{RELEASE}-x86_64" / BUILD
    assert first.config()["CONFIG_CC_VERSION_TEXT"] == "gcc-12 (Debian) 12"


def test_they_find_each_other(fetched, tmp_path):
    """Wherever they are, the Makefile is found, others may read all, and links lead to what is shown to builds."""
    old = os.umask(0o077)
    try:
        headers = headers_for(image(tmp_path), {}, tmp_path / "store")
    finally:
        os.umask(old)
    text = (headers.build / "Makefile").read_text()
    assert text == "include $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-9.9-common/Makefile\n"
    assert (headers.build / "scripts/mod/modpost").resolve().is_relative_to(headers.shown)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in headers.shown.rglob("*"))
    assert headers.links()[f"/lib/modules/{RELEASE}/build"] == str(headers.build)


def test_given_ones_come_first(fetched, tmp_path):
    """Headers that were given for the release are taken; those for another release are not."""
    other = given_headers(map(str, packages(tmp_path / "other", "8.8-test")), _new(tmp_path / "a"))
    assert set(other) == {"8.8-test"}
    given = other | given_headers(map(str, packages(tmp_path / "same")), _new(tmp_path / "b"))
    assert headers_for(image(tmp_path), given, tmp_path / "store") is given[RELEASE]
    assert fetched == []


def _new(directory):
    directory.mkdir()
    return directory


def test_a_kernel_that_is_a_build_tree(fetched, tmp_path):
    """A kernel that was given as a build tree is built against; one that is only described is not."""
    tree = tmp_path / "tree"
    for name, data in contents(build="tree").items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    there = SimpleNamespace(release=RELEASE, architecture="x86_64", path=tree)
    assert headers_for(there, {}, tmp_path / "store").build != tree.resolve()
    (tree / "scripts/mod").mkdir(parents=True)
    (tree / "scripts/mod/modpost").touch()
    assert headers_for(there, {}, tmp_path / "store").build == tree.resolve()


def test_a_tree_that_is_not_prepared(tmp_path):
    """A build tree without kbuild's programs is refused, with the command that makes them."""
    tree = _new(tmp_path / "tree")
    (tree / "Makefile").touch()
    (tree / "Module.symvers").write_bytes(contents()[f"{BUILD}/Module.symvers"])
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text(RELEASE)
    with pytest.raises(InputError, match="cannot be built against") as caught:
        given_headers([str(tree)], _new(tmp_path / "a"))
    assert "make modules_prepare" in caught.value.hint


def test_a_release_that_is_a_path(tmp_path):
    """A kernel's name for itself never becomes a path outside the store."""
    (tmp_path / "store").mkdir()
    bad = SimpleNamespace(release="../../etc", architecture="x86_64", path=tmp_path / "vmlinuz")
    with pytest.raises(InputError, match="not a release"):
        headers_for(bad, {}, tmp_path / "store")
