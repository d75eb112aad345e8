"""The tables by which an x86-64 kernel unwinds its stack (Documentation/arch/x86/orc-unwinder.rst)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.machine.cpu import Cpu

__all__ = ["BY_BASE", "BY_POINTER", "BY_STACK", "Unwinding", "unwinding_at"]

# struct orc_entry: sp_offset, bp_offset, then bit fields: sp_reg:4, bp_reg:4, ... (arch/x86/include/asm/orc_types.h)
_ENTRY = struct.Struct("<hhH")
BY_BASE, BY_STACK, BY_POINTER = 4, 5, 8  # ORC_REG_BP, ORC_REG_SP, ORC_REG_BP_INDIRECT
_IN_REGISTER, _BEHIND_RETURN, _BEHIND_BASE = 0, 1, 4  # ORC_REG_UNDEFINED, ORC_REG_PREV_SP, ORC_REG_BP


class Unwinding(NamedTuple):
    """How a function's frame looks at an instruction. The end of a frame is that of its return address.

    :param kind: what its end is found by. BY_STACK: it is ``distance`` above the stack pointer. BY_BASE: as much
        above the base pointer. BY_POINTER: its address is in memory, at that distance from the base pointer.
    :param base: where the caller's base pointer is: its distance from the frame's end, or from the base pointer where
        that finds the frame (BY_POINTER). None: in the register.
    """

    kind: int
    distance: int
    base: int | None


def unwinding_at(cpu: Cpu, symbols: Kallsyms, address: int) -> Unwinding | None:
    """What the tables say about an instruction; None if there are none, or they say something else.

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
    distance, base, fields = _ENTRY.unpack(cpu.read(entries + _ENTRY.size * low, _ENTRY.size))
    kind, kept = fields & 0xF, fields >> 4 & 0xF
    expected = _BEHIND_BASE if kind == BY_POINTER else _BEHIND_RETURN
    if kind not in (BY_BASE, BY_STACK, BY_POINTER) or kept not in (_IN_REGISTER, expected):
        return None
    return Unwinding(kind, distance, None if kept == _IN_REGISTER else base)
