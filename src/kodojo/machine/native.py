"""Machine instructions of our own, for places where the engine calls too often for Python."""

from __future__ import annotations

import mmap

__all__ = ["executable_page"]


def executable_page(routine: bytes) -> mmap.mmap | None:
    """A page with the routine at its beginning; None where the system forbids memory that is executable."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None
    page.write(routine)
    return page
