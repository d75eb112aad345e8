"""What the tests of a booted kernel look at: its log since a moment, modes of files, memory, processes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kodojo.errors import GuestOSError, LogRecord
from kodojo.kernel.kernel import Kernel

__all__ = ["Said", "commands", "errno_of", "exists", "listening", "mode_of", "module_line", "names", "tainted"]

_STATX_SIZE, _STX_MODE, _STATX_MODE = 256, 28, 3  # struct statx (include/uapi/linux/stat.h)
_AT_FDCWD = -100


class Said:
    """What the kernel has said since the ``with`` block began."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._mark = kernel.printk.next_sequence()

    @property
    def records(self) -> tuple[LogRecord, ...]:
        return self._kernel.printk.records(self._mark)

    @property
    def lines(self) -> list[str]:
        return [record.text for record in self.records]

    def by(self, module: str) -> list[str]:
        """What a module said, without its name."""
        prefix = f"{module}: "
        return [line.removeprefix(prefix) for line in self.lines if line.startswith(prefix)]


@contextmanager
def listening(kernel: Kernel) -> Iterator[Said]:
    yield Said(kernel)


def exists(kernel: Kernel, path: str) -> bool:
    return _statx(kernel, path) is not None


def mode_of(kernel: Kernel, path: str) -> int:
    """``stx_mode`` with the file's type."""
    found = _statx(kernel, path)
    assert found is not None, path
    mode: int = struct.unpack_from("<H", found, _STX_MODE)[0]
    return mode


def _statx(kernel: Kernel, path: str) -> bytes | None:
    user = kernel.user
    buffer = user.put(bytes(_STATX_SIZE), 8192)
    if user.syscall("statx", _AT_FDCWD, user.path(path), 0, _STATX_MODE, buffer):
        return None
    return kernel.memory.read(buffer, _STATX_SIZE)


def names(kernel: Kernel, path: str) -> set[str]:
    return {entry.name for entry in kernel.list_directory(path)}


def errno_of(function, *arguments) -> int:
    """The guest's errno with which a call must fail."""
    with pytest.raises(GuestOSError) as failure:
        function(*arguments)
    return failure.value.errno


def module_line(kernel: Kernel, name: str) -> list[str]:
    """The fields of a module's line in /proc/modules; empty if it has none."""
    lines = [line.split() for line in kernel.read_file("/proc/modules").decode().splitlines()]
    found = [line for line in lines if line[0] == name]
    assert len(found) <= 1
    return found[0] if found else []


def tainted(kernel: Kernel) -> set[int]:
    """Numbers of the kernel's taints."""
    mask = int(kernel.read_file("/proc/sys/kernel/tainted"))
    return {bit for bit in range(mask.bit_length()) if mask >> bit & 1}


def commands(kernel: Kernel) -> list[str]:
    """The names of all processes and kernel threads."""
    numbers = [name for name in names(kernel, "/proc") if name.isdigit()]
    return [kernel.read_file(f"/proc/{number}/comm").decode().rstrip("\n") for number in numbers]
