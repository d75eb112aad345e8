"""What finit_module makes of every kind of descriptor and of compressed files: both loaders the same."""

from __future__ import annotations

import lzma
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from kodojo.kernel.kernel import Kernel
from tests.kernel.callers import GUEST_FILE, Calls, NativeCalls, Pair

pytestmark = pytest.mark.kernel

EIO, ENOEXEC, EBADF, ENOMEM, EFAULT, EINVAL, EFBIG, ETXTBSY, EOPNOTSUPP = 5, 8, 9, 12, 14, 22, 27, 26, 95
COMPRESSED = 4
O_ACCMODE = 3  # as a mode for open: neither to read nor to write, but for ioctl
AF_UNIX, SOCK_STREAM = 1, 1


def opened(calls: Calls, path: str, mode: int) -> int:
    """The descriptor of a file that both have under that path."""
    if isinstance(calls, NativeCalls):
        return calls.kernel.user.checked(path, "open", calls.kernel.user.path(path), mode, 0)
    return os.open(path, mode)


def closed(calls: Calls, *descriptors: int) -> None:
    for descriptor in descriptors:
        if isinstance(calls, NativeCalls):
            calls.kernel.user.checked("close", "close", descriptor)
        else:
            os.close(descriptor)


def finit_of(calls: Calls, path: str, mode: int, flags: int = 0) -> int:
    descriptor = opened(calls, path, mode)
    value = calls.finit_descriptor(descriptor, flags)
    closed(calls, descriptor)
    return value


@pytest.mark.parametrize("flags", [0, COMPRESSED])
@pytest.mark.parametrize(
    ("path", "mode", "errno"),
    [
        ("/dev/null", os.O_RDONLY, EINVAL),
        ("/dev/null", os.O_RDWR, EINVAL),
        ("/dev/null", os.O_WRONLY, EBADF),
        ("/dev/zero", os.O_RDONLY, EINVAL),
        ("/dev", os.O_RDONLY, EINVAL),
        ("/dev", os.O_PATH, EBADF),
        ("/proc/version", os.O_RDONLY, EINVAL),
        ("/proc/self/mem", os.O_RDONLY, EINVAL),
        ("/sys/kernel/uevent_seqnum", os.O_RDONLY, EIO),
    ],
)
def test_special_file(both, path, mode, errno, flags):
    """Devices, directories, and files of proc and sysfs, which are shorter than they say."""
    if not Path(path).exists():
        pytest.skip(f"this system has no {path}")
    assert both(lambda calls: finit_of(calls, path, mode, flags)) == -errno


def test_pipe(both):
    """A pipe is no file that could be read as a whole; its other end cannot be read at all."""

    def ends(calls: Calls) -> tuple[int, int]:
        if not isinstance(calls, NativeCalls):
            return os.pipe()
        user = calls.kernel.user
        where = user.put(bytes(8), 4096)
        user.checked("pipe", "pipe2", where, 0)
        reader, writer = struct.unpack("<ii", calls.kernel.memory.read(where, 8))
        return reader, writer

    def finit_both(calls: Calls) -> tuple[int, int]:
        reader, writer = ends(calls)
        values = calls.finit_descriptor(reader), calls.finit_descriptor(writer)
        closed(calls, reader, writer)
        return values

    assert both(finit_both) == (-EINVAL, -EBADF)


def test_socket(both):
    """A socket is none either."""

    def finit(calls: Calls) -> int:
        if isinstance(calls, NativeCalls):
            descriptor = calls.kernel.user.checked("socket", "socket", AF_UNIX, SOCK_STREAM, 0)
        else:
            descriptor = socket.socket(socket.AF_UNIX).detach()
        value = calls.finit_descriptor(descriptor)
        closed(calls, descriptor)
        return value

    assert both(finit) == -EINVAL


def test_neither_to_read_nor_to_write(both, built):
    """A descriptor may be good for ioctl only."""
    assert both(lambda calls: calls.finit(built["kd_noinit"], mode=O_ACCMODE)) == -EBADF


