"""``request_module()`` from inside the guest: what ``/sbin/modprobe`` in user space would do, done in Python.

The kernel wants to start a program and waits for its exit status. Nothing can be started, so its request is
taken at the door: at the entry of ``call_usermodehelper_exec()``. Who does not wait for the end
(``request_module_nowait()``) is answered at once, and the program runs when the operation that is going on is over:
it may have to wait for just that, as for a module whose init has asked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kodojo.errors import decode
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory, StructView
from kodojo.kernel.tasks import Tasks

__all__ = ["ModuleRequests"]

_WAIT_FOR_EXIT = 2  # include/linux/umh.h: UMH_WAIT_PROC
_ARGUMENT_LIMIT = 16
_CONCURRENT_LIMIT = 50  # kernel/module/kmod.c: MAX_KMOD_CONCURRENT
_PROGRAMS = (b"/sbin/modprobe", b"/usr/sbin/modprobe")


class ModuleRequests:
    """Watches for the kernel's calls of modprobe.

    :attr answer: called with the name that is asked for, returns modprobe's exit status. None, and where there are
        no modules: there is no ``/sbin/modprobe``, and the kernel finds out by itself. So it does where somebody
        has written another program's path to the sysctl ``kernel.modprobe``.
    :attr knows_modules: whether there are modules: in the image's tree, if nobody says otherwise.
    """

    def __init__(self, calls: Calls, memory: KernelMemory, tasks: Tasks) -> None:
        self._calls = calls
        self._memory = memory
        self._tasks = tasks
        self._modprobe_path = calls.address("modprobe_path")
        self.answer: Callable[[str], int] | None = None
        self.knows_modules: Callable[[], bool] = lambda: bool(calls.image.modules)
        self._later: list[str] = []
        calls.cpu.add_breakpoint(calls.address("call_usermodehelper_exec"), self._asked)

    def answer_later_ones(self) -> None:
        """Do what was asked for by those who do not wait; they may ask again, up to a limit."""
        for _ in range(_CONCURRENT_LIMIT):
            if self._later:
                self._run(self._later.pop(0))

    def _run(self, name: str) -> int:
        """A process of its own, with rights of its own, as far as the caller can tell."""
        if self.answer is None:
            return 0
        with self._tasks.helper("modprobe"):
            return self.answer(name)

    def _asked(self) -> None:
        calls = self._calls
        info = self._memory.struct("subprocess_info", calls.abi.argument(calls.cpu, 0))
        wait = calls.abi.argument(calls.cpu, 1) & 0xFFFFFFFF
        if not self._is_modprobe(info) or self._starts_nothing():
            return
        status, name = 0, self._arguments(info)[-1]
        if wait & _WAIT_FOR_EXIT:
            status = self._run(name)
        elif len(self._later) < _CONCURRENT_LIMIT:
            self._later.append(name)
        cleanup = info.get("cleanup")
        if cleanup:
            self._calls(cleanup, info.address)
        self._calls("kfree", info.address)
        calls.abi.return_from(calls.cpu, status << 8)

    def _is_modprobe(self, info: StructView) -> bool:
        """Whether it is our modprobe that is to be run, and there is one."""
        path = info.get("path")
        if not path or self.answer is None or not self.knows_modules():
            return False
        program = self._memory.string(path)
        return program in _PROGRAMS and program == self._memory.string(self._modprobe_path)

    def _starts_nothing(self) -> bool:
        """While it is suspended the kernel starts no programs, and says so itself."""
        return bool(self._memory.u32(self._calls.address("usermodehelper_disabled")))

    def _arguments(self, info: StructView) -> list[str]:
        pointers = struct.unpack(f"<{_ARGUMENT_LIMIT}Q", self._memory.read(info.get("argv"), 8 * _ARGUMENT_LIMIT))
        count = pointers.index(0) if 0 in pointers else _ARGUMENT_LIMIT
        return [decode(self._memory.string(pointer)) for pointer in pointers[:count]] or [""]
