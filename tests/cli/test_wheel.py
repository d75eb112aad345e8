"""What ``pip install .`` gives: the package, in an environment without anything else, away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import distribution

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).resolve().parents[2]
AS_A_LIBRARY = """
import sys
import kodojo

image = kodojo.Image.open(sys.argv[1])
kernel = kodojo.Kernel.boot(image)
fresh = kernel.fork()
module = fresh.insmod(sys.argv[2])
assert module.refcount == 0
fresh.rmmod("dummy")
assert fresh.read_file("/proc/modules") == b""
assert kernel.call("int_sqrt", 144) == 12
assert image.check(sys.argv[2], "numdummies=2").ok
try:
    kernel.fork().insmod(sys.argv[3])
except kodojo.LoadError as error:
    print(error.errno, error.slug)
"""
EVERY_FILE = """
import importlib, pkgutil, kodojo
for found in pkgutil.walk_packages(kodojo.__path__, "kodojo."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""


class Installed:
    """An environment with the wheel in it, and a directory to be in."""

    def __init__(self, place: Path) -> None:
        self.place = place
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "KODOJO"))}
        self.environment = environment | {
            "PATH": f"{place / 'env/bin'}{os.pathsep}{os.defpath}",
            "HOME": str(place),
            "KODOJO_STORE": str(place / "store"),
        }

    def install(self) -> None:
        # Not of this environment's: what the tests need is not in the new one.
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(self.place),
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        [wheel] = self.place.glob("kodojo-*.whl")
        venv.create(self.place / "env", with_pip=True)
        program = self.place / "env/bin/python"
        subprocess.run([program, "-m", "pip", "install", "--quiet", str(wheel)], check=True)

    def run(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            words, cwd=self.place, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = Installed(tmp_path_factory.mktemp("installed"))
    place.install()
    return place


def test_everything_that_readme_shows(installed: Installed) -> None:
    """An installed kodojo adds a kernel, boots it, loads, lists, checks, explains and removes, and is a library."""
    files = distribution.kernel_of("6.1")
    release = files.release
    assert f"{release} added" in installed.run("kodojo", "kernel", "add", str(files.image_deb))
    assert f"{release} is up" in installed.run("kodojo", "boot")
    finds = "import kodojo; print(*(kodojo.Image.installed()[-1].modules[name].path for name in ('dummy', 'bridge')))"
    dummy, bridge = installed.run("python", "-c", finds).split()
    assert Path(dummy).is_relative_to(installed.place / "store")

    installed.run("kodojo", "insmod", dummy, "numdummies=2")
    assert installed.run("kodojo", "lsmod").splitlines()[1].split()[0] == "dummy"
    assert installed.run("kodojo", "ls", "/sys/class/net").split() == ["dummy0", "dummy1", "lo"]
    assert installed.run("kodojo", "cat", "/proc/modules").startswith("dummy 16384 0 - Live ")
    installed.run("kodojo", "rmmod", "dummy")
    assert "unknown-symbol" in installed.run("kodojo", "insmod", bridge, status=1)
    installed.run("kodojo", "modprobe", "bridge")
    assert "llc" in installed.run("kodojo", "lsmod")

    truncated = installed.place / "truncated.ko"
    truncated.write_bytes(Path(dummy).read_bytes()[:9000])
    assert "elf-section-table" in installed.run("kodojo", "insmod", "--fresh", str(truncated), status=1)
    found = json.loads(installed.run("kodojo", "check", dummy, str(truncated), "--json", status=1))
    assert found
    installed.run("kodojo", "check", dummy, "--kernel", release, "--html", "report.html")
    assert "<script" in (installed.place / "report.html").read_text(encoding="utf-8")
    assert "section" in installed.run("kodojo", "explain", str(truncated), status=1)
    assert "elf-section-table" in installed.run("kodojo", "explain", "elf-section-table")
    assert installed.run("python", "-c", AS_A_LIBRARY, release, dummy, bridge).split() == ["2", "unknown-symbol"]


def test_nothing_of_the_checkout(installed: Installed) -> None:
    """The installed package is the wheel's, and needs nothing but what it says that it depends on."""
    where = installed.run("python", "-c", "import kodojo; print(kodojo.__file__)").strip()
    assert Path(where).is_relative_to(installed.place / "env")
    installed.run("python", "-m", "pip", "check")
    installed.run("python", "-c", EVERY_FILE)
