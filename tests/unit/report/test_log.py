from __future__ import annotations

from kodojo.errors import LogRecord
from kodojo.report.log import log_line
from kodojo.report.paint import Paint


def test_levels_have_colours():
    """Errors are red and warnings yellow; information is as it comes."""
    lines = [log_line(LogRecord(level, "text"), Paint(True)) for level in (3, 4, 6)]
    assert "\x1b[31mtext" in lines[0]
    assert "\x1b[33mtext" in lines[1]
    assert lines[2].endswith("] text") or lines[2].endswith("\x1b[0m text")


def test_time_is_rounded_to_microseconds():
    """A time just below a second is that second, not a seven-digit fraction."""
    assert log_line(LogRecord(6, "t", 0.9999999), Paint(False)) == "[    1.000000] t"


def test_empty_line():
    """An empty line has no blank at its end."""
    assert log_line(LogRecord(6, "", 1.5), Paint(False)) == "[    1.500000]"
