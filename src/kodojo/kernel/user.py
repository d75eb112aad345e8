"""User space without user code: system calls of a process, and its memory.

The process is the one that Python acts for (:attr:`kodojo.kernel.calls.Calls.place`): PID 1, or one with a program in
Python. It is about to leave the kernel. A system call is its trap frame (``struct pt_regs``) filled
in and the entry function in C called (``do_syscall_64()``, ``el0t_64_sync_handler()``), so all that an exit to user
space does (delayed ``fput``, signals, rescheduling) happens too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.durable import temporary_directory
from kodojo.errors import GuestOSError, InputError, decode, encode
from kodojo.kernel.bounds import START_OVER
from kodojo.kernel.calls import Calls, Inside
from kodojo.machine.machine import Machine

if TYPE_CHECKING:
    from kodojo.image.payload import Payload

__all__ = ["Passed", "UserSpace"]

Passed = int | bytes | bytearray | str | None
"""An argument of a system call."""

_PROT_READ_WRITE = 3
_MAP_PRIVATE_ANONYMOUS_POPULATE = 0x8022
SCRATCH_SIZE = 1 << 18
_STRING_OFFSET = SCRATCH_SIZE - (1 << 16)
_STRING_LIMIT = 1 << 15
_EIO = 5


class UserSpace:
    """The process's side of the system call interface."""

    def __init__(self, machine: Machine, calls: Calls) -> None:
        self.machine = machine
        self.calls = calls

    @property
    def scratch(self) -> int:
        """A populated piece of the process's memory of SCRATCH_SIZE bytes, for names and buffers."""
        place = self.calls.place
        if not place.scratch:
            place.scratch = self.allocate(SCRATCH_SIZE)
        return place.scratch

    def syscall(self, name: str | int, *arguments: int) -> int:
        """The system call's return value as user space gets it, negative for errors.

        :param name: of the call, or its number.
        :raises InputError: the architecture has no call of that name. MachineHang: it did not come back in time.
        """
        cpu, place = self.machine.cpu, self.calls.place
        kept = cpu.read(place.frame, self._frame_size) if place.inside else b""
        self._begin(name, arguments)
        value = self.calls.abi.system_call_value(cpu, place.frame)
        if kept:  # there is one trap frame, and it is that of the system call that is under way
            cpu.write(place.frame, kept)
        return value

    @contextmanager
    def inside(self, name: str, *arguments: int) -> Iterator[Inside]:
        """In the ``with`` block be inside of a system call, in place of the function that does it."""
        function = self.calls.abi.system_call_prefix + name
        if not self.calls.has(function):
            yield Inside()
            return
        with self.calls.inside(self.calls.address(function), lambda: self._begin(name, arguments)) as inside:
            yield inside

    def _begin(self, name: str | int, arguments: Sequence[int]) -> None:
        abi, cpu = self.calls.abi, self.machine.cpu
        number = name if isinstance(name, int) else abi.system_calls.get(name)
        if number is None:
            raise InputError(f"{name}: {cpu.architecture} has no system call of that name", hint="give its number")
        calls = self.calls
        limit = calls.time_left()
        padded = [*(value & ((1 << 64) - 1) for value in arguments), 0, 0, 0, 0, 0, 0]
        function, values = abi.begin_system_call(cpu, calls.place.frame, number, padded)
        before = calls.overdue
        calls(function, *values, interrupts=False, limit=limit)
        if calls.overdue is not None and calls.overdue is not before:  # who is killed does not see the value
            raise calls.overdue

    @property
    def _frame_size(self) -> int:
        return self.calls.image.btf.struct("pt_regs").size

    def reach_code(self) -> None:
        """Let the page be there that the process has its code in, as it is for one that runs: an oops shows it."""
        abi, frame = self.calls.abi, self.calls.place.frame
        at = frame + 8 * abi.frame_registers.index(abi.program_counter)
        self.syscall("chdir", int.from_bytes(self.machine.cpu.read(at, 8), "little"))  # it is no directory's name

    def pass_through(self) -> None:
        """Do what the way out to user space does: close files that were given up, run work that waits for it."""
        self.syscall("getpid")

    def checked(self, what: str, name: str | int, *arguments: int) -> int:
        """As :meth:`syscall`, but an error is a GuestOSError about ``what``."""
        value = self.syscall(name, *arguments)
        if -4095 <= value < 0:
            raise GuestOSError(f"{what}: {errno_text(-value)}", -value)
        return value

    def count(self, what: str, name: str, size: int, *arguments: int) -> int:
        """As :meth:`checked`, of a call that returns how many of ``size`` bytes it has read or written."""
        value = self.checked(what, name, *arguments)
        if not 0 <= value <= size:
            raise GuestOSError(
                f"{what}: the kernel's memory is damaged: {name}() of {size} bytes returned {value}",
                _EIO,
                hint=f"whatever answers there is wrong; {START_OVER}",
            )
        return value

    def call(self, name: str | int, *arguments: Passed) -> int:
        """A system call with what a C program would pass: see :meth:`kodojo.Kernel.syscall`."""
        with ExitStack() as end:
            buffers: list[tuple[bytearray, int]] = []
            words = []
            for argument in arguments:
                if isinstance(argument, str):
                    words.append(end.enter_context(self.memory(encode(argument) + b"\0")))
                elif isinstance(argument, bytes | bytearray):
                    words.append(end.enter_context(self.memory(bytes(argument))))
                    if isinstance(argument, bytearray):
                        buffers.append((argument, words[-1]))
                else:
                    words.append(argument or 0)
            value = self.checked(str(name), name, *words)
            for buffer, address in buffers:
                buffer[:] = self.machine.cpu.read(address, len(buffer))
        return value

    def allocate(self, size: int) -> int:
        """Fresh populated memory, page aligned."""
        return self.checked("user memory", "mmap", 0, size, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS_POPULATE, -1, 0)

    @contextmanager
    def string(self, text: bytes) -> Iterator[int]:
        """Address of a copy of ``text`` and a NUL, for the ``with`` block; short ones cost no system call."""
        if len(text) < _STRING_LIMIT:
            yield self.put(text + b"\0", _STRING_OFFSET)
            return
        with self.memory(text + b"\0") as address:
            yield address

    @contextmanager
    def memory(self, data: bytes) -> Iterator[int]:
        """Address of a copy of ``data`` in user space, for the ``with`` block.

        What follows the data up to the page's end is zero, and an unmapped page follows.
        """
        size = (max(1, len(data)) + 4095) & ~4095
        place = self.calls.place
        address = self.allocate(size + 4096)
        self.checked("user memory", "munmap", address + size, 4096)
        self.machine.cpu.write(address, data)
        try:
            yield address
        finally:
            if self.calls.stopped is None and self.calls.place is place:
                self.checked("user memory", "munmap", address, size)

    @contextmanager
    def file(self, payload: Payload) -> Iterator[int]:
        """A descriptor of a module's file, for the ``with`` block: one of this Python process."""
        with ExitStack() as end:
            path = Path(payload.path)
            if not payload.path:  # a file that is open for writing, too, would be refused
                path = end.enter_context(temporary_directory("module")) / "module.ko"
                path.write_bytes(payload.content)
            try:
                opened = end.enter_context(path.open("rb"))
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}", hint="give the path of a .ko file") from error
            yield opened.fileno()

    def put(self, data: bytes, offset: int = 0) -> int:
        """Write into the scratch memory; the address."""
        self.machine.cpu.write(self.scratch + offset, data)
        return self.scratch + offset

    def path(self, path: str) -> int:
        """A path's name in the scratch memory (its first page)."""
        name = path.encode("utf-8", "surrogateescape")
        if len(name) > 4095 or b"\0" in name:
            raise GuestOSError(f"{decode(name[:60])}: {errno_text(36)}", 36)
        return self.put(name + b"\0")


