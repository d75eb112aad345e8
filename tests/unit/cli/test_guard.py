"""Two processes for one command: what becomes of the second one is what becomes of the first."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one process")

BEGIN = """
import atexit, ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from kodojo.cli.guard import hand_over
from kodojo.errors import MachineError
first = os.getpid()
print("begin", end=" ")
try:
    done = hand_over()
except MachineError as error:
    print(error.message)
    print(error.hint, file=sys.stderr)
    sys.exit(1)
assert os.getpid() != first
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A command that does this in place of work with a guest."""
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_death(name):
    """A signal that errors of native code bring is an error with a sentence, status 1, and nothing is said twice."""
    done = run(f"print('working', flush=True); os.kill(os.getpid(), signal.{name})")
    assert done.returncode == 1
    assert done.stdout.startswith(f"begin working\nthe engine died: {name} (")
    assert "bug of kodojo" in done.stderr


def test_exit_of_a_library():
    """So is an end of the process that Python knows nothing of."""
    done = run("ctypes.CDLL(None).exit(0)")
    assert (done.returncode, done.stdout) == (1, "begin the engine died: it ended the process (status 0)\n")


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_status(status):
    """Its status is that of the command; what it prints is printed once; its atexit functions run once."""
    done = run(f"atexit.register(print, 'end'); print('work', end=' '); done(); sys.exit({status})")
    assert (done.returncode, done.stdout, done.stderr) == (status, "begin work end\n", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
def test_other_signals(name):
    """Others end the first process, too, as somebody may wait for just that."""
    done = run(f"signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.{name})")
    assert done.returncode == -getattr(signal, name)


def test_death_behind_the_work():
    """When no guest code runs any more, the machine's state may have been written: it is what it is then."""
    done = run("done(); os.kill(os.getpid(), signal.SIGSEGV)")
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "begin ")


def test_signals_are_passed_on():
    """A signal to the first process reaches the second one."""
    code = """
signal.signal(signal.SIGUSR1, lambda *_: (print("heard"), done(), sys.exit(5)))
os.kill(first, signal.SIGUSR1)
while True:
    signal.pause()
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (5, "begin heard\n")


def test_locks_have_the_name_of_the_first(tmp_path):
    """Who waits for a lock is told of the process that was started, and can be ended."""
    code = f"""
from pathlib import Path
from kodojo.durable import lock
with lock(Path({str(tmp_path / "lock")!r})):
    print(Path({str(tmp_path / "lock")!r}).read_text().split()[0] == str(first))
done()
"""
    assert run(code).stdout == "begin True\n"


def test_no_room_for_a_second_process():
    """Where there can be no other process, the work is done in this one."""
    refusing = """
def refuse():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = refuse
"""
    code = BEGIN.replace("first =", refusing + "first =").replace("os.getpid() != first", "os.getpid() == first")
    done = subprocess.run(
        [sys.executable, "-c", code + "done(); sys.exit(3)"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (3, "begin ")
