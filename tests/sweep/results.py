"""What is kept of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import kodojo

_TESTS = Path(__file__).parents[1]
_OF_NO_INFLUENCE = ("check", "cli", "report")


def source_hash() -> str:
    """Of all code that a result depends on."""
    package = Path(kodojo.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in _OF_NO_INFLUENCE]
    files += [*(_TESTS / "sweep").glob("*.py"), *(_TESTS / "damage").glob("*.py"), _TESTS / "differential/compare.py"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a results file by module; an unfinished last line does not count."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line)
        found[record["module"]] = record
    return found
