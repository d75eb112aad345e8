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

    def call_below(self, function: str, *arguments: int, by: str = "") -> int:
        """A function that the kernel's loader calls: its value as C int.

        :param by: which function of the loader calls it; the first on the way that does, if empty.
        """
        address = self.symbol(function)
        return as_int(self.call(address, *arguments, way=self.call.way(address, by)))

    def call_pointer(self, function: int, *arguments: int, by: str = "", after: tuple[str, ...] = ()) -> int:
        """A function that the kernel's loader calls through a pointer: its value as C int.

        :param by: likewise. :param after: what that calls just before, one of these, if it calls several so.
        """
        return as_int(self.call(function, *arguments, way=self.call.way(0, by, after)))
