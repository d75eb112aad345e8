from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from kodojo.errors import LogRecord
from kodojo.image.btf import Field
from kodojo.kernel.printk import Printk
from tests.support.flat_memory import PaperStruct, kernel_memory, words

RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
NO_TEXT = 3  # NO_LPOS of kernel/printk/printk_ringbuffer.h
RING, DESCS, INFOS, DATA = 0x100, 0x400, 0x1000, 0x3000
DESC_SIZE, INFO_SIZE = 24, 88
TYPES = {
    "printk_ringbuffer": PaperStruct(
        80,
        {
            "desc_ring.count_bits": Field(0, 4),
            "desc_ring.descs": Field(8, 8),
            "desc_ring.infos": Field(16, 8),
            "desc_ring.head_id.counter": Field(24, 8, signed=True),
            "desc_ring.tail_id.counter": Field(32, 8, signed=True),
            "text_data_ring.size_bits": Field(48, 4),
            "text_data_ring.data": Field(56, 8),
        },
    ),
    "prb_desc": PaperStruct(
        DESC_SIZE,
        {"state_var.counter": Field(0, 8, signed=True), "text_blk_lpos": Field(8, 16)},
    ),
    "printk_info": PaperStruct(
        INFO_SIZE,
        {
            "seq": Field(0, 8),
            "ts_nsec": Field(8, 8),
            "text_len": Field(16, 2),
            "level": Field(19, 1, bit_offset=5, bit_size=3),
        },
    ),
}


class Ring:
    """A writer of the kernel's ring buffer (kernel/printk/printk_ringbuffer.h), as printk fills it.

    :param count_bits: of the number of descriptors; ``size_bits``: of the bytes of text.
    """

    def __init__(self, count_bits: int = 3, size_bits: int = 8) -> None:
        self.memory = kernel_memory(0x4000, **TYPES)
        self.base = self.memory.cpu.base
        self.count, self.size = 1 << count_bits, 1 << size_bits
        # The first identifier is such that the second one has index 0 in the kernel's ring, too.
        self.head = self.tail = (1 << 62) - self.count - 1
        self.position = (1 << 64) - self.size  # BLK0_LPOS: the positions soon wrap to 0
        self.sequence = 0
        self.memory.put(self.base, 8, self.base + RING)
        self.ring = self.memory.struct("printk_ringbuffer", self.base + RING)
        self.ring.set("desc_ring.count_bits", count_bits)
        self.ring.set("desc_ring.descs", self.base + DESCS)
        self.ring.set("desc_ring.infos", self.base + INFOS)
        self.ring.set("text_data_ring.size_bits", size_bits)
        self.ring.set("text_data_ring.data", self.base + DATA)
        self._desc(self.head).set("state_var.counter", REUSABLE << 62 | self.head)
        self._ends()
        self.printk = Printk(self.memory, self._image())

    def _image(self) -> SimpleNamespace:
        names = {"prb": self.base}
        return SimpleNamespace(kallsyms=SimpleNamespace(address=names.__getitem__, get=names.get))

    def _desc(self, identifier: int):
        return self.memory.struct("prb_desc", self.base + DESCS + identifier % self.count * DESC_SIZE)

    def _ends(self) -> None:
        self.ring.set("desc_ring.head_id.counter", self.head)
        self.ring.set("desc_ring.tail_id.counter", self.tail)

    def add(self, text: bytes, level: int = 6, time: int = 0, state: int = FINALIZED) -> None:
        """printk: a descriptor, its info, and its block of text."""
        self.head = (self.head + 1) % (1 << 62)
        if (self.head - self.tail) % (1 << 62) >= self.count:
            self.tail = (self.tail + 1) % (1 << 62)
        begin, end = self._store(text) if text else (NO_TEXT, NO_TEXT)
        desc = self._desc(self.head)
        desc.set("state_var.counter", state << 62 | self.head)
        self.memory.write(desc.address_of("text_blk_lpos"), struct.pack("<QQ", begin, end))
        info = self.memory.struct("printk_info", self.base + INFOS + self.head % self.count * INFO_SIZE)
        values = {"seq": self.sequence, "ts_nsec": time, "text_len": len(text), "level": level}
        for name, value in values.items():
            info.set(name, value)
        self.sequence += 1
        self._ends()

    def _store(self, text: bytes) -> tuple[int, int]:
        """data_alloc(): a block that does not fit before the end stands at the start, whole."""
        block = struct.pack("<Q", self.head) + text
        block += bytes(-len(block) % 8)
        begin, end = self.position, self.position + len(block)
        at = begin % self.size
        if begin // self.size != end // self.size:
            at, end = 0, end // self.size * self.size + len(block)
        assert at + len(block) <= self.size
        self.memory.write(self.base + DATA + at, block)
        self.position = end % (1 << 64)
        return begin, self.position

    @property
    def texts(self) -> list[str]:
        return [record.text for record in self.printk.records()]


