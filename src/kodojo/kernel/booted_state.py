"""What an init has done by the time that anybody uses a machine, as PID 1, by ordinary system calls.

The clock is set, the kernel's file systems are mounted as systemd mounts them, the random generator is seeded and the
loopback interface is up. All of it is the same at every boot. What a kernel was built without is missing
afterwards, as on a real system, and nothing that would have to be loaded as a module is asked for.

A bare machine has only the mounts without which nothing of it could be seen, and its clock begins in 1970: so has
the machine that is compared with QEMU's.

Sources: systemd's ``src/shared/mount-setup.c``, ``units/*.mount``, ``src/core/clock-util.c``,
``src/random-seed``, ``src/core/loopback-setup.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kodojo.errors import GuestOSError, ImageError
from kodojo.kernel.files import CLOCK_BOOTTIME, CLOCK_REALTIME, Files
from kodojo.kernel.user import UserSpace

__all__ = ["POWER_ON", "come_up"]

POWER_ON = 1_735_689_600
"""What the machine's clock says of the moment at which it was switched on: 2025-01-01T00:00:00Z."""

_SEED = bytes(range(32))
_RNDADDENTROPY = 0x4008_5203  # include/uapi/linux/random.h
_AF_NETLINK, _SOCK_RAW = 16, 3
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_EINVAL = 22
# Not there: EPERM, ENOENT, ENXIO, EACCES, ENODEV, EINVAL, ENOTTY, ENOSYS, EOPNOTSUPP, EAFNOSUPPORT.
_LACKING = frozenset((1, 2, 6, 13, 19, _EINVAL, 25, 38, 95, 97))


@dataclass(frozen=True, slots=True)
class _Mount:
    """A file system that an init mounts.

    :param options: as of ``mount -o``; the first of them that this kernel knows.
    :param made: the directory is not the kernel's own and has to be made.
    """

    kind: str
    path: str
    options: tuple[str, ...]
    made: bool = False


_USUAL = "nosuid,nodev,noexec"
_FIRST = (
    _Mount("proc", "/proc", (_USUAL,)),
    _Mount("sysfs", "/sys", (_USUAL,)),
    _Mount("devtmpfs", "/dev", ("nosuid,strictatime,mode=755,size=4m,nr_inodes=1m",)),
)
_MORE = (
    _Mount("securityfs", "/sys/kernel/security", (_USUAL,)),
    _Mount("tmpfs", "/dev/shm", ("nosuid,nodev,strictatime,mode=1777",), made=True),  # noqa: S108  the guest's
    _Mount("devpts", "/dev/pts", ("nosuid,noexec,mode=620,gid=5",), made=True),
    _Mount("tmpfs", "/run", ("nosuid,nodev,strictatime,mode=755,size=20%,nr_inodes=800k",)),
    _Mount(
        "cgroup2",
        "/sys/fs/cgroup",
        (f"{_USUAL},nsdelegate,memory_recursiveprot", f"{_USUAL},nsdelegate", _USUAL),
    ),
    _Mount("pstore", "/sys/fs/pstore", (_USUAL,)),
    _Mount("bpf", "/sys/fs/bpf", (f"{_USUAL},mode=700",)),
    _Mount("hugetlbfs", "/dev/hugepages", ("nosuid,nodev",), made=True),
    _Mount("mqueue", "/dev/mqueue", (_USUAL,), made=True),
    _Mount("debugfs", "/sys/kernel/debug", (_USUAL,)),
    _Mount("tracefs", "/sys/kernel/tracing", (_USUAL,)),
    _Mount("configfs", "/sys/kernel/config", (_USUAL,)),
    _Mount("fusectl", "/sys/fs/fuse/connections", (_USUAL,)),
)
_BARE_FIRST = tuple(_Mount(one.kind, one.path, ("",)) for one in _FIRST)
_BARE_MORE = tuple(
    _Mount(kind, path, ("",))
    for kind, path in (
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
        ("securityfs", "/sys/kernel/security"),
    )
)


def come_up(user: UserSpace, *, bare: bool = False) -> None:
    """Do what comes before the first command.

    :param user: PID 1's.
    :param bare: mount what shows the kernel from inside, and do nothing else.
    :raises ImageError: the kernel has no procfs, sysfs or devtmpfs. GuestOSError: it fails with something that is no
        lack of its.
    """
    files = Files(user)
    if not bare:
        _where_there(partial(_set_clock, user))
    for mount in _BARE_FIRST if bare else _FIRST:
        try:
            _mount(files, mount)
        except GuestOSError as error:
            raise ImageError(
                f"{user.calls.image.release}: the kernel cannot mount {mount.kind} on {error.message}",
                hint="kodojo boots kernels that have procfs, sysfs and devtmpfs built in",
            ) from error
    lines = files.read("/proc/filesystems").decode().splitlines()
    known = {line.split("\t")[-1] for line in lines}
    for mount in _BARE_MORE if bare else _MORE:
        if mount.kind in known:  # the kernel would look for a module otherwise
            _where_there(partial(_mount, files, mount))
    if bare:
        return
    files.change_mode("/tmp", 0o1777)  # noqa: S108  the guest's
    _where_there(partial(_seed, files))
    _where_there(partial(_raise_loopback, user))


def _where_there(step: Callable[[], None]) -> None:
    """Do what a kernel may have been built without."""
    try:
        step()
    except GuestOSError as error:
        if error.errno not in _LACKING:
            raise


def _mount(files: Files, mount: _Mount) -> None:
    if mount.made:
        files.make_directory(mount.path, 0o755)
    for options in mount.options:
        try:
            files.mount(mount.kind, mount.path, mount.kind, options)
        except GuestOSError as error:
            if error.errno != _EINVAL or options == mount.options[-1]:
                raise
        else:
            return


def _set_clock(user: UserSpace) -> None:
    """Let it have begun at POWER_ON."""
    now = user.scratch
    user.checked("clock", "clock_gettime", CLOCK_BOOTTIME, now)
    seconds, nanoseconds = struct.unpack("<qq", user.machine.cpu.read(now, 16))
    user.put(struct.pack("<qq", POWER_ON + seconds, nanoseconds))
    user.checked("clock", "clock_settime", CLOCK_REALTIME, now)


def _seed(files: Files) -> None:
    """Give the random generator as much as it needs to be ready (``struct rand_pool_info``)."""
    with files.open("/dev/random") as random:
        random.ioctl(_RNDADDENTROPY, struct.pack("<ii", 8 * len(_SEED), len(_SEED)) + _SEED)


def _raise_loopback(user: UserSpace) -> None:
    """``ip link set lo up``: the kernel gives it its addresses (``struct ifreq``).

    Every kernel that has a network has this kind of socket; one of another might be a module.
    """
    socket = user.checked("lo", "socket", _AF_NETLINK, _SOCK_RAW, 0)
    try:
        user.checked("lo", "ioctl", socket, _SIOCSIFFLAGS, user.put(struct.pack("<16sH22x", b"lo", _IFF_UP)))
    finally:
        user.syscall("close", socket)
