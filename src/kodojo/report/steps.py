"""What the loader did, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from kodojo.loader.steps import Step

__all__ = ["STEP_COLUMNS", "STEP_STYLES", "step_rows"]

STEP_COLUMNS = ("step", "what for", "found out")
STEP_STYLES = ("cyan", "", "dim")

_LOWEST_ADDRESS = 1 << 32  # no size in a module is that large, and no address of the kernel is smaller


def _fact(name: str, value: int | str) -> str:
    return f"{name} {value:#x}" if isinstance(value, int) and value >= _LOWEST_ADDRESS else f"{name} {value}"


def step_rows(steps: Sequence[Step], failed: str = "") -> list[tuple[str, str, str]]:
    """Rows for a table of steps.

    :param failed: the name of the step that refused; it is marked, and added if it is not there.
    """
    rows = [(step.name, step.title, ", ".join(_fact(*fact) for fact in step.facts.items())) for step in steps]
    if failed:
        if not rows or rows[-1][0] != failed:
            rows.append((failed, "", ""))
        name, title, facts = rows[-1]
        rows[-1] = (name, title, f"{facts}; refused" if facts else "refused")
    return rows
