"""Module trees as people have them, with the distribution's depmod at work: we load what modprobe would load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import distribution
from tests.support.elf_writer import module_writer
from tests.support.module_tree import kmod_tool

pytestmark = pytest.mark.kernel

SERIES = "6.12"
MODULES = ("drivers/net/dummy", "drivers/net/tun", "drivers/net/bonding/bonding", "net/tls/tls")


class System:
    """A root with a kernel and four of its modules, and commands that are given that root."""

    def __init__(self, root: Path, store: Path) -> None:
        files = distribution.kernel_of(SERIES)
        self.root, self.release, self.config = root, files.release, root.parent / "depmod.d"
        self.tree = root / "lib/modules" / files.release
        self.environment = {**os.environ, "KODOJO_STORE": str(store)}
        self.config.mkdir()
        source = files.image_root / "lib/modules" / files.release
        links = [f"boot/{path.name}" for path in (files.image_root / "boot").iterdir()]
        links += [f"lib/modules/{files.release}/kernel/{name}.ko.xz" for name in MODULES]
        links += [f"lib/modules/{files.release}/{path.name}" for path in source.glob("modules.*")]
        for name in links:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(files.image_root / name)

    def other(self, path: str) -> None:
        """Put another module of a name into the tree."""
        place = self.tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(module_writer(name=place.name.partition(".")[0]).build())

    def depmod(self) -> dict[str, str]:
        """Have the distribution's depmod at work: the path of each module in modules.dep."""
        done = kmod_tool("depmod", "-C", str(self.config), "-b", str(self.root), self.release)
        assert done.returncode == 0, done.stderr
        lines = (self.tree / "modules.dep").read_text().splitlines()
        return {Path(path).name.partition(".")[0]: path for path in (line.partition(":")[0] for line in lines)}

    def kodojo(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kodojo", *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same on the kernel of this root."""
        return self.kodojo("--kernel", str(self.root), *words)

    def where(self, name: str) -> str:
        """Where modinfo finds a module."""
        done = self.run("modinfo", "-n", name)
        assert done.returncode == 0, done.stderr
        return str(Path(done.stdout.strip()).relative_to(self.tree))


@pytest.fixture
def system(tmp_path):
    return System(tmp_path / "root", distribution.cache_directory() / "trees-store")


@pytest.mark.parametrize(
    ("places", "line"),
    [
        (["kernel/drivers/net"], ""),
        (["extra"], "search built-in updates extra"),
        (["updates"], "search built-in updates extra"),
        (["extra", "updates"], "override dummy * extra"),
        (["extra", "weak-updates"], ""),
    ],
)
def test_of_several_files_of_one_name_modules_dep_decides(system, places, line):
    for place in places:
        system.other(f"{place}/dummy.ko")
    (system.config / "x.conf").write_text(f"{line}\n")
    paths = system.depmod()
    assert system.where("dummy") == paths["dummy"]


def test_a_linked_directory_is_part_of_the_tree(system):
    """Modules that lie behind a link are found and checked, as depmod and modprobe find them."""
    away = system.root / "nix/store/x"
    away.mkdir(parents=True)
    (system.tree / "kernel").rename(away / "kernel")
    (system.tree / "kernel").symlink_to("../../../nix/store/x/kernel")
    system.other("updates/hello.ko")
    paths = system.depmod()
    assert {name: system.where(name) for name in ("dummy", "bonding", "hello")}.items() <= paths.items()
    answer = json.loads(system.run("check", "--all", "--json").stdout)
    assert {result["module"] for result in answer["results"]} == set(paths.values())


def test_check_all_names_what_it_did_not_look_at(system):
    """What cannot be looked at is a result without a verdict, and status 2; what modprobe does not load is noted."""
    assert system.run("check", "--all").returncode == 0
    system.other("updates/dummy.ko")
    (system.tree / "kernel/away.ko").symlink_to("/no/where.ko")
    done = system.run("check", "--all")
    assert done.returncode == 2
    assert "kernel/away.ko: not looked at: a link to /no/where.ko, which is not there" in done.stdout
    assert "modprobe dummy loads updates/dummy.ko instead" in done.stdout
    assert "6 modules, 1 kernel" in done.stdout.splitlines()[-1]


def test_a_kernel_is_given_by_path_to_every_command(system):
    """Boot, load, look, and come back to it without naming it again."""
    assert system.kodojo("boot", str(system.root)).stdout.startswith(system.release)
    assert system.run("modprobe", "tls").returncode == 0
    assert system.kodojo("lsmod").stdout.splitlines()[1].split()[0] == "tls"
    assert system.kodojo("modinfo", "-n", "tun").stdout.startswith(str(system.tree))
    assert system.run("explain", str(system.tree / "kernel/net/tls/tls.ko.xz")).returncode == 0
