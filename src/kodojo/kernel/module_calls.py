"""The part of a kernel's facade that is the bare system calls of modules: 0 or -errno, and no advice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from kodojo.errors import LoadError, UnloadError, encode
from kodojo.kernel.file_calls import FileCalls, as_operation
from kodojo.kernel.target import BootedTarget
from kodojo.kernel.user import UserSpace
from kodojo.loader.syscalls import sys_delete_module, sys_finit_module, sys_init_module

__all__ = ["ModuleCalls"]


class ModuleCalls(FileCalls):
    """What :class:`kodojo.Kernel` has from here."""

    user: UserSpace
    target: BootedTarget

    @abstractmethod
    def bring_firmware(self) -> None:
        """Let the guest find the image's firmware."""

    @contextmanager
    def _in_user_memory(self, value: bytes | str | int) -> Iterator[tuple[int, int]]:
        """Address and size of what the caller passes."""
        if isinstance(value, int):
            yield value, 0
            return
        data = value if isinstance(value, bytes) else encode(value)
        with self.user.memory(data) as address:
            yield address, len(data)

    @contextmanager
    def _string_in_user_memory(self, value: bytes | str | int) -> Iterator[int]:
        if isinstance(value, int):
            yield value
            return
        with self.user.string(value if isinstance(value, bytes) else encode(value)) as address:
            yield address

    @as_operation
    def init_module(self, image: bytes | str | int, args: bytes | str | int = "", length: int | None = None) -> int:
        """``init_module(2)`` by our loader: 0 or -errno of the guest.

        :param image: the file's content, or an address in the caller's user space.
        :param args: likewise, a string.
        :param length: the length that the caller claims; that of ``image`` by default.
        """
        self.bring_firmware()
        with self._in_user_memory(image) as (umod, size), self._string_in_user_memory(args) as uargs:
            try:
                sys_init_module(self.target, umod, size if length is None else length, uargs)
            except LoadError as error:
                return -error.errno
        return 0

    @as_operation
    def finit_module(self, fd: int, args: bytes | str | int = "", flags: int = 0) -> int:
        """``finit_module(2)`` by our loader: 0 or -errno of the guest.

        :param fd: a descriptor of this Python process.
        """
        self.bring_firmware()
        with self._string_in_user_memory(args) as uargs:
            try:
                sys_finit_module(self.target, fd, uargs, flags)
            except LoadError as error:
                return -error.errno
        return 0

    @as_operation
    def delete_module(self, name: bytes | str | int, flags: int = 0) -> int:
        """``delete_module(2)`` by our loader: 0 or -errno of the guest."""
        try:
            sys_delete_module(self.target, name, flags)
        except UnloadError as error:
            return -error.errno
        return 0
