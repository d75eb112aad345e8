"""The order of kmod's hash tables, in which depmod writes what has no other order.

The function is Paul Hsieh's SuperFastHash (``shared/hash.c: hash_superfast``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

__all__ = ["hash_order"]

_32_BITS = 0xFFFFFFFF


def hash_order(keys: Iterable[bytes], buckets: int) -> list[bytes]:
    """Keys in the order of a table: by bucket, and sorted in each.

    :param buckets: how many there are, a power of two.
    """
    return sorted(keys, key=partial(_place, mask=buckets - 1))


def _place(key: bytes, mask: int) -> tuple[int, bytes]:
    return _superfast(key) & mask, key


def _superfast(key: bytes) -> int:
    """On a machine where ``char`` is signed and the low byte comes first, as on x86."""
    length = len(key)
    value = length
    end = length & ~3
    for at in range(0, end, 4):
        value = (value + (key[at] | key[at + 1] << 8)) & _32_BITS
        mixed = ((key[at + 2] | key[at + 3] << 8) << 11) ^ value
        value = ((value << 16) ^ mixed) & _32_BITS
        value = (value + (value >> 11)) & _32_BITS
    rest = key[end:]
    if len(rest) == 3:
        value = (value + (rest[0] | rest[1] << 8)) & _32_BITS
        value ^= (value << 16) & _32_BITS
        value ^= (_signed(rest[2]) << 18) & _32_BITS
        value += value >> 11
    elif len(rest) == 2:
        value = (value + (rest[0] | rest[1] << 8)) & _32_BITS
        value ^= (value << 11) & _32_BITS
        value += value >> 17
    elif len(rest) == 1:
        value = (value + _signed(rest[0])) & _32_BITS
        value ^= (value << 10) & _32_BITS
        value += value >> 1
    return _avalanche(value & _32_BITS)


def _avalanche(value: int) -> int:
    for left, right in ((3, 5), (4, 17), (25, 6)):
        value ^= (value << left) & _32_BITS
        value = (value + (value >> right)) & _32_BITS
    return value


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte
