from __future__ import annotations

import re

from kodojo.report.table import drawn_table, plain_table

ROWS = [("one", "a \x1b[2J"), ("three", "b [red]c[/red]")]


def test_plain_columns_align():
    """Columns are as wide as their widest cell, and lines have no blanks at their ends."""
    assert plain_table(("x", "y"), ROWS) == ["x      y", r"one    a \x1b[2J", "three  b [red]c[/red]"]
    assert plain_table(("", ""), [("a", "")]) == ["a"]
    assert plain_table(("x", "y"), []) == ["x  y"]


def test_drawn_cells_are_literal():
    """What looks like markup or an escape sequence in a cell is shown as it is."""
    text = re.sub("\x1b\\[[0-9;]*m", "", drawn_table(("x", "y"), ROWS, 60))
    assert "b [red]c[/red]" in text
    assert r"a \x1b[2J" in text
    assert "\x1b" not in text


def test_drawn_table_fits():
    """No line is wider than the terminal."""
    text = re.sub("\x1b\\[[0-9;]*m", "", drawn_table(("x", "y"), [("name", "word " * 50)], 40))
    assert max(len(line) for line in text.splitlines()) <= 40
    assert text.count("word") == 50
