"""A kernel for arm64: what works for x86-64 works for it by the same calls."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from kodojo.errors import GuestOSError, LoadError, MachineFault, MachineHang
from kodojo.kernel.kernel import Kernel
from kodojo.machine.machine import Machine
from tests.conftest import booted_kernel
from tests.support.distribution import ARM64

pytestmark = pytest.mark.kernel

EEXIST, EFAULT, EPERM = 17, 14, 1


@pytest.fixture(params=ARM64)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return booted_kernel(request.param).fork()


def unpacked(kernel: Kernel, name: str) -> bytes:
    path = Path(kernel.image.modules[name].path)
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def test_boot(kernel):
    """A booted kernel has its log from the first line on, its files, and functions that can be called."""
    assert kernel.image.architecture == "aarch64"
    assert kernel.log[0].text.startswith("Booting Linux on physical CPU")
    assert kernel.read_file("/proc/version").decode() == kernel.image.banner + "\n"
    assert {"proc", "sys", "dev"} <= {entry.name for entry in kernel.list_directory("/")}
    assert kernel.call("int_sqrt", 144) == 12
    with pytest.raises(GuestOSError, match="No such file or directory"):
        kernel.read_file("/proc/none")


def test_no_warning_while_booting(kernel):
    """Nothing went wrong on the way: no warning, no oops, no complaint about interrupts or time."""
    assert kernel.warnings == ()
    assert [record.text for record in kernel.log if record.level < 3] == []


def test_sleep(kernel):
    """Time passes in the guest, and no more than was asked for but a few ticks."""
    before = kernel.time
    kernel.sleep(2)
    assert 2 <= kernel.time - before < 2.1


def test_same_course():
    """Two machines in the same state take the same course, to the last byte of memory."""
    twins = [booted_kernel("6.12-arm64").fork() for _ in range(2)]
    for twin in twins:
        twin.sleep(0.5)
        twin.insmod(twin.image.modules["dummy"].path)
    first, second = (twin.machine for twin in twins)
    assert first.cpu.read_registers() == second.cpu.read_registers()
    assert (first.ram.pages == second.ram.pages).all()


def test_insmod_and_rmmod(kernel):
    """A module of the distribution is loaded by our loader, runs, is seen by the kernel, and goes away."""
    module = kernel.insmod(kernel.image.modules["dummy"].path)
    assert module.state == "Live"
    assert kernel.read_file("/proc/modules").startswith(b"dummy ")
    assert "dummy0" in {entry.name for entry in kernel.list_directory("/sys/class/net")}
    kernel.rmmod("dummy")
    assert kernel.modules == []
    assert "dummy0" not in {entry.name for entry in kernel.list_directory("/sys/class/net")}


@pytest.mark.parametrize("name", ["dummy", "nls_utf8", "crc_itu_t", "loop"])
def test_native_loader_agrees(kernel, name):
    """What our loader makes of a module's memory is what the kernel's own loader makes of it."""
    twin = kernel.fork()
    data = unpacked(kernel, name)
    ours = kernel.init_module(data)
    with twin.user.memory(data) as image, twin.user.string(b"") as arguments:
        assert twin.user.syscall("init_module", image, len(data), arguments) == ours == 0
    (mine,), (native,) = kernel.modules, twin.modules
    assert (mine.size, mine.refcount, mine.taints) == (native.size, native.refcount, native.taints)
    assert [r.text for r in kernel.log] == [r.text for r in twin.log]


def test_native_refusals(kernel):
    """The kernel's own loader refuses what it must: loaded twice, and an address that faults in copy_from_user."""
    data = unpacked(kernel, "dummy")
    with kernel.user.memory(data) as image, kernel.user.string(b"") as arguments:
        assert kernel.user.syscall("init_module", image, len(data), arguments) == 0
        assert kernel.user.syscall("init_module", image, len(data), arguments) == -EEXIST
        assert kernel.user.syscall("init_module", 0x1000, len(data), arguments) == -EFAULT


def test_refusals(kernel):
    """Our loader refuses the same, by the kernel's own answers."""
    data = unpacked(kernel, "dummy")
    assert kernel.init_module(data) == 0
    assert kernel.init_module(data) == -EEXIST
    assert kernel.init_module(0x1000, length=len(data)) == -EFAULT
    with kernel.as_user(), pytest.raises(LoadError) as caught:
        kernel.insmod(data)
    assert caught.value.errno == EPERM


def test_delta(kernel):
    """A machine is carried on by its difference from the snapshot."""
    kernel.insmod(kernel.image.modules["dummy"].path)
    delta, saved = kernel.save()
    machine = Machine.apply(kernel.machine.snapshot, delta)
    again = Kernel.resume(kernel.image, machine, kernel._facts, saved)
    assert [module.name for module in again.modules] == ["dummy"]
    again.rmmod("dummy")


def test_oops(kernel):
    """A crash ends the run with the kernel's own report: cause, place, and the address that was touched."""
    with pytest.raises(MachineFault, match="NULL pointer dereference at virtual address 0000000000000010") as caught:
        kernel.call("strlen", 0x10)
    report = caught.value.report
    assert report.registers["x0"] == report.registers["far_el1"] == 0x10
    assert "strlen+" in report.backtrace[0].symbol


def test_warning(kernel):
    """WARN() is BRK: the kernel prints its report and goes on."""
    kernel.call("refcount_warn_saturate", kernel._facts.kernel_scratch, 2)
    (warning,) = kernel.warnings
    assert warning.cause.startswith("WARNING: CPU: 0 PID: 1 at lib/refcount.c:")
    assert kernel.call("int_sqrt", 144) == 12


def test_hang(kernel):
    """What waits for longer than its limit is told with the place where it waits."""
    kernel.limit(0.5)
    with pytest.raises(MachineHang, match=r"waits for something that does not come in msleep\+"):
        kernel.call("msleep", 5000)
