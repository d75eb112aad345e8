"""A case: system calls that are made one after the other in a freshly booted machine."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property

from kodojo.kernel.abi import abi_of

__all__ = ["Argument", "Call", "Case", "Kind", "encode", "in_file", "in_memory", "number", "opened", "text"]

SETTLE = 300
"""Milliseconds of guest time after a call, in which work queues and threads have their turn."""

_RECORD = struct.Struct("<II")
_DATA, _CALL, _UNPRIVILEGED = 1, 2, 3
_ARGUMENTS = 3
_MOST_DATA = 64


class Kind:
    """What an argument is; guest.c has the same numbers."""

    VALUE, ADDRESS, DESCRIPTOR, PATH = range(4)


@dataclass(frozen=True)
class Argument:
    """One argument of a system call.

    :param kind: VALUE: the value itself. ADDRESS: where ``data`` is in user memory, plus the value; an unmapped page
        follows the last one that has data. DESCRIPTOR: a file with ``data``, opened with the flags in ``value``.
        PATH: what exists under the name in ``data``, likewise.
    """

    kind: int = Kind.VALUE
    data: bytes = b""
    value: int = 0


def number(value: int) -> Argument:
    return Argument(value=value)


def in_memory(data: bytes, offset: int = 0) -> Argument:
    return Argument(Kind.ADDRESS, data, offset)


def text(string: str | bytes) -> Argument:
    """A string with its NUL."""
    return in_memory((string if isinstance(string, bytes) else string.encode()) + b"\0")


def in_file(data: bytes, flags: int = 0) -> Argument:
    return Argument(Kind.DESCRIPTOR, data, flags)


def opened(path: str, flags: int = 0) -> Argument:
    return Argument(Kind.PATH, path.encode(), flags)


@dataclass(frozen=True)
class Call:
    """A system call.

    :param looks_at: the modules whose directories in sysfs are to be looked at afterwards.
    :param privileged: made by root, or by a user without any capability.
    """

    name: str
    arguments: tuple[Argument, ...]
    looks_at: tuple[str, ...] = ()
    privileged: bool = True


@dataclass(frozen=True)
class Case:
    """A sequence of calls.

    :param group: the kind of case, for tables.
    :param architecture: whose numbers the calls have, as ``uname -m`` says.
    """

    group: str
    name: str
    calls: tuple[Call, ...]
    architecture: str = "x86_64"

    @cached_property
    def digest(self) -> str:
        """Of everything that is put into the machine."""
        return hashlib.sha256(encode(self)).hexdigest()


def encode(case: Case) -> bytes:
    """The case as guest.c reads it: each datum once, then the calls."""
    places: dict[bytes, int] = {}
    records = bytearray()
    for call in case.calls:
        for argument in call.arguments:
            data = argument.data + b"\0" if argument.kind == Kind.PATH else argument.data
            if argument.kind != Kind.VALUE and data not in places:
                places[data] = len(places)
                records += _RECORD.pack(_DATA, len(data)) + data
        if not call.privileged:
            records += _RECORD.pack(_UNPRIVILEGED, 0)
        padded = (*call.arguments, *[Argument()] * _ARGUMENTS)[:_ARGUMENTS]
        body = struct.pack("<II", abi_of(case.architecture).system_calls[call.name], SETTLE)
        for argument in padded:
            data = argument.data + b"\0" if argument.kind == Kind.PATH else argument.data
            body += struct.pack("<IIQ", argument.kind, places.get(data, 0), argument.value & ((1 << 64) - 1))
        body += b"".join(f"/sys/module/{name}".encode() + b"\0" for name in call.looks_at)
        records += _RECORD.pack(_CALL, len(body)) + body
    assert len(places) <= _MOST_DATA, case.name
    return bytes(records)
