"""What the three answers to a case come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.oracle.cases import Case
from tests.oracle.compare import differences
from tests.oracle.runner import Answers

__all__ = ["ACCEPTED", "judged"]

ACCEPTED = Path(__file__).with_name("accepted.toml")


def judged(series: str, case: Case, answers: Answers | None) -> dict[str, Any]:
    """A case as :func:`tests.support.accepted.judge` takes it; each difference begins with the loader's name."""
    lines = []
    if answers is None:
        lines.append("no answer: the process has ended")
    else:
        lines += [f"{loader}: {failure}" for loader, failure in answers.failures.items()]
        for loader, emulated in answers.emulated.items() if answers.qemu else ():
            lines += [f"{loader}: {line}" for line in differences(case, emulated, answers.qemu)]
    status = "disagreed" if lines else "agreed"
    found = {"series": series, "group": case.group, "module": case.name, "status": status}
    return {**found, "lines": lines, "count": len(lines)}
