"""What goes wrong in guest code, recognised and told: oops, panic, BUG, WARN, and code that never returns.

The kernel prints its own report for all but the last. It is read from the log; the registers of an oops
come from its trap frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kodojo.errors import FaultReport, Frame, LogRecord, MachineError, MachineFault
from kodojo.kernel.backtraces import with_link
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.printk import Printk
from kodojo.kernel.tasks import Tasks

__all__ = ["Faults", "oopses_in", "reports_in", "warnings_in"]

_CUT_HERE = "------------[ cut here ]------------"
_END_TRACE = "---[ end trace"
_WARNING = "WARNING: "
_SYMBOL = r"(?:0x[0-9a-f]+|[^\s+]+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[[^\]]+\])?)"
_TRACE_LINE = re.compile(rf"^ (\? )?({_SYMBOL})$")
_PC_LINE = re.compile(rf"^(?:RIP: \w+:|pc : )({_SYMBOL})$")
_LINK_LINE = re.compile(rf"^lr : ({_SYMBOL})$")
# "RAX: 0123...", "RSP: 0018:0123...", "x0 : 0123..."
_REGISTER = re.compile(r"\b(R[A-Z0-9]{2}|EFLAGS|CR2|x\d{1,2}|sp|pstate) ?: (?:\w{4}:)?([0-9a-f]{8,16})\b")
_CAUSE = re.compile(
    r"^(BUG: .*|Unable to handle kernel .*|Internal error: .*|kernel BUG at .*|"
    r"general protection fault.*|divide error.*|invalid opcode.*|stack guard page .*|"
    r"Oops.*|Kernel panic - .*|double fault.*|int3.*|WARNING: .*|traps: .*)$"
)
_STOPPED = "this machine cannot be used further"
_INIT = 1  # the process without which the kernel panics
_GO_ON = "go on from a fork that was made before, or start over (kodojo boot)"


def _text_frames(lines: Iterable[str]) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    link = None
    for line in lines:
        place, register = _PC_LINE.match(line), _LINK_LINE.match(line)
        if place and not frames:
            frames.append(Frame(0, place[1]))
        elif register:
            link = link or register[1]
        trace = _TRACE_LINE.match(line)
        if trace and not (len(frames) == 1 and frames[0].symbol == trace[2]):  # arm64 names the place twice
            frames.append(Frame(0, trace[2], reliable=trace[1] is None))
    return with_link(frames, link)


def _text_registers(lines: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        for name, value in _REGISTER.findall(line):
            known = "rflags" if name == "EFLAGS" else name.lower().replace("r0", "r")  # R08 is r8
            found.setdefault(known, int(value, 16))
    return found


def _report(
    records: tuple[LogRecord, ...], registers: dict[str, int] | None = None, log: tuple[LogRecord, ...] | None = None
) -> FaultReport:
    """What the kernel has printed about a fault.

    :param log: what is to be shown, if it is more.
    """
    lines = [record.text for record in records]
    cause = next((line for line in lines if _CAUSE.match(line)), "oops")
    return FaultReport(cause, registers or _text_registers(lines), _text_frames(lines), log or records)


def _blocks(records: Iterable[LogRecord]) -> Iterator[tuple[LogRecord, ...]]:
    """Each report that is complete: from its first line, which may be the one that says to cut here, to its last."""
    current: list[LogRecord] | None = None
    for record in records:
        if record.text == _CUT_HERE:
            current = []
        elif current is not None:
            current.append(record)
        elif _CAUSE.match(record.text) and not record.text.startswith(_WARNING):
            current = [record]
        if current and record.text.startswith(_END_TRACE):
            yield tuple(current)
            current = None


def reports_in(records: Iterable[LogRecord]) -> tuple[FaultReport, ...]:
    """The reports among log records: WARNs, and oopses of all kinds."""
    return tuple(_report(block) for block in _blocks(records))


def warnings_in(records: Iterable[LogRecord]) -> tuple[FaultReport, ...]:
    """The WARN reports among log records."""
    return tuple(report for report in reports_in(records) if report.cause.startswith(_WARNING))


def oopses_in(records: Iterable[LogRecord]) -> tuple[FaultReport, ...]:
    """The reports of oopses among log records."""
    return tuple(report for report in reports_in(records) if not report.cause.startswith((_WARNING, "oops")))


def _without_warnings(records: tuple[LogRecord, ...]) -> tuple[LogRecord, ...]:
    """What was printed beside complete WARN reports."""
    warned = {
        id(record) for block in _blocks(records) if _report(block).cause.startswith(_WARNING) for record in block
    }
    return tuple(record for record in records if id(record) not in warned)


@dataclass(frozen=True, slots=True)
class _Dying:
    """A task that has oopsed: its registers then, and the stack above all calls (see :meth:`Calls.stack_above`)."""

    task: int
    registers: dict[str, int]
    stack: int
    above: bytes


class Faults:
    """Watches a machine for what must end a run.

    After an oops the task that did it dies, and the machine goes on. The task at rest is dear to us: when it is about
    to leave, with all printed that a dying task prints, it is taken back to where it rests. What a dead task held
    (locks, references, memory) stays held, as it does when a real insmod dies.

    :attr resting_task: the task that makes the calls.
    """

    def __init__(self, calls: Calls, memory: KernelMemory, printk: Printk, tasks: Tasks) -> None:
        self._calls = calls
        self._memory = memory
        self._printk = printk
        self._tasks = tasks
        self.resting_task = self._tasks.current_task()
        self._mark = 0
        self._told = 0  # what the log has from here on belongs to no report yet
        self._dying: dict[int, _Dying] = {}
        cpu = calls.cpu
        cpu.add_breakpoint(calls.address(calls.abi.oops[0]), self._oops)
        cpu.add_breakpoint(calls.address("do_exit"), self._exit)
        cpu.add_breakpoint(calls.address("emergency_restart"), self._panic)
        calls.failed = self._failed

    def begin(self) -> None:
        """A new operation: reports show the log from here on."""
        self._mark = self._told = self._printk.next_sequence()
        self._dying.clear()

    @property
    def dying(self) -> bool:
        """Whether a task has oopsed and is on its way out."""
        return bool(self._dying)

    def log(self) -> tuple[LogRecord, ...]:
        """What the kernel has said in this operation."""
        return self._printk.records(self._mark)

    def _oops(self) -> None:
        """The first of several of a task counts; its registers are those of the trap frame."""
        task = self._tasks.current_task()
        if task in self._dying:
            return
        abi, cpu = self._calls.abi, self._calls.cpu
        names = abi.frame_registers
        frame = self._memory.read(abi.argument(cpu, abi.oops[1]), 8 * len(names))
        registers = dict(zip(names, struct.unpack(f"<{len(names)}Q", frame), strict=True))
        name, value = abi.fault_address(cpu)
        self._dying[task] = _Dying(task, {**registers, name: value}, *self._calls.stack_above())

    def _exit(self) -> None:
        """``void do_exit(long code)``: the end of a task, be it that of an oops."""
        dying = self._dying.pop(self._tasks.current_task(), None)
        if dying is None:
            return
        if dying.task != self.resting_task:
            self._calls.abandon(self._calls.cpu.get(self._calls.abi.stack_register))
            self._told = self._printk.next_sequence()
            if self._memory.struct("task_struct", dying.task).get("pid") == _INIT:  # one that was left behind
                self._calls.put_to_sleep()
            return
        survived = not self._calls.nested
        if survived:
            self._take_back(dying)
        raise self._crashed(dying, survived=survived)

    def _crashed(self, dying: _Dying, *, survived: bool) -> MachineFault:
        self._dying.clear()
        report = self._latest(dying.registers)
        pc = dying.registers[self._calls.abi.program_counter]
        where = report.backtrace[0].symbol if report.backtrace else f"{pc:#x}"
        state = "the task that did it is dead, and what it held stays held" if survived else _STOPPED
        message = f"the kernel crashed in {where}: {report.cause}"
        return MachineFault(message, report, hint=f"{state}: {_GO_ON}", survived=survived)

    def _latest(self, registers: dict[str, int]) -> FaultReport:
        """What the kernel says about a fault that nothing was reported about yet."""
        return _report(_without_warnings(self._printk.records(self._told)), registers, self.log())

    def _take_back(self, dying: _Dying) -> None:
        """What ``do_exit`` does for the rest of the kernel; then the stack is as before the call."""
        self._calls("exit_rcu")
        self._memory.struct("task_struct", dying.task).set("__state", 0)  # TASK_RUNNING
        self._memory.write(dying.stack, dying.above)

    def _panic(self) -> None:
        """``emergency_restart()``, after everything has been printed. Oopses in interrupts come to it, too."""
        if self._dying:
            raise self._crashed(next(reversed(self._dying.values())), survived=False)
        report = self._latest(self._calls.cpu.read_registers())
        panics = [record.text for record in report.log if record.text.startswith("Kernel panic")]
        message = f"the kernel panicked: {panics[0] if panics else report.cause}"
        raise MachineFault(message, report, hint=f"{_STOPPED}: {_GO_ON}")

    def _failed(self, error: MachineError) -> MachineError:
        """What follows an oops is told as that oops; the other errors speak for themselves."""
        return self._crashed(next(reversed(self._dying.values())), survived=False) if self._dying else error
