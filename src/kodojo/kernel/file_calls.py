"""The part of a kernel's facade that is about files: what a shell does with cat, >, ls, mkdir, mount and so on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from kodojo.kernel.files import DirectoryEntry, Files, FileStatus, OpenFile

__all__ = ["FileCalls", "as_operation"]

_MNT_FORCE, _MNT_DETACH = 1, 2

K = TypeVar("K", bound="FileCalls")
P = ParamSpec("P")
T = TypeVar("T")


def as_operation(method: Callable[Concatenate[K, P], T]) -> Callable[Concatenate[K, P], T]:
    """A method that is one operation: see :meth:`kodojo.Kernel.operation`."""

    @wraps(method)
    def wrapper(kernel: K, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with kernel.operation():
            return method(kernel, *args, **kwargs)

    return wrapper


class FileCalls(ABC):
    """What :class:`kodojo.Kernel` has from here. Every method raises GuestOSError with the guest's errno.

    :attr files: the same without being operations.
    """

    files: Files

    @abstractmethod
    def operation(self) -> AbstractContextManager[None]:
        """The ``with`` block around everything that a user does."""

    @as_operation
    def read_file(self, path: str, size: int | None = None) -> bytes:
        """The content of a file of the guest, or at most ``size`` bytes of it."""
        return self.files.read(path, size)

    @as_operation
    def write_file(self, path: str, data: bytes, *, append: bool = False) -> None:
        """Write to a file of the guest, as the shell's ``>`` (or ``>>``) does."""
        self.files.write(path, data, append=append)

    @as_operation
    def list_directory(self, path: str) -> tuple[DirectoryEntry, ...]:
        """The names in a directory of the guest."""
        return self.files.list(path)

    @as_operation
    def open(self, path: str, flags: int = 0) -> OpenFile:
        """``openat(2)`` in the guest, for use in ``with``."""
        return self.files.open(path, flags)

    @as_operation
    def exists(self, path: str) -> bool:
        """Whether there is such a file in the guest."""
        return self.files.exists(path)

    @as_operation
    def stat(self, path: str, *, follow: bool = True) -> FileStatus:
        """Kind, mode, owner, size and device numbers of a file of the guest."""
        return self.files.status(path, follow=follow)

    @as_operation
    def readlink(self, path: str) -> str:
        """Where a symbolic link of the guest points to."""
        return self.files.link_target(path)

    @as_operation
    def mkdir(self, path: str, mode: int = 0o777, *, parents: bool = False) -> None:
        """Make a directory in the guest, with umask 022.

        :param parents: as ``mkdir -p``.
        """
        self.files.make_directory(path, mode, parents=parents)

    @as_operation
    def mknod(self, path: str, kind: str, major: int = 0, minor: int = 0, mode: int = 0o666) -> None:
        """Make a device file (``kind`` c or b) or a fifo (p) in the guest, with umask 022."""
        self.files.make_node(path, kind, major, minor, mode)

    @as_operation
    def chmod(self, path: str, mode: int) -> None:
        """Change the permissions of a file of the guest."""
        self.files.change_mode(path, mode)

    @as_operation
    def unlink(self, path: str) -> None:
        """Remove a file of the guest."""
        self.files.remove(path)

    @as_operation
    def rmdir(self, path: str) -> None:
        """Remove an empty directory of the guest."""
        self.files.remove(path, directory=True)

    @as_operation
    def mount(self, source: str, target: str, filesystem: str | None = None, options: str = "") -> None:
        """Mount a file system in the guest: ``kernel.mount("/dev/ram0", "/mnt", "ext4", "ro")``.

        :param filesystem: its type; None: those that the kernel has are tried.
        :param options: as of ``mount -o``.
        """
        self.files.mount(source, target, filesystem, options)

    @as_operation
    def umount(self, target: str, *, lazy: bool = False, force: bool = False) -> None:
        """Take a mounted file system of the guest away. Raises GuestOSError (EBUSY while it is in use).

        :param lazy: detach it now, clean up when it is no longer in use. :param force: give up what is under way.
        """
        self.files.unmount(target, (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if force else 0))
