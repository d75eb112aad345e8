"""The answer of our machine to a case: by our loader, or by the kernel's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from kodojo.errors import DamageError, GuestOSError, LoadError, MachineError, MachineHang, UnloadError, decode
from kodojo.kernel.kernel import Kernel
from kodojo.loader.syscalls import sys_delete_module, sys_finit_module, sys_init_module
from kodojo.machine.cpu import ProcessorState
from kodojo.machine.machine import Machine
from kodojo.machine.memory import PAGE_SIZE
from tests.conftest import image_of, shared_store
from tests.oracle.answers import DAMAGE, HANG, KILLED, PANIC, Answer, file_text
from tests.oracle.cases import (
    SETTLE,
    Argument,
    Call,
    Case,
    Kind,
    in_file,
    in_memory,
    modprobe_file,
    number,
    opened,
    text,
)
from tests.sweep.processes import Answering

__all__ = ["LOADERS", "answer"]

GUEST_LIMIT, LOOK_LIMIT = 30.0, 2.0
WALL_LIMIT = 600.0  # what spins for GUEST_LIMIT takes minutes where others work, too
_ENOTDIR, _EEXIST = 20, 17
_KINDS = {"directory": 4, "file": 8, "link": 10}
_SKIPPED = frozenset({"uevent"})
_OURS = {"init_module": sys_init_module, "finit_module": sys_finit_module, "delete_module": sys_delete_module}


def answer(series: str, case: Case, loader: str) -> list[Answer]:
    """Run the case in a process of its own, in a copy of the booted machine.

    :param loader: "ours" or "native".
    """
    kernel = ready(series)
    process = Answering.start(lambda: _answers(kernel, case, LOADERS[loader]), None, WALL_LIMIT)
    answers: list[Answer] = process.answer()
    process.wait()
    return answers


@lru_cache
def ready(series: str) -> Kernel:
    """A machine as it was when booted, whose engine has translated what most calls run."""
    kernel = Kernel.boot(image_of(series), store=shared_store(), bare=True)
    state = kernel.machine.cpu.save_state()
    dummy = kernel.image.modules["dummy"].read()
    calls = (
        Call("finit_module", (in_file(dummy), text("numdummies=1"), number(0)), ("dummy",)),
        Call("delete_module", (text("dummy"), number(0))),
        Call("init_module", (in_memory(dummy[:-1]), number(len(dummy) - 1), text(""))),
    )
    for loader in LOADERS.values():
        for call in calls:
            _make(kernel, call, loader)
    _rewind(kernel.machine, state)
    kernel = Kernel(kernel.image, kernel.machine, kernel._facts)
    kernel.limit(GUEST_LIMIT)
    kernel.answers_requests = False  # there is no modprobe in QEMU's machine
    return kernel


def _rewind(machine: Machine, state: ProcessorState) -> None:
    """Put a machine back to its snapshot, but for what was translated from memory that is as it was."""
    ram = machine.ram
    assert ram.file is not None
    original = np.memmap(ram.file, dtype=np.uint8, mode="r", shape=(ram.size,)).reshape(-1, PAGE_SIZE)
    changed = ram.dirty_pages()
    ram.pages[changed] = original[changed]
    for page in changed:
        machine.cpu._window.forget_code(int(page) * PAGE_SIZE, PAGE_SIZE)
    assert machine.snapshot is not None
    machine.board.restore(machine.snapshot.machine_state["board"])
    machine.cpu.restore_state(state)
    machine.cpu.engine.flush_tlb()


def _answers(kernel: Kernel, case: Case, loader: Loader) -> list[Answer]:
    found: list[Answer] = []
    with _modprobe(kernel, case, loader):
        for call in case.calls:
            found.append(_make(kernel, call, loader))
            if found[-1].end:
                break
    return found


def _make(kernel: Kernel, call: Call, loader: Loader) -> Answer:
    mark = kernel.printk.next_sequence()
    result = Answer()
    try:
        with ExitStack() as end:
            process = Process(kernel, end)
            for one in call.earlier:
                process.results.append(loader(process, one))
            result.value = loader(process, call)
            result.earlier = process.results
        kernel.sleep(SETTLE / 1000)
    except DamageError:
        result.end = DAMAGE
    except MachineError as error:
        result.end = HANG if isinstance(error, MachineHang) else KILLED
    result.log = [(record.level, record.text) for record in kernel.printk.records(mark)]
    result.take_traces()
    if not result.end:
        kernel.limit(LOOK_LIMIT)
        try:
            _look(kernel, call, result)
        except MachineError:
            result.end = PANIC  # in QEMU's machine PID 1 looks, and dies
        kernel.limit(GUEST_LIMIT)
    return result


@contextmanager
def _modprobe(kernel: Kernel, case: Case, loader: Loader) -> Iterator[None]:
    """Have the case's modprobe in the ``with`` block."""
    if case.modprobe is None:
        yield
        return
    known: dict[str, list[Argument]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, modules in case.modprobe:
            for index, module in enumerate(modules):
                path = modprobe_file(name, index)
                if loader is _ours:
                    path = directory + path.replace("/", "_")
                    Path(path).write_bytes(module)
                else:
                    kernel.write_file(path, module)
                known.setdefault(name, []).append(opened(path))
        kernel.requests.answer = lambda name: _modprobed(kernel, known.get(name, []), loader)
        yield


def _modprobed(kernel: Kernel, files: Sequence[Argument], loader: Loader) -> int:
    """The exit status of modprobe, which does what it does in guest.c."""
    values = []
    for file in files:
        with ExitStack() as end:
            values.append(loader(Process(kernel, end), Call("finit_module", (file, text(""), number(0)))))
    return 0 if values and all(value in (0, -_EEXIST) for value in values) else 1


def _look(kernel: Kernel, call: Call, result: Answer) -> None:
    result.tainted = int(kernel.read_file("/proc/sys/kernel/tainted"))
    result.modules = decode(kernel.read_file("/proc/modules"))
    for path in call.paths():
        result.sysfs |= _files(kernel, path)


def _files(kernel: Kernel, directory: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        entries = kernel.list_directory(directory)
    except GuestOSError as error:
        return {directory: file_text(kernel.read_file(directory))} if error.errno == _ENOTDIR else found
    for entry in entries:
        path = f"{directory}/{entry.name}"
        if entry.kind == "directory":
            found[path + "/"] = ""
            found |= _files(kernel, path)
        elif entry.kind != "file":
            found[path] = f"kind {_KINDS[entry.kind]}"
        elif entry.name not in _SKIPPED:
            try:
                found[path] = file_text(kernel.read_file(path))
            except GuestOSError as error:
                found[path] = f"errno {error.errno}"
    return found


# -- the calls ------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """Who makes a call, and has made earlier ones.

    :param end: what is to be given back when it ends.
    :param results: what its calls have returned.
    """

    kernel: Kernel
    end: ExitStack
    results: list[int] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)

    def values(self, call: Call) -> list[int]:
        """The arguments, as a program of the guest passes them."""
        return [self._value(argument) for argument in call.arguments]

    def values_here(self, call: Call) -> list[int]:
        """The arguments, as our system calls take them: descriptors are this machine's."""
        return [
            self._file_here(one) if one.kind in (Kind.DESCRIPTOR, Kind.PATH) else self._value(one)
            for one in call.arguments
        ]

    def _value(self, argument: Argument) -> int:
        match argument.kind:
            case Kind.ADDRESS:
                return self._place(argument.data) + argument.value
            case Kind.POINTING:
                place = self._place(argument.data)
                target = self._place(argument.target).to_bytes(8, "little")
                self.kernel.memory.write(place + len(argument.data) - len(target), target)
                return place
            case Kind.DESCRIPTOR:
                self.kernel.write_file("/tmp/module.ko", argument.data)
                return self._opened("/tmp/module.ko", argument.value)
            case Kind.PATH:
                return self._opened(argument.data.decode(), argument.value)
            case Kind.RESULT:
                return self.results[argument.value]
        return argument.value

    def _place(self, data: bytes) -> int:
        if data not in self._places:
            self._places[data] = self.end.enter_context(self.kernel.user.memory(data))
        return self._places[data]

    def _opened(self, path: str, flags: int) -> int:
        try:
            return self.end.enter_context(self.kernel.open(path, flags)).fd
        except GuestOSError as error:
            return -error.errno

    def _file_here(self, argument: Argument) -> int:
        path = Path(argument.data.decode()) if argument.kind == Kind.PATH else None
        if path is None:
            path = Path(self.end.enter_context(tempfile.TemporaryDirectory())) / "module.ko"
            path.write_bytes(argument.data)
        descriptor = os.open(path, _flags_here(self.kernel, argument.value))
        self.end.callback(os.close, descriptor)
        return descriptor


Loader = Callable[[Process, Call], int]


def _native(process: Process, call: Call) -> int:
    values = process.values(call)
    with _caller(process.kernel, call):
        return process.kernel.user.syscall(call.name, *values)


def _ours(process: Process, call: Call) -> int:
    if call.name not in _OURS:
        return _native(process, call)
    kernel = process.kernel
    values = process.values_here(call)
    try:
        with kernel.operation(), _caller(kernel, call):
            _OURS[call.name](kernel.target, *values)
    except DamageError:
        raise
    except (LoadError, UnloadError) as error:
        return -error.errno
    return 0


def _caller(kernel: Kernel, call: Call) -> AbstractContextManager[None]:
    return nullcontext() if call.privileged else kernel.as_user()


def _flags_here(kernel: Kernel, flags: int) -> int:
    """Flags of open(2), the guest's, as this machine's."""
    theirs = kernel.user.calls.abi.open_directory
    return flags & ~theirs | os.O_DIRECTORY if flags & theirs else flags


LOADERS: dict[str, Loader] = {"ours": _ours, "native": _native}
