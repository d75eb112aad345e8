"""What happens instead of ``abort()`` in the engine: the run ends, and the process lives.

Unicorn aborts where its translator finds itself in a state that it has no code for, and guest code can bring it
there (``lock bts %eax, %ebp`` is enough: contrib/unicorn-abort.md). As a library it takes the whole process along.
So its own reference to ``abort`` is led to a few machine instructions of ours. They look up which engine runs in
this thread, note that it has failed, ask it to stop, and leave as its own code leaves a translation. Where no engine
runs, ``abort`` is called.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kodojo.machine.native import executable_page

__all__ = ["Rescue", "Run", "address_of", "code_of"]

_RUNS = 64  # at the same time, in all threads

_HEADER = (("<Q", 32), ("<H", 54), ("<H", 56))  # e_phoff, e_phentsize, e_phnum
_DYNAMIC = 2  # PT_DYNAMIC
_STRINGS, _STRINGS_SIZE, _SYMBOLS = 5, 10, 6  # DT_STRTAB, DT_STRSZ, DT_SYMTAB
_RELOCATIONS, _RELOCATIONS_SIZE = 23, 2  # DT_JMPREL, DT_PLTRELSZ
_ADDRESSES = (_STRINGS, _SYMBOLS, _RELOCATIONS)
_RELOCATION = np.dtype([("offset", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SYMBOL_SIZE = 24


class Run(ctypes.Structure):
    """An engine that runs in a thread, as the routine sees it."""

    _fields_ = (
        ("thread", ctypes.c_uint64),  # 0: none
        ("engine", ctypes.c_uint64),
        ("cpu", ctypes.c_uint64),
        ("leave", ctypes.c_uint64),  # void leave(cpu), which does not return
        ("failed", ctypes.c_uint64),
    )


def _x86_64(this_thread: int, first: int, end: int, stop: int, abort: int) -> bytes:
    def load(register: int, value: int) -> bytes:
        return bytes((0x48, 0xB8 + register)) + struct.pack("<Q", value)

    rax, rcx, rbx = 0, 1, 3
    return (
        b"\x53"  # push rbx
        + load(rax, this_thread)
        + b"\xff\xd0"  # call rax
        + load(rbx, end)
        + load(rcx, first)
        + bytes.fromhex(
            "48 39 cb"  # 1: cmp rbx, rcx
            "74 28"  # je 2f
            "48 83 eb 28"  # sub rbx, sizeof(Run)
            "48 39 03"  # cmp [rbx], rax
            "75 f2"  # jne 1b
            "48 c7 43 20 01 00 00 00"  # mov qword [rbx + failed], 1
            "48 8b 7b 08"  # mov rdi, [rbx + engine]
        )
        + load(rax, stop)
        + bytes.fromhex(
            "ff d0"  # call rax
            "48 8b 7b 10"  # mov rdi, [rbx + cpu]
            "ff 53 18"  # call [rbx + leave]
        )
        + load(rax, abort)  # 2:
        + b"\xff\xd0"  # call rax
    )


def _aarch64(this_thread: int, first: int, end: int, stop: int, abort: int) -> bytes:
    return struct.pack(
        "<20I5Q",
        0x58000290,  # ldr x16, this_thread
        0xD63F0200,  # blr x16
        0x58000293,  # ldr x19, first
        0x580002B4,  # ldr x20, end
        0xEB13029F,  # 1: cmp x20, x19
        0x540001A0,  # b.eq 2f
        0xD100A294,  # sub x20, x20, sizeof(Run)
        0xF9400289,  # ldr x9, [x20]
        0xEB00013F,  # cmp x9, x0
        0x54FFFF61,  # b.ne 1b
        0xD2800029,  # mov x9, 1
        0xF9001289,  # str x9, [x20, failed]
        0xF9400680,  # ldr x0, [x20, engine]
        0x580001B0,  # ldr x16, stop
        0xD63F0200,  # blr x16
        0xF9400A80,  # ldr x0, [x20, cpu]
        0xF9400E90,  # ldr x16, [x20, leave]
        0xD63F0200,  # blr x16
        0x58000150,  # 2: ldr x16, abort
        0xD61F0200,  # br x16
        this_thread,
        first,
        end,
        stop,
        abort,
    )


_ROUTINES: dict[tuple[str, str], Callable[[int, int, int, int, int], bytes]] = {
    ("Linux", "x86_64"): _x86_64,
    ("Linux", "aarch64"): _aarch64,
}


class Rescue:
    """For all engines of a library; made once for each process, and never undone.

    :param library: the engine's, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._runs = (Run * _RUNS)()
        self._free = list(self._runs)
        self._threads = threading.local()
        make = _ROUTINES.get((platform.system(), platform.machine()))
        stop = address_of(library, "uc_emu_stop")
        reference = _reference(stop, "abort") if make is not None else 0
        if make is None or not reference:
            return
        own = ctypes.CDLL(None)
        first = ctypes.addressof(self._runs)
        end = first + ctypes.sizeof(self._runs)
        page = executable_page(make(address_of(own, "pthread_self"), first, end, stop, address_of(own, "abort")))
        if page is not None:
            self._page = page
            ctypes.c_uint64.from_address(reference).value = ctypes.addressof(ctypes.c_char.from_buffer(page))

    def begin(self, engine: int, cpu: int, leave: int) -> Run:
        """An engine is about to run in this thread.

        :param engine: its structure, ``cpu``: its processor's.
        :param leave: the address of the function by which its code leaves a translation.
        """
        runs = self._runs_of_thread()
        if runs:
            runs[-1].thread = 0  # it runs in a hook of that one
        run = self._free.pop() if self._free else Run()
        run.engine, run.cpu, run.leave, run.failed = engine, cpu, leave, 0
        run.thread = threading.get_ident()
        runs.append(run)
        return run

    def end(self, run: Run) -> bool:
        """It has come back; whether it would have aborted."""
        runs = self._runs_of_thread()
        runs.remove(run)
        run.thread = 0
        self._free.append(run)
        if runs:
            runs[-1].thread = threading.get_ident()
        return bool(run.failed)

    def _runs_of_thread(self) -> list[Run]:
        runs: list[Run] | None = getattr(self._threads, "runs", None)
        if runs is None:
            runs = self._threads.runs = []
        return runs


