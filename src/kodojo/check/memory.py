"""How much memory checking a module takes, and how much there is."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import KodojoError
from kodojo.image.compression import compression_of

if TYPE_CHECKING:
    from kodojo.check.sources import GivenModule

__all__ = ["TIMES", "available_memory", "demand_room", "room_of"]

TIMES = 4
"""A check needs at most so many times the size of the module, unpacked."""

_SMALL = 16 << 20  # bytes of a module; what it takes is not worth a question
_USUALLY = 8  # times its size is what a compressed module has, unpacked, at most


def available_memory() -> int | None:
    """Bytes that this process may still take: of its address space, of its group, of the computer; None: unknown."""
    found = [room for room in (_of_address_space(), _of_group(), _of_computer()) if room is not None]
    return max(0, min(found)) if found else None


def _of_address_space() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        return limit - pages * resource.getpagesize()
    return None


def _of_group() -> int | None:
    """Of a control group with a limit (cgroup v2); what it keeps of files can be dropped."""
    with suppress(OSError, ValueError, IndexError, KeyError, StopIteration):
        name = next(line[3:] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::"))
        group = Path("/sys/fs/cgroup", name.lstrip("/"))
        limit = (group / "memory.max").read_text("ascii").strip()
        used = int((group / "memory.current").read_text("ascii"))
        files = dict(line.split() for line in _lines(group / "memory.stat"))
        return None if limit == "max" else int(limit) - used + int(files["inactive_file"])
    return None


def _of_computer() -> int | None:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable:"))
        return int(line.split()[1]) << 10
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text("ascii").splitlines()


def demand_room(label: str, size: int) -> None:
    """See to it that a module can be checked.

    :param size: of the module, unpacked.
    :raises KodojoError: there is not enough memory.
    """
    if size <= _SMALL:
        return
    room = available_memory()
    if room is not None and TIMES * size > room:
        raise KodojoError(
            f"{label}: checking it takes up to {TIMES * size >> 20} MiB of memory; there are {room >> 20}",
            hint="allow this process more (ulimit -v), end other programs, or check it on a larger computer",
        )


def room_of(module: GivenModule) -> int:
    """Bytes of memory that checking a module may take; 0 if they are not worth a question."""
    if module.content is not None:
        size = len(module.content)
    else:
        try:
            size = os.stat(module.path).st_size  # noqa: PTH116  for speed: there are thousands
            if _SMALL // _USUALLY < size <= _SMALL and module.own:
                with module.path.open("rb") as file:
                    size *= _USUALLY if compression_of(file.read(8)) else 1
        except (OSError, ValueError):
            return 0
    return TIMES * size if size > _SMALL else 0
