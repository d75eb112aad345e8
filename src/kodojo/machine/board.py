"""The few devices that a kernel needs to find: two interrupt controllers, a timer, a serial port.

It is the machine that the kernel's command line describes: no ACPI, no APIC, no PCI, one processor.
Everything else reads as all ones, as an empty bus does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["PcBoard"]

_PIC_MASKS = {0x21: 0, 0xA1: 1}
_SERIAL_DATA = 0x3F8
_SERIAL_LINE_STATUS = 0x3FD
_TRANSMITTER_EMPTY = 0x60
_PIT_PORTS = range(0x40, 0x44)
_PIT_VECTOR = 0x30


@dataclass
class PcBoard:
    """State of the devices; :meth:`state` and :meth:`restore` carry it through snapshots.

    :param masks: interrupt masks of the two 8259 controllers.
    :param serial: what the guest wrote to the first serial port (the newest part of it).
    """

    masks: list[int] = field(default_factory=lambda: [0xFF, 0xFF])
    ticks: int = 0
    serial: bytearray = field(default_factory=bytearray)
    serial_limit: int = 1 << 20

    def port_in(self, port: int, size: int) -> int:
        """``in`` from an I/O port of ``size`` bytes."""
        if port in _PIC_MASKS:
            return self.masks[_PIC_MASKS[port]]
        if port == _SERIAL_LINE_STATUS:
            return _TRANSMITTER_EMPTY
        if port in _PIT_PORTS:
            return 0
        return (1 << (8 * size)) - 1

    def port_out(self, port: int, value: int) -> None:
        """``out`` to an I/O port."""
        if port in _PIC_MASKS:
            self.masks[_PIC_MASKS[port]] = value & 0xFF
        elif port == _SERIAL_DATA and len(self.serial) < self.serial_limit:
            self.serial.append(value & 0xFF)

    def bus_read(self, offset: int, size: int) -> int:
        """A physical address at which nothing answers."""
        del offset
        return (1 << (8 * size)) - 1

    def bus_write(self, offset: int, size: int, value: int) -> None:
        """A write to such an address is lost."""

    def timer_interrupt(self) -> int | None:
        """One timer period passes: the vector to deliver, or None while IRQ 0 is masked."""
        self.ticks += 1
        return None if self.masks[0] & 1 else _PIT_VECTOR

    def state(self) -> dict[str, object]:
        """What a snapshot must keep."""
        return {"masks": list(self.masks), "ticks": self.ticks}

    def restore(self, state: dict[str, object]) -> None:
        """The inverse of :meth:`state`."""
        masks, ticks = state["masks"], state["ticks"]
        if not isinstance(masks, list) or not isinstance(ticks, int):
            raise TypeError("not a board's state")
        self.masks = [int(mask) for mask in masks]
        self.ticks = ticks
