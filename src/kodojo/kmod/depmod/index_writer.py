"""Writing the binary indexes that :mod:`kodojo.image.kmod_index` reads (``tools/depmod.c: index_write``)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from kodojo.image.kmod_index import MAGIC, VERSION, NodeFlag

__all__ = ["IndexWriter"]

_WORD = struct.Struct(">I")


@dataclass
class _Frame:
    """A node that is being written.

    :param next: of the keys below it the first one that no child has yet; ``high``: behind the last one.
    :param depth: how many bytes its keys have in common, its prefix included.
    :param own: its own key, if it has values. :param offsets: of its children, by character.
    """

    next: int
    high: int
    depth: int
    prefix: bytes
    own: bytes | None
    offsets: dict[int, int] = field(default_factory=dict)


class IndexWriter:
    """An index in the making: keys with values, each of which has a priority."""

    def __init__(self) -> None:
        self._values: dict[bytes, list[tuple[int, bytes]]] = {}
        self.refused: list[bytes] = []

    def add(self, key: bytes, value: bytes, priority: int = 0) -> bool:
        """Add a value; whether the key has the same one already (``index_insert``).

        Keys are ASCII: others are kept in ``refused`` instead.
        """
        if not key.isascii() or b"\0" in key:
            self.refused.append(key)
            return False
        values = self._values.setdefault(key, [])
        known = any(other == value for _, other in values)
        values.append((priority, value))
        return known

    def build(self) -> bytes:
        """The content of the file: nodes after their children, as kmod up to version 33 writes them."""
        keys = sorted(self._values)
        out = bytearray(struct.pack(">III", MAGIC, VERSION, 0))
        stack = [_frame(keys, 0, len(keys), 0, 0)]
        characters: list[int] = []  # that lead to the frames, but the first one
        while True:
            frame = stack[-1]
            if frame.next < frame.high:
                character = keys[frame.next][frame.depth]
                end = _end_of(keys, frame.next, frame.high, frame.depth)
                shared = _shared(keys[frame.next], keys[end - 1])
                characters.append(character)
                stack.append(_frame(keys, frame.next, end, frame.depth + 1, shared))
                frame.next = end
                continue
            offset = _write(out, frame, self._ordered(frame.own))
            stack.pop()
            if not stack:
                _WORD.pack_into(out, 8, offset)
                return bytes(out)
            stack[-1].offsets[characters.pop()] = offset

    def _ordered(self, key: bytes | None) -> list[tuple[int, bytes]]:
        """Lowest priority first; of those that are equal the one that was added last."""
        values = [] if key is None else list(self._values[key])
        values.reverse()
        values.sort(key=lambda entry: entry[0])
        return values


def _frame(keys: Sequence[bytes], low: int, high: int, start: int, depth: int) -> _Frame:
    """The node of the keys from ``low`` to ``high``, whose prefix is what they have in common behind ``start``."""
    prefix = keys[low][start:depth] if low < high else b""
    is_key = low < high and len(keys[low]) == depth
    return _Frame(low + is_key, high, depth, prefix, keys[low] if is_key else None)


def _shared(first: bytes, last: bytes) -> int:
    """How many bytes two keys, and so all between them, have in common."""
    length = min(len(first), len(last))
    return next((at for at in range(length) if first[at] != last[at]), length)


def _end_of(keys: Sequence[bytes], low: int, high: int, at: int) -> int:
    """Where the keys end that have the same byte at a place as the first one."""
    character = keys[low][at]
    end = low + 1
    while end < high and keys[end][at] == character:
        end += 1
    return end


def _write(out: bytearray, frame: _Frame, values: Sequence[tuple[int, bytes]]) -> int:
    """Append a node; its offset, with flags."""
    offset = len(out)
    if frame.prefix:
        out += frame.prefix + b"\0"
        offset |= NodeFlag.PREFIX
    if frame.offsets:
        first, last = min(frame.offsets), max(frame.offsets)
        out += bytes((first, last))
        for character in range(first, last + 1):
            out += _WORD.pack(frame.offsets.get(character, 0))
        offset |= NodeFlag.CHILDREN
    if values:
        out += _WORD.pack(len(values))
        for priority, value in values:
            out += _WORD.pack(priority) + value + b"\0"
        offset |= NodeFlag.VALUES
    return offset
