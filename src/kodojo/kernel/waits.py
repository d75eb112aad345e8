"""What happens to an operation that has not come back within its limit.

First it is told what every task waits in. Then the task is killed, as a person would do it: what at least listens to
that comes back with an error, and the operation ends. The task itself does not die of it, as it makes the next
operations, too. Where that does not help, or is not wanted, the task is left where it is, and another process takes
its place, with the same open files and the same directory. Only code that neither comes back nor lets others run, and
is not known to be where it may sleep, ends the machine.
"""

from __future__ import annotations

from collections.abc import Callable

from kodojo.errors import FaultReport, KodojoError, MachineError, MachineHang
from kodojo.kernel.backtraces import Backtraces
from kodojo.kernel.calls import Calls, Place
from kodojo.kernel.faults import Faults
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.requests import GFP_ATOMIC, ModuleRequests
from kodojo.kernel.tasks import Tasks
from kodojo.machine.cpu import LIMIT_REACHED, RunLimit

__all__ = ["Waits"]

_KILLED, _LEFT, _LATE = "it was killed", "it is left there", "it came back a little later"
_MORE_TIME = "give it more time (--limit SECONDS), or look at the backtrace for what it waits for"
_SIGKILL = 9
_TASK_WAKEKILL = 0x100  # include/linux/sched.h
_GRACE = 1.0  # seconds of guest time for what wakes up, and for a process to begin
_LEAST_GRACE = 0.1  # for what does not sleep
_REPORT_LIMIT = 5.0  # seconds of this computer's time, to find out where a guest hangs
_TRIES = 10  # ticks in which interrupts are enabled once

Finish = Callable[[RunLimit], None]


def _survived(hang: MachineHang, outcome: str, *, left: bool = False) -> MachineHang:
    message = f"{hang.message}; {outcome}, and the machine goes on"
    return MachineHang(message, hang.report, hint=_MORE_TIME, survived=True, left=left)


