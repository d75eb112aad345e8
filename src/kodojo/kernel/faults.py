"""What goes wrong in guest code, recognised and told: oops, panic, BUG, WARN, and code that never returns.

The kernel prints its own report for all but the last. It is read from the log; the registers of an oops
come from its trap frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from kodojo.errors import FaultReport, Frame, LogRecord, MachineError, MachineFault, MachineHang, decode
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.printk import Printk
from kodojo.kernel.tasks import Tasks

__all__ = ["Faults", "warnings_in"]

# struct pt_regs in order (arch/x86/include/asm/ptrace.h)
_FRAME = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip
_CUT_HERE = "------------[ cut here ]------------"
_END_TRACE = "---[ end trace"
_SYMBOL = r"(?:0x[0-9a-f]+|[^\s+]+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[[^\]]+\])?)"
_TRACE_LINE = re.compile(rf"^ (\? )?({_SYMBOL})$")
_RIP_LINE = re.compile(rf"^RIP: \w+:({_SYMBOL})$")
_REGISTER = re.compile(r"\b(R[A-Z0-9]{2}|EFLAGS|CR2): (?:\w{4}:)?([0-9a-f]{8,16})\b")
_CAUSE = re.compile(
    r"^(BUG: .*|kernel BUG at .*|general protection fault.*|divide error.*|invalid opcode.*|stack guard page .*|"
    r"Oops.*|Kernel panic - .*|double fault.*|int3.*|WARNING: .*|traps: .*)$"
)
_TRACE_DEPTH = 32
_SYMBOL_LENGTH = 1024


def _text_frames(lines: Iterable[str]) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    for line in lines:
        rip = _RIP_LINE.match(line)
        if rip and not frames:
            frames.append(Frame(0, rip[1]))
        trace = _TRACE_LINE.match(line)
        if trace:
            frames.append(Frame(0, trace[2], reliable=trace[1] is None))
    return tuple(frames)


def _text_registers(lines: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        for name, value in _REGISTER.findall(line):
            known = "rflags" if name == "EFLAGS" else name.lower().replace("r0", "r")  # R08 is r8
            found.setdefault(known, int(value, 16))
    return found


def _report(records: tuple[LogRecord, ...], registers: dict[str, int] | None = None) -> FaultReport:
    lines = [record.text for record in records]
    cause = next((line for line in lines if _CAUSE.match(line)), "oops")
    return FaultReport(cause, registers or _text_registers(lines), _text_frames(lines), records)


def warnings_in(records: Iterable[LogRecord]) -> tuple[FaultReport, ...]:
    """The WARN reports among log records, each from its cut line to its end line."""
    found = []
    current: list[LogRecord] | None = None
    for record in records:
        if record.text == _CUT_HERE:
            current = []
        elif current is not None:
            current.append(record)
            if record.text.startswith(_END_TRACE):
                report = _report(tuple(current))
                if report.cause.startswith("WARNING: "):
                    found.append(report)
                current = None
    return tuple(found)


class Faults:
    """Watches a machine for what must end a run.

    :param scratch: a page of kernel memory for answers of the guest's functions.
    :attr mark: number of the log record at which the present operation began.
    """

    def __init__(self, calls: Calls, memory: KernelMemory, printk: Printk, tasks: Tasks, scratch: int) -> None:
        self._calls = calls
        self._scratch = scratch
        self._memory = memory
        self._printk = printk
        self._tasks = tasks
        self._resting_task = self._tasks.current_task()
        self.mark = 0
        cpu = calls.cpu
        # Both after everything has been printed.
        cpu.add_breakpoint(calls.address("oops_end"), self._oops)
        cpu.add_breakpoint(calls.address("emergency_restart"), self._panic)
        calls.failed = self._failed

    def _log(self) -> tuple[LogRecord, ...]:
        return self._printk.records(self.mark)

    def _oops(self) -> None:
        frame = self._memory.read(self._calls.cpu.get("rsi"), 8 * len(_FRAME))
        registers = dict(zip(_FRAME, struct.unpack(f"<{len(_FRAME)}Q", frame), strict=True))
        registers["cr2"] = self._calls.cpu.get("cr2")
        report = _report(self._log(), registers)
        where = report.backtrace[0].symbol if report.backtrace else f"{registers['rip']:#x}"
        raise MachineFault(
            f"the kernel crashed in {where}: {report.cause}",
            report,
            hint="this machine cannot be used further: go on from a fork, or start over (kodojo boot)",
        )

    def _panic(self) -> None:
        report = _report(self._log(), self._calls.cpu.read_registers())
        panics = [record.text for record in report.log if record.text.startswith("Kernel panic")]
        raise MachineFault(
            f"the kernel panicked: {panics[0] if panics else report.cause}",
            report,
            hint="this machine cannot be used further: go on from a fork, or start over (kodojo boot)",
        )

    def _failed(self, error: MachineError) -> MachineError:
        """Tell where it hangs; the other errors speak for themselves."""
        if not isinstance(error, MachineHang):
            return error
        frames = self._where()
        place = f" in {frames[0].symbol}" if frames else ""
        report = FaultReport(error.report.cause, error.registers, frames, self._log())
        waits = self._tasks.current_task() != self._resting_task
        what = "waits for something that does not come" if waits else "runs without coming back"
        return MachineHang(
            f"{error.message}: it {what}{place}",
            report,
            hint="give it more time (--limit SECONDS), or look at the backtrace for what it waits for",
        )

    def _where(self) -> tuple[Frame, ...]:
        """The resting task's backtrace, by the kernel's own unwinder."""
        cpu = self._calls.cpu
        registers = cpu.read_registers()
        try:
            if self._tasks.current_task() == self._resting_task:
                values = [registers.get(name, 0) for name in _FRAME]
                values[_FRAME.index("cs")] = 0x10
                values[_FRAME.index("ss")] = 0x18
                addresses = self._trace("stack_trace_save_regs", struct.pack(f"<{len(values)}Q", *values))
                addresses = addresses or [registers["rip"]]
            else:
                addresses = self._trace("stack_trace_save_tsk", self._resting_task)
            return tuple(Frame(address, self.symbol(address)) for address in addresses)
        except MachineError:
            return (Frame(registers["rip"], self._image_symbol(registers["rip"])),)

    def _trace(self, function: str, what: int | bytes) -> list[int]:
        count = self._calls(function, what, self._scratch, _TRACE_DEPTH, 0)
        return list(struct.unpack(f"<{count}Q", self._memory.read(self._scratch, 8 * count)))

    def symbol(self, address: int) -> str:
        """``name+offset/size [module]``, as the kernel prints it for ``%pS``."""
        self._calls("sprint_symbol", self._scratch, address)
        return decode(self._memory.string(self._scratch, _SYMBOL_LENGTH))

    def _image_symbol(self, address: int) -> str:
        located = self._calls.image.kallsyms.symbol_at(address)
        if located is None:
            return f"{address:#x}"
        return f"{located.name}+{address - located.start:#x}/{located.size:#x}"
