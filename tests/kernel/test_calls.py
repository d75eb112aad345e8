"""Functions of the kernel called from Python, guest time, files of the guest, and the log."""

from __future__ import annotations

import struct

import pytest

from kodojo.errors import GuestOSError, InputError, MachineError, MissingInformationError
from tests.kernel.looking import errno_of, exists, listening, names
from tests.kernel.processors import processor_of

pytestmark = pytest.mark.kernel

ENOENT, EBADF, EACCES, ENOTDIR, EISDIR, EINVAL, ENOTTY, ESPIPE, ENAMETOOLONG = 2, 9, 13, 20, 21, 22, 25, 29, 36
GFP_KERNEL = 0xCC0
O_RDWR, O_CREAT, O_DIRECTORY = 0o2, 0o100, 0o200000


# -- calls ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("square", "root"), [(0, 0), (1, 1), (144, 12), (145, 12), ((1 << 32) ** 2 - 1, (1 << 32) - 1)]
)
def test_pure_function(kernel, square, root):
    """A function of numbers gives its result."""
    assert kernel.call("int_sqrt", square) == root


def test_call_by_address(kernel, image):
    """A function may be given by its address; its result is then an unsigned register."""
    assert kernel.call(image.kallsyms.address("int_sqrt"), 144) == 12


def test_strings_are_passed(kernel):
    """Text arrives as a pointer to a string that ends with NUL, bytes as they are; routines in assembly, too."""
    assert kernel.call("strlen", "") == 0
    assert kernel.call("strlen", "twelve bytes") == 12
    assert kernel.call("strlen", "ä") == 2
    assert kernel.call("strlen", b"four\0five") == 4
    assert kernel.call("strcmp", "same", "same") == 0
    assert kernel.call("memcmp", b"abc", b"abd", 2) == 0
    assert kernel.call("strcmp", "b", "a") > 0


def test_negative_values(kernel):
    """A negative return is negative in Python, as wide as the function's type."""
    assert kernel.call("strcasecmp", "a", "b") < 0
    pointer = kernel.call("__kmalloc" if "__kmalloc" in _functions(kernel) else "__kmalloc_noprof", 8, GFP_KERNEL)
    assert kernel.call("kstrtoint", "-12", 0, pointer) == 0
    assert struct.unpack("<i", kernel.memory.read(pointer, 4))[0] == -12
    assert kernel.call("kstrtoint", "twelve", 0, pointer) == -EINVAL
    assert kernel.call("kstrtoull", "99999999999999999999", 0, pointer) == -34
    kernel.call("kfree", pointer)


def _functions(kernel) -> set[str]:
    return {name for name in ("__kmalloc", "__kmalloc_noprof") if kernel.image.kallsyms.get(name) is not None}


def test_pointers_are_returned(kernel):
    """Memory of the kernel can be allocated, written, read by the kernel, and freed."""
    allocate = "kstrdup" if kernel.image.kallsyms.get("kstrdup") else "kstrdup_noprof"
    pointer = kernel.call(allocate, "some text", GFP_KERNEL)
    assert pointer > processor_of(kernel).kernel_half
    assert kernel.memory.string(pointer) == b"some text"
    assert kernel.call("strlen", pointer) == 9
    kernel.memory.write(pointer, b"other\0")
    assert kernel.call("strcmp", pointer, "other") == 0
    kernel.call("kfree", pointer)


def test_void_is_nothing(kernel):
    """A function that returns nothing gives 0, whatever was left in the register."""
    assert kernel.call("kfree", 0) == 0
    assert kernel.call("synchronize_rcu") == 0


def test_many_arguments(kernel):
    """Arguments beyond the sixth or the eighth go on the stack."""
    pointer = kernel.target.kmalloc(128)
    numbers = (1, -2 & 0xFFFFFFFF, 3, "four", 5, 6, 1 << 63)
    length = kernel.call("snprintf", pointer, 128, "%d %d %d %s %d %d %llx", *numbers)
    assert kernel.memory.string(pointer) == b"1 -2 3 four 5 6 8000000000000000"
    assert length == 32
    kernel.target.kfree(pointer)