def test_open_for_writing_elsewhere(both, built, tmp_path):
    """While another descriptor may write to the file it is busy, whatever else is wrong; afterwards it is not."""
    content = built["kd_noinit"].read_bytes()

    def with_writer(calls: Calls, data: bytes) -> tuple[int, int]:
        if isinstance(calls, NativeCalls):
            path = GUEST_FILE
            calls.kernel.write_file(path, data)
        else:
            path = str(tmp_path / "file.ko")
            Path(path).write_bytes(data)
        writer = opened(calls, path, os.O_WRONLY)
        while_written = finit_of(calls, path, os.O_RDONLY)
        closed(calls, writer)
        return while_written, finit_of(calls, path, os.O_RDONLY)

    assert both(lambda calls: with_writer(calls, content)) == (-ETXTBSY, 0)
    assert both(lambda calls: with_writer(calls, b"")) == (-ETXTBSY, -EINVAL)


@pytest.mark.parametrize("number", [1 << 32, -1 << 32, 1 << 63])
def test_numbers_are_cut_to_their_type(both, built, number):
    """Descriptor and flags are ints: what is above them does not count."""
    file = built["kd_noinit"]
    assert both(lambda calls: calls.finit(file, flags=number | 8)) == -EINVAL
    assert both(lambda calls: calls.finit(file, flags=number)) == 0
    assert both(lambda calls: calls.delete("kd_noinit", number | 0o4000)) == 0
    assert both(lambda calls: calls.finit_descriptor(number - 1)) == -EBADF


def test_more_than_there_is_memory(both, tmp_path):
    """A file that does not fit into memory: the kernel says so, as of every allocation that fails."""
    size = 1 << 30

    def finit(calls: Calls) -> tuple[int, str]:
        if isinstance(calls, NativeCalls):
            path = GUEST_FILE
            calls.kernel.write_file(path, b"x")
            with calls.kernel.open(path, os.O_RDWR) as file:
                calls.kernel.user.checked(path, "ftruncate", file.fd, size)
        else:
            path = str(tmp_path / "file.ko")
            with Path(path).open("wb") as file:
                file.truncate(size)
        value = finit_of(calls, path, os.O_RDONLY)
        line = calls.log[0][1]
        calls.log = []  # the rest is a backtrace
        return value, line

    value, line = both(finit)
    assert value == -ENOMEM
    assert f"vmalloc error: size {size}, exceeds total pages" in line


def test_file_beyond_two_gigabytes(kernel, tmp_path):
    """A file that is larger than an int is refused unread."""
    file = tmp_path / "file.ko"
    with file.open("wb") as opened_file:
        opened_file.truncate(1 << 31)
    assert Calls(kernel).finit(file) == -EFBIG


@pytest.mark.parametrize("address", [0, 0x10000, 0xFFFFFFFF81000000])
def test_unreadable_arguments(both, built, address):
    """Arguments are read late by this way, too."""

    def finit(calls: Calls) -> int:
        if isinstance(calls, NativeCalls):
            calls.kernel.write_file(GUEST_FILE, built["kd_noinit"].read_bytes())
            with calls.kernel.open(GUEST_FILE) as file:
                return calls._run(calls.kernel.user.syscall, "finit_module", file.fd, address, 0)
        return calls.finit(built["kd_noinit"], address)

    assert both(finit) == -EFAULT


# -- compressed files -----------------------------------------------------------------------------------------
LZMA2 = {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 16}
FILTERS = {
    "x86": [{"id": lzma.FILTER_X86}, LZMA2],
    "arm": [{"id": lzma.FILTER_ARM}, LZMA2],
    "delta": [{"id": lzma.FILTER_DELTA, "dist": 1}, LZMA2],
    "three": [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_DELTA, "dist": 1}, LZMA2],
}


def packed(data: bytes, check: int = lzma.CHECK_CRC32, filters: str = "") -> bytes:
    return lzma.compress(data, check=check, filters=FILTERS.get(filters, [LZMA2]))


