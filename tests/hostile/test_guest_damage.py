"""Machines whose kernel's memory a module has damaged: what can be shown is shown, and nothing waits for ever.

The damage is done from here, as a module would do it: words are written where its code could write them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kodojo.errors import DamagedMemoryError, GuestOSError
from kodojo.image.store import Store
from kodojo.kernel.kernel import Kernel
from kodojo.kernel.session import Session
from tests.support import distribution
from tests.support.shell import Shell, one_machine, store_with_kernels

pytestmark = pytest.mark.kernel

DAMAGED = "the kernel's memory is damaged: "
NOWHERE = 0x4141414141414141
NAMES = ("kd_proc", "kd_hello", "kd_noinit")  # loaded in this order, listed in the other one


@pytest.fixture
def loaded(kernel: Kernel, built: dict[str, Path]) -> Kernel:
    for name in NAMES:
        kernel.insmod(built[name])
    return kernel


def next_of(kernel: Kernel, index: int) -> int:
    """Where the module with this number in the list keeps what follows it."""
    return kernel.modules[index].struct.address_of("list.next")


def circle(kernel: Kernel) -> None:
    """The second module is followed by itself."""
    where = next_of(kernel, 1)
    kernel.memory.put(where, 8, where)


def to_nowhere(kernel: Kernel) -> None:
    kernel.memory.put(next_of(kernel, 1), 8, NOWHERE)


def great_circle(kernel: Kernel) -> None:
    """The second one is followed by the first."""
    kernel.memory.put(next_of(kernel, 1), 8, next_of(kernel, 0))


def one_that_is_none(kernel: Kernel) -> None:
    """It is followed by memory that holds something else."""
    text = kernel.image.kallsyms.address("_text")
    kernel.memory.put(next_of(kernel, 1), 8, text)


LISTS = (circle, to_nowhere, great_circle, one_that_is_none)


@pytest.mark.parametrize("damage", LISTS)
def test_list_of_modules(loaded: Kernel, built: dict[str, Path], damage: Callable[[Kernel], None]) -> None:
    """The modules that can be found are shown; what needs the whole list says what is the matter, and what to do."""
    damage(loaded)
    with pytest.raises(DamagedMemoryError, match=DAMAGED) as caught:
        _ = loaded.modules
    assert [module.name for module in caught.value.found][:2] == ["kd_noinit", "kd_hello"]
    assert all(module.size for module in caught.value.found[:2])
    assert "kodojo boot" in caught.value.hint
    for work in (lambda: loaded.insmod(built["kd_misc"]), lambda: loaded.rmmod("kd_proc")):
        with pytest.raises(DamagedMemoryError, match=DAMAGED):
            work()
    assert "root" in {entry.name for entry in loaded.list_directory("/")}


def test_users_in_a_circle(kernel: Kernel, built: dict[str, Path]) -> None:
    """The list of a module's users is one of the guest's, too."""
    kernel.insmod(built["kd_export"])
    kernel.insmod(built["kd_import"])
    used = next(module for module in kernel.modules if module.name == "kd_export")
    assert used.users == ("kd_import",)
    first = kernel.memory.u64(used.struct.address_of("source_list.next"))
    kernel.memory.put(first, 8, first)
    with pytest.raises(DamagedMemoryError, match=f"{DAMAGED}the users of the module kd_export goes in a circle"):
        _ = used.users
    assert [module.name for module in kernel.modules] == ["kd_import", "kd_export"]


@pytest.mark.parametrize(
    ("member", "value"), [("num_syms", 0x7FFFFFFF), ("num_gpl_syms", 0x100000), ("syms", NOWHERE), ("state", 77)]
)
def test_fields_of_a_module(kernel: Kernel, built: dict[str, Path], member: str, value: int) -> None:
    """Counts and pointers of a module that another one asks for are judged."""
    kernel.insmod(built["kd_export"])
    kernel.modules[0].struct.set(member, value)
    with pytest.raises(DamagedMemoryError, match=DAMAGED):
        kernel.insmod(built["kd_import"])


@pytest.mark.parametrize("bits", [40, 0xFFFFFFFF, 20])
@pytest.mark.parametrize("member", ["desc_ring.count_bits", "text_data_ring.size_bits"])
def test_log(loaded: Kernel, built: dict[str, Path], member: str, bits: int) -> None:
    """A log whose sizes cannot be is said to be damaged; the machine can be looked at and used all the same."""
    ring = loaded.memory.struct("printk_ringbuffer", loaded.memory.u64(loaded.image.kallsyms.address("prb")))
    ring.set(member, bits)
    if (member, bits) != ("text_data_ring.size_bits", 20):  # which is a size that there is
        with pytest.raises(DamagedMemoryError, match=DAMAGED):
            _ = loaded.log
    assert [module.name for module in loaded.modules] == [*reversed(NAMES)]
    assert loaded.read_file("/proc/version").startswith(b"Linux version ")


# -- system calls that answer nonsense -----------------------------------------------------------------------


def answer(kernel: Kernel, call: str, value: int) -> None:
    """Let a system call answer this, and do nothing."""
    if kernel.machine.cpu.architecture == "x86_64":
        where, code = f"__x64_sys_{call}", b"\x48\xc7\xc0" + struct.pack("<i", value) + b"\xc3"  # mov rax, value; ret
    else:
        words = [value >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        moves = [0xF2800000 | part << 21 | word << 5 for part, word in enumerate(words)]  # movk x0, word, lsl 16*part
        where, code = f"__arm64_sys_{call}", struct.pack("<5I", *moves, 0xD65F03C0)  # ret
    kernel.memory.write(kernel.image.kallsyms.address(where), code)


@pytest.mark.arm64
@pytest.mark.parametrize("value", [1 << 20, -5000, 0x7FFFFFFF])
@pytest.mark.parametrize("call", ["read", "getdents64"])
def test_counts_that_cannot_be(kernel: Kernel, call: str, value: int) -> None:
    """More than was asked for, or neither a count nor an errno: one sentence, and the machine can be looked at."""
    answer(kernel, call, value)
    with pytest.raises(GuestOSError, match=f"{DAMAGED}{call}"):
        _ = kernel.read_file("/proc/version") if call == "read" else kernel.list_directory("/proc")
    assert kernel.exists("/proc/version")


def test_entries_without_length(kernel: Kernel) -> None:
    """A directory whose entries are nothing but zeroes has an end."""
    answer(kernel, "getdents64", 64)
    kernel.user.put(bytes(64), 4096)
    with pytest.raises(GuestOSError, match=f"{DAMAGED}an entry of 0 bytes"):
        kernel.list_directory("/proc")


# -- the commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", ["6.1"])
def test_commands_on_a_damaged_machine(built: dict[str, Path], series: str) -> None:
    """lsmod, dmesg, ls and cat show what there is; `kodojo boot`, as they say, starts over."""
    with one_machine(series) as shell:
        _damaged_commands(shell, built, series)


def _damaged_commands(shell: Shell, built: dict[str, Path], series: str) -> None:
    session = Session(Store(store_with_kernels()))
    with session.machine() as kernel:
        for name in NAMES:
            kernel.insmod(built[name])
        circle(kernel)
        ring = kernel.memory.struct("printk_ringbuffer", kernel.memory.u64(kernel.image.kallsyms.address("prb")))
        ring.set("desc_ring.count_bits", 0xFFFFFFFF)
    done = shell("lsmod")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["Module", "kd_noinit", "kd_hello"]
    assert done.returncode == 1
    assert done.stderr.startswith(f"kodojo: {DAMAGED}the list of modules goes in a circle")
    assert done.stderr.splitlines()[-1] == "hint: start over: kodojo boot"
    done = shell("dmesg")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "hint: start over: kodojo boot")
    assert "proc" in shell.ok("ls", "/").split()
    assert shell.ok("cat", "/proc/version").startswith("Linux version ")
    done = shell("insmod", str(built["kd_misc"]))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "hint: start over: kodojo boot")
    shell.ok("boot", distribution.kernel_of(series).release)
    assert shell.ok("lsmod").splitlines() == ["Module                  Size  Used by"]