def test_sleeping_function(kernel):
    """A function that sleeps lets guest time pass and comes back."""
    before = kernel.time
    kernel.call("msleep", 100)
    assert 0.1 <= kernel.time - before < 0.2


def test_unknown_function(kernel):
    """A name that the kernel has not is said to be missing, and the kernel goes on."""
    with pytest.raises(MissingInformationError, match="kd_no_such_function"):
        kernel.call("kd_no_such_function")
    assert kernel.call("int_sqrt", 9) == 3


def test_argument_too_long(kernel):
    """Text that does not fit on a kernel stack is refused, and the kernel goes on."""
    with pytest.raises(InputError):
        kernel.call("strlen", "x" * 5000)
    assert kernel.call("int_sqrt", 9) == 3


def test_registers_do_not_leak(kernel):
    """Calls do not depend on what the calls before them left behind."""
    first = [kernel.call("int_sqrt", i * i) for i in range(20)]
    assert first == list(range(20))
    stack = processor_of(kernel).stack
    before = kernel.machine.cpu.get(stack)
    for _ in range(20):
        kernel.call("msleep", 1)
    assert abs(kernel.machine.cpu.get(stack) - before) < 4096


def test_nested_calls(kernel):
    """While Python handles a breakpoint it may call the kernel again; the interrupted code notices nothing."""
    found = []
    address = kernel.image.kallsyms.address("int_sqrt")
    register = processor_of(kernel).first_argument

    def inside() -> None:
        kernel.machine.cpu.remove_breakpoint(address)
        argument = kernel.machine.cpu.get(register)
        found.append((argument, kernel.call("int_sqrt", 49), kernel.call("strlen", "five5")))
        assert kernel.machine.cpu.get(register) == argument

    kernel.machine.cpu.add_breakpoint(address, inside)
    assert kernel.call("int_sqrt", 144) == 12
    assert found == [(144, 7, 5)]


def test_error_in_a_nested_call(kernel):
    """What Python raises in a breakpoint's handler reaches the caller."""
    address = kernel.image.kallsyms.address("int_sqrt")

    def inside() -> None:
        raise ValueError("from the handler")

    twin = kernel.fork()
    twin.machine.cpu.add_breakpoint(address, inside)
    with pytest.raises(ValueError, match="from the handler"):
        twin.call("int_sqrt", 144)


def test_call_that_crashes(kernel):
    """A call with a bad pointer is an oops like any other."""
    with pytest.raises(MachineError) as fault:
        kernel.call("strlen", 16)
    assert "NULL pointer dereference" in str(fault.value)
    assert fault.value.registers[processor_of(kernel).fault_address] == 16
    assert fault.value.backtrace[0].symbol.removeprefix("__pi_").startswith("strlen+")


# -- time ----------------------------------------------------------------------------------------------------
def jiffies(kernel) -> int:
    return kernel.memory.u64(kernel.image.kallsyms.address("jiffies_64"))


def late(seconds: float) -> float:
    """The latest end of a sleep: the kernel's timer wheel (kernel/time/timer.c) is an eighth coarse at most."""
    return seconds * 1.125 + 0.012


@pytest.mark.parametrize("seconds", [0.004, 0.1, 1, 10])
def test_sleep_advances_jiffies(kernel, seconds):
    """Sleeping takes the guest's time, in jiffies and on our clock: what was asked for, or a little more."""
    before, began = jiffies(kernel), kernel.time
    kernel.sleep(seconds)
    passed = jiffies(kernel) - before
    assert seconds <= passed / kernel.hertz <= late(seconds)
    assert (kernel.time - began) * kernel.hertz == pytest.approx(passed, abs=1)


def test_no_time_passes_outside(kernel):
    """Between two operations no guest time passes."""
    before = jiffies(kernel)
    for _ in range(3):
        assert jiffies(kernel.fork()) == before
    assert kernel.log
    assert jiffies(kernel) == before


