from __future__ import annotations

import re
from importlib.resources import files

import pytest

from kodojo.check import reasons
from kodojo.errors import InputError
from kodojo.loader.slugs import SLUGS

HEADINGS = ["What the kernel says", "What it means", "How it comes about", "What to do", "In the kernel"]
PAGES = {path.name.removesuffix(".md"): path for path in files(reasons).iterdir() if path.name.endswith(".md")}


def test_every_reason_has_its_page():
    """The reasons of the loader and the pages about them are the same set; the index is no page."""
    assert PAGES.keys() - {"README"} == SLUGS.keys()


@pytest.mark.parametrize("slug", SLUGS)
def test_page(slug):
    """A page has its reason for a title, the same sections as all others, and says something in each."""
    text = reasons.page(slug)
    title, *sections = re.split(r"^##? (.*)\n", text, flags=re.MULTILINE)[1:]
    assert title == slug
    assert sections[0].strip().rstrip(".").lower() == SLUGS[slug].lower()
    assert sections[1::2] == HEADINGS
    assert all(content.strip() for content in sections[2::2])


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    """What pages link to is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name].read_text("utf-8")):
        assert target.removesuffix(".md") in PAGES


def test_index():
    """The index lists every reason once, in the words that the loader has for it."""
    listed = re.findall(r"^\| \[(.*)\]\(.*\) \| (.*) \|$", PAGES["README"].read_text("utf-8"), re.MULTILINE)
    assert dict(listed) == SLUGS
    assert len(listed) == len(SLUGS)


def test_unknown_reason():
    """A name that is no reason is refused, and the one that looks like it is named."""
    with pytest.raises(InputError, match="neither a file nor a reason") as caught:
        reasons.page("vermagic-mismach")
    assert "vermagic-mismatch" in caught.value.hint
    with pytest.raises(InputError) as caught:
        reasons.page("README")
    assert "README" not in caught.value.hint
