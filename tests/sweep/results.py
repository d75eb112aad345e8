"""What is kept of a run, and what is accepted in it."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import kodojo

ACCEPTED = Path(__file__).with_name("accepted.toml")
_TESTS = Path(__file__).parents[1]
_OF_NO_INFLUENCE = ("cli", "report")


def source_hash() -> str:
    """Of all code that a result depends on."""
    package = Path(kodojo.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in _OF_NO_INFLUENCE]
    files += [*Path(__file__).parent.glob("*.py"), _TESTS / "differential/compare.py"]
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


@dataclass(frozen=True)
class Accepted:
    """A difference that is known and may stay.

    :param module: pattern of names, as of the shell.
    :param difference: regular expression that the whole line of a difference begins with.
    :param series: of the kernel; empty for all.
    """

    module: str
    difference: str
    reason: str
    series: str = ""

    def concerns(self, record: dict[str, Any]) -> bool:
        return fnmatchcase(record["module"], self.module) and self.series in ("", record["series"])

    def accepts(self, line: str) -> bool:
        return re.match(self.difference, line) is not None


def accepted(path: Path = ACCEPTED) -> list[Accepted]:
    return [Accepted(**entry) for entry in tomllib.loads(path.read_text()).get("accepted", [])]


def judge(records: list[dict[str, Any]], entries: list[Accepted]) -> list[Accepted]:
    """Make "accepted" of what the entries allow; the entries that no module they concern needed."""
    needed = set()
    for record in records:
        concerning = [entry for entry in entries if entry.concerns(record)]
        used = {line: next((e for e in concerning if e.accepts(line)), None) for line in record["lines"]}
        needed |= set(used.values()) - {None}
        if record["status"] == "disagreed" and None not in used.values() and record["count"] == len(record["lines"]):
            record["status"] = "accepted"
    seen = [entry for entry in entries if any(entry.concerns(record) for record in records)]
    return [entry for entry in seen if entry not in needed]
