"""The few devices that an arm64 kernel needs to find: an interrupt controller and a serial port.

Addresses and interrupt numbers are those of QEMU's ``virt`` machine. The controller is a GICv2
(ARM IHI 0048B) with one processor: software-generated interrupts, which a kernel sends to itself, and the line of
the timer. Everything else on the bus reads as zero, as the empty parts of a device do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["DISTRIBUTOR", "GIC_SIZE", "INTERFACE", "SERIAL", "SERIAL_SIZE", "VIRTUAL_TIMER", "VirtBoard"]

DISTRIBUTOR, INTERFACE, GIC_SIZE = 0x0800_0000, 0x0801_0000, 0x1_0000
SERIAL, SERIAL_SIZE = 0x0900_0000, 0x1000
VIRTUAL_TIMER = 27  # PPI 11

_BANKED = 32  # interrupts 0 to 31 belong to a processor
_LINES = 64
_SPURIOUS = 1023
_ALL_PRIORITIES = 0xFF
_IDENTIFICATION = 0x0200_143B

_GICD_CTLR, _GICD_TYPER, _GICD_IIDR = 0x0, 0x4, 0x8
_GICD_ISENABLER, _GICD_ICENABLER = range(0x100, 0x108), range(0x180, 0x188)
_GICD_IPRIORITYR = range(0x400, 0x400 + _LINES)
_GICD_ITARGETSR = range(0x800, 0x800 + _BANKED)
_GICD_SGIR = 0xF00
_GICC_CTLR, _GICC_PMR, _GICC_IAR, _GICC_EOIR, _GICC_HPPIR, _GICC_IIDR = 0x0, 0x4, 0xC, 0x10, 0x18, 0xFC

_UART_DATA, _UART_FLAGS, _UART_RECEIVE_EMPTY_TRANSMIT_EMPTY = 0x0, 0x18, 0x90
_UART_IDENTIFICATION = dict(zip(range(0xFE0, 0x1000, 4), (0x11, 0x10, 0x14, 0, 0x0D, 0xF0, 0x05, 0xB1), strict=True))

_STATE = ("enabled", "pending", "active", "distributor", "interface", "mask")


@dataclass
class VirtBoard:
    """State of the devices; :meth:`state` and :meth:`restore` carry it through snapshots.

    :param enabled: interrupts that are enabled, a bit for each; likewise ``pending`` (sent by software) and
        ``active`` (taken and not ended yet).
    :param distributor: and ``interface``: whether these parts of the controller are on.
    :param mask: the priority from which on interrupts are held back.
    :param timer: the level of the timer's line, which the processor drives.
    :param serial: what the guest wrote to the serial port (the first part of it).
    :param interrupted: called when software sends an interrupt.
    """

    enabled: int = 0xFFFF
    pending: int = 0
    active: int = 0
    distributor: int = 0
    interface: int = 0
    mask: int = 0
    timer: bool = False
    priorities: bytearray = field(default_factory=lambda: bytearray(_LINES))
    serial: bytearray = field(default_factory=bytearray)
    serial_limit: int = 1 << 20
    interrupted: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    # -- what the processor asks --------------------------------------------------------------------
    def interrupt(self) -> int | None:
        """The interrupt that the controller wants to be taken now: the lowest of those with the best priority."""
        if not (self.distributor & 1 and self.interface & 1):
            return None
        asserted = self.pending | (int(self.timer) << VIRTUAL_TIMER)
        waiting = asserted & self.enabled & ~self.active
        numbers = [number for number in range(_BANKED) if waiting >> number & 1]
        if not numbers:
            return None
        best = min(numbers, key=lambda number: (self.priorities[number], number))
        running = [self.priorities[number] for number in range(_BANKED) if self.active >> number & 1]
        return best if self.priorities[best] < min([self.mask, *running]) else None

    @property
    def timer_enabled(self) -> bool:
        """Whether the processor would be interrupted by an asserted line of the timer."""
        return bool(self.distributor & self.interface & 1 and self.enabled >> VIRTUAL_TIMER & 1)

    # -- the bus ------------------------------------------------------------------------------------
    def bus_read(self, address: int, size: int) -> int:
        """A load of ``size`` bytes from a physical address that is no memory."""
        if DISTRIBUTOR <= address < DISTRIBUTOR + GIC_SIZE:
            return self._distributor_read(address - DISTRIBUTOR, size)
        if INTERFACE <= address < INTERFACE + GIC_SIZE:
            return self._interface_read(address - INTERFACE)
        if SERIAL <= address < SERIAL + SERIAL_SIZE:
            if address - SERIAL == _UART_FLAGS:
                return _UART_RECEIVE_EMPTY_TRANSMIT_EMPTY
            return _UART_IDENTIFICATION.get(address - SERIAL, 0)
        return 0

    def bus_write(self, address: int, size: int, value: int) -> None:
        """A store; where no device listens it is lost."""
        if DISTRIBUTOR <= address < DISTRIBUTOR + GIC_SIZE:
            self._distributor_write(address - DISTRIBUTOR, size, value)
        elif INTERFACE <= address < INTERFACE + GIC_SIZE:
            self._interface_write(address - INTERFACE, value)
        elif address == SERIAL + _UART_DATA and len(self.serial) < self.serial_limit:
            self.serial.append(value & 0xFF)

    def _distributor_read(self, offset: int, size: int) -> int:
        if offset == _GICD_CTLR:
            return self.distributor
        if offset == _GICD_TYPER:
            return _LINES // 32 - 1
        if offset == _GICD_IIDR:
            return _IDENTIFICATION
        if offset in _GICD_ISENABLER or offset in _GICD_ICENABLER:
            return self.enabled >> 8 * (offset & 7) & 0xFFFFFFFF
        if offset in _GICD_IPRIORITYR:
            start = offset - _GICD_IPRIORITYR.start
            return int.from_bytes(self.priorities[start : start + size], "little")
        if offset in _GICD_ITARGETSR:
            return int.from_bytes(b"\x01" * size, "little")
        return 0

    def _distributor_write(self, offset: int, size: int, value: int) -> None:
        if offset == _GICD_CTLR:
            self.distributor = value & 1
        elif offset in _GICD_ISENABLER:
            self.enabled |= value << 8 * (offset & 7)
        elif offset in _GICD_ICENABLER:
            self.enabled &= ~(value << 8 * (offset & 7)) | 0xFFFF
        elif offset in _GICD_IPRIORITYR:
            start = offset - _GICD_IPRIORITYR.start
            self.priorities[start : start + size] = value.to_bytes(8, "little")[:size]
            del self.priorities[_LINES:]
        elif offset == _GICD_SGIR:
            self.pending |= 1 << (value & 0xF)
            self.interrupted()

    def _interface_read(self, offset: int) -> int:
        if offset == _GICC_CTLR:
            return self.interface
        if offset == _GICC_PMR:
            return self.mask
        if offset == _GICC_IIDR:
            return _IDENTIFICATION
        if offset not in (_GICC_IAR, _GICC_HPPIR):
            return 0
        number = self.interrupt()
        if number is None:
            return _SPURIOUS
        if offset == _GICC_IAR:
            self.active |= 1 << number
            self.pending &= ~(1 << number)
        return number

    def _interface_write(self, offset: int, value: int) -> None:
        if offset == _GICC_CTLR:
            self.interface = value & 0x3FF
        elif offset == _GICC_PMR:
            self.mask = value & _ALL_PRIORITIES
        elif offset == _GICC_EOIR:
            self.active &= ~(1 << (value & 0x3FF))

    # -- snapshots ----------------------------------------------------------------------------------
    def state(self) -> dict[str, object]:
        """What a snapshot must keep."""
        return {**{name: getattr(self, name) for name in _STATE}, "priorities": self.priorities.hex()}

    def restore(self, state: dict[str, object]) -> None:
        """The inverse of :meth:`state`."""
        values = {name: state[name] for name in _STATE}
        priorities = state["priorities"]
        if not isinstance(priorities, str) or not all(isinstance(value, int) for value in values.values()):
            raise TypeError("not a board's state")
        for name, value in values.items():
            setattr(self, name, value)
        self.priorities = bytearray.fromhex(priorities)
