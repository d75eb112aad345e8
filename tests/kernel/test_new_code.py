"""Memory that held one module's code, and then another's."""

import pytest

from tests.damage.outcomes import native_load, our_load

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

ATTACHED = 200
NAMES = ("softdog", "em_nbyte", "ts_fsm", "dummy")


def test_modules_take_turns_in_the_same_memory(kernel):
    """A module never runs the code of one that was removed before, whichever loader put it there."""
    for needed in kernel.image.modules["softdog"].depends:
        kernel.insmod(kernel.image.modules[needed].path)
    places = []
    for load in (our_load, native_load, our_load, native_load, native_load):
        for name in NAMES:
            result = load(kernel, kernel.image.modules[name].read(), "")
            assert (result.outcome.value, result.outcome.fault) == (0, "")
            places += [base for base, _content in result.outcome.memory.values()]
            kernel.rmmod(name)
    assert len(set(places)) < len(places)


# Arguments of system calls and instructions of classic BPF: include/uapi/linux/socket.h, bpf_common.h
AF_UNIX, SOCK_DGRAM, SOL_SOCKET, SO_ATTACH_FILTER, MSG_DONTWAIT = 1, 2, 1, 26, 0x40
RETURN_CONSTANT = 0x06
TRACING = "/sys/kernel/tracing/"


def load_test_bpf(kernel, first: int, last: int) -> list[str]:
    """What the kernel's own tests of its BPF compiler printed for tests of these numbers."""
    before = len(kernel.log)
    path = kernel.image.modules["test_bpf"].path
    kernel.insmod(path, "test_suite=test_bpf", f"test_range={first},{last}")
    return [record.text for record in kernel.log[before:] if record.text.startswith("test_bpf: ")]


def test_compiled_filters(kernel):
    """The kernel's own tests of its BPF compiler pass: programs take others' place, written through an alias."""
    lines = load_test_bpf(kernel, 0, 149)
    assert [line for line in lines if "FAIL" in line and "Summary" not in line] == []
    assert lines[-1].startswith("test_bpf: Summary: 150 PASSED, 0 FAILED")


def test_a_filter_that_is_replaced(kernel):
    """A socket's filter that is attached again and again is the newest each time: it says how much is received."""
    user = kernel.user
    page = user.allocate(4096)
    pair, program, filter_, buffer = (page + offset for offset in (0, 64, 128, 256))
    user.checked("sockets", "socketpair", AF_UNIX, SOCK_DGRAM, 0, pair)
    sender, receiver = (kernel.memory.u32(pair + 4 * index) for index in range(2))
    kernel.memory.write(program, (1).to_bytes(8, "little") + filter_.to_bytes(8, "little"))  # struct sock_fprog
    received, wanted = [], []
    for turn in range(ATTACHED):
        length = 1 + turn * 7 % 61
        code = RETURN_CONSTANT.to_bytes(4, "little") + length.to_bytes(4, "little")
        kernel.memory.write(filter_, code)  # struct sock_filter
        user.checked("a filter", "setsockopt", receiver, SOL_SOCKET, SO_ATTACH_FILTER, program, 16)
        user.checked("a datagram", "sendto", sender, buffer, 61, 0, 0, 0)
        received.append(user.checked("a datagram", "recvfrom", receiver, buffer, 61, MSG_DONTWAIT, 0, 0))
        wanted.append(length)
    assert received == wanted


@pytest.mark.x86_64("Debian's arm64 kernels have them built in, or not at all")
def test_static_keys(kernel):
    """The kernel's own test of jump labels passes: branches that are patched and patched back."""
    for name in ("test_static_key_base", "test_static_keys"):
        kernel.insmod(kernel.image.modules[name].path)
    kernel.rmmod("test_static_keys")


@pytest.mark.parametrize("what", ["function", "kprobe"])
def test_tracing_on_and_off(kernel, what):
    """A function is traced while it is wanted and not otherwise, three times in turn."""
    switch = TRACING + ("events/kprobes/kd/enable" if what == "kprobe" else "current_tracer")
    values = (b"1", b"0") if what == "kprobe" else (b"function", b"nop")
    if what == "kprobe":
        kernel.write_file(TRACING + "kprobe_events", b"p:kprobes/kd do_mkdirat\n")
    else:
        kernel.write_file(TRACING + "set_ftrace_filter", b"do_mkdirat\n")
    seen = []
    for turn in range(3):
        for value in values:
            kernel.write_file(switch, value + b"\n")
            kernel.write_file(TRACING + "trace", b"\n")
            kernel.user.syscall("mkdirat", -100, kernel.user.path(f"/kd-{turn}"), 0o755)
            seen.append(b"do_mkdirat" in kernel.read_file(TRACING + "trace"))
    assert seen == [True, False] * 3
