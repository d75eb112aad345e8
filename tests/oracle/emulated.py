"""The answer of our machine to a case: by our loader, or by the kernel's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
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
from tests.oracle.cases import SETTLE, Argument, Call, Case, Kind, in_file, in_memory, number, text
from tests.sweep.processes import Answering

__all__ = ["LOADERS", "answer"]

GUEST_LIMIT, LOOK_LIMIT = 30.0, 2.0
WALL_LIMIT = 600.0  # what spins for GUEST_LIMIT takes minutes where others work, too
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
    kernel = Kernel.boot(image_of(series), store=shared_store())
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
    for call in case.calls:
        found.append(_make(kernel, call, loader))
        if found[-1].end:
            break
    return found


def _make(kernel: Kernel, call: Call, loader: Loader) -> Answer:
    mark = kernel.printk.next_sequence()
    result = Answer()
    try:
        with ExitStack() as stack:
            result.value = loader(kernel, call, stack)
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


def _look(kernel: Kernel, call: Call, result: Answer) -> None:
    result.tainted = int(kernel.read_file("/proc/sys/kernel/tainted"))
    result.modules = decode(kernel.read_file("/proc/modules"))
    for name in call.looks_at:
        result.sysfs |= _files(kernel, f"/sys/module/{name}")


def _files(kernel: Kernel, directory: str) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        entries = kernel.list_directory(directory)
    except GuestOSError:
        return found
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

Loader = Callable[[Kernel, Call, ExitStack], int]


def _native(kernel: Kernel, call: Call, stack: ExitStack) -> int:
    values = [_native_value(kernel, one, stack) for one in call.arguments]
    with _caller(kernel, call):
        return kernel.user.syscall(call.name, *values)


def _native_value(kernel: Kernel, argument: Argument, stack: ExitStack) -> int:
    if argument.kind in (Kind.DESCRIPTOR, Kind.PATH):
        path = argument.data.decode() if argument.kind == Kind.PATH else "/tmp/module.ko"
        if argument.kind == Kind.DESCRIPTOR:
            kernel.write_file(path, argument.data)
        try:
            return stack.enter_context(kernel.open(path, argument.value)).fd
        except GuestOSError as error:
            return -error.errno
    return _value(kernel, argument, stack)


def _ours(kernel: Kernel, call: Call, stack: ExitStack) -> int:
    if call.name not in _OURS:
        return _native(kernel, call, stack)
    values = [_our_value(kernel, one, stack) for one in call.arguments]
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


def _our_value(kernel: Kernel, argument: Argument, stack: ExitStack) -> int:
    if argument.kind in (Kind.DESCRIPTOR, Kind.PATH):
        path = Path(argument.data.decode()) if argument.kind == Kind.PATH else None
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "module.ko"
            path.write_bytes(argument.data)
        descriptor = os.open(path, _flags_here(kernel, argument.value))
        stack.callback(os.close, descriptor)
        return descriptor
    return _value(kernel, argument, stack)


def _flags_here(kernel: Kernel, flags: int) -> int:
    """Flags of open(2), the guest's, as this machine's."""
    theirs = kernel.user.calls.abi.open_directory
    return flags & ~theirs | os.O_DIRECTORY if flags & theirs else flags


def _value(kernel: Kernel, argument: Argument, stack: ExitStack) -> int:
    if argument.kind == Kind.ADDRESS:
        return stack.enter_context(kernel.user.memory(argument.data)) + argument.value
    return argument.value


LOADERS: dict[str, Loader] = {"ours": _ours, "native": _native}
