"""What waits longer than it may: it is told what it waits in, it is killed or left, and the machine goes on.

How kd_wait waits stands in its source.
"""

from __future__ import annotations

import re

import pytest

from kodojo.errors import LoadError, MachineHang
from kodojo.kernel.kernel import Kernel
from tests.conftest import booted_kernel
from tests.kernel.looking import listening, names

pytestmark = pytest.mark.kernel

DEVICE, READ_WRITE = "/dev/kd_wait", 2
LIMIT = 0.5
INTERRUPTIBLE, KILLABLE, EVENT, MORE = 1, 2, 3, 4
FUNCTIONS = {INTERRUPTIBLE: "kd_wait_interruptible", KILLABLE: "kd_wait_killable", EVENT: "kd_wait_event"}
STATES = {INTERRUPTIBLE: "S", KILLABLE: "D", EVENT: "D"}
ERESTARTSYS = 512
PARAMETERS = "/sys/module/kd_wait/parameters"


@pytest.fixture
def kernel(series: str) -> Kernel:
    kernel = booted_kernel(series).fork()
    kernel.limit(LIMIT)
    return kernel


def functions(frames) -> list[str]:
    return [re.split(r"[+.]", frame.symbol)[0] for frame in frames]


def blocked(work) -> MachineHang:
    with pytest.raises(MachineHang) as hang:
        work()
    assert hang.value.survived
    return hang.value


def reads(kernel: Kernel) -> int:
    """How many reads of the device have come to their end."""
    return int(kernel.read_file(f"{PARAMETERS}/reads"))


