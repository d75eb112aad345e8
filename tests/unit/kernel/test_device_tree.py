from __future__ import annotations

import struct

from kodojo.kernel.device_tree import cells, flatten


def read(blob: bytes) -> dict:
    """A flattened tree as nested dictionaries, by the specification's own words."""
    magic, size, structure, strings, _, version, compatible, *_ = struct.unpack_from(">10I", blob)
    assert (magic, size, version, compatible) == (0xD00DFEED, len(blob), 17, 16)
    at = structure

    def word() -> int:
        nonlocal at
        at += 4
        return struct.unpack_from(">I", blob, at - 4)[0]

    def name(start: int) -> str:
        return blob[start : blob.index(b"\0", start)].decode()

    def node() -> dict:
        nonlocal at
        found = {}
        while (token := word()) != 2:
            if token == 3:
                length, where = word(), word()
                found[name(strings + where)] = blob[at : at + length]
                at += -(-length // 4) * 4
            else:
                assert token == 1
                child = name(at)
                at += -(-(len(child) + 1) // 4) * 4
                found[child] = node()
        return found

    assert word() == 1
    at += 4  # the root's empty name
    root = node()
    assert word() == 9
    return root


def test_tree():
    """A tree is read back as it was written, whatever lengths names and properties have."""
    tree = {
        "#size-cells": cells(2),
        "model": "abc",
        "chosen": {"bootargs": b"quiet\0", "empty": b"", "inner": {"model": "x"}},
        "memory@40000000": {"reg": cells(0, 1, 2, 3)},
    }
    assert read(flatten(tree)) == {
        "#size-cells": b"\0\0\0\2",
        "model": b"abc\0",
        "chosen": {"bootargs": b"quiet\0", "empty": b"", "inner": {"model": b"x\0"}},
        "memory@40000000": {"reg": bytes.fromhex("00000000 00000001 00000002 00000003")},
    }


def test_names_are_stored_once():
    """Nodes with the same properties share the names."""
    blob = flatten({"a": {"compatible": "x"}, "b": {"compatible": "y"}})
    assert blob.count(b"compatible\0") == 1
