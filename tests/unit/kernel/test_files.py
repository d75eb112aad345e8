from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from kodojo.errors import GuestOSError
from kodojo.kernel import files
from kodojo.kernel.abi import abi_of
from kodojo.kernel.calls import Place
from kodojo.kernel.files import DirectoryEntry, Files
from kodojo.kernel.user import SCRATCH_SIZE, UserSpace
from tests.support.flat_memory import FlatMemory

SCRATCH = 0x7F0000000000
EIO, ENOENT, EBADF, ENOMEM = 5, 2, 9, 12
MAPPED = 1 << 20
O_WRONLY, O_CREAT, O_TRUNC, O_DIRECTORY = 0o1, 0o100, 0o1000, 0o200000


class PaperKernel(UserSpace):
    """The system calls of a kernel with one file and one directory.

    :param most: bytes that one read() or write() takes.
    """

    def __init__(self, content: bytes = b"", entries: tuple[tuple[str, int], ...] = (), most: int = 1 << 20) -> None:
        machine = SimpleNamespace(cpu=FlatMemory(SCRATCH_SIZE + MAPPED, SCRATCH))
        super().__init__(machine, SimpleNamespace(stopped=None, abi=abi_of("x86_64"), place=Place(0, 0, SCRATCH)))
        self.content = content
        self.entries = [_dirent(name, kind) for name, kind in entries]
        self.most = most
        self.open_files: dict[int, int] = {}
        self.opened: list[tuple[bytes, int, int]] = []
        self.written: list[bytes] = []

    def syscall(self, name: str, *arguments: int, limit: object = None) -> int:
        return getattr(self, f"sys_{name}")(*arguments)

    def sys_openat(self, _directory: int, path: int, flags: int, mode: int) -> int:
        name = self.machine.cpu.read(path, 4096).split(b"\0")[0]
        self.opened.append((name, flags, mode))
        if name == b"/gone":
            return -ENOENT
        self.open_files[3] = 0
        return 3

    def sys_mmap(self, _address: int, size: int, *_how: int) -> int:
        return SCRATCH + SCRATCH_SIZE if size <= MAPPED else -ENOMEM

    def sys_munmap(self, _address: int, _size: int) -> int:
        return 0

    def sys_close(self, fd: int) -> int:
        return 0 if self.open_files.pop(fd, None) is not None else -EBADF

    def sys_read(self, fd: int, buffer: int, count: int) -> int:
        at = self.open_files[fd]
        piece = self.content[at : at + min(count, self.most)]
        self.machine.cpu.write(buffer, piece)
        self.open_files[fd] += len(piece)
        return len(piece)

    def sys_write(self, fd: int, buffer: int, count: int) -> int:
        piece = self.machine.cpu.read(buffer, min(count, self.most))
        self.written.append(piece)
        return len(piece)

    def sys_getdents64(self, fd: int, buffer: int, count: int) -> int:
        assert count <= SCRATCH_SIZE
        batch, self.entries = self.entries[:2], self.entries[2:]
        self.machine.cpu.write(buffer, b"".join(batch))
        return sum(map(len, batch))

    def sys_ioctl(self, fd: int, request: int, argument: int) -> int:
        if request == 1:
            return argument + 1
        data = self.machine.cpu.read(argument, 4)
        self.machine.cpu.write(argument, data[::-1])
        return 0

    def sys_lseek(self, fd: int, offset: int, whence: int) -> int:
        self.open_files[fd] = offset if whence == 0 else len(self.content) + offset
        return self.open_files[fd]


