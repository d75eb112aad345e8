"""Where tasks stand: backtraces by the kernel's own unwinder, of one task and of all."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from kodojo.errors import DamagedMemoryError, Frame, MachineError, TaskReport, decode
from kodojo.kernel.bounds import at_most, reading, walk
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.tasks import Tasks

__all__ = ["Backtraces", "with_link"]

_DEPTH = 32
_SYMBOL_LENGTH = 1024
_MOST_TASKS = 4096
_PF_KTHREAD = 0x200000  # include/linux/sched.h
# fs/proc/array.c: task_state_array; include/linux/sched.h: TASK_REPORT, TASK_IDLE
_STATES = "RSDTtXZP"
_REPORTED_STATES = 0x7F
_TASK_IDLE = 0x402


def with_link(frames: list[Frame], link: str | None) -> tuple[Frame, ...]:
    """Where a function goes back to that keeps no frame: in a register, if it has called nothing since.

    The kernel tells that apart from its backtrace. Like what x86-64 finds on the stack it is no more than likely:
    in a function that has called another one, it is a place in that function itself.
    """
    if link is not None and "+" in link and len(frames) > 1:
        function = link.partition("+")[0]
        if function != frames[0].symbol.partition("+")[0] and link != frames[1].symbol:
            frames.insert(1, Frame(0, link, reliable=False))
    return tuple(frames)


class Backtraces:
    """Asks the kernel, whatever it was interrupted in: nothing here sleeps.

    :param scratch: a page of kernel memory for its answers.
    """

    def __init__(self, calls: Calls, memory: KernelMemory, tasks: Tasks, scratch: int) -> None:
        self._calls = calls
        self._memory = memory
        self._tasks = tasks
        self._scratch = scratch
        self._symbols: dict[int, str] = {}  # for one report: modules come and go

    def of(self, task: int) -> tuple[Frame, ...]:
        """Where a task waits (``kernel/stacktrace.c: stack_trace_save_tsk``), or runs if it is the current one."""
        if task != self._tasks.current_task():
            return tuple(self._frames(self._trace("stack_trace_save_tsk", task)))
        abi = self._calls.abi
        registers = self._calls.cpu.read_registers()
        pc = registers[abi.program_counter]
        try:
            addresses = self._trace("stack_trace_save_regs", abi.kernel_frame(registers)) or [pc]
            link = abi.link(registers)
            return with_link(self._frames(addresses), None if link is None else self.symbol(link))
        except MachineError:
            return (Frame(pc, self._image_symbol(pc)),)

    def of_all(self, first: int) -> tuple[TaskReport, ...]:
        """What every task does, that of the address ``first`` before the others.

        What is damaged is left out: the list of tasks ends where it cannot be followed.
        """
        self._symbols.clear()
        reports = []
        for task in sorted(self._all_tasks(), key=lambda task: task != first):
            try:
                reports.append(self._report(task))
            except MachineError:
                if self._calls.stopped is not None:
                    break
        return tuple(reports)

    def _report(self, task: int) -> TaskReport:
        view = self._memory.struct("task_struct", task)
        state = view.get("__state")
        letter = (
            "I"
            if state == _TASK_IDLE
            else _STATES[((state | view.get("exit_state")) & _REPORTED_STATES).bit_length()]
        )
        is_thread = bool(view.get("flags") & _PF_KTHREAD)
        return TaskReport(
            decode(view.string("comm")), view.get("pid"), letter, self.of(task), kernel_thread=is_thread
        )

    def _all_tasks(self) -> list[int]:
        """Processes and their threads (``for_each_process_thread``), without the idle one."""
        found: dict[int, None] = {}
        member = self._memory.field("task_struct", "tasks").offset
        thread = self._memory.field("task_struct", "thread_node").offset
        for link in self._links(self._calls.address("init_task") + member):
            process = link - member
            try:
                head = self._memory.struct("task_struct", process).get("signal")
                head += self._memory.field("signal_struct", "thread_head").offset
            except MachineError:
                break
            found[process] = None
            found.update(dict.fromkeys(link - thread for link in self._links(head)))
        return list(found)[:_MOST_TASKS]

    def _links(self, head: int) -> Iterator[int]:
        """The elements of a list, as far as it can be followed."""
        with suppress(DamagedMemoryError), reading("the list of tasks"):
            yield from walk(self._memory.u64(head), head, self._memory.u64, "the list of tasks", _MOST_TASKS)

    def _trace(self, function: str, what: int | bytes) -> list[int]:
        count = at_most(self._calls(function, what, self._scratch, _DEPTH, 0), _DEPTH, "a backtrace")
        return list(struct.unpack(f"<{count}Q", self._memory.read(self._scratch, 8 * count)))

    def _frames(self, addresses: list[int]) -> list[Frame]:
        return [Frame(address, self.symbol(address)) for address in addresses if not self._calls.is_return(address)]

    def symbol(self, address: int) -> str:
        """``name+offset/size [module]``, as the kernel prints it for ``%pS``."""
        symbol = self._symbols.get(address)
        if symbol is None:
            self._calls("sprint_symbol", self._scratch, address)
            symbol = self._symbols[address] = decode(self._memory.string(self._scratch, _SYMBOL_LENGTH))
        return symbol

    def _image_symbol(self, address: int) -> str:
        located = self._calls.image.kallsyms.symbol_at(address)
        if located is None:
            return f"{address:#x}"
        return f"{located.name}+{address - located.start:#x}/{located.size:#x}"
