"""What came of a case: one answer for each call."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tests.damage.outcomes import without_traces
from tests.support.traces import call_traces

__all__ = ["DAMAGE", "HANG", "KILLED", "PANIC", "Answer", "file_text"]

KILLED = "killed"
"""The caller did not survive: an oops."""
PANIC, HANG = "panic", "hang"
DAMAGE = "damage"
"""Our loader says that the file would damage the kernel."""


@dataclass
class Answer:
    """What a system call came to.

    :param value: what it returned.
    :param end: empty, or how the case ended here without a value.
    :param log: level and text of each line.
    :param traces: the frames of each call trace that the kernel is sure of; none in older records.
    :param modules: ``/proc/modules``.
    :param sysfs: files below ``/sys/module``, with their content or what they are.
    """

    value: int = 0
    end: str = ""
    log: list[tuple[int, str]] = field(default_factory=list)
    traces: list[list[str]] = field(default_factory=list)
    tainted: int = 0
    modules: str = ""
    sysfs: dict[str, str] = field(default_factory=dict)

    def take_traces(self) -> None:
        """Keep the call traces of the log apart from it."""
        found = call_traces(text for _, text in self.log)
        self.traces = [[line for line in trace if not line.startswith(" ? ")] for trace in found]
        self.log = without_traces(self.log)

    def as_json(self) -> dict[str, Any]:
        """What is not empty."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Answer:
        answer = cls(**content)
        answer.log = [(level, line) for level, line in answer.log]
        return answer


def file_text(content: bytes) -> str:
    """A file of sysfs as a string: text as it is, anything else in hexadecimal."""
    try:
        found = content.decode("ascii")
    except UnicodeDecodeError:
        return "hex:" + content.hex()
    return found if found.replace("\n", "").replace("\t", "").isprintable() else "hex:" + content.hex()
