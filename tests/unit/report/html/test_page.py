"""The page as a file: what is in it, and that no text can become a part of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kodojo.check.results import KernelColumn, Matrix, Result
from kodojo.loader.slugs import SLUGS
from kodojo.loader.verdict import Verdict
from kodojo.report.check_json import matrix_json
from kodojo.report.html import page
from kodojo.report.html.markup import reason_article, safe
from kodojo.report.json import dumps
from tests.support.results import HOSTILE, REFUSED, matrix, refusal


class Reader(HTMLParser):
    """What a browser makes of the page: its elements, and the content of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_data(self, data):
        if self.cdata_elem in self.raw:
            self.raw[self.cdata_elem][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_page_has_the_data_of_json():
    """The page shows what ``--json`` prints, not a byte more or less."""
    made = matrix("dir/m.ko", f"dir/{HOSTILE}")
    made.add([replace(made.results["dir/m.ko", "good"], verdict=replace(REFUSED, errno=1 << 60), notes=("a\x00b",))])
    assert json.loads(read(page(made)).raw["script"][0]) == json.loads(dumps(matrix_json(made)))


def test_hostile_names_are_no_markup():
    """Whatever modules call themselves, the page has the elements of the template and no others."""
    hostile, tame = read(page(matrix(HOSTILE))), read(page(matrix("m.ko")))
    assert hostile.elements == tame.elements
    assert len(hostile.raw["script"]) == 2
    page(matrix(HOSTILE)).encode("utf-8")  # no surrogates


def test_names_are_no_placeholders():
    """A module that is called like a place in the template does not get what belongs there."""
    text = page(matrix("{{script}}.ko"))
    assert "<h1>{{script}}.ko is refused" in text


def test_page_needs_nothing_else():
    """Nothing in the page refers to anything outside of it, and what it refers to inside is there."""
    reader = read(page(matrix("m.ko")))
    named = {attributes["id"] for _tag, attributes in reader.elements if "id" in attributes}
    references = {
        value for _tag, attributes in reader.elements for name, value in attributes.items() if name in ("src", "href")
    }
    assert references - {"data:,"} <= {f"#{name}" for name in named}
    assert "#reason-vermagic-mismatch" in references


def test_policy():
    """Only this very style and this very script are allowed, by their hashes; nothing else, and nothing inline."""
    reader = read(page(matrix("m.ko")))
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (style,), (_data, script) = reader.raw["style"], reader.raw["script"]
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    assert not [a for _tag, a in reader.elements if any(name == "style" or name.startswith("on") for name in a)]


@pytest.mark.parametrize(
    ("given", "headline"),
    [
        ([True], "a/m0.ko loads"),
        ([False], "a/m0.ko is refused"),
        ([None], "a/m0.ko is not known to load"),
        ([True, True], "All 2 modules load"),
        ([True, False], "1 of 2 modules is refused"),
        ([None, False, False], "2 of 3 modules are refused"),
        ([None, True], "1 of 2 modules is not known to load"),
    ],
)
def test_headline(given, headline):
    """The first thing on the page is what came out."""
    verdicts = {True: Verdict(ok=True), False: refusal("unknown-symbol", "nobody exports it"), None: None}
    made = Matrix(tuple(f"a/m{number}.ko" for number in range(len(given))), (KernelColumn("1.0"),))
    made.add(Result(f"a/m{number}.ko", "1.0", verdicts[ok]) for number, ok in enumerate(given))
    assert f"<h1>{headline.removeprefix('a/')}</h1>" in page(made)


def test_without_javascript():
    """The table for browsers without JavaScript has each answer that is not yes, refusals first."""
    made = matrix("m.ko", "n.ko")
    (plain,) = re.findall(r"<noscript>(.*?)</noscript>", page(made), re.DOTALL)
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", plain)
    cells = [re.sub(r"<a href=\"#[\w-]*\">(.*?)</a>", r"\1", row).split("</td><td>") for row in rows]
    assert cells[:3] == [
        ["good", "2", "0", "0", "0", ""],
        ["bad", "0", "2", "0", "0", ""],
        ["gone", "0", "0", "0", "2", "no such file"],
    ]
    assert [cell[:2] for cell in cells[3:]] == [["m.ko", "bad"], ["n.ko", "bad"], ["m.ko", "gone"], ["n.ko", "gone"]]
    assert cells[3][2:] == ["ENOEXEC", "vermagic-mismatch", "built for 1.0"]


@pytest.mark.parametrize("slug", SLUGS)
def test_reason_pages(slug):
    """A reason's page becomes markup whole: nothing of Markdown is left, and no word is lost."""
    article = reason_article(slug, SLUGS.keys())
    text = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", article, flags=re.DOTALL)
    assert not re.search(r"```|`|\]\(|^#|^- |^\|", text, re.MULTILINE)
    stack: list[str] = []
    for slash, tag in re.findall(r"<(/?)(\w+)[^>]*>", article):
        assert not slash or stack.pop() == tag
        if not slash:
            stack.append(tag)
    assert stack == []


def test_reason_page():
    """Headings, paragraphs, lists, code, tables and links of a reason's page are those of its text."""
    article = reason_article("vermagic-mismatch", {"vermagic-mismatch"})
    assert article.startswith('<article id="reason-vermagic-mismatch">\n<h3>vermagic-mismatch</h3>')
    assert "<h4>What it means</h4>" in article
    assert "<pre>NAME: version magic &#x27;6.1.0-13-amd64" in article
    assert "<tr><td><code>SMP</code></td><td>CONFIG_SMP: several processors</td></tr>" in article
    assert "<li>The kernel was updated, and the module was not built again;" in article


def test_characters_that_are_not_seen():
    """What turns text around, or is no character, is shown by its number; markup is shown as it is written."""
    assert safe("a\u202eb\x1b\u2028c<\n") == "a\\u202eb\\x1b\\u2028c&lt;\n"
