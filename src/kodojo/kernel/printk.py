"""The kernel's log, read out of its ring buffer in memory (kernel/printk/printk_ringbuffer.c).

Nothing runs in the guest for it, so it can be read at any instant, after a crash too. What a guest has damaged of
it is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kodojo.errors import DamagedMemoryError, LogRecord, decode
from kodojo.image.image import Image
from kodojo.kernel.bounds import at_most, damaged, reading
from kodojo.kernel.memory import KernelMemory

__all__ = ["Printk"]

_STATE_SHIFT = 62
_COMMITTED, _FINALIZED, _REUSABLE = 1, 2, 3
_ID_MASK = (1 << _STATE_SHIFT) - 1
_BLOCK_ID = 8  # each text block begins with the id of its descriptor
_MOST_BITS = 20  # a million descriptors; the kernel has one for every 32 bytes of text
_MOST_STRAY = 64  # descriptors that are being written, or about to be
_MOST_GONE = 1 << 16  # those whose text has made room for other records


@dataclass(frozen=True, slots=True)
class _Ring:
    """``struct printk_ringbuffer`` (kernel/printk/printk_ringbuffer.h), as far as it is needed."""

    count: int
    descs: int
    infos: int
    head: int
    tail: int
    data: int
    size: int


@dataclass(frozen=True, slots=True)
class _Record:
    sequence: int
    level: int
    time: float
    text: bytes


class Printk:
    """The records that ``dmesg`` would show."""

    def __init__(self, memory: KernelMemory, image: Image) -> None:
        self._memory = memory
        self._prb = image.kallsyms.address("prb")
        self._clear_seq = image.kallsyms.get("clear_seq")

    def _ring(self) -> _Ring:
        """Raises DamagedMemoryError if it is none."""
        with reading("the ring of the kernel's log"):
            ring = self._memory.struct("printk_ringbuffer", self._memory.u64(self._prb))
            most = self._memory.cpu.ram.size.bit_length()
            bits = at_most(ring.get("text_data_ring.size_bits"), most, "bits of text in the log")
            return _Ring(
                1 << at_most(ring.get("desc_ring.count_bits"), min(bits, _MOST_BITS), "bits of records in the log"),
                ring.get("desc_ring.descs"),
                ring.get("desc_ring.infos"),
                ring.get("desc_ring.head_id.counter") & _ID_MASK,
                ring.get("desc_ring.tail_id.counter") & _ID_MASK,
                ring.get("text_data_ring.data"),
                1 << bits,
            )

    def next_sequence(self) -> int:
        """The number that the next record will have; 0 if that cannot be told."""
        try:
            ring = self._ring()
            record = self._look_at(ring, ring.head)[1]
        except DamagedMemoryError:
            return 0
        return 0 if record is None else record.sequence + 1

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
        """The records with numbers from ``since`` on that can be read; one LogRecord for each line of a record."""
        return self.look(since)[0]

    def look(self, since: int = 0) -> tuple[tuple[LogRecord, ...], DamagedMemoryError | None]:
        """As :meth:`records`, and what is the matter with the others."""
        found: list[LogRecord] = []
        damage: DamagedMemoryError | None = None
        try:
            for record in self._newest_first(self._ring()):
                if isinstance(record, DamagedMemoryError):
                    damage = damage or record
                    continue
                if record.sequence < since:
                    break
                lines = decode(record.text).split("\n")
                found.extend(LogRecord(record.level, line, record.time) for line in reversed(lines))
        except DamagedMemoryError as error:
            damage = damage or error
        return tuple(reversed(found)), damage

    def _newest_first(self, ring: _Ring) -> Iterator[_Record | DamagedMemoryError]:
        """Each record, or why it cannot be read. Most callers want what came since a moment ago."""
        identifier, stray, gone, left = ring.head, 0, 0, ring.size
        for _ in range(ring.count):
            try:
                state, record = self._look_at(ring, identifier)
            except DamagedMemoryError as error:
                yield error
                stray += 1
            else:
                if record is not None:
                    left -= len(record.text)
                    yield record
                elif state == _REUSABLE:
                    gone += 1
                else:
                    stray += 1
            if identifier == ring.tail:
                return
            if stray > _MOST_STRAY or gone > _MOST_GONE or left < 0:
                raise damaged("records of the log that are not where they should be")
            identifier = (identifier - 1) & _ID_MASK

    def _look_at(self, ring: _Ring, identifier: int) -> tuple[int | None, _Record | None]:
        """A descriptor's ``enum desc_state`` (None: it is another record's by now), and its finished record.

        :raises DamagedMemoryError: it cannot be read.
        """
        memory = self._memory
        index = identifier & (ring.count - 1)
        with reading("a record of the kernel's log"):
            desc = memory.struct("prb_desc", ring.descs + index * memory.btf.struct("prb_desc").size)
            word = desc.get("state_var.counter") & ((1 << 64) - 1)
            state = word >> _STATE_SHIFT if word & _ID_MASK == identifier else None
            if state not in {_COMMITTED, _FINALIZED}:
                return state, None
            info = memory.struct("printk_info", ring.infos + index * memory.btf.struct("printk_info").size)
            text = self._text(ring, desc.raw("text_blk_lpos"), info.get("text_len")).rstrip(b"\n")
            return state, _Record(info.get("seq"), info.get("level"), info.get("ts_nsec") / 1e9, text)

    def _text(self, ring: _Ring, position: bytes, length: int) -> bytes:
        begin, end = struct.unpack("<QQ", position)
        if begin & 1:  # no data
            return b""
        first, last = begin % ring.size, end % ring.size
        if last == 0:
            last = ring.size
        if begin // ring.size != (end - 1) // ring.size:  # wraps: the whole block stands at the start of the ring
            first = 0
        room = max(0, last - first - _BLOCK_ID)
        return self._memory.read(ring.data + first + _BLOCK_ID, min(room, length))
