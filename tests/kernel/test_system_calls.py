"""System calls by name or number, with bytes in and out, and records of any size."""

from __future__ import annotations

import errno
import re
import struct

import pytest

from kodojo.errors import GuestOSError, InputError
from tests.support import distribution

pytestmark = pytest.mark.kernel

AF_UNIX, SOCK_DGRAM = 1, 2
SOL_SOCKET, SO_SNDBUF = 1, 7
FRAME = 614_400  # bytes of a picture, 640 x 480 pixels of 16 bits
HEADERS = {
    "x86_64": "arch/x86/include/generated/uapi/asm/unistd_64.h",
    "aarch64": "include/uapi/asm-generic/unistd.h",
}


def test_every_call_of_the_table(kernel, series):
    """Every number that the kernel's own headers name is known by that name."""
    files = distribution.kernel_of(series)
    where = HEADERS[kernel.image.architecture]
    directory = files.build_directory if (files.build_directory / where).exists() else files.source_directory
    text = (directory / where).read_text()
    listed = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+)\s+(\d+)$", text, re.MULTILINE)}
    listed.pop("syscalls", None)
    known = kernel.calls.abi.system_calls
    if kernel.image.architecture == "aarch64":  # names of 32-bit variants are there by way of macros
        listed = {name: number for name, number in listed.items() if number < 244 or number > 259}
        listed.pop("arch_specific_syscall", None)
    assert len(listed) > 250
    assert {name: known.get(name) for name in listed} == listed


def test_bytes_in_and_out(kernel):
    """A datagram goes through a pair of sockets: numbers, bytes, NULL, and a buffer that the kernel writes into."""
    pair = bytearray(8)
    assert kernel.syscall("socketpair", AF_UNIX, SOCK_DGRAM, 0, pair) == 0
    one, other = struct.unpack("<ii", pair)
    assert kernel.syscall("sendto", one, b"hello", 5, 0, None, 0) == 5
    received = bytearray(16)
    assert kernel.syscall("recvfrom", other, received, len(received), 0, None, None) == 5
    assert received == b"hello".ljust(16, b"\0")
    for descriptor in (one, other):
        assert kernel.syscall("close", descriptor) == 0


def test_by_number_and_by_name(kernel):
    """A number is a call as its name is; a text is passed with a NUL behind it."""
    number = kernel.calls.abi.system_calls["getpid"]
    assert kernel.syscall(number) == kernel.syscall("getpid") == 1
    assert kernel.syscall("mkdirat", -100, "/kd", 0o755) == 0
    assert "kd" in {entry.name for entry in kernel.list_directory("/")}


def test_errors(kernel):
    """An errno is an exception with its number and its words; a name that there is not is the caller's mistake."""
    with pytest.raises(GuestOSError, match="mkdirat: No such file or directory") as caught:
        kernel.syscall("mkdirat", -100, "/there/is/none", 0o755)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(GuestOSError, match="Function not implemented"):
        kernel.syscall(9999)
    with pytest.raises(InputError, match="no system call of that name"):
        kernel.syscall("make_coffee")


@pytest.mark.parametrize("size", [1, 4096, 126_976, 126_977, FRAME])
def test_a_record_is_one_call(kernel, size):
    """What is written at once arrives at once: a datagram of any size that the socket takes."""
    data = bytes(index % 251 for index in range(size))
    pair = bytearray(8)
    kernel.syscall("socketpair", AF_UNIX, SOCK_DGRAM, 0, pair)
    one, other = struct.unpack("<ii", pair)
    kernel.write_file("/proc/sys/net/core/wmem_max", b"8000000")
    kernel.syscall("setsockopt", one, SOL_SOCKET, SO_SNDBUF, struct.pack("<i", 4_000_000), 4)
    with kernel.open("/dev/null") as sender, kernel.open("/dev/null") as receiver:
        for file, socket in ((sender, one), (receiver, other)):
            kernel.syscall("dup3", socket, file.fd, 0)
        assert sender.write(data) == size
        assert receiver.read(size + 100) == data


def test_a_long_sleep(kernel):
    """A sleep may be longer than the limit of a call."""
    kernel.limit(1)
    before = kernel.time
    kernel.sleep(5)
    assert 5 <= kernel.time - before < 7
