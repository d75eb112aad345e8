"""Differences between our loader and the kernel's that may stay: a data file, with the reason of each.

An entry that a run shows to be superfluous fails it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

__all__ = ["ACCEPTED", "Accepted", "accepted", "judge"]

ACCEPTED = Path(__file__).with_name("accepted.toml")


@dataclass(frozen=True)
class Accepted:
    """A difference that is known and may stay.

    :param module: pattern of names, as of the shell; a damaged file is named ``damage/SEED/NUMBER``.
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


def judge(records: Sequence[dict[str, Any]], entries: Sequence[Accepted]) -> list[Accepted]:
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
