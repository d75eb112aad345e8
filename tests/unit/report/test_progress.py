from __future__ import annotations

import io

import pytest

from kodojo.report import progress
from kodojo.report.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, and a terminal that can draw."""
    monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_silent_without_a_terminal(clock):
    """Where no terminal is, nothing is written, however long it takes."""
    stream = io.StringIO()
    with Bar(stream, "booting") as bar:
        clock[0] = 100.0
        bar.share(0.5)
    assert stream.getvalue() == ""


def test_silent_for_a_moment(clock):
    """Work that is over at once has no bar."""
    stream = Terminal()
    with Bar(stream, "booting") as bar:
        bar.share(0.5)
        bar.share(1.0)
    assert stream.getvalue() == ""


def test_drawn_after_a_moment(clock):
    """Work that goes on has a bar with its words; changed words change it, and an unknown total is no error."""
    stream = Terminal()
    with Bar(stream) as bar:
        clock[0] = 1.0
        bar.update(1, 4, "unpacking")
        clock[0] = 2.0
        bar.update(5, 0, "reading [bold]modules")
        drawn = stream.getvalue()
    assert "unpacking" in drawn
    assert "reading [bold]modules" in drawn


def test_closed_is_closed(clock):
    """After close() nothing more is drawn."""
    stream = Terminal()
    bar = Bar(stream, "booting")
    clock[0] = 1.0
    bar.share(0.5)
    bar.close()
    drawn = stream.getvalue()
    clock[0] = 2.0
    bar.share(0.9)
    assert stream.getvalue() == drawn