def address_of(library: ctypes.CDLL, name: str) -> int:
    """Of a function; 0 if the library shows none of that name."""
    function = getattr(library, name, None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function is not None else 0


def _reference(inside: int, name: str) -> int:
    """Where the library that has the address ``inside`` keeps the address of a function of another one; 0 if nowhere.

    The ELF specification, "Dynamic Linking"; only what can be written is of use.
    """
    parts = _mappings(inside)
    base = min((start for start, _, _ in parts), default=0)
    writable = [(start, end) for start, end, access in parts if "w" in access]
    if not base or ctypes.string_at(base, 5) != b"\x7fELF\x02":
        return 0
    headers, size, number = (struct.unpack_from(form, ctypes.string_at(base, 64), at)[0] for form, at in _HEADER)
    tags: dict[int, int] = {}
    for index in range(number):
        kind, _flags, _offset, address = struct.unpack("<IIQQ", ctypes.string_at(base + headers + size * index, 24))
        if kind == _DYNAMIC:
            tags = _dynamic(base + address)
    if not {_STRINGS, _STRINGS_SIZE, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_SIZE} <= tags.keys():
        return 0
    # glibc has added the base to these addresses, musl has not.
    strings, symbols, start = (tags[tag] + (base if tags[tag] < base else 0) for tag in _ADDRESSES)
    relocations = np.frombuffer(ctypes.string_at(start, tags[_RELOCATIONS_SIZE]), _RELOCATION)
    table = np.frombuffer(ctypes.string_at(symbols, _SYMBOL_SIZE * (int(relocations["symbol"].max()) + 1)), "<u4")
    text = ctypes.string_at(strings, tags[_STRINGS_SIZE]).find(b"\0" + name.encode() + b"\0") + 1
    names = table[:: _SYMBOL_SIZE // 4][relocations["symbol"]]
    for offset in relocations["offset"][names == text].tolist():
        where = base + offset
        return where if any(start <= where < end for start, end in writable) else 0
    return 0


def _dynamic(address: int) -> dict[int, int]:
    tags: dict[int, int] = {}
    while True:
        tag, value = struct.unpack("<QQ", ctypes.string_at(address, 16))
        if not tag:
            return tags
        tags[tag] = value
        address += 16


def code_of(inside: int) -> list[tuple[int, int]]:
    """From where to where the library has its functions that has one at the address ``inside``."""
    return [(start, end) for start, end, access in _mappings(inside) if "x" in access]


def _mappings(inside: int) -> list[tuple[int, int, str]]:
    """The mappings of the file that is mapped at an address, and how each can be accessed."""
    parts: dict[str, list[tuple[int, int, str]]] = {}
    name = ""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _offset, _device, _inode, *path = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        if path:
            parts.setdefault(path[0], []).append((start, end, access))
            if start <= inside < end:
                name = path[0]
    return parts.get(name, [])