def _dirent(name: str, kind: int) -> bytes:
    """struct linux_dirent64: inode, offset, record length, type, name; records are multiples of 8 bytes."""
    raw = name.encode("utf-8", "surrogateescape") + b"\0"
    length = (19 + len(raw) + 7) & ~7
    return (struct.pack("<QqHB", 5, 6, length, kind) + raw).ljust(length, b"\xee")


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 100, 300_000])
def test_read(size, most):
    """A file is read to its end, however little each read() gives, and closed."""
    if size > 1000 and most < 1000:
        most *= 5000
    kernel = PaperKernel(bytes(range(251)) * (size // 251 + 1), most=most)
    kernel.content = kernel.content[:size]
    assert Files(kernel).read("/proc/file") == kernel.content
    assert kernel.opened == [(b"/proc/file", 0, 0o644)]
    assert kernel.open_files == {}


def test_missing_file():
    """The guest's error names the path and has the guest's number."""
    with pytest.raises(GuestOSError, match=r"^/gone: No such file") as caught:
        Files(PaperKernel()).read("/gone")
    assert caught.value.errno == ENOENT


def test_write():
    """A file is created or truncated, and written in as few pieces as there can be."""
    kernel = PaperKernel()
    Files(kernel).write("/proc/sys/x", b"7\n")
    assert kernel.opened == [(b"/proc/sys/x", O_WRONLY | O_CREAT | O_TRUNC, 0o644)]
    assert kernel.written == [b"7\n"]
    assert kernel.open_files == {}


def test_write_nothing():
    """Nothing is written by one write() of nothing: a device may want to see it."""
    kernel = PaperKernel()
    Files(kernel).write("/dev/x", b"")
    assert kernel.written == [b""]


def test_write_in_pieces():
    """What a write() does not take is offered again."""
    kernel = PaperKernel(most=1000)
    data = bytes(range(250)) * 2000
    Files(kernel).write("/dev/x", data)
    assert b"".join(kernel.written) == data
    assert max(map(len, kernel.written)) == 1000


def test_write_that_takes_nothing():
    """A file that takes nothing and does not say why is an I/O error, not an endless loop."""
    kernel = PaperKernel(most=0)
    with pytest.raises(GuestOSError) as caught:
        Files(kernel).write("/dev/full", b"x")
    assert caught.value.errno == EIO
    assert kernel.open_files == {}


def test_list():
    """Directory entries come sorted, with their kinds, without the directory itself and its parent."""
    names = ((".", 4), ("..", 4), ("zero", 2), ("a-file", 8), ("dir", 4), ("link", 10), ("odd\udcff", 99))
    kernel = PaperKernel(entries=names)
    assert Files(kernel).list("/dev") == (
        DirectoryEntry("a-file", "file"),
        DirectoryEntry("dir", "directory"),
        DirectoryEntry("link", "link"),
        DirectoryEntry("odd\udcff", "unknown"),
        DirectoryEntry("zero", "character device"),
    )
    assert kernel.opened == [(b"/dev", O_DIRECTORY, 0o644)]


def test_empty_directory():
    """A directory without entries has none."""
    assert Files(PaperKernel()).list("/empty") == ()


def test_seek_and_read():
    """An open file can be read in parts, from where one wants."""
    kernel = PaperKernel(b"0123456789")
    with Files(kernel).open("/x") as file:
        assert file.read(4) == b"0123"
        assert file.seek(-2, 2) == 8
        assert file.read_all() == b"89"


def test_ioctl():
    """ioctl takes a number or bytes; bytes come back as the kernel left them."""
    with Files(PaperKernel()).open("/x") as file:
        assert file.ioctl(1, 41) == (42, b"")
        assert file.ioctl(2, b"abcd") == (0, b"dcba")


def test_close_after_a_crash():
    """A file of a machine that stopped is not closed: nothing can be called any more."""
    kernel = PaperKernel(b"x")
    with Files(kernel).open("/x"):
        kernel.calls.stopped = GuestOSError("crash", EIO)
    assert kernel.open_files == {3: 0}


# -- answers that are none --------------------------------------------------------------------------------


def answering(name: str, *values: int) -> PaperKernel:
    """A kernel of which one call gives these answers, whatever it has done."""
    kernel = PaperKernel(b"content", (("a", 8), ("b", 8)))
    left = list(values)
    real = getattr(kernel, f"sys_{name}")

    def answer(*arguments: int) -> int:
        real(*arguments)
        return left.pop(0)

    setattr(kernel, f"sys_{name}", answer)
    return kernel


@pytest.mark.parametrize("value", [1 << 20, -5000, 1 << 62, -(1 << 63)])
def test_impossible_counts(value):
    """A count that is larger than what was asked for, or neither a count nor an errno, is said to be one."""
    for call, work in (
        ("read", lambda these: these.read("/x", 10)),
        ("write", lambda these: these.write("/x", b"data")),
        ("getdents64", lambda these: these.list("/x")),
    ):
        with pytest.raises(GuestOSError, match=f"^/x: the kernel's memory is damaged: {call}") as caught:
            work(Files(answering(call, value)))
        assert caught.value.errno == EIO
        assert "kodojo boot" in caught.value.hint


@pytest.mark.parametrize("length", [0, 1, 18, 19, 0x30, 0xFFFF])
def test_impossible_entries(length):
    """An entry of a directory has a name, and ends where its answer ends; those before it are known."""
    kernel = PaperKernel(entries=(("good", 4), ("bad", 8)))
    bad = bytearray(kernel.entries[1])
    struct.pack_into("<H", bad, 16, length)
    kernel.entries[1] = bytes(bad)
    with pytest.raises(GuestOSError, match=f"memory is damaged: an entry of {length} bytes") as caught:
        Files(kernel).list("/proc")
    assert caught.value.found == (DirectoryEntry("good", "directory"),)


def test_cut_entry():
    """A piece of an entry at the end is none."""
    kernel = PaperKernel(entries=(("good", 4),))
    kernel.entries.append(b"\0" * 10)
    with pytest.raises(GuestOSError, match="memory is damaged"):
        Files(kernel).list("/proc")


def test_endless_directory(monkeypatch):
    """A directory that never ends is given up."""
    monkeypatch.setattr(files, "_DIRECTORY_LIMIT", 1 << 20)
    kernel = PaperKernel()
    one = _dirent("again", 8)
    batch = one * 3000
    calls = []

    def again(_fd: int, buffer: int, _count: int) -> int:
        calls.append(buffer)
        kernel.machine.cpu.write(buffer, batch)
        return len(batch)

    kernel.sys_getdents64 = again
    with pytest.raises(GuestOSError, match="bytes of a directory"):
        Files(kernel).list("/proc")
    assert len(calls) == (1 << 20) // len(batch) + 1
