"""The call traces in a kernel's log."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["call_traces"]

_BEGINNINGS = frozenset({"Call Trace:", "Call trace:"})
_FRAME = re.compile(r" (?:\? )?(?:0x[0-9a-f]+|\S+\+0x[0-9a-f]+/0x[0-9a-f]+)(?: \[\S+\])?$")
_WITHIN = frozenset({" <TASK>", " <IRQ>", " </IRQ>", " </TASK>"})
_REGISTERS = re.compile(r"(?:RIP|Code|RSP|R[A-D]X|RBP|R\d\d): ")  # of user mode, where the kernel was entered


def call_traces(lines: Iterable[str]) -> list[list[str]]:
    """The frames of each trace, as they were printed; registers of user mode in between are left out."""
    found: list[list[str]] = []
    inside = False
    for line in lines:
        if line in _BEGINNINGS:
            inside = True
            found.append([])
        elif inside and (_FRAME.match(line) or line in _WITHIN):
            found[-1].append(line)
        elif not _REGISTERS.match(line):
            inside = False
    return found
