from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kodojo.errors import MachineError, StoreError
from kodojo.machine.memory import PAGE_SIZE, Ram

SIZE = 8 * PAGE_SIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of eight pages, of which each byte is its page's number."""
    path = tmp_path / "ram"
    path.write_bytes(b"".join(bytes([page]) * PAGE_SIZE for page in range(8)))
    return path


@pytest.fixture(params=["pagemap", "comparison"])
def pages_written(request, monkeypatch):
    """Both ways to find dirty pages: what the system says, and comparing all."""
    if request.param == "comparison":
        monkeypatch.setattr(Ram, "_pages_written", lambda self: None)


@pytest.mark.parametrize("base", [0, 0x40000000], ids=hex)
def test_bounds(base):
    """The first and the last byte can be used, and nothing beside them."""
    ram = Ram(SIZE, base=base)
    ram.write(base, b"a")
    ram.write(base + SIZE - 1, b"z")
    assert (ram.read(base, 1), ram.read(base + SIZE - 1, 1)) == (b"a", b"z")
    assert (base in ram, base + SIZE - 1 in ram) == (True, True)
    assert (base - 1 in ram, base + SIZE in ram) == (False, False)
    for start, size in ((base - 1, 1), (base + SIZE, 1), (base + SIZE - 1, 2), (base - 1, SIZE + 2)):
        with pytest.raises(MachineError, match="outside"):
            ram.read(start, size)
        with pytest.raises(MachineError, match="outside"):
            ram.write(start, bytes(size))


def test_words():
    """Words of a page table are little-endian; where there is no memory, there is nothing in them."""
    ram = Ram(SIZE, base=PAGE_SIZE)
    ram.write(PAGE_SIZE + 8, bytes(range(8)))
    assert ram.table_entry(PAGE_SIZE + 8) == 0x0706050403020100
    ram.write(PAGE_SIZE + SIZE - 8, b"\xff" * 8)
    assert ram.table_entry(PAGE_SIZE + SIZE - 8) == (1 << 64) - 1
    assert [ram.table_entry(address) for address in (0, PAGE_SIZE - 8, PAGE_SIZE + SIZE, 1 << 60)] == [0] * 4


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, 1, PAGE_SIZE + 1])
def test_sizes(size):
    """Memory is a whole number of pages, and at least one."""
    with pytest.raises(MachineError, match="whole number of pages"):
        Ram(size)


def test_pages_show_the_same_memory():
    """The array of pages is the memory, not a copy."""
    ram = Ram(SIZE)
    ram.write(3 * PAGE_SIZE + 5, b"x")
    assert ram.pages[3, 5] == ord("x")
    ram.pages[3, 6] = ord("y")
    assert ram.read(3 * PAGE_SIZE + 5, 2) == b"xy"


def test_file_is_never_written(file):
    """Memory that starts from a file is a private copy of it."""
    before = file.read_bytes()
    ram, other = Ram(SIZE, file), Ram(SIZE, file)
    ram.write(5 * PAGE_SIZE, b"changed")
    assert file.read_bytes() == before
    assert other.read(5 * PAGE_SIZE, 7) == b"\5" * 7


def test_file_that_is_too_short(file):
    """A file that does not cover the memory is refused: using what is missing would end the process."""
    with pytest.raises(StoreError, match="shorter"):
        Ram(SIZE + PAGE_SIZE, file)


def test_file_that_is_missing(tmp_path):
    """A file that is not there is an error of ours."""
    with pytest.raises(MachineError, match="cannot map"):
        Ram(SIZE, tmp_path / "gone")


def test_dirty_pages(pages_written):
    """Without a file the pages that are not zero are dirty."""
    ram = Ram(SIZE)
    assert ram.dirty_pages().tolist() == []
    ram.write(6 * PAGE_SIZE, b"x")
    ram.write(2 * PAGE_SIZE - 1, b"xy")
    ram.write(4 * PAGE_SIZE, b"\0")
    assert ram.dirty_pages().tolist() == [1, 2, 6]


def test_dirty_pages_of_a_file(file, pages_written):
    """With a file the pages that differ from it are dirty; one that got its old content back is not."""
    ram = Ram(SIZE, file)
    assert ram.dirty_pages().tolist() == []
    ram.read(0, SIZE)
    ram.write(7 * PAGE_SIZE + 9, b"x")
    ram.write(3 * PAGE_SIZE, bytes(PAGE_SIZE))
    ram.write(5 * PAGE_SIZE, b"\5\5")
    assert ram.dirty_pages().tolist() == [3, 7]


def test_dirty_pages_are_few(file):
    """On Linux the system knows which pages were written: the others are not looked at."""
    ram = Ram(SIZE, file)
    ram.write(2 * PAGE_SIZE, b"x")
    written = ram._pages_written()
    assert written is None or written.tolist() == [2]


def test_dirty_pages_of_large_memory(tmp_path, pages_written):
    """Memory of more pages than are compared at once has its dirty pages in order."""
    path = tmp_path / "ram"
    size = 5000 * PAGE_SIZE
    with path.open("wb") as opened:
        opened.truncate(size)
    ram = Ram(size, path)
    for page in (4999, 4096, 4095, 0):
        ram.write(page * PAGE_SIZE, b"x")
    assert np.array_equal(ram.dirty_pages(), [0, 4095, 4096, 4999])
