"""How much may come out of one input that nobody vouches for: the one place with the numbers.

An :class:`Account` belongs to a file that was given, and is shared by everything that is read of it: the archives
that follow each other in an initramfs, the streams of a compressed archive. Nesting is bounded by the formats that
are read: an archive in a stream in a package, and modules that are compressed themselves; no archive in an archive is
opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from kodojo.errors import PackageError

__all__ = ["LIMITS", "LONGEST_NAME", "Account", "Limits"]

LONGEST_NAME = 4096
"""Bytes of a member's name: Linux has no longer paths (PATH_MAX)."""


@dataclass(frozen=True)
class Limits:
    """Of one input.

    :param members: of its archives. :param modules: among them, where they are all looked at.
    :param streams: of compressed data, one after the other.
    :param size: bytes, packed and unpacked; distribution kernels have 0.1 to 1 GiB.
    :param ratio: of unpacked to packed size, from ``ratio_from`` bytes on; kernels reach about 6.
    :param names: bytes of names that have to be remembered.
    """

    members: int = 200_000
    modules: int = 20_000
    streams: int = 1 << 16
    size: int = 4 << 30
    ratio: int = 200
    ratio_from: int = 64 << 20
    names: int = 64 << 20

    def is_bomb(self, unpacked: int, packed: int) -> bool:
        """Whether so much cannot have been packed so small by anyone who means well."""
        return unpacked > self.ratio_from and unpacked > self.ratio * packed


LIMITS = Limits()


class Account:
    """What was read of an input, and what came out of it.

    :param name: of the file, for messages.
    :param on_read: called with the number of bytes of each read.
    :attr limits: those that hold for it.
    :attr exceeded: a limit was exceeded: the rest of the input is not worth a look, nor is what came before.
    """

    def __init__(self, name: str, on_read: Callable[[int], None] | None = None) -> None:
        self.name = name
        self.exceeded = False
        self._on_read = on_read
        self.limits = LIMITS
        self._read = self._unpacked = self._members = self._streams = self._names = 0

    def size_of(self, file: BinaryIO) -> int:
        """Bytes of the input, which is open.

        :raises PackageError: it is larger than any package.
        """
        size = os.fstat(file.fileno()).st_size
        if size > self.limits.size:
            raise self._refusal(f"it has more than {self.limits.size >> 20} MiB")
        return size

    def read(self, size: int) -> None:
        """So many bytes were read."""
        self._read += size
        if self._on_read is not None:
            self._on_read(size)

    def unread(self, size: int) -> None:
        """So many of them belong to something else, which will be read again."""
        self._read -= size

    def unpacked(self, size: int) -> None:
        """So many bytes came out. PackageError if they are far too many."""
        self._unpacked += size
        if self._unpacked > self.limits.size:
            raise self._refusal(f"more than {self.limits.size >> 20} MiB unpacked")
        if self._unpacked > self.limits.ratio_from and self.limits.is_bomb(self._unpacked, self._read):
            raise self._refusal(f"more than {self.limits.ratio} times its size unpacked")

    def member(self) -> None:
        """A member was met. PackageError if they are too many."""
        self._members += 1
        if self._members > self.limits.members:
            raise self._refusal(f"more than {self.limits.members} members")

    def stream(self) -> None:
        """A stream of compressed data begins. PackageError likewise."""
        self._streams += 1
        if self._streams > self.limits.streams:
            raise self._refusal(f"more than {self.limits.streams} streams of compressed data")

    def remember(self, name: str) -> None:
        """A name has to be kept. PackageError if that is too much."""
        self._names += len(name)
        if self._names > self.limits.names:
            raise self._refusal(f"more than {self.limits.names >> 20} MiB of names")

    def modules(self, number: int) -> None:
        """So many modules were found. PackageError if no kernel has so many."""
        if number > self.limits.modules:
            raise self._refusal(f"more than {self.limits.modules} modules")

    def _refusal(self, what: str) -> PackageError:
        self.exceeded = True
        return PackageError(
            f"{self.name}: refused: {what}; no kernel package is like that",
            hint="if you trust it, unpack it yourself and give the directory",
        )
