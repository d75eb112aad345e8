"""Where the tests' kernels come from."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import distribution, packages
from tests.support.distribution import newest_release
from tests.support.packages import DistributionError, PackageDirectory

NAMES = [
    "linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64", "linux-image-6.1.0-57-amd64",
    "linux-image-6.1.0-58-rt-amd64", "linux-image-6.1.0-58-cloud-amd64", "linux-image-6.12.117+deb12-amd64",
    "linux-image-6.1.0-59-amd64-dbg", "linux-image-amd64",
]  # fmt: skip


def test_newest_release(tmp_path, monkeypatch):
    """The newest kernel of a series is taken, but rather one whose answers are kept; never a variant."""
    monkeypatch.setattr(distribution, "ANSWERS", tmp_path)
    assert newest_release(NAMES, "6.1", "amd64") == "6.1.0-57-amd64"
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-60-amd64", "6.12.117+deb12-amd64"):
        (tmp_path / f"{release}.jsonl.xz").touch()
    assert newest_release(NAMES, "6.1", "amd64") == "6.1.0-56-amd64"
    assert newest_release(NAMES, "6.12", "amd64") == "6.12.117+deb12-amd64"
    with pytest.raises(DistributionError, match=r"linux-image-6\.12\.\*-arm64"):
        newest_release(NAMES, "6.12", "arm64")


def make_deb(directory, name, architecture, depends=""):
    """A package with nothing in it."""
    control = directory / "make/DEBIAN/control"
    control.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Package": name, "Version": "1", "Architecture": architecture, "Maintainer": "x", "Description": "x"}
    if depends:
        fields["Depends"] = depends
    control.write_text("".join(f"{field}: {value}\n" for field, value in fields.items()))
    file = directory / f"{name}_1_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", control.parents[1], file], check=True)


def test_packages_of_a_directory(tmp_path, monkeypatch):
    """Packages that somebody has put into a directory are asked as apt is, and kbuild's are those that run here."""
    monkeypatch.setenv("KODOJO_TEST_CACHE", str(tmp_path / "cache"))
    make_deb(tmp_path, "linux-image-6.1.0-1-arm64", "arm64")
    make_deb(tmp_path, "linux-headers-6.1.0-1-arm64", "arm64", "linux-headers-6.1.0-1-common, linux-kbuild-6.1")
    for architecture in ("arm64", "amd64"):
        make_deb(tmp_path, "linux-kbuild-6.1", architecture)
    found = PackageDirectory(tmp_path)
    assert found.names() == ["linux-image-6.1.0-1-arm64"]
    assert found.field("linux-headers-6.1.0-1-arm64", "Depends").endswith("linux-kbuild-6.1")
    [programs] = found.download(["linux-kbuild-6.1"])
    assert programs == tmp_path / "cache/debs/linux-kbuild-6.1_1_amd64.deb"
    assert programs.read_bytes() == (tmp_path / programs.name).read_bytes()
    with pytest.raises(DistributionError, match=r"linux-headers-6\.1\.0-1-common"):
        found.download(["linux-headers-6.1.0-1-common"])


def test_a_given_directory_comes_first(tmp_path, monkeypatch):
    """What is given is used, whatever apt could do; where neither is, the message names the way."""
    monkeypatch.setenv("KODOJO_TEST_PACKAGES", str(tmp_path))
    assert isinstance(packages.packages_of_debian_12("amd64"), PackageDirectory)
    monkeypatch.delenv("KODOJO_TEST_PACKAGES")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DistributionError, match="KODOJO_TEST_PACKAGES"):
        packages.packages_of_debian_12("amd64")


def test_the_c_library_is_the_machines_own(monkeypatch):
    """A newer C library is never unpacked beside the machine's: its dynamic linker would not fit."""
    said = "Inst libc6 [2.36] (2.37 Debian)\nInst libisl23 (0.25 Debian)\nInst gcc (4:12 Debian)\nConf gcc (4:12)\n"
    monkeypatch.setattr(packages.Apt, "run", lambda *_args, **_more: said)
    assert packages.Apt().not_installed(["gcc"]) == ["libisl23", "gcc"]
