from __future__ import annotations

from itertools import pairwise

import pytest

from kodojo.errors import DamagedMemoryError, UnmappedError
from kodojo.kernel.bounds import at_most, reading, walk
from tests.support.flat_memory import kernel_memory

WHAT = "the list of things"


@pytest.fixture
def memory():
    return kernel_memory(0x1000)


def linked(memory, *offsets: int) -> int:
    """Write a list of these nodes; each points to the next one. The first node's address."""
    for here, there in pairwise(offsets):
        memory.put(memory.cpu.base + here, 8, memory.cpu.base + there)
    return memory.cpu.base + offsets[0]


def test_walk(memory):
    """All nodes up to the end, which is none of them; a list may be empty."""
    base = memory.cpu.base
    start = linked(memory, 0x10, 0x80, 0x40, 0)
    assert list(walk(start, base, memory.u64, WHAT)) == [base + 0x10, base + 0x80, base + 0x40]
    assert list(walk(base, base, memory.u64, WHAT)) == []


def test_node_may_be_freed(memory):
    """The next node is read before a node is given away."""
    start = linked(memory, 0x10, 0x80, 0)
    count = 0
    for node in walk(start, memory.cpu.base, memory.u64, WHAT):
        memory.put(node, 8, 0x41414141)
        count += 1
    assert count == 2


@pytest.mark.parametrize("circle", [(0x10, 0x10), (0x10, 0x80, 0x10), (0x10, 0x80, 0x40, 0x80)])
def test_circle(memory, circle):
    """A circle is found, wherever it begins, when each of its nodes was given once."""
    given = []
    message = r"^the kernel's memory is damaged: the list of things goes in a circle"
    with pytest.raises(DamagedMemoryError, match=message) as caught:
        given.extend(node for node in walk(linked(memory, *circle), memory.cpu.base, memory.u64, WHAT))
    assert given == [memory.cpu.base + offset for offset in dict.fromkeys(circle)]
    assert "kodojo boot" in caught.value.hint


def test_no_end(memory):
    """A list has so many entries and no more."""
    start = linked(memory, *range(0x10, 0x510, 8), 0)
    assert len(list(walk(start, memory.cpu.base, memory.u64, WHAT, most=160))) == 160
    with pytest.raises(DamagedMemoryError, match="more than 159 entries"):
        list(walk(start, memory.cpu.base, memory.u64, WHAT, most=159))


@pytest.mark.parametrize("address", [0, 0x4141414141414141, 0xFFFF888000000FFC])
def test_nowhere(memory, address):
    """A list that leads to where nothing is, or to the last bytes of memory, is damaged."""
    with pytest.raises(DamagedMemoryError, match=r"list of things: virtual address 0x[0-9a-f]+ is not mapped"):
        list(walk(address, memory.cpu.base, memory.u64, WHAT))


@pytest.mark.parametrize(("value", "fits"), [(0, True), (10, True), (11, False), (-1, False), (1 << 64, False)])
def test_at_most(value, fits):
    """A number is judged, and given back."""
    if fits:
        assert at_most(value, 10, "things") == value
    else:
        with pytest.raises(DamagedMemoryError, match=f"things: {value}, where 10 is the most"):
            at_most(value, 10, "things")


def test_reading():
    """Only what is not mapped is damage; other errors are what they are."""
    with pytest.raises(DamagedMemoryError, match="a thing: virtual address 0x0"), reading("a thing"):
        raise UnmappedError("virtual address 0x0 is not mapped")
    with pytest.raises(KeyError), reading("a thing"):
        raise KeyError