def finit_packed(kernel: Kernel, tmp_path: Path) -> Callable[[Pair, bytes], int]:
    """Load what is compressed by both; -EOPNOTSUPP where the kernel cannot."""
    able = kernel.image.config.enabled("MODULE_DECOMPRESS")

    def finit(both: Pair, data: bytes) -> int:
        file = tmp_path / "file.ko.xz"
        file.write_bytes(data)
        value = both(lambda calls: calls.finit(file, flags=COMPRESSED))
        assert able or value == (-EOPNOTSUPP if data else -EINVAL)
        return value if able else 0

    return finit


def test_checks_and_filters(both, built, kernel, tmp_path):
    """The kernel's decoder takes less than xz makes; what it says of the rest is a number."""
    finit = finit_packed(kernel, tmp_path)
    module = built["kd_noinit"].read_bytes()
    for data in (packed(module), packed(module, lzma.CHECK_NONE), packed(module) + b"junk"):
        assert finit(both, data) == 0
        both(lambda calls: calls.delete("kd_noinit"))
    knows = kernel.image.architecture == "x86_64" or not kernel.image.config.enabled("MODULE_DECOMPRESS")
    assert finit(both, packed(module, filters="x86")) == (0 if knows else -EINVAL)
    both(lambda calls: calls.delete("kd_noinit"))
    for check in (lzma.CHECK_CRC64, lzma.CHECK_SHA256):
        assert finit(both, packed(module, check)) in (0, -EINVAL)
    for filters in ("arm", "delta", "three"):
        assert finit(both, packed(module, filters=filters)) in (0, -EINVAL)
    for data in (packed(b""), packed(bytes(100)), module, b"\xfd7zXZ", b"\xfd7zXZ\0", b""):
        assert finit(both, data) in (0, -EINVAL, -ENOEXEC)


def with_checksums(data: bytearray) -> bytes:
    """The headers of stream and first block with the checksums that belong to them."""
    data[8:12] = struct.pack("<I", zlib.crc32(data[6:8]))
    end = 12 + (data[12] + 1) * 4
    if end < len(data):
        data[end - 4 : end] = struct.pack("<I", zlib.crc32(data[12 : end - 4]))
    return bytes(data)


def test_dictionary_that_does_not_fit(both, built, kernel, tmp_path):
    """The dictionary has to be allocated, and the kernel complains if it cannot be."""
    data = bytearray(packed(built["kd_noinit"].read_bytes()))
    data[16] = 36  # in the block's header: 1 GiB
    file = tmp_path / "file.ko.xz"
    file.write_bytes(with_checksums(data))

    def finit(calls: Calls) -> tuple[int, str, str]:
        value = calls.finit(file, flags=COMPRESSED)
        lines = ["", ""] if not calls.log else [calls.log[0][1], calls.log[-1][1]]
        calls.log = []  # between them is a backtrace
        return value, *lines

    value, first, last = both(finit)
    if kernel.image.config.enabled("MODULE_DECOMPRESS"):
        assert value == -EINVAL
        assert "vmalloc error" in first
        assert last.endswith("decompression failed with status 3")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or with one bit turned over, and sometimes with headers whose checksums are right nevertheless."""
    changed = bytearray(data)
    if not rng.randrange(4):
        return bytes(changed[: rng.randrange(len(data))])
    place = rng.choice([rng.randrange(len(data)), rng.randrange(60), len(data) - 1 - rng.randrange(50)])
    changed[place] ^= 1 << rng.randrange(8)
    return with_checksums(changed) if rng.randrange(2) else bytes(changed)


def test_damaged_streams(both, kernel, tmp_path):
    """However a stream is damaged, both find the same wrong with it."""
    finit = finit_packed(kernel, tmp_path)
    rng = random.Random(4)
    content = rng.randbytes(200) + b"not a module" * 40 + bytes(700)
    streams = [packed(content), packed(content, lzma.CHECK_NONE), packed(content, filters="x86")]
    for number in range(30 if kernel.image.config.enabled("MODULE_DECOMPRESS") else 3):
        assert finit(both, damaged(streams[number % 3], rng)) in (0, -EINVAL, -ENOEXEC)
