"""The order of kernel releases and package names, as people read them. For display and for "newest" only."""

from __future__ import annotations

import re

__all__ = ["version_key"]

_RELEASE_CANDIDATE = re.compile(r"-(?=rc\d)")
_TOKEN = re.compile(r"\d+|~|[^\d~]")


def version_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key: numbers count by value; ``~`` and ``-rc`` sort before the end (6.9, 6.13-rc2, 6.13)."""
    tokens = _TOKEN.findall(_RELEASE_CANDIDATE.sub("~", text))
    # What comes first: a tilde, the end, another character, a number.
    keys = [
        (-1, 0, "") if t == "~" else (2, int(t[:20]), t) if t.isascii() and t.isdigit() else (1, 0, t) for t in tokens
    ]
    return (*keys, (0, 0, ""))
