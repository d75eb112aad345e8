"""The outer form of BTF: its header, the kinds of records, and how long each record is.

Source of the format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import numpy as np

from kodojo.errors import ImageError

_MAGIC = 0xEB9F
_HEADER_SIZE = 24

# BTF_KIND_*
VOID, INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(9, 20)

MODIFIERS = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
QUALIFIERS = {CONST: "const", VOLATILE: "volatile", RESTRICT: "restrict"}
COMPOUND = frozenset({STRUCT, UNION})
ENUMS = frozenset({ENUM, ENUM64})
KIND_NAMES = {
    VOID: "void",
    INT: "int",
    PTR: "pointer",
    ARRAY: "array",
    STRUCT: "struct",
    UNION: "union",
    ENUM: "enum",
    ENUM64: "enum",
    FLOAT: "float",
    FWD: "forward",
    FUNC_PROTO: "function",
}

# The size of a record in words of 4 bytes: a constant, and so much for each of its vlen items.
_UNKNOWN = 1 << 40  # a kind that does not exist jumps behind the end
CONSTANT_WORDS = (_UNKNOWN, 4, 3, 6, *(3,) * 10, 4, 3, 3, 4, 3, 3, *(_UNKNOWN,) * 12)
ITEM_WORDS = (0, 0, 0, 0, 3, 3, 2, *(0,) * 6, 2, 0, 3, 0, 0, 0, 3, *(0,) * 12)


def split(data: bytes | memoryview) -> tuple[np.ndarray, bytes]:
    """Check the header; return the type section as words and the string section."""
    view = memoryview(data).cast("B")
    if len(view) < _HEADER_SIZE:
        raise ImageError("the kernel's BTF is truncated")
    if int.from_bytes(view[:2], "little") != _MAGIC:
        raise ImageError("the kernel's section .BTF does not hold BTF")
    header = np.frombuffer(view, "<u4", 5, 4).tolist()
    header_size, type_offset, type_size, string_offset, string_size = header
    types = header_size + type_offset
    strings = header_size + string_offset
    if header_size < _HEADER_SIZE or types + type_size > len(view) or strings + string_size > len(view):
        raise ImageError("the kernel's BTF is truncated")
    if type_size % 4 or not string_size or view[strings] or view[strings + string_size - 1]:
        raise ImageError("the kernel's BTF is damaged: its sections are malformed")
    words = np.frombuffer(view, "<u4", type_size // 4, types)
    return words, bytes(view[strings : strings + string_size])


def record_words(info: int) -> int:
    """Return the length of a record in words, given its second word."""
    kind = info >> 24 & 0x1F
    return CONSTANT_WORDS[kind] + ITEM_WORDS[kind] * (info & 0xFFFF)


def scan(words: np.ndarray) -> list[int]:
    """Return the position of each record; the length of one is known only from itself."""
    native = memoryview(words.astype(np.uint32).tobytes()).cast("I")
    positions: list[int] = []
    append = positions.append
    position, end = 0, len(native)
    while position + 3 <= end:
        append(position)
        info = native[position + 1]
        kind = info >> 24 & 0x1F
        position += CONSTANT_WORDS[kind] + ITEM_WORDS[kind] * (info & 0xFFFF)
    if position != end:
        raise ImageError(f"the kernel's BTF is damaged: type {len(positions)} is unknown or truncated")
    return positions
