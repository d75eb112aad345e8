"""Ctrl-C and a limit of this computer's time end whatever runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from kodojo.errors import MachineHang
from kodojo.machine import watch
from kodojo.machine.cpu import RunLimit
from tests.support.bare_arm64 import BareArm64
from tests.support.bare_machine import BareMachine
from tests.support.children import in_a_child

FOR_EVER = RunLimit(ticks=1 << 40)
ENDLESS = {
    "computes": (BareMachine, "eb fe"),
    "has interrupts off": (BareMachine, "fa eb fe"),
    "reads a port": (BareMachine, "e4 61 eb fc"),
    "faults": (BareMachine, "0f 0b"),
    "has long blocks of slow instructions": (BareMachine, "d9 fe" * 250 + "e9 07 fe ff ff"),  # fsin; jmp back
    "arm64": (BareArm64, "14000000"),
}


def interrupted(make, code: str) -> str:
    """What comes of a guest when somebody presses Ctrl-C after a while."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guest = make()
    guest.code(code)
    me = os.getpid()
    if not os.fork():
        time.sleep(0.3)
        os.kill(me, signal.SIGINT)
        os._exit(0)
    try:
        guest.cpu.run(0, FOR_EVER)
    except KeyboardInterrupt:
        os.wait()
        return "KeyboardInterrupt"
    return "?"


@pytest.mark.parametrize("routine", [True, False], ids=["machine code", "Python"])
@pytest.mark.parametrize(("make", "code"), ENDLESS.values(), ids=ENDLESS)
def test_ctrl_c(make, code, routine, monkeypatch):
    """It is KeyboardInterrupt where the run was started, whatever the guest does; nothing is printed in hooks."""
    if not routine:
        monkeypatch.setattr(watch, "_ROUTINES", {})
    watch._handler.cache_clear()
    assert in_a_child(lambda: interrupted(make, code)) == "KeyboardInterrupt"
    watch._handler.cache_clear()


def test_ctrl_c_is_heard_afterwards():
    """When no guest runs, Ctrl-C is what it was."""

    def afterwards() -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        guest = BareMachine()
        guest.run("90")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            guest.run("90")  # and the machine, which was not interrupted, goes on
            return "KeyboardInterrupt"
        return "?"

    assert in_a_child(afterwards) == "KeyboardInterrupt"


def test_handlers_of_others():
    """Who has a handler of their own keeps it; so does who ignores it."""

    def own() -> str:
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append("heard"))
        guest = BareMachine()
        guest.code("eb fe")
        me = os.getpid()
        threading.Timer(0.2, os.kill, (me, signal.SIGINT)).start()
        with pytest.raises(MachineHang):
            guest.cpu.run(0, RunLimit(ticks=100))
        while not heard:
            time.sleep(0.01)
        return heard[0]

    assert in_a_child(own) == "heard"


@pytest.mark.parametrize("make", [BareMachine, BareArm64])
def test_wall_limit(make, monkeypatch):
    """A run ends when so many seconds have passed on this computer's clock, and not before."""
    now = [100.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    guest = make()
    guest.code("eb fe" if make is BareMachine else "14000000")
    guest.cpu.watch.begin(5)
    with pytest.raises(MachineHang, match="the limit"):
        guest.cpu.run(0, RunLimit(ticks=3))
    now[0] += 5.1
    with pytest.raises(MachineHang, match="within 5 s of this computer's time"):
        guest.cpu.run(0, RunLimit(ticks=3))
    with guest.cpu.watch.ending():
        pass
    with pytest.raises(MachineHang, match="the limit"):
        guest.cpu.run(0, RunLimit(ticks=3))
