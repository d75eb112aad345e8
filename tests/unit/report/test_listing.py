from __future__ import annotations

import re

from kodojo.report.listing import listing
from kodojo.report.paint import Paint


def test_columns_on_a_terminal(monkeypatch):
    """On a terminal names stand in columns, read downwards, within its width."""
    monkeypatch.setenv("COLUMNS", "14")
    names = [(name, "file") for name in ("a1", "a2", "a3", "a4", "a5", "a6", "a7")]
    assert listing(names, Paint(True)) == ["a1  a4  a7", "a2  a5", "a3  a6"]


def test_colours_do_not_count(monkeypatch):
    """A directory's colour does not shift the columns."""
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = listing([("dir", "directory"), ("file", "file")], Paint(True))
    assert re.sub("\x1b\\[[0-9;]*m", "", line) == "dir   file"


def test_hostile_name():
    """A name cannot bring escape sequences to the terminal."""
    assert listing([("\x1bc", "file")], Paint(False)) == [r"\x1bc"]
