import numpy as np
import pytest

from kodojo.errors import CorruptError
from kodojo.image.arrays import read_arrays, write_arrays

ARRAYS = {
    "bytes": np.frombuffer(b"abc", np.uint8),
    "words": np.arange(1000, dtype="<u4"),
    "empty": np.zeros(0, "<i8"),
    "long": np.array([1 << 63, 5], "<u8"),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "arrays"
    with path.open("wb") as file:
        write_arrays(file, ARRAYS)
    return path


def test_round_trip(path):
    """What was written is read: names, types, contents; and it is read-only."""
    found = read_arrays(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].tolist() == array.tolist()
    with pytest.raises(ValueError, match="read-only"):
        found["words"][0] = 1


def test_alignment(path):
    """Arrays begin at multiples of 64 bytes."""
    assert all(array.ctypes.data % 64 == 0 for array in read_arrays(path).values() if len(array))


def test_damage(path):
    """Any damage to the header and any change of the size is noticed."""
    whole = path.read_bytes()
    header_end = whole.index(b"\n", whole.index(b"\nlong") + 1) + 1
    for position in range(header_end):
        path.write_bytes(whole[:position] + bytes((whole[position] ^ 1,)) + whole[position + 1 :])
        with pytest.raises(CorruptError, match="damaged"):
            read_arrays(path)
    for size in (0, 10, header_end, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptError, match="damaged"):
            read_arrays(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(CorruptError, match="it should have"):
        read_arrays(path)
