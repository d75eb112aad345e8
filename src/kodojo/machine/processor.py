"""What processors of all architectures have in common: virtual memory by their page tables, and breakpoints."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kodojo.errors import FaultReport, MachineError, MachineHang, UnmappedError
from kodojo.machine.cpu import Breakpoint, Registers
from kodojo.machine.engine import Engine
from kodojo.machine.memory import Ram
from kodojo.machine.watch import Watch

__all__ = ["UNUSUAL", "Processor", "Window", "register_in_state"]

UNUSUAL = 0x5AC3_0F96_3CA0
"""A value that is found where it was put: also an address, aligned, of 48 bits."""


class Window:
    """A view of the whole RAM through page tables that the guest does not see.

    An entry that the engine keeps in its TLB after a look-up is never wrong: what it maps to does not change.

    :param ram: where the page tables are, beside the machine's own memory.
    :param start: the virtual address of physical address 0.
    :param root_register: offset, in a saved state of the engine, of the register that points to the tables.
    """

    def __init__(self, engine: Engine, ram: Ram, start: int, root_register: int) -> None:
        engine.map_ram(ram)
        self.ram = ram
        self._engine = engine
        self._start = start
        self._root_register = root_register

    def forget_code(self, physical: int, size: int) -> None:
        """Drop what was translated from physical memory, if anything was."""
        if self._engine.has_code(physical, size):
            self._engine.forget_code(self._start + physical, size, self._root_register, self.ram.base)


def register_in_state(engine: Engine, register: str) -> int:
    """Where a saved state keeps a register that can be given any value.

    :raises MachineError: this build of Unicorn keeps it elsewhere.
    """
    old = engine.get(register)
    engine.set(register, UNUSUAL)
    state = engine.save_state()
    engine.set(register, old)
    where = state.find(struct.pack("<Q", UNUSUAL))
    if where < 0:
        raise MachineError(
            "this build of Unicorn keeps its control registers where kodojo cannot find them",
            hint="install unicorn 2.1.4",
        )
    return where


class Processor:
    """The base of the processors; see :class:`kodojo.machine.cpu.Cpu` for what the methods promise.

    :attr program_counter, stack_pointer: the registers' names.
    """

    program_counter: str
    stack_pointer: str
    ram: Ram
    engine: Engine
    _window: Window
    _started = False  # has guest code run? Before, nothing is translated

    def __init__(self) -> None:
        self._breakpoints: dict[int, Breakpoint] = {}
        self.watch = Watch()

    def read_registers(self) -> Registers:
        raise NotImplementedError

    def _mapping(self, address: int) -> tuple[int, int] | None:
        """Physical address, and how many bytes from there on are contiguous."""
        raise NotImplementedError

    def _run_to_event(self, address: int, deadline: int) -> None:
        """Execute from an address until something has happened, and see to that."""
        raise NotImplementedError

    def _run(self, until: int, deadline: int, stack: int | None) -> None:
        if until not in self._breakpoints:
            self.add_breakpoint(until, _arrived)
        with self.watch.minding(self.engine.blocks_left):
            try:
                self._run_watched(until, deadline, stack)
            except MachineHang:
                self.watch.look()  # Ctrl-C has made the run look longer than it was
                raise

    def _run_watched(self, until: int, deadline: int, stack: int | None) -> None:
        step_over = -1
        while True:
            address = self.engine.get(self.program_counter)
            if address == until and (stack is None or self.engine.get(self.stack_pointer) == stack):
                return
            seconds = self.watch.look()
            if seconds is not None:
                raise MachineHang(
                    f"the operation did not come to its end within {seconds:.0f} s of this computer's time",
                    FaultReport("wall limit reached", registers=self.read_registers()),
                    hint="give it more time (--wall-limit SECONDS), or look at the backtrace for what it does",
                )
            handler = self._breakpoints.get(address)
            if handler is not None and address != step_over:
                handler()
                step_over = address
                continue
            step_over = -1
            self._run_to_event(address, deadline)

    def charge(self, price: int) -> None:
        self.engine.toll.pay(price)

    # -- memory -------------------------------------------------------------------------------------
    def translate(self, address: int) -> int | None:
        mapping = self._mapping(address)
        return None if mapping is None else mapping[0]

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Physical pieces (address, size) of a virtual range, mapping by mapping."""
        while size > 0:
            mapping = self._mapping(address)
            if mapping is None:
                raise UnmappedError(f"virtual address {address:#x} is not mapped")
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

    def expect_code(self, address: int, size: int) -> None:
        first, last = self.translate(address), self.translate(address + size - 1)
        if first is not None and last == first + size - 1:
            self.engine.expect_code(first, size)

    def write(self, address: int, data: bytes) -> None:
        """Write virtual memory, page by page; what was translated from there is dropped once code has run."""
        mapping = self._mapping(address)
        if mapping is not None and len(data) <= mapping[1]:
            self._write(mapping[0], data)
            return
        view = memoryview(data)
        for physical, part in self._pieces(address, len(data)):
            self._write(physical, view[:part])
            view = view[part:]

    def _write(self, physical: int, data: bytes | memoryview) -> None:
        self.ram.write(physical, data)
        if self._started:
            self._window.forget_code(physical, len(data))

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