def state_of(kernel: Kernel, pid: int) -> str:
    return kernel.read_file(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()[0]


def works(kernel: Kernel, built) -> None:
    """Modules come and go, files are read, time passes, copies can be made."""
    for each in (kernel, kernel.fork()):
        each.insmod(built["kd_hello"])
        each.sleep(0.1)
        assert b"kd_hello " in each.read_file("/proc/modules")
        each.rmmod("kd_hello")


@pytest.mark.arm64
@pytest.mark.parametrize("how", [INTERRUPTIBLE, KILLABLE])
def test_a_read_is_killed(kernel, built, how):
    """What listens to a signal ends with an error of its own; file, module and machine are as if nobody had read."""
    kernel.insmod(built["kd_wait"], f"how={how}")
    before = kernel.time
    with kernel.open(DEVICE, READ_WRITE) as file:
        hang = blocked(file.read)
        assert kernel.time - before < LIMIT + 0.2
        assert not hang.left
        assert reads(kernel) == 1
        file.write(b"!")
        assert file.read() == b""
        assert kernel.read_file("/proc/self/stat").startswith(b"1 (")
    kernel.rmmod("kd_wait")
    task = hang.tasks[0]
    assert (task.pid, task.state, task.backtrace) == (1, STATES[how], hang.backtrace)
    assert functions(task.backtrace)[:4] == [FUNCTIONS[how], "kd_wait_now", "kd_wait_read", "vfs_read"]
    assert FUNCTIONS[how] in str(hang)
    assert "kernel_init" not in functions(task.backtrace)
    works(kernel, built)


@pytest.mark.arm64
@pytest.mark.parametrize(("how", "leave"), [(EVENT, False), (INTERRUPTIBLE, True)])
def test_a_read_is_left(kernel, built, how, leave):
    """What listens to no signal, or shall not, stays; another process goes on with the same files. Its time comes."""
    kernel.limit(LIMIT, leave=leave)
    kernel.insmod(built["kd_wait"], f"how={how}")
    with kernel.open(DEVICE, READ_WRITE) as file:
        hang = blocked(file.read)
        assert hang.left
        assert (hang.tasks[0].pid, hang.tasks[0].state) == (1, STATES[how])
        assert state_of(kernel, 1) == STATES[how]
        assert not kernel.read_file("/proc/self/stat").startswith(b"1 (")
        assert reads(kernel) == 0
        works(kernel, built)
        with pytest.raises(MachineHang):
            file.read()  # again
        twin = kernel.fork()
        for each in (kernel, twin):
            each.user.checked(DEVICE, "write", file.fd, each.user.put(b"!"), 1)
            each.sleep(0.1)
            assert reads(each) == 2
            works(each, built)
    kernel.rmmod("kd_wait")


@pytest.mark.arm64
def test_every_task(kernel, built):
    """The report is what the kernel itself says of every task when it is asked for by SysRq-T."""
    kernel.insmod(built["kd_wait"], f"how={EVENT}")
    hang = blocked(lambda: kernel.read_file(DEVICE))
    with listening(kernel) as said:
        kernel.call("show_state_filter", 0)
    told: dict[str, list[str]] = {}
    for line in said.lines:
        header = re.match(r"task:(\S+) +state:(\S) .*? pid:(\d+) ", line)
        if header:
            frames = told[header[3]] = [header[1], header[2]]
        elif told and (frame := re.match(r" (\S+\+0x\S+(?: \[\S+\])?)$", line)):
            frames.append(frame[1])
    tasks = {str(task.pid): task for task in hang.tasks}
    assert len(tasks) == len(hang.tasks) > 30
    assert tasks.keys() >= {"1", "2"}
    waiting = {pid for pid in tasks.keys() & told.keys() if tasks[pid].state != "R" and told[pid][1] != "R"}
    assert len(waiting) > 30
    for pid in waiting:
        task, (name, state, *frames) = tasks[pid], told[pid]
        assert (task.name, task.state) == (name, state) or not task.kernel_thread  # read_file is done by insmod
        symbols = [frame.symbol for frame in task.backtrace]
        # SysRq-T tells of the scheduler's functions, too, and of what comes before the address that a call returns to
        begin = frames.index(symbols[0])
        assert frames[begin : begin + len(symbols)] == symbols


@pytest.mark.parametrize("how", [INTERRUPTIBLE, KILLABLE])
def test_an_init_is_killed(kernel, built, how):
    """An init that is woken by a signal fails: its module is gone, as when insmod is killed."""
    hang = blocked(lambda: kernel.insmod(built["kd_wait"], f"how={how}", "init=1"))
    assert not hang.left
    assert functions(hang.backtrace)[:4] == [FUNCTIONS[how], "kd_wait_now", "kd_wait_init", "do_one_initcall"]
    assert isinstance(hang.__cause__, LoadError)
    assert hang.__cause__.errno == ERESTARTSYS
    assert kernel.modules == []
    assert "kd_wait" not in names(kernel, "/dev")
    works(kernel, built)


@pytest.mark.arm64
def test_an_init_is_left(kernel, built):
    """A module whose init never returns is being loaded for ever, and nothing else is held up; a copy has it, too."""
    blocked(lambda: kernel.insmod(built["kd_wait"], f"how={EVENT}", "init=1"))
    for each in (kernel, kernel.fork()):
        assert [(module.name, module.state) for module in each.modules] == [("kd_wait", "Loading")]
        works(each, built)
        each.write_file(DEVICE, b"!")
        each.sleep(0.1)
        works(each, built)
        assert state_of(each, 1) == "D"  # with nothing to go back to


def test_again_and_again(kernel, built):
    """As many as one likes are left."""
    kernel.insmod(built["kd_wait"], f"how={EVENT}")
    for _ in range(3):
        assert blocked(lambda: kernel.read_file(DEVICE)).left
    assert sum("kd_wait_event" in functions(task.backtrace) for task in blocked(_read(kernel)).tasks) == 4
    kernel.write_file(DEVICE, b"!")
    kernel.sleep(0.1)
    assert reads(kernel) == 4
    works(kernel, built)


def _read(kernel: Kernel):
    return lambda: kernel.read_file(DEVICE)


def test_rights_and_memory(kernel, built):
    """What the blocks around the operation would give back was another process's: the new one keeps what it has."""
    kernel.insmod(built["kd_wait"], f"how={EVENT}")
    kernel.syscall("fchmodat", -100, DEVICE, 0o666)
    with kernel.as_user(uid=1000):
        blocked(lambda: kernel.syscall("read", kernel.open(DEVICE).fd, bytearray(1 << 20), 1 << 20))
    assert kernel.read_file("/proc/self/status").count(b"Uid:\t0\t0\t0\t0") == 1
    works(kernel, built)


@pytest.mark.parametrize("how", [KILLABLE, EVENT])
def test_a_modprobe(kernel, built, how):
    """A module that the kernel asks for, and that waits in its init, is killed or left like any other."""

    def answer(_name: str) -> int:
        kernel.insmod(built["kd_wait"], f"how={how}", "init=1")
        return 0

    kernel.requests.answer = answer
    hang = blocked(lambda: kernel.insmod(built["kd_request"]))
    [waiting] = [task for task in hang.tasks if FUNCTIONS[how] in functions(task.backtrace)]
    assert waiting.name in ("insmod", "modprobe")
    kernel.answers_requests = False
    assert [module.name for module in kernel.modules if module.state == "Loading"] == (
        ["kd_wait"] if how == EVENT else []
    )
    works(kernel, built)


@pytest.mark.arm64
def test_a_file_without_end(kernel, built):
    """A file that has always more to give is read as long as the limit says, and not longer."""
    kernel.insmod(built["kd_wait"], f"how={MORE}")
    before = kernel.time
    hang = blocked(lambda: kernel.read_file(DEVICE))
    assert LIMIT <= kernel.time - before < LIMIT * 1.1 + 0.02
    assert "always more" in str(hang)
    assert not hang.left
    assert kernel.read_file(DEVICE, 3) == b"..."
    kernel.rmmod("kd_wait")  # it is closed


def test_a_pipe(kernel):
    """A system call that waits is killed as a whole; what it would have returned is nobody's business."""
    ends = bytearray(8)
    kernel.syscall("pipe2", ends, 0)
    reader, writer = ends[0], ends[4]
    hang = blocked(lambda: kernel.syscall("read", reader, bytearray(1), 1))
    assert functions(hang.backtrace)[0] == "pipe_read"
    kernel.syscall("write", writer, b"x", 1)
    answer = bytearray(1)
    assert (kernel.syscall("read", reader, answer, 1), answer) == (1, b"x")


@pytest.mark.parametrize("link", ["itself", "nowhere"])
def test_a_damaged_list(kernel, link):
    """A list of tasks that goes in a circle, or leads nowhere, ends there."""
    first = kernel.image.kallsyms.address("init_task") + kernel.memory.field("task_struct", "tasks").offset
    second = kernel.memory.u64(first)
    kernel.memory.put(second, 8, second if link == "itself" else 0xDEAD << 32)
    hang = blocked(lambda: kernel.call("schedule_timeout_interruptible", 5 * kernel.hertz))
    assert [task.pid for task in hang.tasks] == [1]
