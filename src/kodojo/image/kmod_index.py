"""The binary indexes that depmod leaves beside modules: ``modules.dep.bin``, ``modules.alias.bin`` and others.

A file is a trie of keys, whose values have priorities (``libkmod/libkmod-index.c``). Numbers are big-endian::

    u32 magic, u32 version, u32 root
    node: [prefix, NUL] [u8 first, u8 last, u32 children[last - first + 1]] [u32 count, (u32 priority, value, NUL)...]

The upper bits of a node's offset say which of the three parts it has. Nothing in a file is trusted: what lies outside
of it, a circle, and a node that is met too often are errors.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kodojo.errors import ImageError, decode

__all__ = ["MAGIC", "VERSION", "KmodIndex", "NodeFlag"]

MAGIC = 0xB007F457
VERSION = 0x00020001


class NodeFlag:
    """What the upper bits of an offset mean: which parts the node has."""

    PREFIX = 0x80000000
    VALUES = 0x40000000
    CHILDREN = 0x20000000
    OFFSET = 0x0FFFFFFF


_HEADER = struct.Struct(">III")
_WORD = struct.Struct(">I")
_LARGEST = 256 << 20  # what an offset can reach
_VISITS = 4  # a search may meet a node by a wildcard and literally
_LONGEST_KEY = 4096  # PATH_MAX
_WILD = frozenset(b"*?[")


class _Node(NamedTuple):
    prefix: bytes
    first: int
    children: tuple[int, ...]
    values: list[tuple[int, bytes]]

    def child(self, character: int) -> int:
        """Its offset, 0 if there is none."""
        at = character - self.first
        return self.children[at] if 0 <= at < len(self.children) else 0


class KmodIndex:
    """An index, open for look-ups.

    :param data: the content of the file.
    :param name: what errors call it.
    :raises ImageError: it is no index, or one of another format; look-ups raise it for damage that they meet.
    """

    def __init__(self, data: bytes | mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._budget = 0
        if len(data) < _HEADER.size:
            raise self._damaged("it is too short")
        magic, version, self._root = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise self._damaged("it is no index of kmod's")
        if version >> 16 != VERSION >> 16:
            raise self._damaged(f"its format {version >> 16}.{version & 0xFFFF} is unknown")

    @classmethod
    def open(cls, path: Path) -> KmodIndex | None:
        """The index in a file, None if there is no such file, or an empty one.

        :raises ImageError: as the class; also for what is no regular file, or cannot be read.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error.strerror or str(error)) from error
        with os.fdopen(descriptor, "rb"):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable(path, "it is not a regular file")
            if status.st_size > _LARGEST:
                raise _unreadable(path, f"it is larger than {_LARGEST >> 20} MiB")
            if not status.st_size:
                return None  # as depmod leaves it where there is nothing to say
            return cls(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), str(path))

    def search(self, key: bytes) -> bytes | None:
        """The first value of a key, None if it is not there (``index_mm_search``)."""
        self._budget = _VISITS * len(self._data)
        offset, at = self._root, 0
        while (node := self._node(offset)) is not None:
            if key[at : at + len(node.prefix)] != node.prefix:
                return None
            at += len(node.prefix)
            if at == len(key):
                return node.values[0][1] if node.values else None
            offset = node.child(key[at])
            at += 1
        return None

    def search_wild(self, key: bytes, matches: Callable[[str, str], bool]) -> list[str]:
        """The values of all keys that match, which are patterns (``index_mm_searchwild``); lowest priority first.

        What stands before the first wildcard of a pattern has to be literally the beginning of ``key``, and wildcards
        in ``key`` have no meaning, but that they are found literally, too: then a value comes twice, as kmod has it.

        :param matches: ``fnmatch(3)``: whether a pattern matches a text.
        """
        self._budget = _VISITS * len(self._data)
        found: list[tuple[int, bytes]] = []
        offset, at = self._root, 0
        while (node := self._node(offset)) is not None:
            for place, character in enumerate(node.prefix):
                if character in _WILD:
                    rest = decode(key[at + place :])
                    self._collect(node, node.prefix[place:], rest, matches, found)
                    return _by_priority(found)
                if key[at + place : at + place + 1] != node.prefix[place : place + 1]:
                    return _by_priority(found)
            at += len(node.prefix)
            for wildcard in b"*?[":
                child = self._node(node.child(wildcard))
                if child is not None:
                    pattern = bytes([wildcard]) + child.prefix
                    self._collect(child, pattern, decode(key[at:]), matches, found)
            if at == len(key):
                found += node.values
                break
            offset = node.child(key[at])
            at += 1
        return _by_priority(found)

    def items(self) -> Iterator[tuple[bytes, int, bytes]]:
        """All keys with each of their values: key, priority, value; sorted by key."""
        self._budget = _VISITS * len(self._data)
        root = self._node(self._root)
        if root is not None:
            for key, node in self._below(root, root.prefix, after=False):
                for priority, value in node.values:
                    yield key, priority, value

    def _collect(
        self,
        node: _Node,
        pattern: bytes,
        text: str,
        matches: Callable[[str, str], bool],
        found: list[tuple[int, bytes]],
    ) -> None:
        """Add the values below a node whose keys, from the wildcard on, match."""
        for key, each in self._below(node, pattern, after=True):
            if each.values and matches(decode(key), text):
                found += each.values

    def _below(self, top: _Node, key: bytes, *, after: bool) -> Iterator[tuple[bytes, _Node]]:
        """A node and all below it with their keys; ``after``: a node comes after its children."""
        stack: list[tuple[bytes, _Node, Iterator[tuple[int, int]]]] = [(key, top, self._children(top))]
        if not after:
            yield key, top
        while stack:
            key, node, rest = stack[-1]
            character, offset = next(rest, (0, 0))
            child = self._node(offset)
            if child is None:
                stack.pop()
                if after:
                    yield key, node
                continue
            below = key + bytes([character]) + child.prefix
            if len(below) > _LONGEST_KEY:
                raise self._damaged(f"a key is longer than {_LONGEST_KEY} bytes")
            stack.append((below, child, self._children(child)))
            if not after:
                yield below, child

    @staticmethod
    def _children(node: _Node) -> Iterator[tuple[int, int]]:
        return ((node.first + at, offset) for at, offset in enumerate(node.children) if offset & NodeFlag.OFFSET)

    def _node(self, offset: int) -> _Node | None:
        start = at = offset & NodeFlag.OFFSET
        if not at:
            return None
        prefix, first = b"", 0
        children: tuple[int, ...] = ()
        values: list[tuple[int, bytes]] = []
        try:
            if offset & NodeFlag.PREFIX:
                prefix, at = self._text(at)
            if offset & NodeFlag.CHILDREN:
                first, last = self._data[at], self._data[at + 1]
                count = max(0, last - first + 1)
                children = struct.unpack_from(f">{count}I", self._data, at + 2)
                at += 2 + 4 * count
            if offset & NodeFlag.VALUES:
                (number,) = _WORD.unpack_from(self._data, at)
                at += 4
                for _ in range(number):
                    (priority,) = _WORD.unpack_from(self._data, at)
                    value, at = self._text(at + 4)
                    values.append((priority, value))
        except (IndexError, struct.error) as error:
            raise self._damaged(f"the node at {start} is not inside the file") from error
        self._budget -= max(1, at - start)
        if self._budget < 0:
            raise self._damaged("its nodes make a circle")
        return _Node(prefix, first, children, values)

    def _text(self, at: int) -> tuple[bytes, int]:
        end = self._data.find(b"\0", at)
        if end < 0:
            raise IndexError
        return self._data[at:end], end + 1

    def _damaged(self, why: str) -> ImageError:
        return _unreadable(self._name, why)


def _by_priority(found: list[tuple[int, bytes]]) -> list[str]:
    """Lowest first; of those that are equal the one that was found last (``add_value``)."""
    found.reverse()
    found.sort(key=lambda entry: entry[0])
    return [decode(value) for _, value in found]


def _unreadable(name: Path | str, why: str) -> ImageError:
    return ImageError(f"{name}: damaged: {why}", hint="have depmod write it anew: kodojo depmod -b ROOT RELEASE")
