"""The process that a person has started waits; a child of it does the work with the guest.

The engine is native code that translates what a stranger wrote. Should it die of that, or end the process, nothing in
the process could say so. So there are two: they have terminal, streams and process group in common, signals that are
sent to the first one reach the second one, and the first one ends as the second one does. A fork while little is
imported takes about a millisecond.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

from kodojo.durable import work_for
from kodojo.errors import MachineError

__all__ = ["hand_over"]

_RELAYED = {
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
}  # fmt: skip
_DEADLY = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE, signal.SIGTRAP}
_SI_KERNEL = 0x80  # by a terminal, which has told the child, too
_PR_SET_PDEATHSIG = 1
_DONE = b"."
_HINT = "this is a bug of kodojo, please report it with the module; the machine is as it was before this command"


def hand_over() -> Callable[[], None]:
    """Go on in a child process; this one ends when that has ended, with its status.

    :returns: in the child: to be called when no guest code will run any more.
    :raises MachineError: in this process: the engine has killed the other one, or ended it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_RELAYED, signal.SIGCHLD})
    told, tell = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # there may be no more processes: then this one does it
        os.close(told)
        os.close(tell)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _nothing
    if child:
        os.close(tell)
        status = _wait_for(child)
        done = os.read(told, len(_DONE)) == _DONE
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _end(status, done=done)
    os.close(told)
    _die_with(parent)
    work_for(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return lambda: (os.write(tell, _DONE), None)[1]


def _nothing() -> None:
    """Nobody waits for us."""


def _wait_for(child: int) -> int:
    """Its status as of ``waitpid()``; signals for it are passed on."""
    waited_for = {*_RELAYED, signal.SIGCHLD}
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        told = signal.sigwaitinfo(waited_for)
        if told.si_signo != signal.SIGCHLD and told.si_code != _SI_KERNEL:
            os.kill(child, told.si_signo)


def _end(status: int, *, done: bool) -> Callable[[], None]:
    """End as the child did, or tell what it could not tell."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in _DEADLY and not done:
            what = signal.strsignal(number) or "?"
            raise MachineError(f"the engine died: {signal.Signals(number).name} ({what})", hint=_HINT)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    code = os.waitstatus_to_exitcode(status)
    if not done:
        raise MachineError(f"the engine died: it ended the process (status {code})", hint=_HINT)
    os._exit(code)


def _die_with(parent: int) -> None:
    """Nobody waits for this process when the other one was killed; then it is killed, too."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
