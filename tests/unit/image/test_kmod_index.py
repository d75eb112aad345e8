"""depmod's binary indexes, whole and damaged."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodojo.errors import ImageError
from kodojo.image.kmod_index import KmodIndex
from kodojo.kmod.depmod.index_writer import IndexWriter
from kodojo.kmod.names import fnmatch

KEYS = ["", "a", "ask", "ate", "on", "once", "one", "pci:v0001d*", "pci:v0001d0002*", "pci:*", "x[0-9]y", "?", "o*e"]


def build(*keys: str) -> bytes:
    """An index in which each key has its number for a value, and for a priority."""
    writer = IndexWriter()
    for number, key in enumerate(keys):
        writer.add(key.encode(), str(number).encode(), number)
    return writer.build()


def opened(*keys: str) -> KmodIndex:
    return KmodIndex(build(*keys), "paper.bin")


@given(st.lists(st.text("ab-[]*?", max_size=6), unique=True))
def test_every_key_is_found_by_its_own_name_only(keys):
    index = opened(*keys)
    assert {key.decode(): int(value) for key, _, value in index.items()} == {key: n for n, key in enumerate(keys)}
    for number, key in enumerate(keys):
        assert index.search(key.encode()) == str(number).encode()
    assert index.search(b"abc") is None


@given(st.lists(st.text("ab[]*?", min_size=1, max_size=5), unique=True), st.text("ab", max_size=5))
def test_plain_names_match_as_fnmatch_says(keys, name):
    """What is looked up has no wildcards: then the trie gives what a comparison with every pattern gives."""
    found = opened(*keys).search_wild(name.encode(), fnmatch)
    assert found == [str(number) for number, key in enumerate(keys) if fnmatch(key, name)]


def test_a_wildcard_in_the_name_is_literal_and_counts_twice_where_it_is_one_in_the_pattern_too():
    """So kmod's trie has it; test_depmod.py holds it against ``modprobe -R``."""
    assert opened("pci:*", "pci:v1").search_wild(b"pci:*", fnmatch) == ["0", "0"]
    assert opened("pci:v[0-1]", "pci:v1").search_wild(b"pci:v[0-1]", fnmatch) == ["0"]


def test_of_equal_priorities_the_last_one_comes_first():
    writer = IndexWriter()
    for value in (b"first", b"second"):
        writer.add(b"key", value)
    index = KmodIndex(writer.build(), "x")
    assert [value for _, _, value in index.items()] == [b"second", b"first"]
    assert index.search_wild(b"key", fnmatch) == ["first", "second"]  # turned round once more, as in kmod


def test_keys_that_are_not_ascii_are_refused():
    writer = IndexWriter()
    writer.add("ü".encode(), b"x")
    assert (writer.refused, list(KmodIndex(writer.build(), "x").items())) == (["ü".encode()], [])


def test_a_chain_of_keys_longer_than_pythons_stack():
    keys = ["a" * length for length in range(1, 3000)]
    assert len(list(opened(*keys).items())) == len(keys)


# -- damage -----------------------------------------------------------------------------------------------


def exercise(data: bytes) -> None:
    """Ask everything; an ImageError is an answer, others are failures of the test."""
    with suppress(ImageError):
        index = KmodIndex(data, "paper.bin")
        for key in ("once", "pci:v0001d0002x", "x7y", "\x7f"):
            index.search(key.encode())
            index.search_wild(key.encode(), fnmatch)
        list(index.items())


def test_damage_is_an_error_that_names_the_file_and_the_remedy():
    with pytest.raises(ImageError, match=r"^paper\.bin: damaged: ") as caught:
        list(KmodIndex(build(*KEYS)[:-4], "paper.bin").items())
    assert "kodojo depmod" in caught.value.hint


def test_every_truncation_has_an_answer():
    whole = build(*KEYS)
    for length in range(len(whole)):
        exercise(whole[:length])


@pytest.mark.parametrize("change", [0x01, 0x20, 0x80, 0xFF])
def test_every_changed_byte_has_an_answer(change):
    whole = build(*KEYS)
    for at in range(len(whole)):
        exercise(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])


def test_a_circle_of_nodes_ends():
    """A node that is its own child would give keys for ever."""
    node = bytes([97, 97]) + struct.pack(">I", 0x20000000 | 12)
    with pytest.raises(ImageError, match="damaged"):
        list(KmodIndex(struct.pack(">III", 0xB007F457, 0x20001, 0x20000000 | 12) + node, "paper.bin").items())


def test_nodes_that_share_children_do_not_multiply():
    """A diamond on a diamond on a diamond: few bytes, and more keys than could ever be counted."""
    data = bytearray(struct.pack(">III", 0xB007F457, 0x20001, 0))
    below = len(data) | 0x40000000
    data += struct.pack(">II", 1, 0) + b"v\0"
    for _ in range(64):
        offset = len(data) | 0x20000000
        data += bytes([97, 98]) + struct.pack(">II", below, below)
        below = offset
    struct.pack_into(">I", data, 8, below)
    with pytest.raises(ImageError, match="damaged"):
        list(KmodIndex(bytes(data), "paper.bin").items())


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "modules.dep.bin")
    with pytest.raises(ImageError, match="not a regular file"):
        KmodIndex.open(tmp_path / "modules.dep.bin")


def test_an_absent_or_empty_file_is_no_index(tmp_path):
    """depmod leaves empty ones behind where the tree has no modules.builtin."""
    (tmp_path / "empty").touch()
    assert KmodIndex.open(tmp_path / "empty") is None
    assert KmodIndex.open(tmp_path / "absent") is None
