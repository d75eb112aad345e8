from __future__ import annotations

import pytest

from kodojo.machine.board import PcBoard


def test_everything_is_masked_at_first():
    """After a reset no timer interrupt comes; time passes nevertheless."""
    board = PcBoard()
    assert board.timer_interrupt() is None
    assert board.ticks == 1


def test_only_the_timers_mask_counts():
    """IRQ 0 is bit 0 of the first controller."""
    board = PcBoard()
    board.port_out(0xA1, 0)
    assert board.timer_interrupt() is None
    board.port_out(0x21, 0xFE)
    assert board.timer_interrupt() == 0x30
    board.port_out(0x21, 0x01)
    assert board.timer_interrupt() is None


def test_serial_output_is_bounded():
    """A guest that never stops writing does not fill the host's memory."""
    board = PcBoard(serial_limit=10)
    for byte in range(100):
        board.port_out(0x3F8, byte)
    assert board.serial == bytes(range(10))


@pytest.mark.parametrize(("size", "value"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF), (8, (1 << 64) - 1)])
def test_empty_bus(size, value):
    """An address at which nothing answers reads as all ones."""
    board = PcBoard()
    board.bus_write(0x1000, size, 0)
    assert board.bus_read(0x1000, size) == value


def test_state():
    """State and restore carry masks and ticks from one board to another, as a copy."""
    board = PcBoard()
    board.port_out(0x21, 0x7E)
    board.timer_interrupt()
    other = PcBoard()
    other.restore(board.state())
    board.port_out(0x21, 0xFF)
    assert (other.port_in(0x21, 1), other.ticks) == (0x7E, 1)


@pytest.mark.parametrize("state", [{"masks": 5, "ticks": 1}, {"masks": [1, 2], "ticks": "1"}], ids=["masks", "ticks"])
def test_bad_state(state):
    """A state of another shape is refused."""
    with pytest.raises(TypeError):
        PcBoard().restore(state)
