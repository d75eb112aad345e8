"""Reading files that somebody else has laid out: a pipe or a device in a file's place must not be waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["read_regular"]

_LARGEST = 16 << 20  # bytes; the lists of a distribution's kernel have less than one MiB


def read_regular(path: Path) -> bytes:
    """Read one of the lists of a tree.

    :raises OSError: it cannot be read, is no regular file, or is larger than any list.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"larger than {_LARGEST >> 20} MiB", str(path))
        return file.read(status.st_size)
