"""The machine as an init leaves it, the bare one, and what the task is called that does things in it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kodojo.errors import LoadError
from kodojo.kernel.booted_state import come_up
from kodojo.kernel.kernel import Kernel
from tests.conftest import image_of, shared_store
from tests.kernel.looking import exists, listening, names

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

ONE_SERIES = "6.1"  # where one is enough
SWITCHED_ON = dt.datetime(2025, 1, 1, tzinfo=dt.UTC).timestamp()
GFP_KERNEL = 0xCC0
ADDRESSES = (0xFFFF_8880_0012_3440, 0xFFFF_8880_0012_3480)
PR_SET_NAME = 15

# What systemd mounts on Debian 12 (src/shared/mount-setup.c, units/*.mount), as /proc/mounts has it.
USUAL = {"nosuid", "nodev", "noexec", "relatime"}
MOUNTS = {
    "/proc": ("proc", USUAL),
    "/sys": ("sysfs", USUAL),
    "/dev": ("devtmpfs", {"nosuid", "mode=755"}),
    "/dev/pts": ("devpts", {"nosuid", "noexec", "relatime", "gid=5", "mode=620"}),
    "/dev/shm": ("tmpfs", {"nosuid", "nodev"}),
    "/dev/mqueue": ("mqueue", USUAL),
    "/dev/hugepages": ("hugetlbfs", {"nosuid", "nodev", "relatime", "pagesize=2M"}),
    "/run": ("tmpfs", {"nosuid", "nodev", "mode=755"}),
    "/sys/kernel/security": ("securityfs", USUAL),
    "/sys/kernel/debug": ("debugfs", USUAL),
    "/sys/kernel/tracing": ("tracefs", USUAL),
    "/sys/fs/cgroup": ("cgroup2", USUAL | {"nsdelegate", "memory_recursiveprot"}),
    "/sys/fs/bpf": ("bpf", USUAL | {"mode=700"}),
    "/sys/fs/pstore": ("pstore", USUAL),
}


def mounted(kernel: Kernel) -> dict[str, tuple[str, set[str]]]:
    """Directory -> type and options."""
    rows = [line.split() for line in kernel.read_file("/proc/mounts").decode().splitlines()]
    return {row[1]: (row[2], set(row[3].split(","))) for row in rows}


def printed(kernel: Kernel, address: int) -> str:
    """What ``%p`` makes of an address."""
    return kernel.memory.string(kernel.call("kasprintf", GFP_KERNEL, "%p", address)).decode()


def flags_of_loopback(kernel: Kernel) -> int:
    return int(kernel.read_file("/sys/class/net/lo/flags"), 16)


def test_mounts(kernel):
    """What an init mounts is there, with its usual options."""
    there = mounted(kernel)
    for path, (kind, options) in MOUNTS.items():
        assert there[path][0] == kind, path
        assert options | {"rw"} <= there[path][1], path
    assert kernel.stat("/dev/shm").mode == kernel.stat("/tmp").mode == 0o1777
    assert "cgroup.procs" in names(kernel, "/sys/fs/cgroup")
    assert exists(kernel, "/dev/pts/ptmx")


def test_nothing_is_loaded(kernel):
    """What the kernel has in modules is not asked for: none is loaded, and none is missing."""
    assert kernel.modules == []
    assert kernel.warnings == kernel.oopses == ()
    known = {line.split("\t")[-1] for line in kernel.read_file("/proc/filesystems").decode().splitlines()}
    assert {kind for kind, _ in mounted(kernel).values()} <= known | {"rootfs"}


def test_pointers_are_hashed(kernel):
    """The random generator is ready: ``%p`` prints a hash, the same for the same address, in every machine."""
    assert "random: crng init done" in [record.text for record in kernel.log]
    texts = [printed(kernel, address) for address in ADDRESSES]
    assert len(set(texts)) == 2
    assert all(re.fullmatch("0{8}[0-9a-f]{8}", text) for text in texts)
    assert [printed(kernel.fork(), address) for address in ADDRESSES] == texts


def test_clock(kernel):
    """The clock began in 2025 when the machine was switched on, and goes on."""
    since = [kernel.clock() - SWITCHED_ON - kernel.clock(boot=True) for _ in range(2)]
    assert since == pytest.approx([0, 0], abs=1 / kernel.hertz)
    before = kernel.clock()
    kernel.sleep(2)
    assert 2 <= kernel.clock() - before <= 2.1
    kernel.write_file("/tmp/new", b"")
    assert kernel.stat("/tmp/new").modified == pytest.approx(kernel.clock(), abs=2 / kernel.hertz)


def test_loopback(kernel):
    """``lo`` is up and has its addresses."""
    assert flags_of_loopback(kernel) & 1
    assert "127.0.0.1" in kernel.read_file("/proc/net/fib_trie").decode()
    assert kernel.read_file("/proc/net/if_inet6").startswith(b"0" * 31 + b"1 ")


def test_bare():
    """A bare machine has none of this, and a snapshot of its own."""
    image = image_of(ONE_SERIES)
    bare, booted = (Kernel.boot(image, store=shared_store(), bare=bare) for bare in (True, False))
    assert bare.machine.snapshot.directory != booted.machine.snapshot.directory
    assert mounted(bare).keys() - {"/"} == {
        "/proc", "/sys", "/dev", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security",
    }  # fmt: skip
    assert bare.clock() < 60
    assert not flags_of_loopback(bare) & 1
    assert printed(bare, ADDRESSES[0]) == "(____ptrval____)"
    assert [record.text for record in booted.log] == [record.text for record in bare.log] + ["random: crng init done"]


def test_kernel_without_file_systems(monkeypatch):
    """What the kernel does not list is not mounted, nor looked for in modules; the boot is none the worse for it."""
    image = image_of(ONE_SERIES)
    kernel = Kernel.boot(image, store=shared_store(), bare=True)
    real = kernel.files.read
    monkeypatch.setattr(
        "kodojo.kernel.files.Files.read",
        lambda _files, path, size=None: b"nodev\ttmpfs\n" if path == "/proc/filesystems" else real(path, size),
    )
    for path in ("/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/dev", "/sys", "/proc"):
        kernel.umount(path, lazy=True)
    come_up(kernel.user)
    assert mounted(kernel).keys() == {"/", "/proc", "/sys", "/dev", "/dev/shm", "/run"}
    assert flags_of_loopback(kernel) & 1
    assert kernel.clock() > SWITCHED_ON


# -- names ----------------------------------------------------------------------------------------------------
@contextmanager
def printing(kernel: Kernel) -> Iterator[set[str]]:
    """The names of the tasks that print something."""
    found: set[str] = set()
    address = kernel.calls.address("_printk")

    def prints() -> None:
        task = kernel.memory.struct("task_struct", kernel.tasks.current_task())
        found.add(task.string("comm").decode())

    kernel.machine.cpu.add_breakpoint(address, prints)
    try:
        yield found
    finally:
        kernel.machine.cpu.remove_breakpoint(address)


def test_name_is_that_of_what_runs(kernel, built):
    """A module sees insmod, rmmod, modprobe or init; afterwards the task has its own name again."""
    directory = built["kd_hello"].parent
    doings = {
        "insmod": lambda: kernel.insmod(built["kd_hello"]),
        "init": lambda: kernel.write_file("/sys/module/kd_hello/parameters/even", b"4"),
        "rmmod": lambda: kernel.rmmod("kd_hello"),
        "modprobe": lambda: kernel.modprobe(directory / "kd_hello.ko"),
    }
    for name, doing in doings.items():
        with printing(kernel) as tasks:
            doing()
        assert tasks == {name}
        assert kernel.read_file("/proc/self/comm") == b"init\n"


def test_name_after_a_refusal(kernel, built):
    """A name that PID 1 was given lasts, whatever is done and refused meanwhile."""
    kernel.syscall("prctl", PR_SET_NAME, b"a name\0")
    with pytest.raises(LoadError), listening(kernel):
        kernel.insmod(built["kd_hello"], "even=3")
    kernel.insmod(built["kd_noinit"]).remove()
    assert kernel.read_file("/proc/self/comm") == b"a name\n"
