"""The three system calls by our loader and by the kernel's own, side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kodojo.errors import MachineError
from kodojo.kernel.kernel import Kernel
from tests.kernel.looking import listening, tainted

__all__ = ["GUEST_FILE", "Calls", "NativeCalls", "Pair", "during"]

GUEST_FILE = "/tmp/module.ko"
AUDIT_TIME = re.compile(r"\baudit\(\d+\.\d+:")


class Calls:
    """The three system calls by one of the two loaders, with the log lines of the last one."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.log: list[tuple[int, str]] = []

    def _run(self, call, *arguments) -> int:
        with listening(self.kernel) as said:
            try:
                return call(*arguments)
            finally:
                self.log = [(record.level, AUDIT_TIME.sub("audit(", record.text)) for record in said.records]

    def init(self, image: bytes | int, args: str | int = "", length: int | None = None) -> int:
        return self._run(self.kernel.init_module, image, args, length)

    def finit(self, file: Path, args: str = "", flags: int = 0, mode: int = os.O_RDONLY) -> int:
        descriptor = os.open(file, mode)
        try:
            return self._run(self.kernel.finit_module, descriptor, args, flags)
        finally:
            os.close(descriptor)

    def finit_descriptor(self, fd: int, flags: int = 0) -> int:
        return self._run(self.kernel.finit_module, fd, "", flags)

    def delete(self, name: str | bytes | int, flags: int = 0) -> int:
        return self._run(self.kernel.delete_module, name, flags)


class NativeCalls(Calls):
    """Of the booted kernel.

    :attr path: where in the guest a file of the host is put.
    """

    path = GUEST_FILE

    def init(self, image: bytes | int, args: str | int = "", length: int | None = None) -> int:
        user = self.kernel.user
        if isinstance(args, str):
            with user.memory(args.encode() + b"\0") as address:
                return self.init(image, address, length)
        if isinstance(image, bytes):
            with user.memory(image) as address:
                return self.init(address, args, len(image) if length is None else length)
        return self._run(user.syscall, "init_module", image, length or 0, args)

    def finit(self, file: Path, args: str = "", flags: int = 0, mode: int = os.O_RDONLY) -> int:
        if file.is_dir():
            path = "/tmp"
        else:
            path = self.path
            self.kernel.write_file(path, file.read_bytes())
        with self.kernel.open(path, mode) as opened:
            return self.finit_descriptor(opened.fd, flags, args)

    def finit_descriptor(self, fd: int, flags: int = 0, args: str = "") -> int:
        with self.kernel.user.memory(args.encode() + b"\0") as address:
            return self._run(self.kernel.user.syscall, "finit_module", fd, address, flags)

    def delete(self, name: str | bytes | int, flags: int = 0) -> int:
        if isinstance(name, int):
            return self._run(self.kernel.user.syscall, "delete_module", name, flags)
        raw = name.encode() if isinstance(name, str) else name
        with self.kernel.user.memory(raw + b"\0") as address:
            return self.delete(address, flags)


class Pair:
    """Both kinds of calls, each on a kernel of its own; :meth:`__call__` compares them."""

    def __init__(self, kernel: Kernel) -> None:
        self.ours, self.native = Calls(kernel), NativeCalls(kernel.fork())

    def settle(self) -> None:
        """Give both time to end what the last call has left to others (memory of init is freed by a work queue)."""
        for kernel in self.kernels:
            kernel.sleep(0.5)

    @property
    def kernels(self) -> tuple[Kernel, Kernel]:
        return self.ours.kernel, self.native.kernel

    def __call__(self, call) -> int:
        """What ``call`` comes to, the same for both; the name of the exception where the machine stopped."""
        value, native = _outcome(call, self.ours), _outcome(call, self.native)
        same = (value, self.ours.log) == (native, self.native.log)
        assert same, f"ours {value}, {self.ours.log}; native {native}, {self.native.log}"
        ours, theirs = self.kernels
        if ours.calls.stopped is not None:
            return value
        assert last_unloaded(ours) == last_unloaded(theirs)
        assert ours.read_file("/proc/modules") == theirs.read_file("/proc/modules")
        assert tainted(ours) == tainted(theirs)
        return value


def _outcome(call, calls: Calls):
    try:
        return call(calls)
    except MachineError as error:
        return type(error).__name__


def last_unloaded(kernel: Kernel) -> tuple[bytes, bytes]:
    """Name and taints of the module that was removed last, which an oops tells."""
    address = kernel.image.kallsyms.address("last_unloaded_module")
    return kernel.memory.string(address, 57), kernel.memory.string(address + 57)


@contextmanager
def during(calls: Calls, function: str | int, action: Callable[[Calls], object]) -> Iterator[list[object]]:
    """Do something once, when a function of the kernel is entered; what it came to is in the list.

    :param function: name or address.
    """
    cpu = calls.kernel.machine.cpu
    address = calls.kernel.calls.address(function) if isinstance(function, str) else function
    answers: list[object] = []

    def entered() -> None:
        if not answers:
            answers.append(None)
            answers[0] = action(calls)

    cpu.add_breakpoint(address, entered)
    try:
        yield answers
    finally:
        cpu.remove_breakpoint(address)
