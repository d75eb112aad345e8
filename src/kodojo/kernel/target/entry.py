"""Where our loader stands in the kernel's code: inside of a system call, in place of the functions that it plays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kodojo.errors import LoadError, UnloadError
from kodojo.kernel.target.base import Part, as_int
from kodojo.loader.target import KernelErrno

__all__ = ["EntryPart"]


class EntryPart(Part):
    """Enters and leaves the kernel, and calls from its depth what modules bring."""

    @contextmanager
    def system_call(self, name: str, *arguments: int) -> Iterator[None]:
        with self.user.inside(name, *arguments) as call:
            try:
                yield
            except (LoadError, UnloadError, KernelErrno) as refusal:
                call.value = -refusal.errno
                raise
            call.value = 0

    def call_below(self, function: str | int, *arguments: int) -> int:
        """A function that the kernel's loader calls by its name: its value as C int."""
        address = self.symbol(function) if isinstance(function, str) else function
        return as_int(self.call(address, *arguments, way=self.call.way(address)))

    def call_pointer(self, function: int, *arguments: int) -> int:
        """A function that the system call's own function calls through a pointer."""
        return as_int(self.call(function, *arguments, way=self.call.way(0)))
