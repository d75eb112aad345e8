"""``request_module()`` from inside the guest: the kernel starts ``/sbin/modprobe``, whose program is Python here.

All that the kernel does for a program it does itself: a worker makes a process, which executes a file, gets memory, a
stack and rights of its own, and whoever asked waits for its exit status or does not. Only, the file that is
executed is ``/init``, and in place of its first instruction the Python program runs (:meth:`Calls.play`).

Source: ``kernel/module/kmod.c: call_modprobe``, ``kernel/umh.c: call_usermodehelper_exec_async``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from kodojo.errors import decode
from kodojo.kernel.boot import protocol_of
from kodojo.kernel.bounds import reading
from kodojo.kernel.calls import Calls, Place
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.tasks import Tasks

__all__ = ["GFP_ATOMIC", "ModuleRequests"]

_ARGUMENT_LIMIT = 16
_PROGRAMS = (b"/sbin/modprobe", b"/usr/sbin/modprobe")
_PROGRAM = "/init"
GFP_ATOMIC = 0xA20  # include/linux/gfp_types.h: __GFP_HIGH | _GFP_ATOMIC | __GFP_KSWAPD_RECLAIM
_UMH_NO_WAIT = 0  # include/linux/umh.h
_PRICE = 30_000  # microseconds of this computer's time, for a process that is started and looks a module up
_PATIENCE = 1.0  # seconds of guest time in which a process that was asked for begins


class ModuleRequests:
    """Gives the processes that the kernel starts as modprobe a program.

    :attr answer: called with the name that is asked for, as that process; returns its exit status. None, and where
        there are no modules: there is no ``/sbin/modprobe``, and the kernel finds out by itself. So it does where
        somebody has written another program's path to the sysctl ``kernel.modprobe``.
    :attr at_once: the most processes that were wanted at the same time; what they load has no order of its own.
    :attr running: the processes that are modprobe.
    :attr knows_modules: whether there are modules: in the image's tree, if nobody says otherwise.
    """

    def __init__(self, calls: Calls, memory: KernelMemory, tasks: Tasks) -> None:
        self._calls = calls
        self._memory = memory
        self._tasks = tasks
        self._leaves = calls.address(protocol_of(calls.image.architecture).leaves)
        self.answer: Callable[[str], int] | None = None
        self.at_once = 0
        self.running: set[int] = set()
        self.knows_modules: Callable[[], bool] = lambda: bool(calls.image.modules)
        self._asked_for = 0  # processes that the kernel has been asked to start, and that have not begun
        # By task: what is done when it is about to leave for user space.
        self._starting: dict[int, Callable[[Place], None]] = {}
        self._wanted: dict[int, Callable[[Place], None]] = {}  # likewise, by the address of its program's path
        calls.cpu.add_breakpoint(calls.address("call_usermodehelper_exec"), self._asked)
        calls.cpu.add_breakpoint(calls.address("kernel_execve"), self._executes)

    # -- what passes in the guest -------------------------------------------------------------------------
    def _asked(self) -> None:
        """``int call_usermodehelper_exec(struct subprocess_info *sub_info, int wait)``."""
        info = self._memory.struct("subprocess_info", self._calls.abi.argument(self._calls.cpu, 0))
        if self._is_modprobe(info.get("path")):
            self._asked_for += 1
            self.at_once = max(self.at_once, self._asked_for + len(self._starting) + self._calls.plays)

    def start(self, begins: Callable[[Place], None]) -> None:
        """Have the kernel start another process, by a worker and soon; possible wherever interrupts may come.

        :param begins: called as that process when it is about to leave for user space.
        """
        calls = self._calls
        path = calls("kstrdup", _PROGRAM, GFP_ATOMIC)
        vectors = calls(calls.first("kmemdup", "kmemdup_noprof"), struct.pack("<QQ", path, 0), 16, GFP_ATOMIC)
        if not path or not vectors:
            return
        info = calls("call_usermodehelper_setup", path, vectors, vectors + 8, GFP_ATOMIC, 0, 0, 0)
        if info:
            self._wanted[path] = begins
            calls("call_usermodehelper_exec", info, _UMH_NO_WAIT)

    def _executes(self) -> None:
        """``int kernel_execve(const char *kernel_filename, const char *const *argv, const char *const *envp)``."""
        calls, cpu = self._calls, self._calls.cpu
        wanted = self._wanted.pop(calls.abi.argument(cpu, 0), None)
        if wanted is not None:
            self._expect(wanted)
            return
        if not self._is_modprobe(calls.abi.argument(cpu, 0)):
            return
        self._asked_for = max(0, self._asked_for - 1)
        cpu.charge(_PRICE)
        with reading("the arguments of a program"):
            name = self._arguments(calls.abi.argument(cpu, 1))[-1]
        path = calls("kstrdup", _PROGRAM, GFP_ATOMIC)
        if not path:
            return  # it will not find /sbin/modprobe
        calls.abi.set_argument(cpu, 0, path)
        self._expect(lambda place: calls.play(place, partial(self._program, name, path)))

    def _expect(self, begins: Callable[[Place], None]) -> None:
        """The current task is going to execute its program."""
        self._starting[self._tasks.current_task()] = begins
        if not self._calls.cpu.has_breakpoint(self._leaves):
            self._calls.cpu.add_breakpoint(self._leaves, self._begins)

    def _begins(self) -> None:
        """A process is about to leave for user space; whether it is the one whose program begins."""
        calls, cpu = self._calls, self._calls.cpu
        begins = self._starting.pop(self._tasks.current_task(), None)
        if begins is None:
            return
        if not self._starting:
            cpu.remove_breakpoint(self._leaves)
        stack, frame = protocol_of(cpu.architecture).resting_place(cpu)
        table = cpu.user_table
        calls.abi.find_user_space(cpu, calls.image.kallsyms, self._memory)
        place = Place(stack, frame, user_table=cpu.user_table)
        cpu.user_table = table
        begins(place)

    def _program(self, name: str, path: int) -> None:
        """Be modprobe."""
        calls, place, task = self._calls, self._calls.place, self._tasks.current_task()
        status = 1
        self.running.add(task)
        try:
            calls("kfree", path)
            self._tasks.set_name("modprobe")
            status = self.answer(name) if self.answer is not None else 1
        except Exception as error:  # noqa: BLE001  raised again at the end of the operation
            calls.problems.append(error)
        finally:
            self.running.discard(task)
        if place.kernel_scratch:
            calls("free_pages", place.kernel_scratch, 0)
        calls.abi.call_here(calls.cpu, calls.address("do_exit"), status << 8)

    def _is_modprobe(self, path: int) -> bool:
        """Whether it is our modprobe that is to be run, and there is one."""
        if not path or self.answer is None or not self.knows_modules():
            return False
        with reading("the path of a program"):
            return self._memory.string(path) in _PROGRAMS

    def _arguments(self, argv: int) -> list[str]:
        pointers = struct.unpack(f"<{_ARGUMENT_LIMIT}Q", self._memory.read(argv, 8 * _ARGUMENT_LIMIT))
        count = pointers.index(0) if 0 in pointers else _ARGUMENT_LIMIT
        return [decode(self._memory.string(pointer)) for pointer in pointers[:count]] or [""]

    # -- between operations ---------------------------------------------------------------------------------
    def settle(self, hertz: int, ticks: int) -> bool:
        """Let time pass until every modprobe has ended: an operation's, as far as it does not wait for it itself.

        :param ticks: but not more than this. The value: whether they have.
        """
        calls = self._calls
        waited = idle = 0
        while self._asked_for or self._starting or calls.plays:
            if waited >= ticks:
                return False
            calls("schedule_timeout_uninterruptible", 1)
            waited += 1
            idle = 0 if self._starting or calls.plays else idle + 1
            if idle > _PATIENCE * hertz:  # it could not be started
                self._asked_for = 0
        return True