def test_uptime_follows(kernel):
    """The kernel's own clock agrees with ours."""
    first, began = float(kernel.read_file("/proc/uptime").split()[0]), kernel.time
    kernel.sleep(5)
    second = float(kernel.read_file("/proc/uptime").split()[0])
    assert second - first == pytest.approx(kernel.time - began, abs=0.02)


# -- files ---------------------------------------------------------------------------------------------------
def test_read(kernel, image):
    """Files of procfs and sysfs are read whole, however long."""
    assert kernel.read_file("/proc/sys/kernel/osrelease") == image.release.encode() + b"\n"
    assert kernel.read_file("/proc/version").startswith(b"Linux version " + image.release.encode())
    assert kernel.read_file("/proc/cmdline").rstrip().endswith(b"randomize_kstack_offset=off")
    assert kernel.read_file("/proc/sys/kernel/tainted") == b"0\n"
    assert kernel.read_file("/proc/modules") == b""


def test_write_and_read_back(kernel):
    """What is written is there, also when it takes several writes; writing again replaces it."""
    data = bytes(range(256)) * 4096
    kernel.write_file("/tmp/file", data)
    assert kernel.read_file("/tmp/file") == data
    kernel.write_file("/tmp/file", b"short")
    assert kernel.read_file("/tmp/file") == b"short"
    kernel.write_file("/tmp/file", b"")
    assert kernel.read_file("/tmp/file") == b""
    kernel.write_file("/proc/sys/kernel/panic_on_warn", b"1")
    assert kernel.read_file("/proc/sys/kernel/panic_on_warn") == b"1\n"


def test_list(kernel):
    """A directory's names come sorted, with their kinds, without itself and its parent."""
    entries = kernel.list_directory("/")
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    kinds = {entry.name: entry.kind for entry in entries}
    assert kinds["proc"] == kinds["sys"] == kinds["dev"] == "directory"
    assert kinds["init"] == "file"
    assert {".", ".."} & set(kinds) == set()
    devices = {entry.name: entry.kind for entry in kernel.list_directory("/dev")}
    assert devices["null"] == "character device"
    assert {entry.kind for entry in kernel.list_directory("/proc/self/fd")} == {"link"}


def test_long_directory(kernel):
    """A directory whose names need many calls is listed whole."""
    wanted = {f"a-rather-long-name-for-a-file-{i:04}" for i in range(300)}
    for name in wanted:
        kernel.write_file(f"/tmp/{name}", b"")
    assert names(kernel, "/tmp") >= wanted


@pytest.mark.parametrize(
    ("path", "errno"),
    [
        ("/nowhere", ENOENT),
        ("", ENOENT),
        ("/proc/modules/below", ENOTDIR),
        ("/proc", EISDIR),
        ("/" + "x" * 256, ENAMETOOLONG),
        ("/" + "x/" * 3000, ENAMETOOLONG),
    ],
)
def test_read_errors(kernel, path, errno):
    """What cannot be read is a GuestOSError that names the path, with the guest's errno."""
    with pytest.raises(GuestOSError) as error:
        kernel.read_file(path)
    assert error.value.errno == errno
    assert path[:60] in str(error.value)


def test_other_errors(kernel):
    """Writing and listing have their errors too; the kernel goes on after each."""
    assert errno_of(kernel.write_file, "/nowhere/file", b"x") == ENOENT
    assert errno_of(kernel.write_file, "/proc/sys/kernel/osrelease", b"x") == EACCES
    assert errno_of(kernel.write_file, "/proc/sys/kernel/panic", b"many") == EINVAL
    assert errno_of(kernel.list_directory, "/proc/modules") == ENOTDIR
    assert errno_of(kernel.list_directory, "/nowhere") == ENOENT
    with kernel.open("/proc/modules") as file:
        assert errno_of(file.write, b"x") == EBADF
        assert errno_of(file.ioctl, 0x5401, bytes(64)) == ENOTTY
        assert errno_of(file.seek, -1) == EINVAL
    assert kernel.read_file("/proc/sys/kernel/tainted") == b"0\n"


