"""Forked processes that answer through a pipe, within a limit, and a pool of tokens that says how many may run."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")
_libc = ctypes.CDLL(None)


class NoAnswer(Exception):  # noqa: N818
    """A process ended, or was ended, before it answered."""

    status = ""


class Crashed(NoAnswer):
    """It died by itself."""

    status = "crashed"


class TimedOut(NoAnswer):
    """It took too long and was killed."""

    status = "timed out"


def fork(work: Callable[[], None]) -> int:
    """Do this in a copy of this process, which dies with its parent; the copy's number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides, and all die with it
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        work()
        status = 0
    except BaseException:  # noqa: BLE001  nothing may return into the parent's code
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass
class Answering:
    """A process that answers once, and may go on then."""

    pid: int
    pipe: int
    deadline: float

    @classmethod
    def start(cls, work: Callable[[], Any], then: Callable[[], None] | None, limit: float) -> Answering:
        """Fork: answer what ``work()`` returns, then do ``then()``.

        :param limit: seconds in which the answer has to come.
        """
        read, write = os.pipe()

        def run() -> None:
            os.close(read)
            try:
                answer = (True, work())
            except Exception as error:  # noqa: BLE001  a bug of ours is an answer too
                answer = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
            data = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
            with open(write, "wb") as file:  # noqa: PTH123
                file.write(_LENGTH.pack(len(data)) + data)
            if then is not None and answer[0]:
                then()

        pid = fork(run)
        os.close(write)
        return cls(pid, read, time.monotonic() + limit)

    def answer(self) -> Any:
        """What ``work()`` returned. Raises Crashed, TimedOut; the process is gone then."""
        data = bytearray()
        try:
            while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
                if not select.select([self.pipe], [], [], max(0.0, self.deadline - time.monotonic()))[0]:
                    os.kill(self.pid, signal.SIGKILL)
                    self.wait()
                    raise TimedOut("no answer within its limit")
                piece = os.read(self.pipe, 1 << 20)
                if not piece:
                    raise Crashed(_ending(self.wait()))
                data += piece
        finally:
            os.close(self.pipe)
        good, value = pickle.loads(memoryview(data)[_LENGTH.size :])
        if not good:
            self.wait()
            raise Crashed(value)
        return value

    def wait(self) -> int:
        """Its exit status, as of ``os.waitpid``, once it has ended."""
        return os.waitpid(self.pid, 0)[1]


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


class Tokens:
    """As make's job server: whoever holds one may keep a core busy.

    :param count: how many there are; the process that makes them holds the first.
    """

    def __init__(self, count: int) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.write(self._write, b"+" * (count - 1))

    def take(self) -> bool:
        """Whether there was one to take."""
        try:
            return bool(os.read(self._read, 1))
        except BlockingIOError:
            return False

    def give(self) -> None:
        os.write(self._write, b"+")

    def wait_for(self, pids: list[int]) -> None:
        """Until these processes have ended, let somebody else have this process's token."""
        self.give()
        for pid in pids:
            os.waitpid(pid, 0)
        while not self.take():
            select.select([self._read], [], [])