class _HasBegunError(Exception):
    """The process that takes over stands where the last one rested."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place


class Waits:
    """The answer to calls that are too late (:attr:`Calls.too_late`).

    :attr leave: do not kill what waits.
    """

    def __init__(
        self,
        calls: Calls,
        memory: KernelMemory,
        tasks: Tasks,
        faults: Faults,
        requests: ModuleRequests,
        backtraces: Backtraces,
        hertz: int,
    ) -> None:
        self._calls = calls
        self._memory = memory
        self._tasks = tasks
        self._faults = faults
        self._requests = requests
        self._backtraces = backtraces
        self._hertz = hertz
        self._get_signal = calls.address("get_signal")
        self.leave = False
        self._explain = calls.failed
        calls.failed = self._failed
        calls.too_late = self._too_late

    # -- telling ------------------------------------------------------------------------------------------
    def _failed(self, error: MachineError) -> MachineError:
        """What a machine has stopped of."""
        error = self._explain(error)
        if not isinstance(error, MachineHang) or error.tasks:
            return error
        self._calls.cpu.watch.begin(_REPORT_LIMIT)
        return self.told(error)

    def told(self, hang: MachineHang, task: int | None = None) -> MachineHang:
        """The same with what every task does.

        :param task: the one that is waited for; None: that of the operation.
        """
        first = self._faults.resting_task if task is None else task
        waits = self._tasks.current_task() != first
        tasks = self._backtraces.of_all(first)
        frames = tasks[0].backtrace if tasks else ()
        what = "waits for something that does not come" if waits else "runs without coming back"
        where = f" in {frames[0].symbol}" if frames else ""
        report = FaultReport(hang.report.cause, hang.registers, frames, self._faults.log(), tasks)
        return MachineHang(f"{hang.message}: it {what}{where}", report, hint=hang.hint or _MORE_TIME)

    # -- ending -------------------------------------------------------------------------------------------
    def _too_late(self, hang: MachineHang, finish: Finish) -> None:
        if self._faults.dying or hang.report.cause != LIMIT_REACHED:
            raise hang
        runs = self._tasks.current_task() == self._faults.resting_task
        hang = self.told(hang)
        if self._calls.stopped is not None:
            raise hang
        grace = RunLimit(round((_LEAST_GRACE if runs else _GRACE) * self._hertz))
        if self._comes_back(hang, finish):
            return
        if not self.leave and (self._kill(hang, finish, grace) or self._comes_back(hang, finish)):
            return
        self._replace(hang, finish, grace)

    def _comes_back(self, hang: MachineHang, finish: Finish) -> bool:
        """Run on to where an interrupt may come, and do what one does; or to the end of the call."""
        for _ in range(_TRIES):
            if self._at_ease():
                return False
            try:
                finish(RunLimit(1))
            except MachineHang:
                continue
            self._calls.overdue = _survived(hang, _LATE)
            return True
        raise hang

    def _at_ease(self) -> bool:
        calls = self._calls
        registers = calls.cpu.read_registers()
        if calls.abi.takes_interrupts(registers):
            return True
        located = calls.image.kallsyms.symbol_at(registers[calls.abi.program_counter])
        return located is not None and located.name in calls.abi.idles_in

    # -- killing ------------------------------------------------------------------------------------------
    def _kill(self, hang: MachineHang, finish: Finish, grace: RunLimit) -> bool:
        """Send the task a fatal signal; whether its call has come back."""
        calls, cpu = self._calls, self._calls.cpu
        task, frame = self._faults.resting_task, calls.place.frame
        registers = cpu.read(frame, 8 * len(calls.abi.frame_registers))
        self._set_killed(killed=True)
        if not cpu.has_breakpoint(self._get_signal):
            cpu.add_breakpoint(self._get_signal, self._survive)
        calls("signal_wake_up_state", task, _TASK_WAKEKILL)
        try:
            finish(grace)
        except MachineHang:
            self._set_killed(killed=False)
            return False
        cpu.write(frame, registers)  # a call that is to be made again has changed it
        self._calls.overdue = _survived(hang, _KILLED)
        return True

    def _set_killed(self, *, killed: bool) -> None:
        pending = self._memory.struct("task_struct", self._faults.resting_task).address_of("pending.signal")
        signals, bit = self._memory.u64(pending), 1 << (_SIGKILL - 1)
        self._memory.put(pending, 8, signals | bit if killed else signals & ~bit)

    def _survive(self) -> None:
        """``bool get_signal(struct ksignal *ksig)``: on its way out the task would die now."""
        if self._tasks.current_task() == self._faults.resting_task:
            self._forgive()

    def _forgive(self) -> None:
        self._set_killed(killed=False)
        self._calls("recalc_sigpending")

    # -- programs of other tasks ----------------------------------------------------------------------------
    def for_programs(self) -> None:
        """Wait for the ends of what the kernel has started; what does not come to its end is killed, or left."""
        calls, requests = self._calls, self._requests
        grace = round(_GRACE * self._hertz)
        if requests.settle(self._hertz, calls.limit.ticks if calls.overdue is None else grace):
            return
        registers = calls.cpu.read_registers()
        hang = MachineHang(
            "a modprobe that the kernel has started did not come back within the limit",
            FaultReport(LIMIT_REACHED, registers),
        )
        hang = self.told(hang, next(iter(requests.running), None))
        if not self.leave:
            for task in sorted(requests.running):
                calls("send_sig", _SIGKILL, task, 1)
        ended = not self.leave and requests.settle(self._hertz, grace)
        calls.leave_plays()
        if calls.overdue is None:
            calls.overdue = _survived(hang, _KILLED if ended else _LEFT, left=not ended)

    def tell(self, consequence: KodojoError | None = None) -> None:
        """Raise what ended the operation at its limit, if something did.

        :param consequence: what came of that in Python.
        """
        if self._calls.overdue is not None:
            raise self._calls.overdue from consequence

    def end(self) -> None:
        """The operation is over: what comes next is not killed."""
        if self._calls.cpu.has_breakpoint(self._get_signal):
            self._calls.cpu.remove_breakpoint(self._get_signal)
            self._forgive()

    # -- leaving ------------------------------------------------------------------------------------------
    def _replace(self, hang: MachineHang, finish: Finish, grace: RunLimit) -> None:
        """Let another process take over. Raises MachineHang, whether it does or not."""
        wanted = True

        def begins(place: Place) -> None:
            if wanted:
                raise _HasBegunError(place)
            self._calls.abi.call_here(self._calls.cpu, self._calls.address("do_exit"), 0)

        self._requests.start(begins)
        if self._runs_and_may_sleep():
            self._calls.put_to_sleep()
            grace = RunLimit(round(_GRACE * self._hertz))
        try:
            finish(grace)
        except _HasBegunError as begun:
            self._take_over(begun.place)
        except MachineHang:
            raise hang from None
        else:
            wanted = False
            self._calls.overdue = _survived(hang, _LATE)
            return
        raise _survived(hang, _LEFT, left=True)

    def _runs_and_may_sleep(self) -> bool:
        """Whether the operation's task is the current one and holds nothing that forbids to sleep, for all one knows.

        A kernel that preempts takes the processor from it then.
        """
        calls, memory, task = self._calls, self._memory, self._tasks.current_task()
        if task != self._faults.resting_task or not calls.image.config.enabled("PREEMPT_COUNT"):
            return False
        reads = 0
        if memory.btf.struct("task_struct").has("rcu_read_lock_nesting"):
            reads = memory.struct("task_struct", task).get("rcu_read_lock_nesting")
        return not reads and not calls.abi.preemption_count(calls.cpu, calls.image.kallsyms, memory)

    def _take_over(self, place: Place) -> None:
        """The current task makes the calls from now on, with the files and the directory of the one before."""
        calls, memory = self._calls, self._memory
        old, new = self._faults.resting_task, self._tasks.current_task()
        for member, kind, count, give_up in (
            ("files", "files_struct", "count", "put_files_struct"),
            ("fs", "fs_struct", "users", "free_fs_struct"),
        ):
            shared = memory.struct("task_struct", old).get(member)
            users = memory.struct(kind, shared).address_of(count)
            memory.put(users, 4, memory.u32(users) + 1)
            own = memory.struct("task_struct", new).get(member)
            memory.struct("task_struct", new).set(member, shared)
            if calls.has(give_up):
                calls(give_up, own)
        calls.cpu.user_table = place.user_table
        place.kernel_scratch = calls(calls.first("__get_free_pages", "get_free_pages_noprof"), GFP_ATOMIC, 0)
        calls.rest_at(place)
        self._faults.resting_task = new
