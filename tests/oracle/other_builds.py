"""Answers of QEMU for another release of the same series, or for modules that another compiler has built.

Such a case has other bytes than the recorded one, and so other addresses, sizes, offsets and identities. What differs
by these is set aside here, in both answers alike; everything else must be the same: what the calls returned, what
was logged, which files there are, what they say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.oracle.answers import Answer

__all__ = ["neutral"]

_SET_ASIDE = (
    # Of the kernel: its release, and its package's version.
    (re.compile(r"\b[0-9]+\.[0-9]+\.[0-9]+(?:\+deb[0-9]+)?(?:-[0-9]+)?-(?:amd64|arm64)\b"), "RELEASE"),
    (re.compile(r"\bDebian [0-9]\S+"), "Debian VERSION"),
    # Addresses, and places in functions: the compiler's.
    (re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+"), "+OFFSET"),
    (re.compile(r"\b(?:0x)?[0-9a-f]{16}\b|\b0x[0-9a-f]{8,15}\b"), "ADDRESS"),
    (re.compile(r"^Code: .*"), "Code"),
    # What the compiler splits off a function.
    (re.compile(r"\.(?:cold|part\.[0-9]+|isra\.[0-9]+|constprop\.[0-9]+)\b"), ""),
)
# /proc/modules: size and address.
_MODULE = re.compile(r"^(\S+) [0-9]+ (.*) 0x[0-9a-f]+", re.MULTILINE)
# Files that are about the bytes of a module: where they are, how many, and what they are a digest of.
_OF_BYTES = re.compile(r"/(?:coresize|initsize|srcversion|sections/[^/]+|notes/[^/]+)$")


def neutral(answers: Sequence[Answer]) -> list[Answer]:
    """The answers without what differs by release and compiler."""
    return [_neutral(answer) for answer in answers]


def _neutral(answer: Answer) -> Answer:
    return Answer(
        value=answer.value,
        end=answer.end,
        log=[(level, _without(line)) for level, line in answer.log],
        tainted=answer.tainted,
        modules=_MODULE.sub(r"\1 SIZE \2 ADDRESS", answer.modules),
        sysfs={path: _without(text) for path, text in answer.sysfs.items() if not _OF_BYTES.search(path)},
        earlier=answer.earlier,
    )


def _without(text: str) -> str:
    for pattern, replacement in _SET_ASIDE:
        text = pattern.sub(replacement, text)
    return text
