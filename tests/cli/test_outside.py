"""A driver from outside the kernel's tree, as people load, check and install it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kodojo.durable import lock
from tests.support import distribution
from tests.support.shell import store_with_kernels

pytestmark = pytest.mark.kernel


class Shell:
    """Runs ``kodojo`` in a directory with built modules.

    :param store: with a kernel of this release.
    """

    def __init__(self, store: Path, directory: Path, release: str) -> None:
        self._environment = {**os.environ, "KODOJO_STORE": str(store)}
        self._directory = directory
        self.release = release

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kodojo", *words],
            env=self._environment,
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
            check=False,
            text=True,
        )

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def loaded(self) -> list[str]:
        """The modules in the order in which they were loaded."""
        return [line.split()[0] for line in reversed(self.ok("lsmod").splitlines()[1:])]


@pytest.fixture
def directory(built: dict[str, Path], tmp_path: Path) -> Path:
    """What a build leaves: kd_whole needs kd_part, and crc-itu-t of the kernel's tree."""
    place = tmp_path / "build"
    place.mkdir()
    for name in ("kd_part", "kd_whole", "kd_request", "kd_firmware"):
        shutil.copy(built[name], place)
    return place


@pytest.fixture
def shell(series: str, directory: Path) -> Iterator[Shell]:
    """A freshly booted machine in the store that the tests of the command share."""
    with lock(distribution.cache_directory() / "cli-store.lock", timeout=None):
        shell = Shell(store_with_kernels(), directory, distribution.kernel_of(series).release)
        shell.ok("boot", shell.release)
        yield shell


@pytest.fixture
def own(series: str, directory: Path, tmp_path: Path) -> Shell:
    """A store with a kernel that came without modules; it is booted from the snapshot of the shared store."""
    store = tmp_path / "store"
    files = distribution.kernel_of(series)
    with lock(distribution.cache_directory() / "cli-store.lock", timeout=None):
        assert Shell(store_with_kernels(), directory, files.release)("boot", files.release).returncode == 0
    store.mkdir(mode=0o700)
    (store / "snapshots").symlink_to(store_with_kernels() / "snapshots")
    shell = Shell(store, directory, files.release)
    shutil.copy(files.image_root / f"boot/vmlinuz-{files.release}", tmp_path)
    config = files.image_root / f"boot/config-{files.release}"
    shell.ok("kernel", "add", f"{tmp_path}/vmlinuz-{files.release}", "--config", str(config))
    return shell


@pytest.mark.arm64
def test_one_command_loads_a_driver(shell: Shell) -> None:
    """insmod refuses and says who exports what is missing; the command that it names does all of it."""
    refused = shell("insmod", "kd_whole.ko")
    assert refused.returncode == 1
    hint = refused.stderr.splitlines()[-1]
    assert hint.startswith("hint: Load crc_itu_t and kd_part first")
    command = hint.rpartition("Or all at once: kodojo ")[2].removesuffix(".")
    assert shell.ok(*command.split()) == ""
    assert sorted(shell.loaded()) == ["crc_itu_t", "kd_part", "kd_whole"]
    assert "kd_whole: sum=42 crc=31c3" in shell.ok("dmesg")
    shell.ok("modprobe", "-r", "./kd_whole.ko")
    assert "kd_whole" not in shell.loaded()


def test_each_command_of_the_hint(shell: Shell) -> None:
    """The commands that the hint names one by one do it, too."""
    first = shell("insmod", "kd_whole.ko").stderr.splitlines()[-1].partition(": Load ")[2]
    for command in first.partition(": ")[2].partition(". Or")[0].split(", "):
        shell.ok(*command.split()[1:])
    shell.ok("insmod", "kd_whole.ko")


def test_insmod_with_dependencies(shell: Shell) -> None:
    """insmod has an option to load first what a file needs; a second time it fails as insmod does."""
    shell.ok("insmod", "--with-dependencies", "kd_whole.ko")
    again = shell("insmod", "--with-dependencies", "./kd_whole.ko")
    expected = "insmod: ERROR: could not insert module ./kd_whole.ko: File exists"
    assert (again.returncode, again.stderr.splitlines()[0]) == (1, expected)
    shell.ok("modprobe", "./kd_whole.ko")


def test_modprobe_of_files(shell: Shell, directory: Path) -> None:
    """modprobe takes files, shows what it would do, passes parameters, and says what is no file in kmod's words."""
    shown = [line.split()[1] for line in shell.ok("modprobe", "-D", "./kd_whole.ko").splitlines()]
    assert {Path(path).name.partition(".")[0] for path in shown} == {"crc-itu-t", "kd_part", "kd_whole"}
    assert shell.ok("modprobe", "-R", "--path", str(directory), "kd-family-part") == "kd_part\n"
    shell.ok("modprobe", "./kd_part.ko", "bias=3")
    assert shell.ok("cat", "/sys/module/kd_part/parameters/bias") == "3\n"
    absent = shell("modprobe", "./absent.ko")
    text = "modprobe: FATAL: Failed to get module from path ./absent.ko: No such file or directory\n"
    assert (absent.returncode, absent.stderr) == (1, text)
    bare = shell("modprobe", "kd_whole.ko")
    assert (bare.returncode, bare.stderr.splitlines()[-1]) == (
        1,
        "hint: a file is named by its path: kodojo modprobe ./kd_whole.ko",
    )


