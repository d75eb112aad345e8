"""Figures of README and docs: what long runs have found, in files that say when, of what code and with what.

``python -m tests.support.figures`` writes README's table anew.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "counted", "provenance", "put_table", "record", "table"]

ROOT = Path(__file__).resolve().parents[2]
RELIABILITY = ROOT / "results" / "reliability.json"
PAGE = ROOT / "README.md"
PACKAGES = ("unicorn", "numpy", "cryptography", "zstandard")
_GOOD = ("agreed", "accepted")
_HEADS = ("run", "kernel", "date, commit", "compared", "the same", "accepted", "not the same")


def provenance() -> dict[str, Any]:
    """When a run ended, of what commit (and whether the files differ from it) and with what it was."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": git("rev-parse", "HEAD") + (" with changes" if changed else ""),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def counted(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What :func:`record` wants to know of records that have a ``module`` and a ``status``."""
    statuses = [one["status"] for one in records]
    return {
        "compared": len(records),
        "same": statuses.count("agreed"),
        "accepted": statuses.count("accepted"),
        "failures": [f"{one['module']}: {one['status']}" for one in records if one["status"] not in _GOOD],
    }


def record(run: str, kernel: str, facts: Mapping[str, Any], file: Path = RELIABILITY) -> None:
    """Keep what a whole run has found, in place of what the last one of its kind had.

    :param facts: those of :func:`counted`, and more.
    """
    whole = json.loads(file.read_text()) if file.exists() else {}
    whole.setdefault(run, {})[kernel] = {**provenance(), **facts}
    ordered = {name: dict(sorted(kernels.items())) for name, kernels in sorted(whole.items())}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(ordered, indent=1) + "\n")


def _rows(whole: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for run, kernels in whole.items():
        for kernel, one in kernels.items():
            commit, _, changes = one["commit"].partition(" ")
            made = f"{one['date']}, {commit[:7]}" + (f" {changes}" if changes else "")
            counts = (one["compared"], one["same"], one["accepted"], len(one["failures"]))
            yield (run, kernel, made, *(f"{count:,}" for count in counts))


def table(whole: Mapping[str, Any]) -> str:
    """One line for each run and kernel."""
    lines = [_HEADS, tuple("---" for _ in _HEADS), *_rows(whole)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put_table(page: Path, result: str, made: str) -> None:
    """Put a table in place of the one that the page has of a result file."""
    place = re.compile(rf"(<!-- table of {re.escape(result)} -->\n).*?(<!-- end of the table -->\n)", re.DOTALL)
    page.write_text(place.sub(lambda found: f"{found[1]}{made}{found[2]}", page.read_text()))


def main() -> None:
    put_table(PAGE, "results/reliability.json", table(json.loads(RELIABILITY.read_text())))


if __name__ == "__main__":
    main()
