"""What the rest of kodojo asks of a CPU; each architecture has one file that answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kodojo.machine.memory import Ram

__all__ = ["Breakpoint", "Cpu", "ProcessorState", "Registers", "RunLimit"]

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
    :param blocks: basic blocks executed since power-on; the clock that everything follows.
    :param ticks: timer periods since power-on; ``until_tick``: blocks left of the current one.
    :param time_stamp_sites: addresses of the trapped RDTSC instructions.
    """

    engine: bytes
    blocks: int
    ticks: int
    until_tick: int
    time_stamp_sites: tuple[int, ...] = ()


Breakpoint = Callable[[], None]


class Cpu(Protocol):
    """One processor with its memory and devices attached."""

    ram: Ram

    def run(self, until: int, limit: RunLimit | None = None) -> None:
        """Execute from the current program counter until it is ``until``.

        Exceptions and interrupts are delivered to the guest on the way; breakpoints call Python.
        Raises MachineHang when the limit is reached, MachineError when the CPU cannot go on.
        """

    def read_registers(self) -> Registers: ...

    def write_registers(self, values: Registers) -> None: ...

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

    def add_breakpoint(self, address: int, handler: Breakpoint) -> None:
        """Call ``handler`` whenever the instruction at ``address`` is about to run.

        The handler may read and write registers (program counter included), memory, and run nested
        guest code. Execution goes on at the program counter that it leaves.
        """

    def save_state(self) -> ProcessorState: ...

    def restore_state(self, state: ProcessorState) -> None: ...
