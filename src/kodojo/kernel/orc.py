"""The tables by which an x86-64 kernel unwinds its stack (Documentation/arch/x86/orc-unwinder.rst)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.machine.cpu import Cpu

__all__ = ["Unwinding", "unwinding_at"]

# struct orc_entry: sp_offset, bp_offset, then bit fields: sp_reg:4, bp_reg:4, ... (arch/x86/include/asm/orc_types.h)
_ENTRY = struct.Struct("<hhH")
_FROM_STACK_POINTER, _ON_STACK = 5, 1  # ORC_REG_SP, ORC_REG_PREV_SP


class Unwinding(NamedTuple):
    """How a function's frame looks at an instruction.

    :param size: from the stack pointer to the end of the return address, in bytes.
    :param base: how far below that end the caller's RBP is kept; 0 if it is in the register.
    """

    size: int
    base: int


def unwinding_at(cpu: Cpu, symbols: Kallsyms, address: int) -> Unwinding | None:
    """What the tables say about an instruction; None if there are no tables, or the frame has no constant size.

    Source: ``arch/x86/kernel/unwind_orc.c: __orc_find, unwind_next_frame``.
    """
    names = ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind")
    start, stop, entries = (symbols.get(name) for name in names)
    if start is None or stop is None or entries is None:
        return None
    low, high = 0, (stop - start) // 4
    while high - low > 1:
        middle = (low + high) // 2
        where = start + 4 * middle
        if where + int.from_bytes(cpu.read(where, 4), "little", signed=True) <= address:
            low = middle
        else:
            high = middle
    size, base, fields = _ENTRY.unpack(cpu.read(entries + _ENTRY.size * low, _ENTRY.size))
    if fields & 0xF != _FROM_STACK_POINTER or size <= 0:
        return None
    return Unwinding(size, -base if fields >> 4 & 0xF == _ON_STACK else 0)
