from __future__ import annotations

import json

import pytest

from kodojo.errors import LogRecord


@pytest.fixture
def talkative(kernel):
    kernel.printk.lines = [
        LogRecord(5, "Linux version 6.1", 0.0),
        LogRecord(3, "it broke\x1b[2J", 12.345678),
        LogRecord(6, "so it goes", 100000.5),
    ]
    return kernel


def test_format(run, session, talkative):
    """Lines are dmesg's, with times in microseconds; control characters cannot reach the terminal."""
    assert run("dmesg").stdout.splitlines() == [
        "[    0.000000] Linux version 6.1",
        r"[   12.345678] it broke\x1b[2J",
        "[100000.500000] so it goes",
    ]
    assert session.asked_to_save is False


@pytest.mark.parametrize(
    ("options", "count"), [(["--level", "err"], 1), (["-l", "err,notice"], 2), (["-l", "3", "-l", "6"], 2)]
)
def test_levels(run, talkative, options, count):
    """--level takes names and numbers, in lists and repeatedly."""
    assert len(run("dmesg", *options).stdout.splitlines()) == count


def test_unknown_level(run, talkative):
    """A level that does not exist is wrong usage."""
    assert run("dmesg", "--level", "loud").exit_code == 2


def test_json(run, talkative):
    """--json has level, text and time of each record, unaltered."""
    assert json.loads(run("dmesg", "--json", "-l", "err").stdout) == [
        {"level": 3, "text": "it broke\x1b[2J", "time": 12.345678}
    ]


def test_nothing_to_print(run, talkative):
    """No record of the level: no line, not even an empty one."""
    assert run("dmesg", "--level", "emerg").stdout == ""