# What strerror() of glibc says.
_ERRNO_TEXTS = {
    1: "Operation not permitted", 2: "No such file or directory", 3: "No such process",
    4: "Interrupted system call", 5: "Input/output error", 6: "No such device or address",
    7: "Argument list too long", 8: "Exec format error", 9: "Bad file descriptor", 10: "No child processes",
    11: "Resource temporarily unavailable", 12: "Cannot allocate memory", 13: "Permission denied",
    14: "Bad address", 15: "Block device required", 16: "Device or resource busy", 17: "File exists",
    18: "Invalid cross-device link", 19: "No such device", 20: "Not a directory", 21: "Is a directory",
    22: "Invalid argument", 23: "Too many open files in system", 24: "Too many open files",
    25: "Inappropriate ioctl for device", 26: "Text file busy", 27: "File too large", 28: "No space left on device",
    29: "Illegal seek", 30: "Read-only file system", 31: "Too many links", 32: "Broken pipe",
    33: "Numerical argument out of domain", 34: "Numerical result out of range", 35: "Resource deadlock avoided",
    36: "File name too long", 37: "No locks available", 38: "Function not implemented", 39: "Directory not empty",
    40: "Too many levels of symbolic links", 42: "No message of desired type", 43: "Identifier removed",
    44: "Channel number out of range", 45: "Level 2 not synchronized", 46: "Level 3 halted", 47: "Level 3 reset",
    48: "Link number out of range", 49: "Protocol driver not attached", 50: "No CSI structure available",
    51: "Level 2 halted", 52: "Invalid exchange", 53: "Invalid request descriptor", 54: "Exchange full",
    55: "No anode", 56: "Invalid request code", 57: "Invalid slot", 59: "Bad font file format",
    60: "Device not a stream", 61: "No data available", 62: "Timer expired", 63: "Out of streams resources",
    64: "Machine is not on the network", 65: "Package not installed", 66: "Object is remote",
    67: "Link has been severed", 68: "Advertise error", 69: "Srmount error", 70: "Communication error on send",
    71: "Protocol error", 72: "Multihop attempted", 73: "RFS specific error", 74: "Bad message",
    75: "Value too large for defined data type", 76: "Name not unique on network",
    77: "File descriptor in bad state", 78: "Remote address changed", 79: "Can not access a needed shared library",
    80: "Accessing a corrupted shared library", 81: ".lib section in a.out corrupted",
    82: "Attempting to link in too many shared libraries", 83: "Cannot exec a shared library directly",
    84: "Invalid or incomplete multibyte or wide character", 85: "Interrupted system call should be restarted",
    86: "Streams pipe error", 87: "Too many users", 88: "Socket operation on non-socket",
    89: "Destination address required", 90: "Message too long", 91: "Protocol wrong type for socket",
    92: "Protocol not available", 93: "Protocol not supported", 94: "Socket type not supported",
    95: "Operation not supported", 96: "Protocol family not supported",
    97: "Address family not supported by protocol", 98: "Address already in use",
    99: "Cannot assign requested address", 100: "Network is down", 101: "Network is unreachable",
    102: "Network dropped connection on reset", 103: "Software caused connection abort",
    104: "Connection reset by peer", 105: "No buffer space available",
    106: "Transport endpoint is already connected", 107: "Transport endpoint is not connected",
    108: "Cannot send after transport endpoint shutdown", 109: "Too many references: cannot splice",
    110: "Connection timed out", 111: "Connection refused", 112: "Host is down", 113: "No route to host",
    114: "Operation already in progress", 115: "Operation now in progress", 116: "Stale file handle",
    117: "Structure needs cleaning", 118: "Not a XENIX named type file", 119: "No XENIX semaphores available",
    120: "Is a named type file", 121: "Remote I/O error", 122: "Disk quota exceeded", 123: "No medium found",
    124: "Wrong medium type", 125: "Operation canceled", 126: "Required key not available", 127: "Key has expired",
    128: "Key has been revoked", 129: "Key was rejected by service", 130: "Owner died",
    131: "State not recoverable", 132: "Operation not possible due to RF-kill",
    133: "Memory page has hardware error", 134: "Inappropriate file type or format",
}  # fmt: skip


def errno_text(errno: int) -> str:
    """``strerror`` for the guest's numbers."""
    return _ERRNO_TEXTS.get(errno, f"Unknown error {errno}")
