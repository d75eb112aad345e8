"""The answers of ``kodojo check`` as one page to look at: no network, nothing beside it.

The page is ``page.html`` in this directory, with its style, its script and the data of ``--json`` in it. Whatever
modules and kernels call themselves is data there, never markup: the script puts texts into the page as texts, and the
page's policy allows no script and no style but these two, by their hashes.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib import resources
from typing import Any

from kodojo import __version__
from kodojo.check.results import Matrix
from kodojo.loader.slugs import SLUGS
from kodojo.report.check_json import matrix_json
from kodojo.report.html.markup import list_of_kernels, list_of_troubles, reason_article, safe
from kodojo.report.json import escaped, plain
from kodojo.report.matrix import summary

__all__ = ["page"]

# What could end the script element.
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def page(matrix: Matrix) -> str:
    """The page, complete."""
    data = plain(matrix_json(matrix))
    style, script = _asset("page.css"), _asset("page.js")
    parts = {
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "headline": safe(_headline(data)),
        "summary": safe(summary(matrix)),
        "plain": list_of_kernels(data) + list_of_troubles(data),
        "reasons": _reasons(data),
        "version": safe(__version__),
        "data": escaped(json.dumps(data, ensure_ascii=False, separators=(",", ":"))).translate(_UNSAFE),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but what was written here."""
    allowed = [b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{allowed[0]}'; script-src 'sha256-{allowed[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _headline(data: dict[str, Any]) -> str:
    """What came out, in one sentence."""
    refused = {result["module"] for result in data["results"] if result["status"] == "refused"}
    unbuilt = {result["module"] for result in data["results"] if result["status"] == "not-built"}
    doubtful = {result["module"] for result in data["results"] if not result["ok"]}
    number = len(data["modules"])
    if number == 1:
        (name,) = data["modules"]
        verb = "does not build" if unbuilt else "is not known to load" if doubtful else "loads"
        verb = "is refused" if refused else verb
        return f"{name.rpartition('/')[2]} {verb}"
    for some, verb in ((refused, "refused"), (unbuilt, "not built"), (doubtful, "not known to load")):
        if some:
            word = {"refused": "by", "not built": "for"}.get(verb)
            where = f" {word} at least one kernel" if word and len(data["kernels"]) > 1 else ""
            return f"{len(some):,} of {number:,} modules {'is' if len(some) == 1 else 'are'} {verb}{where}"
    return f"All {number:,} modules load" if number else "No modules"


def _reasons(data: dict[str, Any]) -> str:
    """The pages about the reasons that occur."""
    slugs = {each["slug"] for result in data["results"] for each in (result, *result["problems"])} & SLUGS.keys()
    if not slugs:
        return ""
    articles = "\n".join(reason_article(slug, slugs) for slug in sorted(slugs))
    return f'<section id="reasons" aria-label="Reasons">\n<h2>What the reasons mean</h2>\n{articles}\n</section>'
