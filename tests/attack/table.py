"""``python -m tests.attack.table``: the table of SECURITY.md, from results/attack.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULT, PAGE = Path("results/attack.json"), Path("SECURITY.md")
_PLACE = re.compile(r"(<!-- table of results/attack\.json -->\n).*(<!-- end of the table -->\n)", re.DOTALL)


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
    made = table(json.loads(RESULT.read_text()))
    PAGE.write_text(_PLACE.sub(lambda found: f"{found[1]}{made}{found[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
