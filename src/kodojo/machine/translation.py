"""How much guest code the engine may translate at once: no more than its tables hold.

Unicorn translates straight-line code as one block, of up to 512 instructions. While it does, it takes *temporaries*
from a table of 512. Some instructions do not give theirs back (each x87 instruction keeps one to three), and nothing
checks the table's end in a release build: some 300 x87 instructions in a row overwrite what lies behind it, and the
process dies of SIGSEGV (contrib/unicorn-temporaries.md has the whole of it).

So a block has to end before the table is full, whatever its instructions are. The engine ends one by itself when it
has made 4,000 operations of it. It also asks, for each instruction that it fetches, which region of memory an address
belongs to, by way of a pointer in its own structure. That pointer leads to a few machine instructions of ours: where
more than :data:`MOST_TEMPORARIES` are in use, they raise the count of operations, so that the block ends after the
instruction that is being fetched. Then they go on to the engine's own function. Blocks of ordinary code use far fewer
and are the same as before.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kodojo.errors import MachineError
from kodojo.machine.native import executable_page

__all__ = ["MOST_TEMPORARIES", "TranslationLimit", "find_counters", "find_cpu", "word_of"]

MOST_TEMPORARIES = 160
"""In use when a block is ended; the table has 512, and one instruction takes a few dozen at most."""

_ENOUGH_OPERATIONS = 4000  # at which the engine ends a block by itself
_HANDLE_WORDS = 256  # of the engine's structure, in which its pointers are looked for
_LOWEST_POINTER, _HIGHEST_POINTER = 1 << 16, 1 << 56
_CONTEXT_INTS = 64  # of the translator's structure, in which its counters are
_TEMPORARIES_BEFORE_OPERATIONS = 8  # bytes: int nb_temps, nb_indirects, nb_ops

_CPU_SIZE = 1 << 16
_OWN_MEMORY = "/proc/self/mem"  # reading it fails where nothing is mapped
_TIMES = (7, 5)  # flushes in a row
_MOST_TLBS = 33

Lookup = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)


def _x86_64(temporaries: int, original: int) -> bytes:
    return (
        b"\x48\xb8" + struct.pack("<Q", temporaries)  # mov rax, temporaries
        + b"\x81\x38" + struct.pack("<I", MOST_TEMPORARIES)  # cmp dword [rax], MOST_TEMPORARIES
        + b"\x7c\x07"  # jl 1f
        + b"\xc7\x40" + struct.pack("<BI", _TEMPORARIES_BEFORE_OPERATIONS, _ENOUGH_OPERATIONS)  # mov dword [rax+8], N
        + b"\x48\xb8" + struct.pack("<Q", original)  # 1: mov rax, original
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip


def _aarch64(temporaries: int, original: int) -> bytes:
    return struct.pack(
        "<8I2Q",
        0x58000110,  # ldr x16, temporaries
        0xB9400211,  # ldr w17, [x16]
        0x7100023F | MOST_TEMPORARIES << 10,  # cmp w17, MOST_TEMPORARIES
        0x5400006B,  # b.lt 1f
        0x52800011 | _ENOUGH_OPERATIONS << 5,  # mov w17, _ENOUGH_OPERATIONS
        0xB9000211 | _TEMPORARIES_BEFORE_OPERATIONS // 4 << 10,  # str w17, [x16, 8]
        0x58000090,  # 1: ldr x16, original
        0xD61F0200,  # br x16
        temporaries,
        original,
    )


_ROUTINES: dict[tuple[str, str], Callable[[int, int], bytes]] = {
    ("Linux", "x86_64"): _x86_64,
    ("Linux", "aarch64"): _aarch64,
}


class TranslationLimit:
    """Ends the blocks of one engine in time; to be kept as long as the engine is.

    :param handle: the engine's structure.
    :param lookup: the engine's function that finds a region of memory.
    :param counters: where the translator's counters are (:func:`find_counters`).
    :raises MachineError: this build of Unicorn keeps its pointers elsewhere.
    """

    def __init__(self, handle: int, lookup: int, counters: tuple[int, int]) -> None:
        pointer, operations = counters
        words = _words(handle)
        try:
            slot = words[:].index(lookup)
        except ValueError:
            raise _unknown_build() from None
        self._temporaries = words[pointer] + operations - _TEMPORARIES_BEFORE_OPERATIONS
        words[slot] = self._routine(lookup)

    def _routine(self, lookup: int) -> int:
        make = _ROUTINES.get((platform.system(), platform.machine()))
        page = executable_page(make(self._temporaries, lookup)) if make is not None else None
        if page is not None:
            self._page = page
            return ctypes.addressof(ctypes.c_char.from_buffer(page))
        temporaries = ctypes.c_int32.from_address(self._temporaries)
        operations = ctypes.c_int32.from_address(self._temporaries + _TEMPORARIES_BEFORE_OPERATIONS)
        original = Lookup(lookup)

        def limit(engine: int, address: int) -> int | None:
            if temporaries.value >= MOST_TEMPORARIES:
                operations.value = _ENOUGH_OPERATIONS
            region: int | None = original(engine, address)
            return region

        self._callback = Lookup(limit)
        return ctypes.cast(self._callback, ctypes.c_void_p).value or 0


def find_counters(handle: int, translate: Callable[[int], None]) -> tuple[int, int]:
    """Which word of the engine's structure points to the translator's, and where that counts operations.

    Both differ from build to build. So blocks of different lengths are translated; the count is the number that grows
    with them.

    :param translate: translates a block of so many instructions that do nothing.
    :raises MachineError: no such number, or more than one.
    """
    counts = []
    for length in (40, 80, 120):
        translate(length)
        counts.append(_numbers(handle))
    small, medium, large = counts
    step = medium - small
    is_count = (
        (small >= 40) & (large < _ENOUGH_OPERATIONS) & (step >= 40) & (step % 40 == 0) & (large - medium == step)
    )
    places = np.argwhere(is_count).tolist()
    if len(places) != 1:
        raise _unknown_build()
    pointer, number = places[0]
    return pointer, 4 * number


def find_cpu(handle: int, code: Sequence[tuple[int, int]]) -> int:
    """Which word of the engine's structure points to the processor's: the one behind its many pointers to functions.

    :param code: from where to where the library's functions are.
    :raises MachineError: no such word, or it leads to something else.
    """
    place, most, functions = 0, 0, 0
    words = _words(handle)[:]
    for index, word in enumerate(words):
        if any(start <= word < end for start, end in code):
            functions += 1
        elif word:  # a function that there is not is NULL
            if functions > most:
                place, most = index, functions
            functions = 0
    if most and _LOWEST_POINTER <= words[place] < _HIGHEST_POINTER:
        with open(_OWN_MEMORY, "rb", buffering=0) as memory:  # noqa: PTH123  no buffer
            if struct.pack("<Q", handle) in _peek(memory.fileno(), words[place], _CPU_SIZE):
                return place
    raise _unknown_build()


def find_flushes(cpu: int, flush: Callable[[], None]) -> int:
    """Offset in the processor's structure of the number that counts flushed TLBs.

    Before it is that of flushes of all, behind it that of flushes that were not necessary, since nothing had been
    looked up: the one that grows by the same number each time here. (In ``accel/tcg/cputlb.c``, it is
    ``tlb_flush_by_mmuidx_async_work()`` that counts.)

    :param flush: flushes it.
    :raises MachineError: there is no such number, or more than one.
    """
    flush()
    counts = []
    for times in (0, *_TIMES):
        for _ in range(times):
            flush()
        with open(_OWN_MEMORY, "rb", buffering=0) as memory:  # noqa: PTH123  no buffer
            counts.append(np.frombuffer(_peek(memory.fileno(), cpu, _CPU_SIZE), "<i8"))
    first, second, third = (each[: min(map(len, counts))] for each in counts)
    once = (second - first) // _TIMES[0]
    is_count = (once > 0) & (once < _MOST_TLBS) & (second - first == once * _TIMES[0])
    places = np.flatnonzero(is_count & (third - second == once * _TIMES[1])).tolist()
    if len(places) != 1:
        raise _unknown_build()
    return 8 * (places[0] - 1)


def _peek(memory: int, address: int, size: int) -> bytes:
    """Memory of this process, by the open ``/proc/self/mem``; nothing where nothing is mapped."""
    try:
        return os.pread(memory, size, address)
    except OSError:
        return b""


def word_of(handle: int, index: int) -> int:
    """A word of the engine's structure."""
    return int(_words(handle)[index])


def _numbers(handle: int) -> npt.NDArray[np.int64]:
    """The 32-bit numbers at the beginning of each structure that the engine's points to, a row for each pointer."""
    size = 4 * _CONTEXT_INTS
    rows = bytearray(size * _HANDLE_WORDS)
    with open(_OWN_MEMORY, "rb", buffering=0) as memory:  # noqa: PTH123  no buffer
        for index, address in enumerate(_words(handle)):
            if _LOWEST_POINTER <= address < _HIGHEST_POINTER:
                content = _peek(memory.fileno(), address, size)
                rows[size * index : size * index + len(content)] = content
    return np.frombuffer(rows, "<i4").reshape(_HANDLE_WORDS, _CONTEXT_INTS).astype(np.int64)


def _words(handle: int) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * _HANDLE_WORDS).from_address(handle)


def _unknown_build() -> MachineError:
    return MachineError(
        "this build of Unicorn keeps its translator where kodojo cannot find it", hint="install unicorn 2.1.4"
    )
