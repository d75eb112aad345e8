"""Files of numpy arrays that are mapped, not read: opening one costs microseconds, whatever its size.

One line of ASCII, a table of contents in ASCII, and the arrays::

    kodojo arrays 1 CONTENTS-LENGTH CONTENTS-CRC32 FILE-SIZE
    NAME DTYPE COUNT OFFSET
"""

from __future__ import annotations

import mmap
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from kodojo.errors import CorruptError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Arrays", "read_arrays", "write_arrays"]

Arrays = Mapping[str, "npt.NDArray[Any]"]

_FORMAT = "1"
_ALIGN = 64
_LONGEST_LINE = 128
_LONGEST_CONTENTS = 1 << 16
_DTYPE = re.compile(r"[<|][uif][1248]")


def write_arrays(file: BinaryIO, arrays: Arrays) -> None:
    """Write one-dimensional arrays of numbers to a binary file."""
    contents, size = _contents(arrays)
    file.write(f"kodojo arrays {_FORMAT} {len(contents)} {zlib.crc32(contents):08x} {size:012}\n".encode())
    file.write(contents)
    for array in arrays.values():
        file.write(bytes(-file.tell() % _ALIGN))
        file.write(np.ascontiguousarray(array).data)


def _contents(arrays: Arrays) -> tuple[bytes, int]:
    """Lay the arrays out behind a table of contents that has room for its own numbers."""
    names = [f"{name} {array.dtype.str} {len(array):010} " for name, array in arrays.items()]
    length = sum(len(line) + 13 for line in names)
    first_line = len(f"kodojo arrays {_FORMAT} {length} 00000000 {0:012}\n")
    end = first_line + length
    contents = []
    for line, array in zip(names, arrays.values(), strict=True):
        start = -(-end // _ALIGN) * _ALIGN
        contents.append(f"{line}{start:012}\n")
        end = start + array.nbytes
    return "".join(contents).encode(), end


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Map the arrays of a file, read-only.

    :raises CorruptError: the file is not what was written, or another version of kodojo wrote it.
    :raises OSError: it is absent or cannot be read.
    """
    with path.open("rb") as file:
        first = file.readline(_LONGEST_LINE)
        words = first.decode("ascii", "replace").split()
        if words[:3] != ["kodojo", "arrays", _FORMAT] or len(words) != 6 or not words[3].isdecimal():
            raise _corrupt(path, "it is no such file")
        contents = file.read(min(int(words[3]), _LONGEST_CONTENTS))
        if f"{zlib.crc32(contents):08x}" != words[4]:
            raise _corrupt(path, "its table of contents is damaged")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if words[5] != f"{len(mapping):012}":
        raise _corrupt(path, f"it should have {words[5]} bytes and has {len(mapping)}")
    try:
        lines = [line.split() for line in contents.decode("ascii").splitlines()]
        return {
            name: np.frombuffer(mapping, _checked(dtype), int(count), int(offset))
            for name, dtype, count, offset in lines
        }
    except ValueError as error:
        raise _corrupt(path, str(error)) from error


def _checked(dtype: str) -> str:
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(f"{dtype} is no type of a number")
    return dtype


def _corrupt(path: Path, why: str) -> CorruptError:
    return CorruptError(f"{path}: damaged: {why}", hint=f"remove it (rm {path}) and repeat the command")
