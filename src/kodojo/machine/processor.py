"""What processors of all architectures have in common: virtual memory by their page tables, and breakpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kodojo.errors import MachineError
from kodojo.machine.cpu import Breakpoint
from kodojo.machine.engine import Engine
from kodojo.machine.memory import Ram

__all__ = ["Processor"]


class Window(Protocol):
    """A view of the whole RAM that the guest does not see."""

    def forget_code(self, physical: int, size: int) -> None:
        """Drop what was translated from physical memory."""


class Processor:
    """The base of the processors; see :class:`kodojo.machine.cpu.Cpu` for what the methods promise.

    :attr program_counter: the register's name.
    """

    program_counter: str
    ram: Ram
    engine: Engine
    _window: Window
    _started = False  # has guest code run? Before, nothing is translated

    def __init__(self) -> None:
        self._breakpoints: dict[int, Breakpoint] = {}

    def _mapping(self, address: int) -> tuple[int, int] | None:
        """Physical address, and how many bytes from there on are contiguous."""
        raise NotImplementedError

    def _run_to_event(self, address: int, deadline: int) -> None:
        """Execute from an address until something has happened, and see to that."""
        raise NotImplementedError

    def _run(self, until: int, deadline: int) -> None:
        if until not in self._breakpoints:
            self.add_breakpoint(until, _arrived)
        step_over = -1
        while (address := self.engine.get(self.program_counter)) != until:
            handler = self._breakpoints.get(address)
            if handler is not None and address != step_over:
                handler()
                step_over = address
                continue
            step_over = -1
            self._run_to_event(address, deadline)

    # -- memory -------------------------------------------------------------------------------------
    def translate(self, address: int) -> int | None:
        mapping = self._mapping(address)
        return None if mapping is None else mapping[0]

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Physical pieces (address, size) of a virtual range, mapping by mapping."""
        while size > 0:
            mapping = self._mapping(address)
            if mapping is None:
                raise MachineError(f"virtual address {address:#x} is not mapped")
            part = min(size, mapping[1])
            yield mapping[0], part
            address += part
            size -= part

    def read(self, address: int, size: int) -> bytes:
        mapping = self._mapping(address)
        if mapping is not None and size <= mapping[1]:
            return self.ram.read(mapping[0], size)
        return b"".join(self.ram.read(physical, part) for physical, part in self._pieces(address, size))

    def forget_code(self, address: int, size: int) -> None:
        for physical, part in self._pieces(address, size):
            self._window.forget_code(physical, part)

    def write(self, address: int, data: bytes) -> None:
        """Write virtual memory, page by page; what was translated from there is dropped once code has run."""
        view = memoryview(data)
        for physical, part in self._pieces(address, len(data)):
            self.ram.write(physical, view[:part])
            if self._started:
                self._window.forget_code(physical, part)
            view = view[part:]

    # -- breakpoints ----------------------------------------------------------------------------------
    def add_breakpoint(self, address: int, handler: Breakpoint) -> None:
        self._breakpoints[address] = handler
        self.engine.add_breakpoint(address)
        physical = self.translate(address) if self._started else None
        if physical is not None:
            self._window.forget_code(physical, 1)

    def has_breakpoint(self, address: int) -> bool:
        return address in self._breakpoints

    def remove_breakpoint(self, address: int) -> None:
        del self._breakpoints[address]
        self.engine.remove_breakpoint(address)


def _arrived() -> None:
    """The breakpoint of an address that a run ends at: the run looks by itself."""
