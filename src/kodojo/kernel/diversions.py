"""Where the guest's code is left for Python: behind calls that Python has made, and at functions that it stands for.

All tasks run the same code, and it is one of them that is meant: its stack tells which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from kodojo.kernel.abi import Abi
from kodojo.kernel.ways import Spot
from kodojo.machine.cpu import Cpu, Registers

__all__ = ["STACK_SIZE", "Diversions", "Stop"]

STACK_SIZE = 1 << 14  # of a task


@dataclass(slots=True, eq=False)
class Stop:
    """A task is to be stopped where a function begins.

    :param registers: those that it had there; empty until it came there.
    """

    spot: Spot
    registers: Registers


class Diversions:
    """Takes a task from places in the kernel's code to an address where Python waits for it."""

    def __init__(self, cpu: Cpu, abi: Abi) -> None:
        self._cpu = cpu
        self._abi = abi
        self._watched: set[int] = set()
        self._ends: dict[tuple[int, int], int] = {}  # by address and stack pointer
        self._stops: dict[tuple[int, int], Stop] = {}  # by address and stack

    def at_return(self, spot: Spot, to: int) -> None:
        """A call that is made at this spot ends at another address, with the stack pointer that it has there."""
        self._watch(spot.returns)
        self._ends[spot.returns, spot.stack] = to

    def forget_return(self, spot: Spot) -> None:
        self._ends.pop((spot.returns, spot.stack), None)

    def at_function(self, function: int, spot: Spot) -> Stop:
        """The task that was called at the spot ends that call where another function begins."""
        self._watch(function)
        stop = self._stops[function, spot.stack // STACK_SIZE] = Stop(spot, {})
        return stop

    def forget_function(self, function: int, spot: Spot) -> None:
        self._stops.pop((function, spot.stack // STACK_SIZE), None)

    def _watch(self, address: int) -> None:
        if address not in self._watched:
            self._watched.add(address)
            self._cpu.add_breakpoint(address, partial(self._passed, address))

    def _passed(self, address: int) -> None:
        cpu, abi = self._cpu, self._abi
        stack = cpu.get(abi.stack_register)
        stop = self._stops.get((address, stack // STACK_SIZE))
        if stop is not None and not stop.registers:
            stop.registers = cpu.read_registers()
            cpu.write_registers(abi.coming_back(stop.spot, 0))
            address, stack = stop.spot.returns, stop.spot.stack
        end = self._ends.get((address, stack))
        if end is not None:
            cpu.set(abi.program_counter, end)