def test_empty():
    """A ring to which nothing was written has no records."""
    ring = Ring()
    assert ring.printk.records() == ()
    assert ring.printk.next_sequence() == 0


def test_records():
    """A record has its level, its text and its time in seconds, oldest first."""
    ring = Ring()
    ring.add(b"first", level=3, time=1_500_000_000)
    ring.add(b"second", level=7, time=2_000_000_001)
    assert ring.printk.records() == (LogRecord(3, "first", 1.5), LogRecord(7, "second", 2.000000001))
    assert ring.printk.next_sequence() == 2


def test_several_lines():
    """A record of several lines is as many lines of the log, in order; a newline at its end is none."""
    ring = Ring()
    ring.add(b"before")
    ring.add(b"one\ntwo\n\nfour\n", level=4)
    ring.add(b"after")
    assert ring.texts == ["before", "one", "two", "", "four", "after"]
    assert [record.level for record in ring.printk.records()] == [6, 4, 4, 4, 4, 6]


def test_record_without_data():
    """A record whose text has no place in the ring, an empty line, is an empty line."""
    ring = Ring()
    ring.add(b"before")
    ring.add(b"")
    ring.add(b"after")
    assert ring.texts == ["before", "", "after"]


def test_text_length_counts():
    """Text ends where the record says, not where its block ends."""
    ring = Ring()
    ring.add(b"12345")
    info = ring.memory.struct("printk_info", ring.base + INFOS + ring.head % ring.count * INFO_SIZE)
    info.set("text_len", 3)
    assert ring.texts == ["123"]


def test_descriptors_wrap():
    """When there are more records than descriptors the newest are left."""
    ring = Ring(count_bits=3, size_bits=12)
    for number in range(100):
        ring.add(b"record %d" % number)
        expected = [f"record {n}" for n in range(max(0, number - 7), number + 1)]
        assert ring.texts == expected
        assert ring.printk.next_sequence() == number + 1


@pytest.mark.parametrize("length", [1, 8, 23, 24, 56, 57, 100])
def test_text_wraps(length):
    """A text that does not fit before the end of its ring stands at the start; every text is whole."""
    ring = Ring(count_bits=3, size_bits=9)
    for number in range(40):
        ring.add(bytes([65 + number]) * length)
        found = ring.texts
        whole = max(1, min(8, ring.size // (2 * (length + 16))))
        assert found[-whole:] == [chr(65 + n) * length for n in range(max(0, number - whole + 1), number + 1)]


def test_block_that_ends_with_the_ring():
    """Where a kernel lets a block end exactly at the ring's end, it is read there."""
    ring = Ring(count_bits=3, size_bits=8)
    ring.add(b"x")
    desc = ring._desc(ring.head)
    begin = ring.size - 16
    ring.memory.write(desc.address_of("text_blk_lpos"), struct.pack("<QQ", begin, ring.size))
    ring.memory.write(ring.base + DATA + begin, struct.pack("<Q", ring.head) + b"y".ljust(8, b"\0"))
    assert ring.texts == ["y"]


@pytest.mark.parametrize("state", [RESERVED, REUSABLE])
def test_unfinished_records(state):
    """A record that is being written, or whose text was overwritten, is passed over."""
    ring = Ring()
    ring.add(b"before")
    ring.add(b"half", state=state)
    ring.add(b"after")
    assert ring.texts == ["before", "after"]


def test_committed_records():
    """A record that may still be continued is shown as far as it is."""
    ring = Ring()
    ring.add(b"so far", state=COMMITTED)
    assert ring.texts == ["so far"]


def test_stale_descriptor():
    """A descriptor that belongs to an earlier round of the ring is passed over."""
    ring = Ring()
    ring.add(b"old")
    ring.add(b"new")
    desc = ring._desc(ring.head - 1)
    desc.set("state_var.counter", FINALIZED << 62 | (ring.head - 1 - ring.count))
    assert ring.texts == ["new"]


def test_since():
    """Only what came from a number on, whatever came before."""
    ring = Ring()
    ring.add(b"one")
    ring.add(b"two")
    mark = ring.printk.next_sequence()
    assert ring.printk.records(mark) == ()
    ring.add(b"three\nfour")
    ring.add(b"five")
    assert [record.text for record in ring.printk.records(mark)] == ["three", "four", "five"]
    assert ring.printk.records(mark + 100) == ()


def test_bytes_of_any_kind():
    """Text that is no UTF-8 is kept, byte by byte."""
    ring = Ring()
    ring.add("ä".encode() + b"\xff\x01")
    assert ring.texts[0].encode("utf-8", "surrogateescape") == "ä".encode() + b"\xff\x01"


def test_ring_that_was_overwritten():
    """Ends that cannot be (guest code wrote there) do not make reading endless."""
    ring = Ring()
    ring.add(b"text")
    ring.ring.set("desc_ring.tail_id.counter", ring.head + 1)
    assert ring.texts == ["text"]


def test_another_members_order():
    """Where members are is asked from the kernel's types."""
    ring = Ring()
    moved = words(8 * 8, seq=24, ts_nsec=16)
    fields = {**moved.fields, "text_len": Field(0, 2), "level": Field(8, 1, bit_offset=0, bit_size=3)}
    ring.memory.btf["printk_info"] = PaperStruct(INFO_SIZE, fields)
    ring.add(b"moved", level=2, time=3_000_000_000)
    assert ring.printk.records() == (LogRecord(2, "moved", 3.0),)


# -- damaged by the guest ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("desc_ring.count_bits", 0xFFFFFFFF),
        ("desc_ring.count_bits", 40),
        ("desc_ring.count_bits", 9),  # more records than bytes of text
        ("text_data_ring.size_bits", 0xFFFFFFFF),
        ("text_data_ring.size_bits", 63),
        ("desc_ring.descs", 0x4141414141414141),
    ],
)
def test_damaged_ring(member, value):
    """A ring that cannot be is said to be damaged, at once; what looks at the log in passing finds none."""
    ring = Ring()
    ring.add(b"hello")
    ring.ring.set(member, value)
    records, damage = ring.printk.look()
    assert records == ring.printk.records() == ()
    assert damage is not None
    assert damage.message.startswith("the kernel's memory is damaged: ")
    assert "kodojo boot" in damage.hint
    assert ring.printk.next_sequence() == 0


