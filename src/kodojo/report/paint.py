"""Colours for terminals, and text that cannot do a terminal any harm."""

from __future__ import annotations

import os
import re
from typing import TextIO

__all__ = ["Paint", "clean", "clean_line"]

_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
# Control characters but tab and newline, and the bytes that were no UTF-8 (surrogates).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]) & 0xFF:02x}"


def clean(text: str) -> str:
    r"""Text from a module or a kernel, fit for a terminal: control characters and stray bytes as ``\xNN``."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def clean_line(text: str) -> str:
    """Likewise, for what has to stay on one line, such as a file's name: tab and newline are escaped, too."""
    return clean(text).replace("\n", "\\x0a").replace("\t", "\\x09")


class Paint:
    """Gives text a style; leaves it alone where colours are not wanted."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    @classmethod
    def of(cls, stream: TextIO) -> Paint:
        """Colours if the stream is a terminal that has them, and NO_COLOR is not set."""
        wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(wanted and stream.isatty())

    def __call__(self, text: str, *styles: str) -> str:
        """Paint ``text``; styles are bold, dim and the names of colours."""
        if not self.enabled or not styles or not text:
            return text
        codes = ";".join(str(_CODES[style]) for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"
