from __future__ import annotations

import pytest

from kodojo.errors import MachineError, MissingInformationError
from kodojo.image.btf import Field
from tests.support.flat_memory import PaperStruct, kernel_memory

THING = PaperStruct(
    64,
    {
        "byte": Field(0, 1),
        "half": Field(2, 2),
        "word": Field(4, 4),
        "pointer": Field(8, 8),
        "number": Field(16, 4, signed=True),
        "low": Field(20, 4, bit_offset=0, bit_size=3),
        "high": Field(20, 4, bit_offset=3, bit_size=10),
        "name": Field(24, 16),
        "inner.deep[2]": Field(48, 2),
    },
)


@pytest.fixture
def memory():
    return kernel_memory(0x1000, thing=THING)


@pytest.fixture
def base(memory) -> int:
    return memory.cpu.base


def test_integers(memory, base):
    """Numbers are little-endian, of one to eight bytes."""
    memory.write(base, bytes(range(1, 9)))
    assert memory.u8(base) == 0x01
    assert memory.u16(base) == 0x0201
    assert memory.u32(base) == 0x04030201
    assert memory.u64(base) == 0x0807060504030201


def test_put_wraps(memory, base):
    """A number is stored as C would: wrapped to its size, and nothing beside it changes."""
    memory.write(base, b"\xaa" * 8)
    memory.put(base + 2, 2, -2)
    memory.put(base + 4, 1, 0x1FF)
    assert memory.read(base, 8) == b"\xaa\xaa\xfe\xff\xff\xaa\xaa\xaa"


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 700])
@pytest.mark.parametrize("offset", [0, 1, 255])
def test_strings(memory, base, length, offset):
    """A string ends at its NUL, however long it is and wherever it starts."""
    memory.write(base + offset, b"x" * length + b"\0yyy")
    assert memory.string(base + offset) == b"x" * length


def test_string_at_the_end_of_memory(memory, base):
    """Nothing behind a string's NUL has to be mapped, as far as pieces of 256 bytes go."""
    memory.write(base + 0x1000 - 6, b"hello\0")
    assert memory.string(base + 0x1000 - 6) == b"hello"


def test_string_without_end(memory, base):
    """A string without NUL is cut at the limit."""
    memory.write(base, b"x" * 0x1000)
    assert memory.string(base, 300) == b"x" * 300
    with pytest.raises(MachineError):
        memory.string(base)


def test_members(memory, base):
    """Members are read by path, as wide as they are, signed where the type is."""
    thing = memory.struct("thing", base)
    memory.write(base, b"\xff" * 20)
    assert [thing.get(name) for name in ("byte", "half", "word", "pointer")] == [
        0xFF, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1,
    ]  # fmt: skip
    assert thing.get("number") == -1
    thing.set("number", -5)
    assert (thing.get("number"), memory.u32(base + 16)) == (-5, (1 << 32) - 5)
    thing.set("inner.deep[2]", 0x1234)
    assert memory.read(base + 48, 3) == b"\x34\x12\x00"


def test_bit_fields(memory, base):
    """A bit-field is read and written without its neighbours."""
    thing = memory.struct("thing", base)
    memory.put(base + 20, 4, 0xFFFFFFFF)
    thing.set("high", 0)
    assert (thing.get("low"), thing.get("high")) == (7, 0)
    assert memory.u32(base + 20) == 0xFFFFFFFF & ~(0x3FF << 3)
    thing.set("low", 0x15)  # five bits of which three fit
    assert (thing.get("low"), thing.get("high")) == (5, 0)


def test_texts(memory, base):
    """A char array is read up to its NUL, or whole."""
    thing = memory.struct("thing", base)
    memory.write(base + 24, b"name\0rest")
    assert thing.string("name") == b"name"
    assert thing.raw("name") == b"name\0rest".ljust(16, b"\0")
    memory.write(base + 24, b"n" * 17)
    assert thing.string("name") == b"n" * 16


def test_places(memory, base):
    """Offsets and addresses of members."""
    thing = memory.struct("thing", base + 64)
    assert (thing.offset("pointer"), thing.address_of("pointer")) == (8, base + 72)


def test_no_scalar(memory, base):
    """What is no number cannot be had as one."""
    with pytest.raises(MachineError, match=r"thing\.name is no scalar"):
        memory.struct("thing", base).get("name")


def test_missing_member(memory, base):
    """A member that this kernel has not is told by its name."""
    with pytest.raises(MissingInformationError, match="gone"):
        memory.struct("thing", base).get("gone")
