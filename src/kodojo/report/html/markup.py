"""What of the page is written as markup: the reasons' pages, and the tables for browsers without JavaScript."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from html import escape
from itertools import groupby
from typing import Any

from kodojo.check.reasons import page as reason_page
from kodojo.loader.slugs import SLUGS

__all__ = ["list_of_kernels", "list_of_troubles", "reason_article", "safe"]

_TROUBLES = 1000
"""Answers that the table without JavaScript has."""
_UNSHOWN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that are not seen, or change how others are: they are shown by their numbers."""


def safe(text: str) -> str:
    """Text as markup that shows it."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_shown, text))
    return escape(text)


def _shown(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNSHOWN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# -- without JavaScript -------------------------------------------------------------------------------------


def list_of_kernels(data: dict[str, Any]) -> str:
    """A table of the kernels: how many answers of each kind, and what is wrong with the kernel."""
    counts = Counter((result["kernel"], result["status"]) for result in data["results"])
    statuses = list(data["counts"])
    rows = [
        [kernel["name"], *(str(counts[kernel["name"], status]) for status in statuses), _remarks(kernel)]
        for kernel in data["kernels"]
    ]
    return _table(["kernel", *statuses, "remarks"], [[safe(text) for text in row] for row in rows])


def _remarks(kernel: dict[str, Any]) -> str:
    return "; ".join([*filter(None, [kernel["problem"]]), *kernel["warnings"]])


def list_of_troubles(data: dict[str, Any]) -> str:
    """A table of the answers that are not yes."""
    found = sorted((each for each in data["results"] if not each["ok"]), key=lambda each: each["status"] != "refused")
    if not found:
        return ""
    rows = [
        [safe(each["module"]), safe(each["kernel"]), safe(each["errno_name"]), _link(each["slug"]), safe(each["why"])]
        for each in found[:_TROUBLES]
    ]
    rest = f"<p>{len(found) - _TROUBLES} more are not shown.</p>" if len(found) > _TROUBLES else ""
    return _table(["module", "kernel", "errno", "reason", "why"], rows) + rest


def _link(slug: str) -> str:
    return f'<a href="#reason-{slug}">{slug}</a>' if slug in SLUGS else safe(slug)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads and cells are markup already."""
    lines = [_row("th", heads), *(_row("td", row) for row in rows)]
    return f"<table><thead>{lines[0]}</thead><tbody>\n" + "\n".join(lines[1:]) + "\n</tbody></table>\n"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


# -- the reasons' pages: the little of Markdown that they are written in --------------------------------------


def reason_article(slug: str, present: AbstractSet[str]) -> str:
    """A reason's page.

    :param present: reasons whose pages can be linked to.
    """
    blocks = "\n".join(_blocks(reason_page(slug).splitlines(), present))
    back = '<p><a href="#answers">Back to the answers</a></p>'
    return f'<article id="reason-{slug}">\n{blocks}\n{back}\n</article>'


def _blocks(lines: Sequence[str], present: AbstractSet[str]) -> Iterator[str]:
    fenced = False

    def kind(line: str) -> str:
        nonlocal fenced
        if line.startswith("```"):
            fenced = not fenced
            return "code"
        return "code" if fenced else next((mark for mark in ("#", "- ", "|") if line.startswith(mark)), line and "p")

    for mark, group in groupby(lines, kind):
        block = list(group)
        if mark == "code":
            yield f"<pre>{safe(chr(10).join(line for line in block if not line.startswith('```')))}</pre>"
        elif mark == "- ":
            yield "<ul>" + "".join(f"<li>{_inline(line[2:], present)}</li>" for line in block) + "</ul>"
        elif mark == "|":
            rows = [[_inline(cell.strip(), present) for cell in line.strip("|").split(" | ")] for line in block]
            yield _table(rows[0], rows[2:])
        elif mark == "#":
            for line in block:
                level, _, text = line.partition(" ")
                yield f"<h{len(level) + 2}>{_inline(text, present)}</h{len(level) + 2}>"
        elif mark:
            yield f"<p>{_inline(' '.join(block), present)}</p>"


def _inline(text: str, present: AbstractSet[str]) -> str:
    """Code and links; a link to a reason that is not in the page is its name."""
    parts = re.split(r"`([^`]*)`", text)
    return "".join(
        f"<code>{safe(part)}</code>" if place % 2 else _links(part, present) for place, part in enumerate(parts)
    )


def _links(text: str, present: AbstractSet[str]) -> str:
    parts = re.split(r"\[([^\]]*)\]\(([\w-]+)\.md\)", text)
    made = [safe(parts[0])]
    for name, slug, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        made += [f'<a href="#reason-{slug}">{safe(name)}</a>' if slug in present else safe(name), safe(after)]
    return "".join(made)
