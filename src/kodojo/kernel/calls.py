"""Call functions of the guest's kernel from Python, as the task that the machine stands in.

At rest the machine stands where PID 1 is about to leave for user space: a task with credentials, a user
address space and an empty kernel stack, which may sleep. A call puts its arguments where the ABI
wants them, runs until the function returns, and leaves the machine at rest again. While Python
handles a breakpoint, calls nest: they run on the stack of the code that was interrupted.

Guest time passes in calls. A call that sleeps lets other tasks, timers and interrupts run, as on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kodojo.errors import InputError, MachineError, MachineFault, UnmodelledError
from kodojo.image.image import Image
from kodojo.kernel.abi import abi_of
from kodojo.machine.cpu import Cpu, RunLimit

__all__ = ["Argument", "Calls"]

Argument = int | bytes | str

_MASK = (1 << 64) - 1
RED_ZONE = 256  # bytes above each call's frame that it does not touch
_STACK_DATA_LIMIT = 2048  # of a kernel stack of 16 KiB
_DEPTH_LIMIT = 12
_STACK_SIZE = 1 << 14  # of a task


class Calls:
    """Calls of C functions, on a machine at rest.

    :param stack: top of the free part of the resting task's kernel stack.
    :param limit: the limit of each call that does not bring its own.
    """

    def __init__(self, cpu: Cpu, image: Image, stack: int, limit: RunLimit) -> None:
        self.cpu = cpu
        self.abi = abi_of(cpu.architecture)
        self.image = image
        self.limit = limit
        self._stack = stack
        # Code that no task will ever run again: PID 1 has been started. One address for each depth.
        self._returns = image.kallsyms.address(self.abi.returns_to)
        self._depth = 0
        self._parked: dict[int, int] = {}  # values of calls that returned too early
        self._symbols: dict[str, int] = {}
        self.stopped: MachineError | None = None  # what ended the machine
        self.failed: Callable[[MachineError], MachineError] = lambda error: error

    def stack_above(self) -> tuple[int, bytes]:
        """Address and content of the resting task's stack above all calls: a task that dies begins there anew."""
        start = self._stack - RED_ZONE
        return start, self.cpu.read(start, (start | (_STACK_SIZE - 1)) + 1 - start)

    def address(self, function: str) -> int:
        """The function's address. Raises MissingInformationError if this kernel has none of the name."""
        address = self._symbols.get(function)
        if address is None:
            address = self._symbols[function] = self.image.kallsyms.address(function)
        return address

    @property
    def under_way(self) -> bool:
        """Whether guest code waits for what Python does right now."""
        return self._depth > 0

    @property
    def nested(self) -> bool:
        """Whether more than one call is under way."""
        return self._depth > 1

    def has(self, function: str) -> bool:
        return self.image.kallsyms.get(function) is not None

    def first(self, *names: str) -> str:
        """The first of these that the kernel has; the last, if none (then the call says so)."""
        return next((name for name in names if self.has(name)), names[-1])

    def __call__(
        self,
        function: str | int,
        *arguments: Argument,
        limit: RunLimit | None = None,
        interrupts: bool = True,
    ) -> int:
        """The value of ``function(arguments)``, as a register holds it.

        :param function: name or address.
        :param arguments: integers and pointers as int (wrapped to 64 bits); bytes and str are copied to the
            stack, str with a terminating NUL, and passed as pointers that are valid during the call.
        :param limit: MachineHang after it; the machine is not at rest then and cannot be used further.
        :param interrupts: whether they are enabled when the function is entered (not for nested calls).
        """
        address = self.address(function) if isinstance(function, str) else function
        if self.stopped is not None and not self._depth:
            raise MachineError(
                f"this machine has stopped: {self.stopped}",
                hint="go on from a fork that was made before, or boot again",
            )
        if self._depth >= _DEPTH_LIMIT:
            raise UnmodelledError("calls into the kernel are nested too deeply")
        cpu, abi = self.cpu, self.abi
        nested = self._depth > 0
        saved = cpu.read_registers() if nested else {}
        stack = ((abi.stack(saved) if nested else self._stack) - RED_ZONE) & ~0xF
        until = self._returns + abi.instruction * self._depth
        if not self.cpu.has_breakpoint(until):
            self.cpu.add_breakpoint(until, partial(self._too_early, self._depth))
        registers = self._place(stack, until, arguments)
        cpu.write_registers({**registers, **abi.enter(address, saved if nested else None, interrupts=interrupts)})
        self._depth += 1
        try:
            cpu.run(until, limit or self.limit)
        except MachineError as error:
            if isinstance(error, MachineFault) and error.survived:
                raise
            if self.stopped is None:
                self.stopped = error
                self.stopped = self.failed(error)
            raise self.stopped from error
        finally:
            self._depth -= 1
        value = self._parked.pop(self._depth, abi.result(cpu))
        if nested:
            cpu.restore_registers(saved)
        return value

    def _too_early(self, depth: int) -> None:
        """A call has returned while a later one, nested in another task, is still under way.

        Its task has nothing to do until that has come back; it looks again tick by tick.
        """
        self._parked.setdefault(depth, self.abi.result(self.cpu))
        self.abi.call_here(self.cpu, self.address("schedule_timeout_uninterruptible"), 1)

    def _place(self, stack: int, until: int, arguments: tuple[Argument, ...]) -> dict[str, int]:
        """Write arguments and return address; the registers to set."""
        values = []
        for argument in arguments:
            if isinstance(argument, int):
                values.append(argument & _MASK)
                continue
            data = argument if isinstance(argument, bytes) else argument.encode("utf-8", "surrogateescape") + b"\0"
            if len(data) > _STACK_DATA_LIMIT:
                raise InputError(f"an argument of {len(data)} bytes is too long for the kernel's stack")
            stack = (stack - len(data)) & ~0xF
            self.cpu.write(stack, data)
            values.append(stack)
        return self.abi.place(self.cpu, stack, until, values)
