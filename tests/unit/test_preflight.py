"""What a machine lacks is said before the work begins, on machines that have only what a test gives them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PREFLIGHT = Path(__file__).resolve().parents[2] / ".ci/preflight"
PYTHON = '#!/bin/sh\ncase "$2" in *version_info*) exit $OLD ;; *ensurepip*) exit $BARE ;; esac\n'
DF = "#!/bin/sh\necho header; echo /dev/disk 100000000 0 $((FREE * 1024)) 0% /\n"


class Machine:
    """Programs, and what they answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.meminfo = root / "meminfo"
        self.meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 8000000 kB\n")
        self.variables = {"OLD": "0", "BARE": "0", "FREE": "100000"}
        for program in ("sh", "awk"):
            found = shutil.which(program)
            assert found
            (self.bin / program).symlink_to(found)
        self.install("df", DF)
        self.install("python3", PYTHON)
        for program in ("apt-get", "dpkg-deb"):
            self.install(program, "#!/bin/sh\n")

    def install(self, program: str, text: str) -> None:
        (self.bin / program).write_text(text)
        (self.bin / program).chmod(0o755)

    def lacks(self, *words: str) -> str:
        """What is said to a command; the status is 1 if anything is."""
        environment = {"PATH": str(self.bin), "MEMINFO": str(self.meminfo)} | self.variables
        done = subprocess.run(
            [PREFLIGHT, *words], env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert done.stdout == ""
        assert done.returncode == bool(done.stderr), done.stderr
        return done.stderr


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("what", ["demo", "test"])
def test_nothing_is_missing(machine, what):
    """A machine that has all of it is told nothing."""
    assert machine.lacks(what) == ""


@pytest.mark.parametrize(
    ("change", "said", "next_step"),
    [
        (lambda m: (m.bin / "python3").unlink(), "there is no python3", "apt-get install python3 python3-venv"),
        (lambda m: m.variables.update(OLD="1"), "older than Python 3.11", "make test PYTHON=python3.12"),
        (lambda m: m.variables.update(BARE="1"), "no venv or no ensurepip", "apt-get install python3-venv"),
        (lambda m: (m.bin / "dpkg-deb").unlink(), "no dpkg-deb", "apt-get install dpkg"),
        (lambda m: (m.bin / "apt-get").unlink(), "no apt to fetch kernels", "make test KODOJO_TEST_PACKAGES=DIR"),
        (lambda m: m.variables.update(KODOJO_TEST_PACKAGES="/none"), "names no directory: /none", "the packages"),
        (lambda m: m.variables.update(FREE="100"), "only 100 MB are free", "make room"),
        (lambda m: m.meminfo.write_text("MemAvailable: 512000 kB\n"), "only 500 MB of memory", "end other programs"),
    ],
)
def test_what_is_missing(machine, change, said, next_step):
    """Each thing that is missing is named, with what brings it."""
    change(machine)
    what, step = machine.lacks("test").splitlines()[1:]
    assert said in what
    assert next_step in step


def test_all_at_once(machine):
    """What is missing is said all at once."""
    machine.variables.update(BARE="1", FREE="1")
    (machine.bin / "apt-get").unlink()
    text = machine.lacks("demo")
    assert text.count("\n  ") == 6
    assert "install what is called python3-venv in Debian" in text


def test_kernel_of_ones_own(machine):
    """With a kernel that is given, or packages that are, no apt is needed; with dnf none for the demo."""
    (machine.bin / "apt-get").unlink()
    assert "make demo KERNEL=FILE" in machine.lacks("demo", "")
    assert machine.lacks("demo", "kernel.deb") == ""
    machine.variables["KODOJO_TEST_PACKAGES"] = str(machine.root)
    assert machine.lacks("test") == ""
    machine.install("dnf", "#!/bin/sh\n")
    assert machine.lacks("demo", "") == ""


def test_what_is_there_is_not_asked_for(machine):
    """An environment that has been made needs no venv, and a cache that has been filled no room."""
    machine.variables.update(BARE="1", FREE="1")
    (machine.root / ".cache/store").mkdir(parents=True)
    (machine.root / ".venv/bin").mkdir(parents=True)
    (machine.root / ".venv/bin/python").symlink_to(machine.bin / "python3")
    assert machine.lacks("test") == ""