def test_open_file(kernel):
    """An open file reads, writes and seeks at its own position, and is closed at the end of the block."""
    with kernel.open("/tmp/data", O_RDWR | O_CREAT) as file:
        assert file.write(b"hello world") == 11
        assert file.seek(6) == 6
        assert file.read() == b"world"
        assert file.seek(-5, 2) == 6
        assert file.read(2) == b"wo"
        assert file.read_all() == b"rld"
        descriptor = file.fd
    assert kernel.user.syscall("close", descriptor) == -EBADF
    assert kernel.read_file("/tmp/data") == b"hello world"


def test_descriptors_are_closed(kernel):
    """However often files are read, and whatever fails, no descriptor stays open."""
    before = names(kernel, "/proc/self/fd")
    for _ in range(5):
        kernel.read_file("/proc/modules")
        kernel.list_directory("/")
        errno_of(kernel.read_file, "/proc")
    assert names(kernel, "/proc/self/fd") == before
    assert not exists(kernel, "/nowhere")


# -- the log -------------------------------------------------------------------------------------------------
def test_log_since_boot(kernel, image):
    """The log begins with the kernel's banner; its records are single lines with a level and rising times."""
    log = kernel.log
    first = next(record.text for record in log if not record.text.startswith("Booting Linux on physical CPU "))
    assert first.startswith(f"Linux version {image.release} ")
    assert {record.level for record in log} <= set(range(8))
    assert not any("\n" in record.text for record in log)
    times = [record.time for record in log]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] <= kernel.time + 1


def test_levels_and_lines(kernel):
    """Each level is kept; a record of several lines gives one for each line; empty ones stay."""
    with listening(kernel) as said:
        for level in range(8):
            kernel.call("_printk", b"\x01%dlevel %d\n\0" % (level, level))
        kernel.call("_printk", b"\x015first\nsecond\n\nfourth\n\0")
    records = said.records
    assert [(record.level, record.text) for record in records] == [
        *((level, f"level {level}") for level in range(8)),
        (5, "first"),
        (5, "second"),
        (5, ""),
        (5, "fourth"),
    ]
    assert kernel.log[-len(records) :] == records


def test_continued_and_unfinished_lines(kernel):
    """A line without its end is in the log, and what is printed to continue it joins it."""
    with listening(kernel) as said:
        kernel.call("_printk", b"\x016one, \0")
        kernel.call("_printk", b"\x01ctwo, \0")
        assert said.lines == ["one, two, "]
        kernel.call("_printk", b"\x01cthree\n\0")
        kernel.call("_printk", b"\x016four\n\0")
    assert said.lines == ["one, two, three", "four"]


def test_odd_bytes_in_the_log(kernel):
    """Bytes that are no text survive to be encoded again."""
    with listening(kernel) as said:
        kernel.call("_printk", b"\x016\xff\xfe \t\x1b end\n\0")
    [line] = said.lines
    assert line.encode("utf-8", "surrogateescape") == b"\xff\xfe \t\x1b end"


def test_log_wraps(kernel):
    """When the kernel's ring buffer is full the oldest records go, and what is left is whole and in order."""
    ring = kernel.memory.u64(kernel.image.kallsyms.address("prb"))
    size = 1 << kernel.memory.struct("printk_ringbuffer", ring).get("text_data_ring.size_bits")
    text = "x" * 900
    count = size // 900 + 10
    for number in range(count):
        kernel.calls("_printk", b"\x016%06d %s\n\0" % (number, text.encode()))
    log = kernel.log
    numbers = [int(record.text.split()[0]) for record in log if record.text.endswith(text)]
    assert numbers == list(range(count - len(numbers), count))
    assert len(numbers) == len(log)
    assert count // 2 < len(numbers) < count


def test_log_time_is_guest_time(kernel):
    """A record's time is that of the guest when it was printed."""
    with listening(kernel) as said:
        kernel.call("_printk", b"\x016before\n\0")
        kernel.sleep(2)
        kernel.call("_printk", b"\x016after\n\0")
    before, after = said.records
    assert 2 <= after.time - before.time <= late(2)
