from __future__ import annotations

import os
import signal
import time

import pytest

from tests.sweep.processes import Answering, Crashed, TimedOut, Tokens, fork

LONG = 60.0


def test_answer_comes_back() -> None:
    """What the copy's work returns is the answer, however large it is."""
    process = Answering.start(lambda: b"x" * 3_000_000, None, LONG)
    assert process.answer() == b"x" * 3_000_000
    assert process.wait() == 0


def test_goes_on_after_its_answer() -> None:
    """The answer comes before the copy does what it goes on with."""
    read, write = os.pipe()
    process = Answering.start(lambda: 1, lambda: os.write(write, os.read(read, 1)), LONG)
    assert process.answer() == 1
    assert os.waitpid(process.pid, os.WNOHANG) == (0, 0)
    os.write(write, b"!")
    assert process.wait() == 0


def test_death_is_a_crash() -> None:
    """A copy that dies before it answers is reported with its signal."""
    process = Answering.start(lambda: os.kill(os.getpid(), signal.SIGTERM), None, LONG)
    with pytest.raises(Crashed, match="SIGTERM"):
        process.answer()


def test_python_exception_is_a_crash() -> None:
    """An exception in the copy is reported, and what should follow is not done."""
    process = Answering.start(lambda: 1 // 0, lambda: time.sleep(LONG), LONG)
    with pytest.raises(Crashed, match="ZeroDivisionError"):
        process.answer()


def test_limit_kills() -> None:
    """A copy that does not answer within its limit is killed."""
    process = Answering.start(signal.pause, None, 0.05)
    with pytest.raises(TimedOut):
        process.answer()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_tokens() -> None:
    """No more processes than tokens; whoever waits lends its own."""
    tokens = Tokens(2)
    assert tokens.take()
    assert not tokens.take()

    def borrow() -> None:
        while not tokens.take():
            os.sched_yield()
        tokens.give()

    tokens.wait_for([fork(borrow)])
    assert not tokens.take()
