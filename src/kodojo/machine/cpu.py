"""What the rest of kodojo asks of a CPU; each architecture has one file that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from kodojo.machine.memory import Ram
from kodojo.machine.watch import Watch

__all__ = ["LIMIT_REACHED", "Breakpoint", "Cpu", "ProcessorState", "Registers", "RunLimit"]

LIMIT_REACHED = "limit reached"
"""The cause that a hang's report gives when the limit of guest time was reached."""

Registers = dict[str, int]


@dataclass(frozen=True, slots=True)
class RunLimit:
    """How long guest code may run without coming back.

    :param ticks: timer periods, whether the guest waits through them or computes; the run ends in
        :class:`kodojo.errors.MachineHang` after them.
    """

    ticks: int = 30 * 250


@dataclass(frozen=True, slots=True)
class ProcessorState:
    """All that a processor must remember.

    :param engine: the emulator's own record, valid for emulators of the same identity.
    :param facts: what is kept beside it, clock and traps; fit for JSON.
    """

    engine: bytes
    facts: dict[str, Any]


Breakpoint = Callable[[], None]


class Cpu(Protocol):
    """One processor with its memory and devices attached."""

    architecture: str
    """As ``uname -m`` says."""
    ram: Ram
    places: tuple[int, ...]
    """Where the emulator keeps what it does not show; another processor can be made with them."""
    user_table: int | None
    """The page table of user space, where the architecture has one of its own and its register is elsewhere."""
    watch: Watch
    """What ends a run from outside."""

    @property
    def ticks(self) -> int:
        """Timer periods since power-on."""

    @property
    def time_stamp_sites(self) -> frozenset[int]:
        """The addresses that are trapped (:meth:`trap_time_stamp_reads`)."""

    def trap_time_stamp_reads(self, addresses: Iterable[int]) -> None:
        """Answer the instructions at exactly these addresses, which read a clock, from the blocks executed."""

    @staticmethod
    def time_stamp_reads(code: bytes, address: int) -> list[int]:
        """The addresses of the instructions in ``code``, which is at ``address``, that read a clock.

        Where instructions have different lengths, some of them are only what looks like one.
        """

    def run(self, until: int, limit: RunLimit | None = None, stack: int | None = None) -> None:
        """Execute from the current program counter until it is ``until``.

        :param stack: and the stack pointer is this; other tasks pass by there.

        Exceptions and interrupts are delivered to the guest on the way; breakpoints call Python.
        Raises MachineHang when the limit is reached, or that of :attr:`watch`; MachineError when the CPU cannot go
        on; KeyboardInterrupt after Ctrl-C.
        """

    def charge(self, price: int) -> None:
        """What Python has done for the guest costs it so many microseconds of its credit (``machine/toll.py``)."""

    def read_registers(self) -> Registers: ...

    def write_registers(self, values: Registers) -> None: ...

    def restore_registers(self, values: Registers) -> None:
        """All the general registers, as :meth:`read_registers` gave them."""

    def get(self, register: str) -> int: ...

    def set(self, register: str, value: int) -> None: ...

    def translate(self, address: int) -> int | None:
        """Physical address of a virtual one by the current page tables; None if not mapped."""

    def read(self, address: int, size: int) -> bytes:
        """Read virtual memory. Raises MachineError if a page is not mapped."""

    def write(self, address: int, data: bytes) -> None:
        """Write virtual memory, read-only pages included; translated code is dropped where needed."""

    def forget_code(self, address: int, size: int) -> None:
        """Drop what was translated from the memory at a virtual address.

        Raises MachineError if a page is not mapped.
        """

    def expect_code(self, address: int, size: int) -> None:
        """All of this memory is code. To know that early saves time where it is one piece physically."""

    def add_breakpoint(self, address: int, handler: Breakpoint) -> None:
        """Call ``handler`` whenever the instruction at ``address`` is about to run.

        The handler may read and write registers (program counter included), memory, and run nested
        guest code. Execution goes on at the program counter that it leaves.
        """

    def has_breakpoint(self, address: int) -> bool: ...

    def remove_breakpoint(self, address: int) -> None: ...

    def save_state(self) -> ProcessorState: ...

    def restore_state(self, state: ProcessorState) -> None: ...

    @staticmethod
    def identity() -> str:
        """A saved state of this processor can be restored into one of the same identity."""
