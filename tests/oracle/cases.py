"""A case: system calls that are made one after the other in a freshly booted machine."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from kodojo.kernel.abi import abi_of

__all__ = [
    "Argument",
    "Call",
    "Case",
    "Kind",
    "encode",
    "in_file",
    "in_memory",
    "modprobe_file",
    "number",
    "opened",
    "pointing",
    "result",
    "text",
]

SETTLE = 300
"""Milliseconds of guest time after a call, in which work queues and threads have their turn."""

_RECORD = struct.Struct("<II")
_DATA, _CALL, _UNPRIVILEGED, _EARLIER, _MODPROBE, _FILE = 1, 2, 3, 4, 5, 6
_ARGUMENTS, _MORE_ARGUMENTS = 3, 6
_MOST_DATA = 256
_MOST_EARLIER = 4096


class Kind:
    """What an argument is; guest.c has the same numbers."""

    VALUE, ADDRESS, DESCRIPTOR, PATH, RESULT, POINTING = range(6)


@dataclass(frozen=True)
class Argument:
    """One argument of a system call.

    :param kind: VALUE: the value itself. ADDRESS: where ``data`` is in user memory, plus the value; an unmapped page
        follows the last one that has data. DESCRIPTOR: a file with ``data``, opened with the flags in ``value``.
        PATH: what exists under the name in ``data``, likewise. RESULT: what the earlier call of that number returned
        to the same process. POINTING: where ``data`` is, followed by the address of ``target``.

    The same data is in a process's memory once, so that what one call writes there the next one reads.
    """

    kind: int = Kind.VALUE
    data: bytes = b""
    value: int = 0
    target: bytes = b""


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


def result(index: int) -> Argument:
    return Argument(Kind.RESULT, value=index)


def pointing(data: bytes, target: bytes) -> Argument:
    return Argument(Kind.POINTING, data + bytes(8), target=target)


@dataclass(frozen=True)
class Call:
    """A system call.

    :param looks_at: the modules whose directories in sysfs are to be looked at afterwards, and paths of other
        directories and files.
    :param privileged: made by root, or by a user without any capability.
    :param earlier: calls that the same process makes before this one.
    """

    name: str
    arguments: tuple[Argument, ...]
    looks_at: tuple[str, ...] = ()
    privileged: bool = True
    earlier: tuple[Call, ...] = ()

    def paths(self) -> list[str]:
        """What is looked at afterwards."""
        return [name if name.startswith("/") else f"/sys/module/{name}" for name in self.looks_at]


@dataclass(frozen=True)
class Case:
    """A sequence of calls.

    :param group: the kind of case, for tables.
    :param architecture: whose numbers the calls have, as ``uname -m`` says.
    :param modprobe: None: there is no modprobe. Otherwise, by the names that it finds when the kernel asks for them,
        the modules that it loads then, one after the other.
    """

    group: str
    name: str
    calls: tuple[Call, ...]
    architecture: str = "x86_64"
    modprobe: tuple[tuple[str, tuple[bytes, ...]], ...] | None = None

    @cached_property
    def digest(self) -> str:
        """Of everything that is put into the machine."""
        return hashlib.sha256(encode(self)).hexdigest()


def modprobe_file(name: str, index: int) -> str:
    """Where modprobe finds the modules that it loads for a name, from number 0 until there is none."""
    return f"/tmp/{name}.{index}"


def encode(case: Case) -> bytes:
    """The case as guest.c reads it: each datum once, before what needs it first, then the calls."""
    places: dict[bytes, int] = {}
    records = bytearray()
    if case.modprobe is not None:
        records += _RECORD.pack(_MODPROBE, 0)
    for name, modules in case.modprobe or ():
        for index, module in enumerate(modules):
            records += _new_data([module], places)
            body = struct.pack("<I", places[module]) + modprobe_file(name, index).encode() + b"\0"
            records += _RECORD.pack(_FILE, len(body)) + body
    for call in case.calls:
        assert len(call.earlier) <= _MOST_EARLIER, case.name
        for one in (*call.earlier, call):
            records += _new_data([data for argument in one.arguments for data in _data_of(argument)], places)
        for earlier in call.earlier:
            body = _call(earlier, case.architecture, places, _MORE_ARGUMENTS)
            records += _RECORD.pack(_EARLIER, len(body)) + body
        if not call.privileged:
            records += _RECORD.pack(_UNPRIVILEGED, 0)
        body = _call(call, case.architecture, places, _ARGUMENTS)
        body += b"".join(path.encode() + b"\0" for path in call.paths())
        records += _RECORD.pack(_CALL, len(body)) + body
    assert len(places) <= _MOST_DATA, case.name
    return bytes(records)


def _data_of(argument: Argument) -> tuple[bytes, ...]:
    """What the argument needs of data; a path has its NUL."""
    if argument.kind in (Kind.VALUE, Kind.RESULT):
        return ()
    if argument.kind == Kind.POINTING:
        return argument.data, argument.target
    return (argument.data + b"\0" if argument.kind == Kind.PATH else argument.data,)


def _new_data(found: Iterable[bytes], places: dict[bytes, int]) -> bytes:
    records = bytearray()
    for data in found:
        if data not in places:
            places[data] = len(places)
            records += _RECORD.pack(_DATA, len(data)) + data
    return bytes(records)


def _call(call: Call, architecture: str, places: dict[bytes, int], count: int) -> bytes:
    assert len(call.arguments) <= count, call.name
    body = struct.pack("<II", abi_of(architecture).system_calls[call.name], SETTLE)
    for argument in (*call.arguments, *[Argument()] * (count - len(call.arguments))):
        first, *rest = (*(places[data] for data in _data_of(argument)), 0)
        value = rest[0] if argument.kind == Kind.POINTING else argument.value & ((1 << 64) - 1)
        body += struct.pack("<IIQ", argument.kind, first, value)
    return body
