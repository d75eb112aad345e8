from __future__ import annotations

import io

import pytest

from kodojo.report.paint import Paint, clean, clean_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_only_on_terminals(monkeypatch):
    """A pipe gets no escape sequences, nor does a terminal with NO_COLOR or without capabilities."""
    assert Paint.of(Terminal())("x", "red") == "\x1b[31mx\x1b[0m"
    assert Paint.of(io.StringIO())("x", "red") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint.of(Terminal())("x", "red") == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Paint.of(Terminal())("x", "red") == "x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode", "plain ünïcode"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\udcff", r"\xff"),
        ("\x9b2J", r"\x9b2J"),
        ("\r", r"\x0d"),
    ],
)
def test_clean(text, shown):
    """Nothing that a terminal obeys, but tab and newline, gets through; text does."""
    assert clean(text) == shown


def test_clean_line():
    """A name stays on one line, whatever is in it."""
    assert clean_line("a\nb\tc\x1b") == "a\\x0ab\\x09c\\x1b"
