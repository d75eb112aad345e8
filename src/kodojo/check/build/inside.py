"""The program between a build and this computer: it makes a sandbox, runs one command there, and watches over it.

It is run by :mod:`kodojo.check.build.sandbox` as a process of its own, with a description as its first argument
(JSON: see ``Sandbox.run``), and needs nothing but the standard library. How it ended goes to a descriptor, as JSON:
``status`` of the command, or ``stopped`` (a limit), or ``refused`` (there can be no sandbox here).

In the sandbox there are: a file system of the system's own programs, libraries and headers, all of it read-only, and
one directory to write in; no network, no other processes, no devices but /dev/null and its like. The command is
neither root nor able to become it. All its processes end when the first one of the PID namespace does, and that is
this program.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

SYSTEM = ("bin", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "opt", "sbin", "usr")
CONFIGURATION = ("alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "passwd")
DEVICES = ("full", "null", "random", "urandom", "zero")
NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, AT_RECURSIVE, AT_FDCWD = 1, 2, 0x8000, -100
MOUNT_SETATTR = 442  # its number is the same on every architecture
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
CAPABILITY_VERSION = 0x20080522

MOMENT = 0.2  # seconds between two looks at the memory
LOOKS = 10  # at the memory for one at the disk

libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """There can be no sandbox; the message says what failed."""


def check(what: str, result: int) -> None:
    if result < 0:
        raise RefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
    check(f"mount {target}", libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None))


def set_attributes(path: str, flags: int, set_: int, clear: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(set_, clear, 0, 0)
    result = libc.syscall(
        MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    check("mount_setattr", result)


# -- the file system --------------------------------------------------------------------------------------------


class Root:
    """A file system made of this one's: a directory for each that has to differ, and mounts of the others.

    :param shown: paths that have to be there besides the system's own. :param links: path -> target.
    """

    def __init__(self, place: str, shown: list[str], links: dict[str, str]) -> None:
        self.place = place
        self._extra: dict[str, str | None] = {canonical(path): None for path in shown}
        self._extra.update({canonical(path): target for path, target in links.items()})
        self._made: set[str] = set()
        for path in self._extra:
            parent = os.path.dirname(path)
            while parent != "/":
                self._made.add(parent)
                parent = os.path.dirname(parent)

    def make(self) -> None:
        mount("kodojo", self.place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")
        for name in ("proc", "dev", "etc", "tmp"):
            os.mkdir(f"{self.place}/{name}")
        mount("kodojo", f"{self.place}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=256m")
        for name in CONFIGURATION:
            if os.path.lexists(f"/etc/{name}"):
                self._show(f"/etc/{name}")
        for name in DEVICES:
            self._show(f"/dev/{name}")
        for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
            os.symlink(f"/proc/self/fd{target}", f"{self.place}/dev/{name}")
        self._fill("/", [name for name in SYSTEM if os.path.lexists(f"/{name}")])

    def _fill(self, directory: str, names: list[str]) -> None:
        """Make a directory whose entries are those of the system's, and what has to be there besides."""
        start = directory.rstrip("/") + "/"
        for path in {start + name for name in names} | {
            path for path in {*self._extra, *self._made} if os.path.dirname(path) == directory
        }:
            if path in self._extra:
                self._add(path, self._extra[path])
            elif path in self._made:
                os.makedirs(self.place + path, exist_ok=True)
                of_system = path.split("/")[1] in SYSTEM and os.path.isdir(path)
                self._fill(path, os.listdir(path) if of_system else [])
            else:
                self._show(path)

    def _add(self, path: str, target: str | None) -> None:
        if target is None:
            self._show(path)
        else:
            os.symlink(target, self.place + path)

    def _show(self, path: str) -> None:
        here = self.place + path
        if os.path.islink(path):
            os.symlink(os.readlink(path), here)
            return
        if os.path.isdir(path):
            os.makedirs(here, exist_ok=True)
        elif os.path.exists(path):
            os.close(os.open(here, os.O_CREAT | os.O_WRONLY, 0o644))
        else:
            return
        mount(path, here, None, MS_BIND | MS_REC)

    def enter(self, work: str) -> None:
        """Make it the only file system there is, with one directory to write in."""
        os.makedirs(self.place + work, exist_ok=True)
        mount(work, self.place + work, None, MS_BIND | MS_REC)
        with contextlib.suppress(RefusedError):  # where /proc is masked, as in containers, there can be no other
            mount("proc", f"{self.place}/proc", "proc", MS_NOSUID | MS_NODEV)
        set_attributes(self.place, AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
        set_attributes(f"{self.place}/tmp", 0, 0, MOUNT_ATTR_RDONLY)
        set_attributes(self.place + work, 0, 0, MOUNT_ATTR_RDONLY)
        os.chdir(self.place)
        if libc.pivot_root(b".", b".") == 0:
            check("umount", libc.umount2(b".", MNT_DETACH))
        else:  # the root of an initramfs cannot be put aside
            os.chroot(".")
        os.chdir("/")


def canonical(path: str) -> str:
    """The path with the links in its directories resolved, which the sandbox has where the system has them."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


# -- processes -----------------------------------------------------------------------------------------------------


def separate() -> None:
    """Leave the namespaces of this computer; as an ordinary user by way of a user namespace."""
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        check("unshare", libc.unshare(flags))
        return
    check("unshare", libc.unshare(flags | CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_privileges() -> None:
    """No capability is left, and none can be had again."""
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    number = 0
    while libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    check("capset", libc.capset(ctypes.byref(header), ctypes.byref(data)))


def set_limits(spec: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: spec["cpu"],
        resource.RLIMIT_FSIZE: spec["file_size"],
        resource.RLIMIT_AS: spec["memory"],
        resource.RLIMIT_CORE: 0,
    }
    if spec["namespaces"]:  # elsewhere the user's other processes count, too
        limits[resource.RLIMIT_NPROC] = spec["processes"]
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        value = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (value, value))


def run_command(spec: dict[str, Any]) -> NoReturn:
    """In the child: become the command."""
    try:
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if spec["namespaces"]:
            drop_privileges()
        set_limits(spec)
        os.umask(0o022)
        os.chdir(spec["cwd"])
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except BaseException as error:  # noqa: BLE001  it must not go on as its parent
        os.write(2, f"kodojo: {spec['command'][0]}: {error}\n".encode())
    os._exit(127)


def watch(spec: dict[str, Any], child: int) -> dict[str, Any]:
    """Wait for the command, and end it where it goes too far."""
    end = time.monotonic() + spec["time"]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    looks = 0
    while True:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == child:
                    return {"status": os.waitstatus_to_exitcode(status)}
                if pid == 0:
                    break
        looks += 1
        if time.monotonic() > end:
            return {"stopped": "time"}
        if memory_used(descendants()) > spec["memory"]:
            return {"stopped": "memory"}
        if looks % LOOKS == 0 and disk_used(spec["work"]) > spec["disk"]:
            return {"stopped": "disk"}
        signal.sigtimedwait({signal.SIGCHLD}, MOMENT)


def descendants() -> list[int]:
    """All processes below this one; where it is the first, all that are visible."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found, waiting = [], [os.getpid()]
    while waiting:
        parent = waiting.pop()
        below = [pid for pid, of in parents.items() if of == parent]
        found += below
        waiting += below
    return found


def memory_used(processes: list[int]) -> int:
    pages = 0
    for pid in processes:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
            pages += int(file.read().split()[1])
    return pages * resource.getpagesize()


def disk_used(directory: str) -> int:
    used = 0
    for root, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                used += os.lstat(os.path.join(root, name)).st_blocks * 512
    return used


def end_all() -> None:
    """Without a PID namespace: what the command left behind has become this process's children, or theirs."""
    for _ in range(1000):
        left = descendants()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.sigtimedwait({signal.SIGCHLD}, 0.01)


def report(spec: dict[str, Any], answer: dict[str, Any]) -> None:
    os.write(spec["status"], json.dumps(answer).encode())


def supervise(spec: dict[str, Any]) -> dict[str, Any]:
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # so that the command can do nothing to this process
    child = os.fork()
    if child == 0:
        os.close(spec["status"])
        run_command(spec)
    return watch(spec, child)


def first_process(spec: dict[str, Any]) -> None:
    """The first process of the new namespaces; its end is that of all others."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        root = Root(spec["root"], spec["shown"], spec["links"])
        root.make()
        root.enter(spec["work"])
        answer = supervise(spec)
    except (RefusedError, OSError) as error:
        answer = {"refused": str(error)}
    report(spec, answer)


def main() -> int:
    spec = json.loads(sys.argv[1]) | {"status": int(sys.argv[2])}
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not spec["namespaces"]:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            answer = supervise(spec)
        finally:
            end_all()
        report(spec, answer)
        return 0
    try:
        separate()
        child = os.fork()
    except (RefusedError, OSError) as error:
        report(spec, {"refused": str(error)})
        return 0
    if child == 0:
        first_process(spec)
        os._exit(0)
    os.close(spec["status"])
    os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