def test_ring_that_is_nowhere():
    """Nor does a pointer to nothing end in a traceback."""
    ring = Ring()
    ring.memory.put(ring.base, 8, 0)
    assert ring.printk.look()[0] == ()
    assert ring.printk.next_sequence() == 0


@pytest.mark.parametrize("member", ["desc_ring.infos", "text_data_ring.data"])
def test_damaged_tables(member):
    """Records whose text or whose level is nowhere are left out, and this is said."""
    ring = Ring()
    ring.add(b"hello")
    ring.add(b"")
    ring.ring.set(member, 0x4141414141414141)
    records, damage = ring.printk.look()
    assert damage is not None
    assert [record.text for record in records] == ([""] if member == "text_data_ring.data" else [])


def test_one_damaged_record():
    """The others are shown. A text is not longer than its block, whatever the record says."""
    ring = Ring()
    for text in (b"one", b"two", b"three"):
        ring.add(text)
    desc = ring._desc(ring.head - 1)
    ring.memory.write(desc.address_of("text_blk_lpos"), struct.pack("<QQ", 0x10, 0x8))  # ends before it begins
    assert ring.texts == ["one", "", "three"]
    info = ring.memory.struct("printk_info", ring.base + INFOS + ring.head % ring.count * INFO_SIZE)
    info.set("text_len", 0xFFFF)
    assert ring.texts[0] == "one"
    assert len(ring.texts[-1]) < 16


def test_records_of_others():
    """A ring whose descriptors belong to other records is given up soon, however large it says that it is."""
    ring = Ring(size_bits=14)
    ring.add(b"hello")
    ring.ring.set("desc_ring.count_bits", 13)
    ring.ring.set("desc_ring.tail_id.counter", 0)
    reads = []
    read = ring.memory.read
    ring.memory.read = lambda address, size: (reads.append(address), read(address, size))[1]
    damage = ring.printk.look()[1]
    assert damage is not None
    assert len(reads) < 5000


def test_texts_that_lie_on_each_other():
    """All texts together are no longer than the ring."""
    ring = Ring(count_bits=3, size_bits=6)
    for _ in range(8):
        ring.add(b"")
        desc = ring._desc(ring.head)
        ring.memory.write(desc.address_of("text_blk_lpos"), struct.pack("<QQ", 0, 64))
        info = ring.memory.struct("printk_info", ring.base + INFOS + ring.head % ring.count * INFO_SIZE)
        info.set("text_len", 64)
    ring.memory.write(ring.base + DATA, b"x" * 64)
    records, damage = ring.printk.look()
    assert damage is not None
    assert 0 < len(records) < 8
