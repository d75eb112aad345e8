"""The kernel's log, read out of its ring buffer in memory (kernel/printk/printk_ringbuffer.c).

Nothing runs in the guest for it, so it can be read at any instant, after a crash too.
"""

from __future__ import annotations

import struct

from kodojo.errors import LogRecord, decode
from kodojo.image.image import Image
from kodojo.kernel.memory import KernelMemory

__all__ = ["Printk"]

_STATE_SHIFT = 62
_COMMITTED, _FINALIZED = 1, 2
_ID_MASK = (1 << _STATE_SHIFT) - 1
_BLOCK_ID = 8  # each text block begins with the id of its descriptor


class Printk:
    """The records that ``dmesg`` would show."""

    def __init__(self, memory: KernelMemory, image: Image) -> None:
        self._memory = memory
        self._prb = image.kallsyms.address("prb")
        self._clear_seq = image.kallsyms.get("clear_seq")

    def _ring(self, path: str) -> int:
        return self._memory.struct("printk_ringbuffer", self._ring_address()).get(path)

    def _ring_address(self) -> int:
        return self._memory.u64(self._prb)

    def next_sequence(self) -> int:
        """The number that the next record will have."""
        newest = self._ring("desc_ring.head_id.counter") & _ID_MASK
        record = self._record(newest)
        return 0 if record is None else record[0] + 1

    def cleared(self) -> int:
        """The number of the first record that ``dmesg`` shows: what came before was cleared (``dmesg -C``).

        Source: ``kernel/printk/printk.c: latched_seq_read_nolock``.
        """
        if self._clear_seq is None:
            return 0
        seq = self._memory.struct("latched_seq", self._clear_seq)
        values: tuple[int, int] = struct.unpack("<2Q", seq.raw("val"))
        return values[seq.raw("latch")[0] & 1]

    @property
    def can_be_cleared(self) -> bool:
        """Whether the symbol table lists where the kernel keeps what was cleared."""
        return self._clear_seq is not None

    def records(self, since: int = 0) -> tuple[LogRecord, ...]:
        """The records with numbers from ``since`` on; one LogRecord for each line of a record."""
        head = self._ring("desc_ring.head_id.counter") & _ID_MASK
        tail = self._ring("desc_ring.tail_id.counter") & _ID_MASK
        found: list[LogRecord] = []
        # Newest first: most callers want what came since a moment ago.
        identifier = head
        for _ in range(1 << self._ring("desc_ring.count_bits")):
            record = self._record(identifier)
            if record is not None:
                sequence, level, time, text = record
                if sequence < since:
                    break
                lines = decode(text).split("\n")
                found.extend(LogRecord(level, line, time) for line in reversed(lines))
            if identifier == tail:
                break
            identifier = (identifier - 1) & _ID_MASK
        return tuple(reversed(found))

    def _record(self, identifier: int) -> tuple[int, int, float, bytes] | None:
        """Sequence number, level, seconds and text of a descriptor's record, if it holds a finished one."""
        memory = self._memory
        ring = memory.struct("printk_ringbuffer", self._ring_address())
        index = identifier & ((1 << ring.get("desc_ring.count_bits")) - 1)
        desc_size = memory.btf.struct("prb_desc").size
        desc = memory.struct("prb_desc", ring.get("desc_ring.descs") + index * desc_size)
        state = desc.get("state_var.counter") & ((1 << 64) - 1)
        if state >> _STATE_SHIFT not in {_COMMITTED, _FINALIZED} or state & _ID_MASK != identifier:
            return None
        info_size = memory.btf.struct("printk_info").size
        info = memory.struct("printk_info", ring.get("desc_ring.infos") + index * info_size)
        text = self._text(
            ring.get("text_data_ring.data"),
            1 << ring.get("text_data_ring.size_bits"),
            desc.raw("text_blk_lpos"),
        )
        length = info.get("text_len")
        return info.get("seq"), info.get("level"), info.get("ts_nsec") / 1e9, text[:length].rstrip(b"\n")

    def _text(self, data: int, size: int, position: bytes) -> bytes:
        begin, end = struct.unpack("<QQ", position)
        if begin & 1:  # no data
            return b""
        first, last = begin % size, end % size
        if last == 0:
            last = size
        if begin // size != (end - 1) // size:  # wraps: the whole block stands at the start of the ring
            first = 0
        return self._memory.read(data + first + _BLOCK_ID, max(0, last - first - _BLOCK_ID))
