"""Load a damaged module in a process of its own, by our loader or the kernel's, and say what came of it."""

from __future__ import annotations

import os
import pickle
import re
import resource
import select
import signal
import struct
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kodojo.errors import DamageError, LoadError, MachineError
from kodojo.kernel.kernel import Kernel
from kodojo.loader.steps import STEPS, Steps
from kodojo.loader.syscalls import sys_init_module
from tests.damage.mutations import Case
from tests.differential.compare import Outcome, _files, _texts

__all__ = ["LIMIT", "Load", "Result", "in_children", "native_load", "our_load"]

Load = Callable[[Kernel, bytes, str], "Result"]

LIMIT = 60.0  # seconds for one load
SETTLE = 0.03  # guest seconds: work queues have their turn
UNTOUCHED = frozenset(list(STEPS)[: list(STEPS).index("layout_and_allocate")])
"""Refused in one of these steps, a module leaves nothing behind (but taints, which are compared)."""
_TRACE_ENDS = frozenset({"</TASK>"})
_ARM64_FRAME = re.compile(r" (\? )?(0x0|\S+\+0x[0-9a-f]+/0x)")
_HEXADECIMAL = re.compile(r"\b(0x)?[0-9a-f]{8,16}\b")


@dataclass
class Result:
    """What one load came to.

    :param step: of our loader, where it refused.
    :param damage: our loader says that the file would damage the kernel, and why.
    :param broken: the text of a Python exception that no input should raise.
    :param memory: how much more memory the process had at its peak than before, in KiB.
    """

    outcome: Outcome
    step: str = ""
    damage: str = ""
    broken: str = ""
    cause: str = ""
    memory: int = 0
    before: bytes = b""

    @property
    def nothing_changed(self) -> bool:
        """Refused before anything was allocated: the machine can be used for another case."""
        done = self.outcome.value < 0 and not (self.outcome.fault or self.damage or self.broken)
        return done and self.before == self.outcome.tainted


def our_load(kernel: Kernel, image: bytes, arguments: str) -> Result:
    """Our loader's answer."""
    steps = Steps()

    def load(umod: int, uargs: int) -> int:
        try:
            with kernel.operation():
                sys_init_module(kernel.target, umod, len(image), uargs, steps)
        except DamageError as error:
            result.damage = error.why
            return -error.errno
        except LoadError as error:
            return -error.errno
        return 0

    result = Result(Outcome(0))
    _observe(kernel, image, arguments, load, result)
    result.step = steps.current
    return result


def native_load(kernel: Kernel, image: bytes, arguments: str) -> Result:
    """The kernel's own answer."""
    result = Result(Outcome(0))
    _observe(
        kernel,
        image,
        arguments,
        lambda umod, uargs: kernel.user.syscall("init_module", umod, len(image), uargs),
        result,
    )
    return result


def _observe(kernel: Kernel, image: bytes, arguments: str, load: Callable[[int, int], int], result: Result) -> None:
    mark = kernel.printk.next_sequence()
    result.before = kernel.read_file("/proc/sys/kernel/tainted")
    known = {mod.address for mod in kernel.target.modules()}
    outcome = result.outcome
    try:
        with kernel.user.memory(image) as umod, kernel.user.string(arguments.encode()) as uargs:
            outcome.value = load(umod, uargs)
        if not outcome.value:
            kernel.sleep(SETTLE)
        outcome.proc_modules = kernel.read_file("/proc/modules")
        outcome.tainted = kernel.read_file("/proc/sys/kernel/tainted")
        if not outcome.value:
            _look_at_module(kernel, known, outcome)
    except MachineError as error:
        outcome.value = 0
        outcome.fault = type(error).__name__
        report = getattr(error, "report", None)
        result.cause = _HEXADECIMAL.sub("ADDRESS", report.cause if report else str(error))
    outcome.log = without_traces(_texts(kernel.printk.records(mark)))


def _look_at_module(kernel: Kernel, known: set[int], outcome: Outcome) -> None:
    new = next((mod for mod in kernel.target.modules() if mod.address not in known), None)
    if new is None:
        return
    if new.name not in {"", ".", ".."} and "/" not in new.name:
        outcome.sysfs = _files(kernel, f"/sys/module/{new.name}")
    outcome.struct_module = kernel.memory.read(new.address, kernel.image.btf.struct("module").size)
    for kind, region in kernel.target._regions(kernel.target.of(new)).items():
        if region.base:
            outcome.memory[kind.value] = (region.base, kernel.memory.read(region.base, region.size))


def without_traces(log: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The log without registers and backtraces: those show who called, which is not the same on both sides."""
    kept, inside, arm64_frames = [], False, False
    for level, text in log:
        if arm64_frames and not _ARM64_FRAME.match(text):  # nothing else tells the end of a backtrace there
            arm64_frames = False
            inside = text.startswith(("---[ end trace", "Code: "))
        inside = inside or text.startswith(("CPU: ", "Modules linked in:"))
        arm64_frames = arm64_frames or text == "Call trace:"
        if not inside:
            kept.append((level, text))
        inside = inside and text.strip() not in _TRACE_ENDS and not text.startswith("---[ end trace")
    return kept


# -- processes ----------------------------------------------------------------------------------------


def in_children(kernel: Kernel, load: Load, cases: Iterable[Case], *, early: bool) -> Iterator[Result]:
    """The results of some cases, one after the other in one child process.

    The sequence ends early: after a case that may have changed the machine, and after one that killed or
    hung the process.

    :param early: expect every case to be refused early, as :func:`our_load` was (see UNTOUCHED).
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            _serve(kernel, load, cases, writing, early=early)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        while True:
            head = _read(reading, 8)
            if head is None:
                os.kill(child, signal.SIGKILL)
                yield Result(Outcome(0), broken=f"no answer in {LIMIT:.0f} s")
                return
            if len(head) < 8:
                break
            content = _read(reading, struct.unpack("<Q", head)[0])
            if content == b"":
                break
            yield pickle.loads(content)
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _serve(kernel: Kernel, load: Load, cases: Iterable[Case], writing: int, *, early: bool) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for case in cases:
        before = _resident()
        try:
            result = load(kernel, case.data, case.arguments)
        except Exception:  # noqa: BLE001  what a test looks for
            result = Result(Outcome(0), broken=traceback.format_exc(limit=-4))
        result.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        content = pickle.dumps(result)
        content = struct.pack("<Q", len(content)) + content
        while content:
            content = content[os.write(writing, content) :]
        if not result.nothing_changed or not (early or result.step in UNTOUCHED):
            return


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def _read(descriptor: int, size: int) -> bytes | None:
    """So many bytes; fewer at the end; None after LIMIT seconds."""
    content = b""
    while len(content) < size:
        if not select.select([descriptor], [], [], LIMIT)[0]:
            return None
        piece = os.read(descriptor, min(size - len(content), 1 << 20))
        if not piece:
            return content
        content += piece
    return content
