"""What waits too long, on the command line: the report, what was read until then, and what is saved."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import click
import pytest

from kodojo.cli.group import cli
from kodojo.errors import FaultReport, Frame, MachineHang, TaskReport

WAITS = (Frame(0x10, "kd_wait_event+0x1/0x2 [kd_wait]"), Frame(0x20, "vfs_read+0x1/0x2"))
TASKS = (
    TaskReport("insmod", 1, "D", WAITS),
    TaskReport("kthreadd", 2, "S", (Frame(0x30, "kthreadd+0x1/0x2"),), kernel_thread=True),
    TaskReport("rcu_gp", 3, "I", (Frame(0x30, "rescuer_thread+0x1/0x2"),), kernel_thread=True),
    TaskReport("kworker/0:1", 9, "D", (Frame(0x40, "flush_work+0x1/0x2"),), kernel_thread=True),
    TaskReport("kd_thread", 10, "S", (Frame(0x50, "body+0x1/0x2 [kd_wait]"),), kernel_thread=True),
    TaskReport("modprobe", 80, "S", (Frame(0x60, "pipe_read+0x1/0x2"),)),
)


def hang(*, left: bool = False) -> MachineHang:
    report = FaultReport("limit reached", {"rip": 0x1234}, WAITS, (), TASKS)
    return MachineHang("it waits; it is there", report, hint="give it more time", survived=True, left=left)


@pytest.fixture
def waiting(kernel, ko):
    """insmod waits too long."""

    def load():
        raise hang(left=True)

    kernel.on_insmod = load
    return ko


def test_report(run, session, waiting):
    """First what the command waits in, then the other tasks that do something; the rest is counted."""
    result = run("insmod", waiting)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "kodojo: it waits; it is there",
        "cause: limit reached",
        "backtrace:",
        "  kd_wait_event+0x1/0x2 [kd_wait]",
        "  vfs_read+0x1/0x2",
        "other tasks:",
        "  kworker/0:1 (PID 9, state D):",
        "    flush_work+0x1/0x2",
        "  kd_thread (PID 10, state S):",
        "    body+0x1/0x2 [kd_wait]",
        "  modprobe (PID 80, state S):",
        "    pipe_read+0x1/0x2",
        "  2 kernel threads have nothing to do",
        "hint: give it more time",
        "the machine is as it was before this command",
    ]
    assert not session.saved


def test_leave(run, kernel, session, waiting):
    """With --leave what waits is left, and the machine is saved with it."""
    result = run("insmod", "--leave", waiting)
    assert (result.exit_code, kernel.left, session.saved) == (1, True, True)
    assert result.stderr.splitlines()[-1] == "the machine is kept as it is"


def test_json(run, waiting):
    """--json has all tasks, each with its backtrace."""
    error = json.loads(run("insmod", waiting, "--json").stdout)["error"]
    assert error["left"] is True
    assert [(task["name"], task["pid"], task["state"], task["kernel_thread"]) for task in error["tasks"]] == [
        (task.name, task.pid, task.state, task.kernel_thread) for task in TASKS
    ]
    assert error["tasks"][0]["backtrace"][0]["symbol"] == WAITS[0].symbol


def test_what_was_read(run, kernel):
    """cat prints what it has read before it has waited too long."""

    @contextmanager
    def opened(path, flags=0):
        def pieces(_size):
            yield path.encode()
            if path == "/endless":
                raise hang()

        yield SimpleNamespace(pieces=pieces)

    kernel.open = opened
    result = run("cat", "/a", "/endless", "/b")
    assert (result.exit_code, result.stdout) == (1, "/a/endless")
    assert "kodojo: it waits; it is there" in result.stderr


@pytest.mark.parametrize("name", cli.list_commands(click.Context(cli)))
def test_every_command_that_uses_the_machine(name):
    """What can work on a copy of the machine can block, and has a limit."""
    command = cli.get_command(click.Context(cli), name)
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--fresh" not in options or {"--limit", "--leave"} <= options
