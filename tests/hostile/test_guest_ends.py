"""Whatever a guest does, a person can end it: by Ctrl-C, by a limit of guest time, by one of this computer's time.

And if the engine itself dies of it, that is reported, with the status and the state of a fault.

What the guest does is machine code in place of a system call that ``kodojo ls`` makes.
"""

from __future__ import annotations

import itertools
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from kodojo.errors import MachineError, MachineHang
from kodojo.image.store import Store
from kodojo.kernel.kernel import Kernel
from kodojo.kernel.session import Session
from kodojo.machine import watch
from tests.support import distribution
from tests.support.shell import Shell, one_machine, store_with_kernels

pytestmark = pytest.mark.kernel

SPIN = {"x86_64": "ebfe", "aarch64": struct.pack("<I", 0x14000000).hex()}  # jmp self; b self
MASKED = {"x86_64": "faebfe", "aarch64": struct.pack("<2I", 0xD50342DF, 0x14000000).hex()}  # cli, msr daifset, #2
PORTS = {"x86_64": "e461ebfc"}  # in al, 0x61; jmp back
ONE_BYTE = {  # a call that answers 1: mov eax, 1; ret, and mov x0, 1; ret
    "x86_64": "b801000000c3",
    "aarch64": struct.pack("<2I", 0xD2800020, 0xD65F03C0).hex(),
}


def replace(kernel: Kernel, call: str, code: dict[str, str]) -> None:
    """Let a system call be this code."""
    architecture = kernel.machine.cpu.architecture
    prefix = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}[architecture]
    kernel.memory.write(kernel.image.kallsyms.address(prefix + call), bytes.fromhex(code[architecture]))


def state_file() -> Path:
    return store_with_kernels() / "machine" / "state"


def snapshots() -> set[Path]:
    """What is in the store of boots, and of parts of them, without the files that are only locked."""
    return {path for path in (store_with_kernels() / "snapshots").rglob("*") if path.suffix != ".lock"}


@contextmanager
def running(shell: Shell, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command that holds the machine, in the ``with`` block; nobody leaves it behind."""
    lock = store_with_kernels() / "machine" / "lock"
    process = shell.start(*words)
    try:
        while str(process.pid) not in lock.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child_of(process: subprocess.Popen[str]) -> int:
    """The process that works for it."""
    (child,) = children_of(process.pid)
    return child


def has_used(pid: int, seconds: float) -> None:
    """Wait until a process has used so much processor time."""
    while True:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
            return
        time.sleep(0.01)


@contextmanager
def spinning(series: str, code: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], bytes]]:
    """A command whose guest does not come back, and the machine's state before it."""
    with one_machine(series) as shell:
        with Session(Store(store_with_kernels())).machine() as kernel:
            replace(kernel, "getdents64", code)
        before = state_file().read_bytes()
        with running(shell, "ls", "/", "--limit", "30000") as process:
            has_used(child_of(process), 0.5)
            yield process, before


@pytest.mark.arm64
@pytest.mark.parametrize("code", [SPIN, MASKED], ids=["spins", "spins with interrupts off"])
def test_ctrl_c(series: str, code: dict[str, str]) -> None:
    """Ctrl-C ends a guest that only computes; one sentence, status 130, and the state is as before."""
    with spinning(series, code) as (process, before):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (
            130,
            "kodojo: interrupted; the machine is as it was before this command\n",
        )
        assert state_file().read_bytes() == before


@pytest.mark.x86_64("arm64 has no ports")
def test_ctrl_c_while_python_works(series: str) -> None:
    """So it does where nearly all the time is Python's, in calls from the engine."""
    with spinning(series, PORTS) as (process, before):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said.count("\n")) == (130, 1)
        assert state_file().read_bytes() == before


