"""``python -m tests.attack.table``: the table of SECURITY.md, from results/attack.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.figures import put_table

RESULT, PAGE = Path("results/attack.json"), Path("SECURITY.md")


def table(result: dict[str, Any]) -> str:
    """One line for each attack."""
    lines = ["| attack | date | commit | inputs | kinds | failures |", "|---|---|---|---|---|---|"]
    for name, section in sorted(result.items()):
        kinds = ", ".join(sorted({kind.partition(",")[0] for kind in section["kinds"]}))
        lines.append(
            f"| {name} | {section['date']} | {section['commit'][:7]} | {section['inputs']:,} | {kinds} |"
            f" {len(section['failures'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    put_table(PAGE, str(RESULT), table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
