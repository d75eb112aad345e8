"""Files, directories, device files and mounts of the guest; its log and clock."""

from __future__ import annotations

import pytest

from kodojo.errors import GuestOSError, InputError, UnmodelledError
from tests.kernel.looking import errno_of, listening

pytestmark = pytest.mark.kernel

ENOENT, EAGAIN, EEXIST, ENODEV, ENOTDIR, EISDIR, EINVAL, EROFS, ENOTEMPTY = 2, 11, 17, 19, 20, 21, 22, 30, 39
ENAMETOOLONG, EBUSY = 36, 16
O_NONBLOCK, O_RDWR = 0o4000, 0o2


def test_directories(kernel):
    """mkdir -p makes what is missing and minds nothing that is there; rmdir removes what is empty."""
    kernel.mkdir("/a/b/c", parents=True)
    kernel.mkdir("/a/b/c", parents=True)
    assert kernel.stat("/a/b").mode == 0o755
    assert errno_of(kernel.mkdir, "/a") == EEXIST
    assert errno_of(kernel.mkdir, "/nope/x") == ENOENT
    assert errno_of(kernel.rmdir, "/a") == ENOTEMPTY
    assert errno_of(kernel.unlink, "/a") == EISDIR
    kernel.write_file("/a/file", b"")
    assert errno_of(lambda: kernel.mkdir("/a/file", parents=True)) == EEXIST
    assert errno_of(kernel.rmdir, "/a/file") == ENOTDIR
    for path in ("/a/b/c", "/a/b"):
        kernel.rmdir(path)
    kernel.unlink("/a/file")
    kernel.rmdir("/a")
    assert not kernel.exists("/a")


def test_device_files(kernel):
    """A device file leads to the driver with its numbers; the numbers come back whole."""
    kernel.mknod("/zero", "c", 1, 5, 0o600)
    status = kernel.stat("/zero")
    assert (status.kind, status.mode, status.major, status.minor) == ("character device", 0o600, 1, 5)
    assert kernel.read_file("/zero", 3) == b"\0\0\0"
    kernel.mknod("/fifo", "p")
    assert (kernel.stat("/fifo").kind, kernel.stat("/fifo").mode) == ("fifo", 0o644)  # umask 022
    kernel.mknod("/disk", "b", 4095, (1 << 20) - 1)
    status = kernel.stat("/disk")
    assert (status.kind, status.major, status.minor) == ("block device", 4095, (1 << 20) - 1)
    with pytest.raises(InputError):
        kernel.mknod("/x", "z")


def test_status_and_modes(kernel):
    """Size, mode, links and times are the file's; a link is looked at or followed."""
    kernel.write_file("/file", b"12345")
    kernel.chmod("/file", 0o4751)
    status = kernel.stat("/file")
    assert (status.kind, status.size, status.mode, status.links, status.uid) == ("file", 5, 0o4751, 1, 0)
    assert abs(status.modified - kernel.clock()) < 1
    assert kernel.stat("/proc/self").kind == "directory"
    assert kernel.stat("/proc/self", follow=False).kind == "link"
    assert kernel.readlink("/proc/self") == "1"
    assert errno_of(kernel.readlink, "/file") == EINVAL


def test_existence(kernel):
    """What leads nowhere is not there; what cannot be asked is an error."""
    assert kernel.exists("/dev/null")
    assert not kernel.exists("/nope")
    assert not kernel.exists("/dev/null/x")
    assert errno_of(kernel.exists, "/" + "x" * 300) == ENAMETOOLONG


def test_appending(kernel):
    """>> writes behind what is there, > in its place."""
    kernel.write_file("/file", b"one")
    kernel.write_file("/file", b"two", append=True)
    assert kernel.read_file("/file") == b"onetwo"
    kernel.write_file("/file", b"3")
    assert kernel.read_file("/file", 10) == b"3"
    kernel.write_file("/new", b"x", append=True)
    assert kernel.read_file("/new", 0) == b""