@pytest.mark.parametrize("series", ["6.1"])
def test_ctrl_c_while_it_boots(series: str) -> None:
    """A boot that is ended leaves the machine and no snapshot."""
    with one_machine(series) as shell:
        before = state_file().read_bytes()
        there = snapshots()
        release = distribution.kernel_of(series).release
        with running(shell, "boot", release, "--cmdline", f"not_kept={os.getpid()}.{time.time_ns()}") as process:
            has_used(child_of(process), 2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert (process.returncode, said.count("\n")) == (130, 1)
        assert state_file().read_bytes() == before
        assert snapshots() == there


@pytest.mark.parametrize("series", ["6.1"])
def test_ctrl_c_while_it_checks(series: str) -> None:
    """A check of a whole tree ends with all its processes, and with status 130."""
    with one_machine(series) as shell:
        process = shell.start("check", "--all", "--kernel", distribution.kernel_of(series).release, "--jobs", "2")
        try:
            while not (workers := children_of(process.pid)):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGILL])
@pytest.mark.parametrize("series", ["6.1"])
def test_engine_that_dies(series: str, number: signal.Signals) -> None:
    """It is reported, with the status of a fault; the state is as before, and the machine can be used."""
    with spinning(series, SPIN) as (process, before):
        os.kill(child_of(process), number)
        out, said = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        assert said.startswith(f"kodojo: the engine died: {number.name} ")
        assert "this is a bug of kodojo" in said
        assert "the machine is as it was before this command" in said
        assert state_file().read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("series", ["6.1"])
def test_other_signals_are_the_command_s(series: str, number: signal.Signals) -> None:
    """Who ends the command ends its guest, and sees the status that he would expect."""
    with spinning(series, SPIN) as (process, before):
        child = child_of(process)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == -number
        assert not Path(f"/proc/{child}").exists()
        assert state_file().read_bytes() == before


@pytest.mark.parametrize("series", ["6.1"])
def test_killed_command_has_no_child(series: str) -> None:
    """Nor does kill -9 leave a guest that runs on."""
    with spinning(series, SPIN) as (process, before):
        child = child_of(process)
        process.kill()
        process.communicate(timeout=60)  # until nobody has its streams any more
        while Path(f"/proc/{child}").exists():
            time.sleep(0.01)
        assert state_file().read_bytes() == before


# -- time -------------------------------------------------------------------------------------------------


def test_limit_of_wall_time(kernel: Kernel) -> None:
    """What no limit of guest time ends: a file that is read byte by byte, for ever."""
    replace(kernel, "read", ONE_BYTE)
    kernel.wall_limit(1)
    with pytest.raises(MachineHang, match="within 1 s of this computer's time") as caught:
        kernel.read_file("/proc/version")
    assert "--wall-limit" in caught.value.hint
    with pytest.raises(MachineError, match="this machine has stopped"):
        kernel.exists("/")


def test_limit_is_for_each_operation(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes between operations does not count, nor does sleep() end by it."""
    now = itertools.count()
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: next(now)))  # a second for each look
    kernel.wall_limit(3000)
    kernel.limit(4)
    began = next(now)
    kernel.sleep(20)
    assert next(now) - began > 3000
    for _ in range(20):
        assert kernel.exists("/proc")


@pytest.mark.parametrize("series", ["6.1"])
def test_wall_limit_of_a_command(series: str) -> None:
    """--wall-limit is for all commands that use the machine; the help says what it is otherwise."""
    with one_machine(series) as shell:
        with Session(Store(store_with_kernels())).machine() as kernel:
            replace(kernel, "read", ONE_BYTE)
        done = shell("cat", "/proc/version", "--wall-limit", "1")
        assert done.returncode == 1
        assert "within 1 s of this computer's time" in done.stderr
        assert "--wall-limit" in shell.ok("cat", "--help")


@pytest.fixture
def as_in_a_terminal() -> Iterator[None]:
    """A test run in the background of a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_ctrl_c_in_a_program(kernel: Kernel) -> None:
    """In a program of one's own Ctrl-C is KeyboardInterrupt, as everywhere; the kernel says that it came."""
    replace(kernel, "getdents64", SPIN)
    kernel.limit(30000)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        kernel.list_directory("/")
    timer.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(MachineError, match="interrupted"):
        kernel.exists("/")
