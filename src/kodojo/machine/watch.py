"""What ends a run from outside: Ctrl-C, and the time on this computer's clock."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import math
import platform
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from kodojo.machine.native import executable_page

__all__ = ["Watch"]


class _Noted(ctypes.Structure):
    """What the handler of SIGINT knows.

    :param interrupted: not 0 after Ctrl-C.
    :param blocks: address of the number of blocks that the engine has still to execute.
    """

    _fields_ = (("interrupted", ctypes.c_uint64), ("blocks", ctypes.c_void_p))


def _x86_64(noted: int) -> bytes:
    return (
        b"\x48\xb8"
        + struct.pack("<Q", noted)  # mov rax, noted
        + bytes.fromhex(
            "48c70001000000"  # mov qword [rax], 1
            "488b4008 4885c0 7407"  # mov rax, [rax+8]; test rax, rax; je 1f
            "48c70001000000"  # mov qword [rax], 1
            "c3"  # 1: ret
        )
    )


def _aarch64(noted: int) -> bytes:
    return struct.pack(
        "<8IQ",
        0x58000109,  # ldr x9, noted
        0xD280002A,  # mov x10, 1
        0xF900012A,  # str x10, [x9]
        0xF940052B,  # ldr x11, [x9, 8]
        0xB400004B,  # cbz x11, 1f
        0xF900016A,  # str x10, [x11]
        0xD65F03C0,  # 1: ret
        0xD503201F,
        noted,
    )


_ROUTINES: dict[tuple[str, str], Callable[[int], bytes]] = {
    ("Linux", "x86_64"): _x86_64,
    ("Linux", "aarch64"): _aarch64,
}


class _Handler:
    """Of SIGINT while an engine runs: machine instructions, since Python's own waits until the engine has ended."""

    def __init__(self) -> None:
        self.noted = _Noted()
        make = _ROUTINES.get((platform.system(), platform.machine()))
        page = executable_page(make(ctypes.addressof(self.noted))) if make is not None else None
        self._page = page
        self._address = 0 if page is None else ctypes.addressof(ctypes.c_char.from_buffer(page))
        self._signal = ctypes.CDLL(None).signal
        self._signal.restype = ctypes.c_void_p
        self._signal.argtypes = (ctypes.c_int, ctypes.c_void_p)

    def install(self) -> int | None:
        """Returns the handler before, for :meth:`remove`."""
        if self._address:
            before: int | None = self._signal(signal.SIGINT, self._address)
            return before
        signal.signal(signal.SIGINT, self._note)
        return None

    def remove(self, before: int | None) -> None:
        """Raises KeyboardInterrupt if Ctrl-C came, and nobody has raised it since."""
        if self._address:
            self._signal(signal.SIGINT, before)
        else:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupted, self.noted.interrupted = self.noted.interrupted, 0
        if interrupted:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: object) -> None:
        self.noted.interrupted = 1
        if self.noted.blocks:
            ctypes.c_int64.from_address(self.noted.blocks).value = 1


@lru_cache
def _handler() -> _Handler:
    return _Handler()


class Watch:
    """Looked at wherever a processor comes to rest, which is at least once in each tick.

    An exception that is raised while the engine calls Python is lost on its way through the engine, and while it
    calls nobody Python does not hear of signals. So Ctrl-C is noted while an engine runs, ends the run, and is raised
    as KeyboardInterrupt where the engine is at rest. Who has a handler of their own for SIGINT keeps it.
    """

    def __init__(self) -> None:
        self._until = math.inf
        self._seconds = math.inf

    def begin(self, seconds: float) -> None:
        """From now on there are so many seconds of this computer's time; ``math.inf`` takes the limit away."""
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    @contextmanager
    def ending(self) -> Iterator[None]:
        """After the ``with`` block there is no limit any more."""
        try:
            yield
        finally:
            self.begin(math.inf)

    def look(self) -> float | None:
        """The limit in seconds if it is reached, else None. Raises KeyboardInterrupt after Ctrl-C."""
        if _handler().noted.interrupted:
            raise KeyboardInterrupt
        return self._seconds if time.monotonic() > self._until else None

    def minding(self, blocks: int) -> _Minding:
        """In the ``with`` block an engine may run. Raises KeyboardInterrupt after Ctrl-C.

        :param blocks: address of the number of blocks that it has still to execute.
        """
        return _Minding(blocks)


class _Minding:
    """See :meth:`Watch.minding`. Every call into the guest has one, so it is no generator."""

    __slots__ = ("_before", "_blocks", "_blocks_before", "_ours")

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks

    def __enter__(self) -> None:
        handler = _handler()
        self._blocks_before, handler.noted.blocks = handler.noted.blocks, self._blocks
        self._ours = _is_ours_to_handle()
        self._before = handler.install() if self._ours else None

    def __exit__(self, *_exception: object) -> None:
        handler = _handler()
        handler.noted.blocks = self._blocks_before
        if self._ours:
            handler.remove(self._before)


def _is_ours_to_handle() -> bool:
    """Whether Ctrl-C comes to this thread, and would raise KeyboardInterrupt."""
    # signal.getsignal() looks whether the handler is a member of an enumeration, which costs as much as a call.
    ours = _signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return ours and threading.get_ident() == threading.main_thread().ident
