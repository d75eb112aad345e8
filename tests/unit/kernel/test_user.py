from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from kodojo.errors import GuestOSError, InputError
from kodojo.kernel.abi import abi_of
from kodojo.kernel.calls import Place
from kodojo.kernel.tasks import CAPABILITIES, _capability
from kodojo.kernel.user import SCRATCH_SIZE, UserSpace, errno_text
from kodojo.machine.cpu import RunLimit
from tests.support.flat_memory import FlatMemory

BASE = 0x7F0000000000
FRAME = BASE
SCRATCH = BASE + 0x1000
# struct pt_regs of x86-64, in order
MEMBERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip


class Kernel:
    """Stands where the calls into a kernel stand: answers do_syscall_64() from a list."""

    abi = abi_of("x86_64")

    def __init__(self, memory: FlatMemory, answers: list[int]) -> None:
        self.memory = memory
        self.answers = answers
        self.frames: list[dict[str, int]] = []
        self.calls: list[tuple] = []
        self.stopped = None
        self.overdue = None
        self.place = Place(0, FRAME, SCRATCH)

    def time_left(self) -> RunLimit:
        return RunLimit()

    def __call__(self, function: str, *arguments: int, **options) -> int:
        self.calls.append((function, *arguments, options.get("interrupts")))
        raw = self.memory.read(FRAME, 8 * len(MEMBERS))
        self.frames.append(dict(zip(MEMBERS, struct.unpack(f"<{len(MEMBERS)}Q", raw), strict=True)))
        self.memory.write(FRAME + 8 * MEMBERS.index("rax"), struct.pack("<q", self.answers.pop(0)))
        return 0


def user_space(*answers: int) -> tuple[UserSpace, Kernel]:
    memory = FlatMemory(0x1000 + SCRATCH_SIZE, BASE)
    kernel = Kernel(memory, list(answers))
    return UserSpace(SimpleNamespace(cpu=memory), kernel), kernel


def test_trap_frame():
    """A system call is entered with its number and its arguments where the entry code puts them."""
    user, kernel = user_space(77)
    assert user.syscall("mmap", 1, 2, 3, 4, 5, -6) == 77
    frame = kernel.frames[0]
    arguments = [frame[name] for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")]
    assert arguments == [1, 2, 3, 4, 5, (1 << 64) - 6]
    assert (frame["orig_rax"], frame["rax"]) == (9, (1 << 64) - 38)  # -ENOSYS until it is known better
    assert kernel.calls == [("do_syscall_64", FRAME, 9, False)]


def test_registers_of_other_calls():
    """A system call begins without what other calls have left in registers; other functions keep them."""
    kept = ("rbx", "r12", "r13", "r14", "r15")
    abi = abi_of("x86_64")
    for interrupted in (None, {"rflags": 0x202}):
        assert [abi.enter(0, interrupted, interrupts=False).get(name) for name in kept] == [0] * 5
        assert not abi.enter(0, interrupted, interrupts=True).keys() & set(kept)


def test_arguments_that_are_missing():
    """Arguments that are not given are zero, not what the last call left there."""
    user, kernel = user_space(0, 0)
    user.syscall("mmap", 1, 2, 3, 4, 5, 6)
    user.syscall("close", 7)
    assert [kernel.frames[1][name] for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9")] == [7, 0, 0, 0, 0, 0]


def test_negative_values():
    """The value is signed: an error is -errno, an address of the upper half is negative as in user space."""
    user, _kernel = user_space(-22, 22)
    assert user.syscall("close", 7) == -22
    assert user.syscall("close", 7) == 22


def test_checked():
    """An error becomes an exception about what was asked; values that only look like one do not."""
    user, _kernel = user_space(-2, -4096, 5)
    with pytest.raises(GuestOSError, match=r"^/there: No such file or directory$") as caught:
        user.checked("/there", "open", 0)
    assert caught.value.errno == 2
    assert user.checked("/there", "open", 0) == -4096
    assert user.checked("/there", "open", 0) == 5


def test_memory_is_given_back():
    """Memory for a block is as large as it needs, a page that is not there follows it, and it is unmapped again."""
    user, kernel = user_space(SCRATCH, 0, 0)
    with user.memory(b"x" * 4097) as address:
        assert address == SCRATCH
        assert user.machine.cpu.read(address, 4098) == b"x" * 4097 + b"\0"
    sizes = [(frame["orig_rax"], frame["rdi"], frame["rsi"]) for frame in kernel.frames]
    assert sizes == [(9, 0, 3 * 4096), (11, SCRATCH + 2 * 4096, 4096), (11, SCRATCH, 2 * 4096)]


def test_memory_of_a_machine_that_stopped():
    """After a crash nothing is called any more."""
    user, kernel = user_space(SCRATCH, 0)
    with user.memory(b""):
        kernel.stopped = GuestOSError("crash", 5)
    assert len(kernel.frames) == 2


def test_paths():
    """A path is a string in the first page of the scratch memory; what cannot be one is the guest's ENAMETOOLONG."""
    user, _kernel = user_space()
    assert user.path("/a\udcff") == SCRATCH
    assert user.machine.cpu.read(SCRATCH, 5) == b"/a\xff\0\0"
    for path in ("x" * 4096, "a\0b"):
        with pytest.raises(GuestOSError) as caught:
            user.path(path)
        assert caught.value.errno == 36
    user.path("x" * 4095)


HEADERS = {
    "x86_64": {"read": 0, "mmap": 9, "ioctl": 16, "init_module": 175, "getdents64": 217, "finit_module": 313},
    "aarch64": {"read": 63, "mmap": 222, "ioctl": 29, "init_module": 105, "getdents64": 61, "finit_module": 273},
}


@pytest.mark.parametrize("architecture", HEADERS)
def test_system_call_numbers(architecture):
    """The numbers are those of the architecture's ABI."""
    numbers, header = abi_of(architecture).system_calls, HEADERS[architecture]
    assert {name: numbers[name] for name in header} == header
    assert len(set(numbers.values())) == len(numbers)


def test_errno_texts():
    """Numbers have strerror's words, unknown ones their number."""
    assert errno_text(17) == "File exists"
    assert errno_text(4000) == "Unknown error 4000"


@pytest.mark.parametrize(("name", "number"), [("CAP_SYS_MODULE", 16), ("sys_module", 16), ("chown", 0), (40, 40)])
def test_capabilities(name, number):
    """Capabilities are given by name, with or without prefix, or by number."""
    assert _capability(name) == number


@pytest.mark.parametrize("name", ["CAP_NOTHING", "", -1, len(CAPABILITIES)])
def test_unknown_capabilities(name):
    """One that there is not is the user's mistake."""
    with pytest.raises(InputError):
        _capability(name)
