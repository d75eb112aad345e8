from __future__ import annotations

import json
import os
import signal

import pytest

from kodojo.errors import DamagedMemoryError, LogRecord


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
    ("options", "count"),
    [
        (["--level", "err"], 1),
        (["-l", "err,notice"], 2),
        (["-l", "3", "-l", "6"], 2),
        (["-l", "notice+"], 2),
        (["-l", "+notice"], 2),
        (["-l", "ERR"], 1),
        (["--since", "12.3"], 2),
        (["--since", "-10s"], 2),
        (["--since", "8s ago", "--until", "now"], 1),
        (["--until", "1min"], 2),
    ],
)
def test_levels_and_times(run, talkative, options, count):
    """Levels are names and numbers, in lists and repeatedly, + as in util-linux; times are the log's, or relative."""
    assert len(run("dmesg", *options).stdout.splitlines()) == count


def test_unknown_level(run, talkative):
    """A level that does not exist is wrong usage, which is 1 for dmesg; a time of day is none that it knows."""
    result = run("dmesg", "--level", "loud")
    assert (result.exit_code, result.stderr.startswith("dmesg: ")) == (1, True)
    assert run("dmesg", "--since", "2024-01-01").exit_code == 1


@pytest.mark.parametrize("clearing", ["-c", "-C"])
def test_clearing(run, session, talkative, clearing):
    """-c prints and clears, -C clears only; what comes later is shown."""
    assert len(run("dmesg", clearing).stdout.splitlines()) == (3 if clearing == "-c" else 0)
    assert session.saved
    assert run("dmesg").stdout == ""
    talkative.printk.lines.append(LogRecord(6, "new", 1.0))
    assert run("dmesg").stdout == "[    1.000000] new\n"


def test_clearing_and_following_exclude_each_other(run, talkative):
    """As util-linux has it, two of them are wrong usage; the log stays as it is."""
    result = run("dmesg", "-C", "-w")
    assert (result.exit_code, talkative.cleared) == (1, 0)
    assert "mutually exclusive" in result.stderr


@pytest.mark.parametrize(("option", "old"), [("-w", 3), ("-W", 0)])
def test_following(run, session, talkative, monkeypatch, option, old):
    """-w prints what is there, lets time pass and prints what comes, until Ctrl-C; then the state is saved."""

    def sleep(seconds):
        talkative.slept.append(seconds)
        talkative.printk.lines.append(LogRecord(6, f"tick {len(talkative.slept)}", 2.0))
        if len(talkative.slept) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(talkative, "sleep", sleep)
    before = signal.getsignal(signal.SIGINT)
    result = run("dmesg", option)
    assert (result.exit_code, session.saved) == (0, True)
    assert len(talkative.slept) == 2
    assert [line.rpartition("] ")[2] for line in result.stdout.splitlines()[old:]] == ["tick 1", "tick 2"]
    assert signal.getsignal(signal.SIGINT) is before


def test_json(run, talkative):
    """--json has level, text and time of each record, unaltered."""
    assert json.loads(run("dmesg", "--json", "-l", "err").stdout) == [
        {"level": 3, "text": "it broke\x1b[2J", "time": 12.345678}
    ]


def test_nothing_to_print(run, talkative):
    """No record of the level: no line, not even an empty one."""
    assert run("dmesg", "--level", "emerg").stdout == ""


def test_damaged_log(run, talkative, monkeypatch):
    """What can be read is printed, then what is wrong."""
    found = tuple(talkative.printk.lines[:1])

    def look(_kernel):
        raise DamagedMemoryError("the kernel's memory is damaged: the log", hint="start over", found=found)

    monkeypatch.setattr(type(talkative), "log", property(look))
    result = run("dmesg")
    assert result.stdout == "[    0.000000] Linux version 6.1\n"
    assert result.stderr.splitlines() == ["kodojo: the kernel's memory is damaged: the log", "hint: start over"]
    assert result.exit_code == 1