def test_reading_a_part(kernel):
    """A file without end is read as far as is asked for; one that would block says so if it is not to wait."""
    assert kernel.read_file("/dev/zero", 300_000) == bytes(300_000)
    kernel.mknod("/fifo", "p")
    with kernel.open("/fifo", O_RDWR | O_NONBLOCK) as fifo:
        assert errno_of(lambda: list(fifo.pieces(4))) == EAGAIN
        fifo.write_all(b"abc")
        got = []
        assert errno_of(lambda: got.extend(fifo.pieces(4))) == EAGAIN
        assert got in ([], [b"abc"])


def test_mounts(kernel):
    """A file system hides what is below it until it is taken away; options are flags and data."""
    kernel.mkdir("/mnt")
    kernel.write_file("/mnt/below", b"")
    kernel.mount("none", "/mnt", "tmpfs", "size=1m,noexec,ro")
    (line,) = [line for line in kernel.read_file("/proc/mounts").decode().splitlines() if " /mnt " in line]
    assert {"ro", "noexec", "size=1024k"} <= set(line.split()[3].split(","))
    assert not kernel.exists("/mnt/below")
    assert errno_of(kernel.write_file, "/mnt/x", b"") == EROFS
    kernel.mount("none", "/mnt", options="remount,rw")
    kernel.write_file("/mnt/x", b"")
    with kernel.open("/mnt/x"):
        assert errno_of(kernel.umount, "/mnt") == EBUSY
    kernel.umount("/mnt")
    assert kernel.exists("/mnt/below")
    assert errno_of(kernel.umount, "/mnt") == EINVAL
    kernel.mount("/proc/sys", "/mnt", options="bind")
    assert kernel.exists("/mnt/kernel/osrelease")
    with kernel.open("/mnt/kernel/osrelease"):
        kernel.umount("/mnt", lazy=True)


def test_mounts_that_are_refused(kernel):
    """The kernel's errno comes back; a type that is a module is asked for."""
    kernel.mkdir("/mnt")
    assert errno_of(kernel.mount, "none", "/mnt", "nosuchfs") == ENODEV
    assert errno_of(kernel.mount, "none", "/nope", "tmpfs") == ENOENT
    assert errno_of(kernel.mount, "none", "/mnt", "tmpfs", "size=pear") == EINVAL
    assert errno_of(kernel.mount, "x" * 5000, "/mnt", "tmpfs") == EINVAL
    assert errno_of(kernel.mount, "/dev/nope", "/mnt", "vfat") == ENOENT
    assert "vfat" in {module.name for module in kernel.modules}


def test_the_log_can_be_cleared(kernel):
    """As by dmesg -C: what came before is no longer shown, but not forgotten by whoever counts records."""
    count = len(kernel.printk.records())
    if not kernel.printk.can_be_cleared:  # its symbol table lists functions only
        with pytest.raises(UnmodelledError):
            kernel.clear_log()
        return
    kernel.clear_log()
    assert kernel.log == ()
    kernel.write_file("/dev/kmsg", b"<4>after")
    assert [record.text for record in kernel.log] == ["after"]
    assert len(kernel.printk.records()) == count + 1
    assert [record.text for record in kernel.fork().log] == ["after"]


def test_the_logs_clock(kernel):
    """The clock that --since is relative to is the one in the log's brackets."""
    with listening(kernel) as said:
        kernel.write_file("/dev/kmsg", b"now")
    assert abs(said.records[0].time - kernel.clock(boot=True)) < 0.1


def test_programs_open_by_openat(kernel):
    """A probe of the system call that programs use sees our reads, too."""
    symbol = next(name for name in ("__x64_sys_openat", "__arm64_sys_openat") if kernel.calls.has(name))
    hits = []
    cpu = kernel.machine.cpu
    address = kernel.image.kallsyms.address(symbol)
    cpu.add_breakpoint(address, lambda: hits.append(1))
    kernel.read_file("/proc/version")
    cpu.remove_breakpoint(address)
    assert hits


def test_an_error_names_the_path(kernel):
    """As the tools do it."""
    with pytest.raises(GuestOSError, match=r"^/nope: No such file or directory$"):
        kernel.stat("/nope")
