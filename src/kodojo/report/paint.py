"""Colours for terminals, and text that cannot do a terminal any harm."""

from __future__ import annotations

import os
import re
from typing import TextIO

__all__ = ["HIDDEN", "Paint", "clean", "clean_line", "shown"]

_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
HIDDEN = (
    "\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
"""Characters, as a set of a regular expression, that are not seen, end lines, or change the order of what is."""

# Control characters but tab and newline, those above, and the bytes that were no UTF-8 (surrogates).
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f{HIDDEN}\ud800-\udfff]")


def shown(match: re.Match[str]) -> str:
    r"""A character by its number: ``\xNN`` for controls and stray bytes, ``\uNNNN`` and ``\UNNNNNNNN`` for others."""
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF or code < 0x100:
        return f"\\x{code & 0xFF:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(text: str) -> str:
    r"""Text from a module or a kernel, fit for a terminal: control characters and stray bytes as ``\xNN``.

    So are the characters that turn text around, hide or end lines (:data:`HIDDEN`), as ``\uNNNN``.
    """
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(shown, text)


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
