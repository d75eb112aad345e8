"""Booted machines in the store: one for each image, command line, memory size and state, made once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from kodojo.durable import lock
from kodojo.errors import CorruptError, StoreError
from kodojo.image.image import Image
from kodojo.image.store import Store
from kodojo.kernel import boot
from kodojo.kernel.booted_state import come_up
from kodojo.kernel.calls import Calls
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.user import UserSpace
from kodojo.machine.cpu import RunLimit
from kodojo.machine.machine import Machine, Snapshot

__all__ = ["BootFacts", "SnapshotKey", "boot_machine", "existing", "snapshot_for"]

# What a boot does differently from an earlier version of kodojo makes its snapshots others.
_BOOT_FORMAT = 30

_GFP_KERNEL = 0xCC0  # __GFP_RECLAIM | __GFP_IO | __GFP_FS, unchanged since 4.20

_SETTLING_SECONDS = 2  # of guest time


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """What makes two boots the same. ``bare``: see :func:`kodojo.kernel.booted_state.come_up`."""

    image: str
    cmdline: str
    memory: int
    bare: bool = False

    @property
    def name(self) -> str:
        text = json.dumps([_BOOT_FORMAT, boot.base_command_lines(), *astuple(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BootFacts:
    """Addresses that a boot leaves behind for whoever goes on from it.

    :param stack: and ``frame``: see :class:`kodojo.kernel.calls.Place`.
    :param scratch: PID 1's user memory of SCRATCH_SIZE bytes; ``kernel_scratch``: a page of kernel memory.
    :param file: a ``struct file`` of the root file system, open for reading.
    """

    stack: int
    frame: int
    scratch: int
    kernel_scratch: int
    file: int


def boot_machine(
    image: Image,
    cmdline: str,
    memory: int,
    progress: Callable[[float], None] | None = None,
    *,
    bare: bool = False,
) -> tuple[Machine, BootFacts]:
    """Power on, boot, do what an init does, and come to rest.

    :param progress: told the share of the boot that is done, 0 to 1.
    :param bare: see :func:`kodojo.kernel.booted_state.come_up`.
    """
    machine = Machine.new(memory, image.architecture)
    boot.load(machine.cpu, image, boot.command_line(image.architecture, cmdline))
    place = boot.run_to_user_space(machine.cpu, image, progress)
    calls = Calls(machine.cpu, image, place, RunLimit())
    calls.clear_stack()
    calls.abi.find_user_space(machine.cpu, image.kallsyms, KernelMemory(machine.cpu, image.btf))
    user = UserSpace(machine, calls)
    user.reach_code()
    come_up(user, bare=bare)
    get_pages = calls.first("__get_free_pages", "get_free_pages_noprof")
    kernel_scratch = calls(get_pages, _GFP_KERNEL, 1)
    descriptor = user.checked("/init", "open", user.path("/init"), 0, 0)
    file = calls("fget", descriptor)
    user.syscall("close", descriptor)
    # What the boot has started goes on in threads and work queues (tests of crypto algorithms, for instance). It ends
    # here, once, and not in everybody's first command.
    calls("schedule_timeout_uninterruptible", _SETTLING_SECONDS * int(image.config.get("CONFIG_HZ", "250")))
    boot.trap_time_stamp_reads(machine.cpu, calls)
    return machine, BootFacts(place.stack, place.frame, user.scratch, kernel_scratch, file)


def existing(store: Store, image: Image) -> list[tuple[SnapshotKey, Path]]:
    """The snapshots of an image in the store."""
    found = []
    for directory in sorted(store.snapshots_directory(image).glob("*")):
        try:
            facts = Snapshot.open(directory).facts["key"]
        except (StoreError, KeyError):
            continue
        with suppress(TypeError):  # of an earlier version
            found.append((SnapshotKey(**facts), directory))
    return found


def snapshot_for(
    store: Store,
    image: Image,
    cmdline: str,
    memory: int,
    progress: Callable[[float], None] | None = None,
    *,
    bare: bool = False,
) -> tuple[Snapshot, BootFacts]:
    """The snapshot of this boot, from the store, or made now; a damaged one is made again."""
    key = SnapshotKey(image.identity, " ".join(cmdline.split()), memory, bare)
    directory = store.snapshots_directory(image) / key.name
    try:
        return _opened(directory)
    except StoreError:
        pass
    with lock(directory.parent / f".{key.name}.lock", timeout=None):
        try:
            return _opened(directory)  # somebody else made it meanwhile
        except CorruptError:
            shutil.rmtree(directory, ignore_errors=True)
        except StoreError:
            pass
        machine, facts = boot_machine(image, key.cmdline, memory, progress, bare=bare)
        kept = {"key": asdict(key), "boot": asdict(facts)}
        return Snapshot.write(directory, machine, kept), facts


def _opened(directory: Path) -> tuple[Snapshot, BootFacts]:
    snapshot = Snapshot.open(directory)
    try:
        return snapshot, BootFacts(**snapshot.facts["boot"])
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{directory}: not a snapshot of this version of kodojo") from error
