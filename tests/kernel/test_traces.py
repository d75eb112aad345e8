"""Below what modules bring are in a trace the functions by which a real kernel comes to it.

What a trace looks like the kernel says itself: with its own loader, in a copy of the same machine. tests/oracle
compares the traces with those of QEMU.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from kodojo.errors import LoadError, MachineFault
from tests.kernel.looking import listening
from tests.support.traces import call_traces

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

ENTRY = {"x86_64": "entry_SYSCALL_64_after_hwframe", "aarch64": "el0t_64_sync"}
O_NONBLOCK = 0o4000


def said_by(kernel, work) -> list[list[str]]:
    """The traces that it printed, whether it survived that or not."""
    with listening(kernel) as said, suppress(MachineFault):
        work()
    assert kernel.calls.stopped is None
    return call_traces(said.lines)


def init_module(kernel, data: bytes, arguments: str) -> None:
    """The kernel's own ``init_module(2)``."""
    with kernel.user.memory(data) as umod, kernel.user.memory(arguments.encode() + b"\0") as uargs:
        assert kernel.user.syscall("init_module", umod, len(data), uargs) == 0


def functions(trace: list[str]) -> list[str]:
    return [line.split("+")[0].strip() for line in trace if "+" in line]


def reliable(trace: list[str]) -> list[str]:
    return [line for line in trace if not line.startswith(" ? ")]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("kd_oops", "how=0"), ("kd_oops", "how=3"), ("kd_positive", "")],
)
def test_init(kernel, built, name, arguments):
    """An oops in init, a WARN, and what the kernel says of an init that returns nonsense."""
    data = built[name].read_bytes()
    twin = kernel.fork()
    ours = said_by(kernel, lambda: kernel.init_module(data, arguments))
    assert ours
    assert ours == said_by(twin, lambda: init_module(twin, data, arguments))
    assert functions(ours[0])[-1] == ENTRY[kernel.image.architecture]


def test_setter(kernel, built):
    """A parameter's setter. What was on the stack before is not the same on both sides there, and is shown, too."""
    data = built["kd_setter"].read_bytes()
    twin = kernel.fork()
    [ours] = said_by(kernel, lambda: kernel.init_module(data, "answer=0 trace=1"))
    [native] = said_by(twin, lambda: init_module(twin, data, "answer=0 trace=1"))
    assert functions(ours)[-1] == ENTRY[kernel.image.architecture]
    assert reliable(ours) == reliable(native)


def test_exit(kernel, built):
    """An oops in exit."""
    kernel.insmod(built["kd_oops"], "how=0", "late=1")
    twin = kernel.fork()
    ours = said_by(kernel, lambda: kernel.rmmod("kd_oops"))
    assert ours
    assert ours == said_by(twin, lambda: twin.user.syscall("delete_module", twin.user.path("kd_oops"), O_NONBLOCK))


def test_file(kernel, built):
    """Where a file is loaded, it was another system call."""
    twin = kernel.fork()
    ours = said_by(kernel, lambda: kernel.insmod(built["kd_oops"], "how=3"))
    twin.write_file("/tmp/kd_oops.ko", built["kd_oops"].read_bytes())
    with twin.open("/tmp/kd_oops.ko") as file, twin.user.memory(b"how=3\0") as uargs:
        assert ours == said_by(twin, lambda: twin.user.syscall("finit_module", file.fd, uargs, 0))


def test_below_modprobe(kernel, built):
    """The modprobe that the kernel starts enters the kernel likewise, in a task of its own."""

    def load_it(_name: str) -> int:
        with pytest.raises(LoadError):
            kernel.insmod(built["kd_fail"], "error=5")
        kernel.insmod(built["kd_oops"], "how=3")
        return 0

    twin = kernel.fork()
    kernel.requests.answer = load_it
    ours = said_by(kernel, lambda: kernel.insmod(built["kd_request"]))
    assert ours == said_by(twin, lambda: twin.insmod(built["kd_oops"], "how=3"))


def test_the_machine_goes_on(kernel, built):
    """A system call that was left in the middle, refused or done leaves a task that makes the next one."""
    for _ in range(2):
        with pytest.raises(LoadError):
            kernel.insmod(built["kd_fail"], "error=5")
        kernel.insmod(built["kd_noinit"]).remove()
    with pytest.raises(MachineFault):
        kernel.insmod(built["kd_oops"], "how=0")
    assert kernel.calls.place.inside == 0
    twin = kernel.fork()
    for each in (kernel, twin):
        each.insmod(built["kd_noinit"]).remove()
        assert b"kd_oops" in each.read_file("/proc/modules")


def test_system_calls(kernel):
    """A call of any function, and a system call, stand where the entry point of system calls calls C."""
    traces = said_by(kernel, lambda: kernel.call("dump_stack"))
    assert functions(traces[0])[-1] == ENTRY[kernel.image.architecture]