def test_request_in_this_command_only(shell: Shell) -> None:
    """What a module asks for is found beside the file that is loaded, and not by later commands."""
    shell.ok("modprobe", "./kd_request.ko", "name=kd-family-part")
    assert set(shell.loaded()) == {"kd_request", "kd_part"}
    shell.ok("rmmod", "kd_request", "kd_part")
    shell.ok("insmod", "kd_request.ko", "name=kd-family-part")
    assert shell.loaded() == ["kd_request"]


@pytest.mark.arm64
def test_check_names_what_lies_beside(shell: Shell) -> None:
    """check and explain name the missing file that lies beside; the command that check names finds that all load."""
    done = shell("check", "kd_whole.ko", "--kernel", shell.release)
    assert done.returncode == 1
    assert "it depends on kd_part, which is neither given nor in this kernel's tree" in done.stdout
    command = done.stdout.rpartition("kd_part.ko lies beside it: give it too: kodojo ")[2].splitlines()[0]
    assert command == "check kd_whole.ko kd_part.ko"
    shell.ok(*command.split(), "--kernel", shell.release)
    explained = shell("explain", "kd_whole.ko", "--kernel", shell.release)
    assert explained.returncode == 1
    assert "kd_part_sum: kd_part.ko, which lies beside it, exports it" in explained.stdout
    assert "Load kd_part first: kodojo modprobe ./kd_part.ko. Or all at once: kodojo modprobe ./kd_whole.ko." in (
        explained.stdout
    )


def test_check_against_headers(shell: Shell, series: str) -> None:
    """Against headers a module whose sibling is missing is not known to load: status 2, in JSON, too."""
    headers = str(distribution.kernel_of(series).build_directory)
    done = shell("check", "kd_whole.ko", "--kernel", headers)
    assert done.returncode == 2
    assert "depends on kd_part" in done.stdout
    assert "kodojo check kd_whole.ko kd_part.ko" in done.stdout
    told = json.loads(shell("check", "kd_whole.ko", "--kernel", headers, "--json").stdout)
    assert [result["status"] for result in told["results"]] == ["unchecked"]
    shell.ok("check", "kd_whole.ko", "kd_part.ko", "--kernel", headers)


@pytest.mark.arm64
def test_install_and_uninstall(own: Shell, series: str, tmp_path: Path) -> None:
    """What is installed into a stored kernel is found for good by modprobe and by the kernel, until it is removed."""
    (tree,) = distribution.kernel_of(series).image_root.glob("lib/modules/*/kernel/lib/crc-itu-t.ko*")
    (tmp_path / "own.conf").write_text("options kd_part bias=5\n")
    (tmp_path / "firmware/kd").mkdir(parents=True)
    (tmp_path / "firmware/kd/blob.bin").write_bytes(b"\x01\x02")
    own.ok("boot")
    modules = ["kd_part.ko", "kd_whole.ko", "kd_request.ko", "kd_firmware.ko", str(tree)]
    additions = ["--modprobe-d", f"{tmp_path}/own.conf", "--firmware", f"{tmp_path}/firmware"]
    own.ok("kernel", "install", own.release, *modules, *additions)
    listed = json.loads(own.ok("kernel", "show", "--json"))["installed"]
    assert {"updates/kd_whole.ko", "modprobe.d/own.conf", "firmware/kd/blob.bin"} <= set(listed)
    own.ok("modprobe", "kd-whole")  # into the machine that was up before
    assert "kd_whole: sum=46 crc=31c3" in own.ok("dmesg")
    own.ok("modprobe", "kd_firmware")
    assert "kd_firmware: size=2 sum=3" in own.ok("dmesg")
    own.ok("boot")
    own.ok("insmod", "kd_request.ko", "name=kd-family-part")
    assert set(own.loaded()) == {"kd_request", "kd_part"}
    own.ok("kernel", "uninstall", own.release, "kd_whole", "own.conf", "firmware/kd/blob.bin")
    left = set(json.loads(own.ok("kernel", "show", "--json"))["installed"])
    assert left == {"updates/kd_part.ko", "updates/kd_request.ko", "updates/kd_firmware.ko", f"updates/{tree.name}"}
    own.ok("boot")
    assert own("modprobe", "kd_whole").returncode == 1
    own.ok("modprobe", "kd_part", "kd_firmware")
    assert own.ok("cat", "/sys/module/kd_part/parameters/bias") == "1\n"
    own.ok("modprobe", "kd_firmware")
    assert "kd_firmware: error=-2" in own.ok("dmesg")


def test_what_is_not_installed(own: Shell, shell: Shell, tmp_path: Path) -> None:
    """Nothing, no module, and a tree outside of the store are refused; another kernel's module gets a warning."""
    assert own("kernel", "install", own.release).returncode == 2
    (tmp_path / "text.ko").write_text("only text")
    done = own("kernel", "install", own.release, "kd_part.ko", f"{tmp_path}/text.ko")
    assert (done.returncode, "no kernel module" in done.stderr) == (1, True)
    assert json.loads(own.ok("kernel", "show", "--json"))["installed"] == []
    refused = shell("kernel", "install", shell.release, "kd_part.ko")
    assert (refused.returncode, "outside of the store" in refused.stderr) == (1, True)
    other = (tmp_path / "build/kd_part.ko").read_bytes().replace(b"vermagic=6", b"vermagic=5")
    (tmp_path / "other.ko").write_bytes(other)
    done = own("kernel", "install", own.release, f"{tmp_path}/other.ko")
    assert (done.returncode, "warning" in done.stderr) == (0, True)
    assert done.stdout == f"{own.release}: installed updates/other.ko\n"
    assert own("kernel", "uninstall", own.release, "nothing").returncode == 1
