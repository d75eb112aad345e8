"""The documents speak of files and functions that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/kodojo"
DOCUMENTS = ("docs/architecture.md", "docs/kernel-map.md")
# `kernel/boot.py: load`, also with several names; `loader/target.py` alone
REFERENCE = re.compile(r"`((?:[\w]+/)*\w+\.py)(?:: ([^`]+))?`")
# Short forms in sentences that have named the directory
PLACES = (SOURCE, SOURCE / "machine", SOURCE / "loader", SOURCE / "image", SOURCE / "kernel", ROOT)


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods, assigned names and attributes of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_is_there(document):
    """Every file named exists, and has the names that are said to be in it."""
    references = REFERENCE.findall((ROOT / document).read_text(encoding="utf-8"))
    assert references
    wrong = []
    for file, names in references:
        paths = [place / file for place in PLACES if (place / file).is_file()]
        if not paths and not (ROOT / "tests/unit" / file).is_file():
            wrong.append(file)
        for name in re.findall(r"\w+", names):
            if not any(name in names_in(path) for path in paths):
                wrong.append(f"{file}: {name}")
    assert wrong == []


def test_architecture_has_the_arrows_of_the_house():
    """The table of rooms names the rooms that there are."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for path in SOURCE.iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert re.search(rf"^    [\w, ]*\b{path.name}\b", text, re.MULTILINE), path.name
