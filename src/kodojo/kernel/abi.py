"""What differs between architectures in how one talks to a kernel: calls, system calls, trap frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kodojo.kernel.abi_arm64 import Arm64Abi
from kodojo.kernel.abi_x86_64 import X86_64Abi

if TYPE_CHECKING:
    from kodojo.image.btf import Btf
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.kernel.calls import Calls
    from kodojo.kernel.memory import KernelMemory
    from kodojo.kernel.ways import Branches, Site, Spot
    from kodojo.machine.cpu import Cpu, Registers

__all__ = ["Abi", "abi_of"]


class Abi(Protocol):
    """The procedure call standard, and the kernel's side of the system call interface.

    :attr returns_to: a function whose code no task ever runs again when PID 1 has been started; calls return into it.
    :attr program_counter: the register's name; ``stack_register``: likewise.
    :attr instruction: the distance between two addresses of instructions at which one can stop.
    :attr entry: the entry point of system calls, and the function in C that it calls.
    :attr system_call_prefix: what the names of the functions begin with that do the system calls.
    :attr arguments_in_registers: how many there are at most.
    :attr oops: the function that tells of an oops, and the number of its argument that is the ``struct pt_regs``.
    :attr frame_registers: the members of ``struct pt_regs``, in order.
    :attr system_calls: numbers by name.
    :attr open_directory: O_DIRECTORY.
    :attr idles_in: the functions in which the idle task waits, with interrupts on or off.
    """

    returns_to: str
    program_counter: str
    stack_register: str
    instruction: int
    entry: tuple[str, str]
    system_call_prefix: str
    arguments_in_registers: int
    oops: tuple[str, int]
    frame_registers: tuple[str, ...]
    system_calls: dict[str, int]
    open_directory: int
    idles_in: tuple[str, ...]

    def takes_interrupts(self, registers: Registers) -> bool:
        """Whether interrupts are enabled."""

    def link(self, registers: Registers) -> int | None:
        """Where a function goes back to that keeps no frame; None if the architecture has no register for it."""

    def argument(self, cpu: Cpu, number: int) -> int:
        """An argument, from 0, of the function that is about to begin."""

    def set_argument(self, cpu: Cpu, number: int, value: int) -> None:
        """Give the function that is about to begin another argument."""

    def result(self, cpu: Cpu) -> int:
        """The value of a function that has just returned."""

    def call_here(self, cpu: Cpu, function: int, argument: int) -> None:
        """Run a function before what is about to run, which then runs."""

    def place(self, cpu: Cpu, stack: int, until: int, values: Sequence[int]) -> Registers:
        """Put arguments and return address where they belong: the registers to set."""

    def spot_of_entry(self, btf: Btf, frame: int, returns: int) -> Spot:
        """Where the entry point of system calls calls C.

        :param frame: address of the trap frame. :param returns: the address behind the call.
        """

    def spot_here(self, cpu: Cpu, registers: Registers) -> Spot:
        """Where the function was called that is about to begin with these registers."""

    def call_from(self, cpu: Cpu, spot: Spot, site: Site) -> Spot:
        """Put the frame of a function on the stack.

        :param spot: where it was called. :param site: where in it the next function is called.
        """

    def at_spot(self, spot: Spot) -> Registers:
        """What a function that is called there has in registers beside those of :meth:`place`."""

    def coming_back(self, spot: Spot, value: int) -> Registers:
        """The registers of a function's caller when it has come back with this value."""

    def branches(self, code: bytes, address: int) -> Branches:
        """The calls and jumps in some code that name their target.

        :param address: of the code.
        """

    def indirect_calls(self, calls: Calls, address: int, code: bytes) -> list[int]:
        """The addresses behind the calls through a pointer in some code."""

    def site(self, cpu: Cpu, symbols: Kallsyms, returns: int) -> Site | None:
        """A call with the frame of the function that it is in; None if that is not known."""

    def stack_after(self, registers: Registers) -> int:
        """The stack pointer when a function has returned that began with these registers (:meth:`place`)."""

    def enter(self, address: int, interrupted: Registers | None, *, interrupts: bool) -> Registers:
        """The registers with which a function begins.

        :param interrupted: the registers of the code that is interrupted for it, None at rest.
        :param interrupts: whether they are enabled; only at rest.
        """

    def begin_system_call(self, cpu: Cpu, frame: int, number: int, arguments: Sequence[int]) -> tuple[str, list[int]]:
        """Fill in the trap frame.

        :returns: the function to call then, with interrupts off, and its arguments.
        """

    def system_call_value(self, cpu: Cpu, frame: int) -> int:
        """What the trap frame holds as the system call's value."""

    def current_task(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """``current``: the address of a ``struct task_struct``."""

    def preemption_count(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """``preempt_count()`` of a kernel that counts (CONFIG_PREEMPT_COUNT)."""

    def find_user_space(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> None:
        """Tell the processor where the page table of the current task's user space is, if it cannot know."""

    def copy_from_user(self, calls: Calls, memory: KernelMemory, to: int, source: int, size: int) -> int:
        """``copy_from_user()``: the number of bytes that could not be copied."""

    def fault_address(self, cpu: Cpu) -> tuple[str, int]:
        """Name and value of the register that holds the address of the last page fault."""

    def kernel_frame(self, registers: Registers) -> bytes:
        """A ``struct pt_regs`` of kernel code with these registers."""


_ABIS: dict[str, Abi] = {"x86_64": X86_64Abi(), "aarch64": Arm64Abi()}


def abi_of(architecture: str) -> Abi:
    """:param architecture: as ``uname -m`` says."""
    return _ABIS[architecture]
