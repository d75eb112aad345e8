"""A flattened device tree, as a boot loader hands it to a kernel (Devicetree Specification 0.4, chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["Node", "cells", "flatten"]

Node: TypeAlias = "Mapping[str, bytes | str | Node]"
"""Properties (bytes, or a str that gets its NUL) and child nodes by name."""

_MAGIC, _VERSION, _LAST_COMPATIBLE = 0xD00DFEED, 17, 16
_BEGIN, _END, _PROPERTY, _END_OF_TREE = 1, 2, 3, 9
_HEADER = struct.Struct(">10I")
_NO_RESERVATIONS = bytes(16)


def cells(*values: int) -> bytes:
    """A property of 32-bit cells."""
    return struct.pack(f">{len(values)}I", *values)


def flatten(root: Node) -> bytes:
    """The tree as the blob that a kernel reads."""
    names: dict[str, int] = {}
    structure = _flattened("", root, names) + cells(_END_OF_TREE)
    strings = b"".join(name.encode() + b"\0" for name in names)
    reservations = _HEADER.size
    structure_at = reservations + len(_NO_RESERVATIONS)
    strings_at = structure_at + len(structure)
    header = _HEADER.pack(
        _MAGIC, strings_at + len(strings), structure_at, strings_at, reservations, _VERSION, _LAST_COMPATIBLE, 0,
        len(strings), len(structure),
    )  # fmt: skip
    return header + _NO_RESERVATIONS + structure + strings


def _flattened(name: str, node: Node, names: dict[str, int]) -> bytes:
    parts = [cells(_BEGIN), _padded(name.encode() + b"\0")]
    for key, value in node.items():
        if isinstance(value, Mapping):
            continue
        raw = value.encode() + b"\0" if isinstance(value, str) else value
        if key not in names:
            names[key] = sum(len(known) + 1 for known in names)
        parts.append(cells(_PROPERTY, len(raw), names[key]) + _padded(raw))
    parts += [_flattened(key, value, names) for key, value in node.items() if isinstance(value, Mapping)]
    return b"".join((*parts, cells(_END)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
