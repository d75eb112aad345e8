"""Cases as guest.c reads them."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests.oracle.cases import (
    Call,
    Case,
    encode,
    in_file,
    in_memory,
    number,
    opened,
    pointing,
    result,
    text,
)


def records(raw: bytes) -> list[tuple[int, bytes]]:
    found, position = [], 0
    while position < len(raw):
        kind, size = struct.unpack_from("<II", raw, position)
        found.append((kind, raw[position + 8 : position + 8 + size]))
        position += 8 + size
    assert position == len(raw)
    return found


def arguments(body: bytes, count: int = 3) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<IIQ", body, 8 + 16 * index) for index in range(count)]


def test_data_comes_once_and_first():
    """What several arguments have in common is in the case once, before the call that needs it."""
    call = Call("init_module", (in_memory(b"image"), number(5), text("a=1")))
    kinds = [(kind, body) for kind, body in records(encode(Case("group", "name", (call, call)))) if kind == 1]
    assert kinds == [(1, b"image"), (1, b"a=1\0")]


def test_call():
    """A call has its number, three arguments and the directories to look at."""
    call = Call("finit_module", (in_file(b"image", 2), text(""), number(-1)), ("one", "two"))
    *_, (kind, body) = records(encode(Case("group", "name", (call,))))
    assert (kind, struct.unpack_from("<I", body)[0]) == (2, 313)
    assert arguments(body) == [(2, 0, 2), (1, 1, 0), (0, 0, (1 << 64) - 1)]
    assert body[56:] == b"/sys/module/one\0/sys/module/two\0"


def test_paths_end_with_nul():
    """A path is text for the kernel."""
    (_, path), _call = records(encode(Case("group", "name", (Call("finit_module", (opened("/tmp", 3),)),))))
    assert path == b"/tmp\0"


def test_digest_tells_cases_apart():
    """Everything that reaches the machine is in the digest; what people call the case is not."""
    load = Call("init_module", (in_memory(b"image"), number(5), text("")))
    case = Case("group", "name", (load,))
    assert case.digest == Case("other group", "other name", (load,)).digest
    for other in (
        Call("init_module", (in_memory(b"imagf"), number(5), text(""))),
        Call("init_module", (in_memory(b"image", 1), number(5), text(""))),
        Call("init_module", (in_memory(b"image"), number(4), text(""))),
        Call("delete_module", (in_memory(b"image"), number(5), text(""))),
        Call("init_module", (in_memory(b"image"), number(5), text("")), ("image",)),
    ):
        assert Case("group", "name", (other,)).digest != case.digest


def test_unprivileged_calls_are_marked():
    """A record before a call says that a user without capabilities makes it."""
    call = Call("delete_module", (text("a"), number(0)))
    kinds = [kind for kind, _ in records(encode(Case("group", "name", (call, replace(call, privileged=False)))))]
    assert kinds == [1, 2, 3, 2]


def test_earlier_calls():
    """What a process has done before comes before the call, with room for six arguments."""
    socket = Call("socket", (number(1), number(2), number(0)))
    attach = Call("setsockopt", (result(0), number(1), number(26), pointing(b"program", b"code"), number(16)))
    call = Call("write", (result(0), in_memory(b"x"), number(1)), earlier=(socket, attach))
    found = records(encode(Case("group", "name", (call,))))
    assert [kind for kind, _ in found] == [1, 1, 1, 4, 4, 2]
    assert [body for kind, body in found if kind == 1] == [b"program" + bytes(8), b"code", b"x"]
    assert arguments(found[4][1], 6) == [(4, 0, 0), (0, 0, 1), (0, 0, 26), (5, 0, 1), (0, 0, 16), (0, 0, 0)]
    assert arguments(found[5][1]) == [(4, 0, 0), (1, 2, 0), (0, 0, 1)]


def test_modprobe():
    """A case says whether there is a modprobe, and which modules it loads for a name, as files."""
    call = Call("getuid", ())
    without = Case("group", "name", (call,))
    assert [kind for kind, _ in records(encode(without))] == [2]
    assert [kind for kind, _ in records(encode(replace(without, modprobe=())))] == [5, 2]
    found = records(encode(replace(without, modprobe=(("fs-vfat", (b"fat", b"vfat")), ("fat", (b"fat",))))))
    assert [kind for kind, _ in found] == [5, 1, 6, 1, 6, 6, 2]
    files = [(struct.unpack_from("<I", body)[0], body[4:]) for kind, body in found if kind == 6]
    assert files == [(0, b"/tmp/fs-vfat.0\0"), (1, b"/tmp/fs-vfat.1\0"), (0, b"/tmp/fat.0\0")]


def test_paths_to_look_at():
    """A name is that of a module, a path is one."""
    call = Call("getuid", (), ("dummy", "/proc/cmdline"))
    ((_, body),) = records(encode(Case("group", "name", (call,))))
    assert body[56:] == b"/sys/module/dummy\0/proc/cmdline\0"
