"""Crashes and hangs of the guest, told in lines."""

from __future__ import annotations

from collections.abc import Iterable

from kodojo.errors import FaultReport, Frame, MachineFault, MachineHang, TaskReport
from kodojo.report.log import log_lines
from kodojo.report.paint import Paint, clean

__all__ = ["KEPT", "UNTOUCHED", "fault_lines", "warning_lines"]

UNTOUCHED = "the machine is as it was before this command"
KEPT = "the machine is kept as it is"

_ORDER = (
    # x86-64
    "rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "cr2",
    # arm64
    "pc", "sp", "pstate", *(f"x{number}" for number in range(31)), "far_el1",
)  # fmt: skip
_PER_LINE = 3
_RUNNING, _WITHOUT_WORK = "R", "SI"


def _register_lines(registers: dict[str, int]) -> list[str]:
    names = [name for name in _ORDER if name in registers]
    width = max(map(len, names), default=0)
    cells = [f"{name:<{width}} {registers[name]:016x}" for name in names]
    return ["  " + "  ".join(cells[i : i + _PER_LINE]) for i in range(0, len(cells), _PER_LINE)]


def _frame_lines(frames: Iterable[Frame], paint: Paint) -> list[str]:
    return [
        f"  {clean(frame.symbol)}" if frame.reliable else paint(f"  ? {clean(frame.symbol)}", "dim")
        for frame in frames
    ]


def _part(title: str, lines: list[str], paint: Paint) -> list[str]:
    return [paint(f"{title}:", "bold"), *lines] if lines else []


def _is_idle(task: TaskReport) -> bool:
    """A kernel thread that waits for something to do, and is no module's."""
    in_module = any("[" in frame.symbol for frame in task.backtrace)
    return task.kernel_thread and task.state in _WITHOUT_WORK and not in_module


def _task_lines(tasks: Iterable[TaskReport], paint: Paint) -> list[str]:
    """Where tasks are; those that have nothing to do are only counted."""
    lines: list[str] = []
    idle = 0
    for task in tasks:
        if _is_idle(task):
            idle += 1
            continue
        lines.append(f"  {clean(task.name)} (PID {task.pid}, state {task.state}):")
        lines += [f"  {line}" for line in _frame_lines(task.backtrace, paint)]
    if idle:
        threads = "1 kernel thread has" if idle == 1 else f"{idle} kernel threads have"
        lines.append(f"  {threads} nothing to do")
    return lines


def fault_lines(error: MachineFault, paint: Paint, *, kept: bool = False) -> list[str]:
    """Message, cause, registers, backtrace, log, and what to do.

    :param kept: the machine is saved as it is now.
    """
    report = error.report
    lines = [f"{paint('kodojo:', 'bold', 'red')} {clean(error.message)}"]
    if report.cause and report.cause not in error.message:
        lines.append(f"{paint('cause:', 'bold')} {clean(report.cause)}")
    if not report.tasks or report.tasks[0].state == _RUNNING:  # else they are those of another task, or of none
        lines += _part("registers", _register_lines(report.registers), paint)
    lines += _part("backtrace", _frame_lines(report.backtrace, paint), paint)
    lines += _part("other tasks", _task_lines(report.tasks[1:], paint), paint)
    lines += _part("log", [f"  {line}" for line in log_lines(report.log, paint)], paint)
    if isinstance(error, MachineHang) and error.hint:  # after a crash the hint is meant for who holds the machine
        lines.append(f"{paint('hint:', 'cyan')} {clean(error.hint)}")
    lines.append(KEPT if kept else UNTOUCHED)
    return lines


def warning_lines(reports: Iterable[FaultReport], paint: Paint) -> list[str]:
    """One line for each WARN that the kernel printed meanwhile, and for each oops that the command survived."""
    return [
        f"{_title(report, paint)} {clean(report.cause)} (kodojo dmesg shows the whole report)" for report in reports
    ]


def _title(report: FaultReport, paint: Paint) -> str:
    if report.cause.startswith("WARNING: "):
        return paint("kodojo: the kernel warns:", "yellow")
    return paint("kodojo: another task crashed:", "bold", "red")
