from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kodojo

ROOT = Path(__file__).resolve().parents[2]

NAMES = [
    "CorruptError",
    "DamageError",
    "DamagedMemoryError",
    "FaultReport",
    "Frame",
    "GuestOSError",
    "Image",
    "ImageError",
    "InputError",
    "Kernel",
    "KodojoError",
    "LoadError",
    "LogRecord",
    "MachineError",
    "MachineFault",
    "MachineHang",
    "MissingInformationError",
    "Module",
    "ModuleFileError",
    "PackageError",
    "Refusal",
    "StoreError",
    "UnloadError",
    "UnmappedError",
    "UnmodelledError",
    "Verdict",
]

HEAVY = {"unicorn", "numpy", "cryptography", "zstandard", "click", "rich"}


def test_public_names():
    """These names are public; to add or remove one is a decision."""
    assert kodojo.__all__ == NAMES
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_names_are_there(name):
    """Each of them is a class of that name, and is the same one each time."""
    value = getattr(kodojo, name)
    assert value.__name__ == name
    assert getattr(kodojo, name) is value
    assert name in dir(kodojo)


def test_unknown_name():
    """A name that there is not is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="nothing"):
        _ = kodojo.nothing


def test_star_import():
    """``from kodojo import *`` gives the public names and nothing else."""
    space: dict[str, object] = {}
    exec("from kodojo import *", space)
    assert sorted(set(space) - {"__builtins__"}) == NAMES


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh Python has loaded after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import kodojo", "import kodojo; kodojo.LoadError; kodojo.LogRecord"], ids=["import", "errors"]
)
def test_import_is_light(statement):
    """To import kodojo, and to name its errors, loads nothing of what it needs to do its work."""
    modules = imported_by(statement)
    assert "kodojo" in modules
    assert modules & HEAVY == set()


def test_images_need_no_emulator():
    """To look at kernels and to check modules the emulator is not loaded."""
    assert "unicorn" not in imported_by("import kodojo; kodojo.Image; kodojo.Verdict")


def test_version():
    """There is one place for the version, and the package takes it from there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == Path(str(kodojo.__file__))
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", kodojo.__version__)
