"""Load a module by our loader in one copy of a machine and by the kernel's own in another; compare what is left.

The native loader is the kernel's real system call in the very same image: the strongest oracle that there is.
Compared: the errno, the log, ``/proc/modules``, the taint mask, every readable file of ``/sys/module/NAME``, the
bytes of the module's memory, and ``struct module`` field by field. Addresses of objects that either kernel
allocated separately (slab, vmalloc) may differ: allocators may be asked in another order.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from kodojo.errors import GuestOSError, LogRecord, MachineError
from kodojo.kernel.kernel import Kernel

# The direct mapping of memory and the vmalloc area: where separately allocated objects are. On arm64 the latter is
# behind the kernel, which is behind the modules.
_HEAP = (0xFFFF888000000000, 0xFFFFE90000000000)
_ARM64_DIRECT = (0xFFFF000000000000, 0xFFFF800000000000)
_ARM64_VMALLOC_END = 0xFFFFFC0000000000
# Until work queues have done what a load left to them, in seconds of guest time.
SETTLE = 0.3
TIMED = ("memory", "log line")
_SKIPPED_FILES = frozenset({"uevent"})


Ranges = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]


@dataclass
class Outcome:
    """What a load came to."""

    value: int
    log: list[tuple[int, str]] = field(default_factory=list)
    proc_modules: bytes = b""
    tainted: bytes = b""
    sysfs: dict[str, bytes] = field(default_factory=dict)
    struct_module: bytes = b""
    memory: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    fault: str = ""
    # Where modules are that several modprobes, which nobody waited for, have loaded at the same time: as it came.
    others: list[tuple[int, int]] = field(default_factory=list)


class Comparison:
    """One module on one kernel, its dependencies loaded (natively) on all sides.

    :param base: what is forked; never changed.
    """

    def __init__(self, base: Kernel, name: str) -> None:
        self._file = base.image.modules[name]
        self._name = name.replace("-", "_")
        self._ready = base.fork()
        loaded = {module.name for module in self._ready.modules}
        for dependency in self._file.depends:
            if dependency.replace("-", "_") not in loaded:
                value = native_init_module(self._ready, base.image.modules[dependency].read())
                assert value == 0, f"{dependency}: {value}"
        self._ready.sleep(SETTLE)

    def differences(self, arguments: str) -> list[str]:
        data = self._file.read()
        ours, native = (
            outcome_of(self._ready.fork(), load, data, arguments, self._name)
            for load in (our_init_module, native_init_module)
        )
        found = differences(self._ready, ours, native)
        if any(line.startswith(TIMED) for line in found):
            # Clocks, random numbers, benchmarks: what two native loads do not have in common either, the second
            # of them a moment later.
            unstable: set[str] = set()
            for moment in (0.1, 0.2, 0.3, 0.38):
                later = self._ready.fork()
                later.sleep(moment)
                later.calls("__delay", round(500_000 * moment))  # another point between two ticks
                again = outcome_of(later, native_init_module, data, arguments, self._name)
                unstable |= {place(line) for line in differences(self._ready, again, native)}
            found = [line for line in found if not line.startswith(TIMED) or place(line) not in unstable]
        return found


def place(line: str) -> str:
    return line.split(": ours", 1)[0]


def native_init_module(kernel: Kernel, image: bytes, args: str = "") -> int:
    """The kernel's own ``init_module(2)``: 0 or -errno."""
    with kernel.user.memory(image) as umod, kernel.user.memory(args.encode() + b"\0") as uargs:
        return kernel.user.syscall("init_module", umod, len(image), uargs)


def our_init_module(kernel: Kernel, image: bytes, args: str = "") -> int:
    return kernel.init_module(image, args)


def outcome_of(kernel: Kernel, load, image: bytes, args: str, name: str) -> Outcome:
    """Load, and look at everything."""
    mark = kernel.printk.next_sequence()
    try:
        value = load(kernel, image, args)
    except MachineError as error:
        return Outcome(0, _texts(kernel.printk.records(mark)), fault=type(error).__name__)
    kernel.sleep(SETTLE)  # what the module has started runs beside us: let it finish
    result = Outcome(value, _texts(kernel.printk.records(mark)))
    result.proc_modules = kernel.read_file("/proc/modules")
    result.tainted = kernel.read_file("/proc/sys/kernel/tainted")
    result.sysfs = _files(kernel, f"/sys/module/{name}")
    for mod in kernel.target.modules():
        if mod.name == name:
            size = kernel.image.btf.struct("module").size
            result.struct_module = kernel.memory.read(mod.address, size)
            for kind, region in kernel.target._regions(kernel.target.of(mod)).items():
                if region.base:
                    result.memory[kind.value] = (region.base, kernel.memory.read(region.base, region.size))
        elif kernel.requests.at_once > 1:
            regions = kernel.target._regions(kernel.target.of(mod)).values()
            result.others += [(region.base, region.base + region.size) for region in regions if region.base]
    return result


def _texts(records: tuple[LogRecord, ...]) -> list[tuple[int, str]]:
    return [(record.level, record.text) for record in records]


def without_counts(text: str) -> str:
    """How much memory is free is told by the page when there is none; the sides differ by a page or two."""
    return re.sub(r"\d+", "#", text) if re.search(r"\b(free|free_pcp|active_anon):\d", text) else text


def _files(kernel: Kernel, directory: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        entries = kernel.files.list(directory)
    except GuestOSError:
        return found
    for entry in entries:
        path = f"{directory}/{entry.name}"
        if entry.kind == "directory":
            found[path + "/"] = b""
            found.update(_files(kernel, path))
        elif entry.kind == "file" and entry.name not in _SKIPPED_FILES:
            try:
                found[path] = kernel.read_file(path)
            except GuestOSError as error:
                found[path] = b"errno %d" % error.errno
        else:
            found[path] = entry.kind.encode()
    return found


def differences(kernel: Kernel, ours: Outcome, native: Outcome) -> list[str]:
    """What differs, one line each, beginning with the kind of difference."""
    found = []
    if ours.fault or native.fault:
        if ours.fault != native.fault:
            found.append(f"fault: ours {ours.fault or 'none'}, native {native.fault or 'none'}")
        return found
    for name in ("value", "proc_modules", "tainted"):
        left, right = getattr(ours, name), getattr(native, name)
        raced = name == "proc_modules" and ours.others and native.others
        if left != right and not (raced and _same(left, right)):
            found.append(f"{name}: ours {left!r}, native {right!r}")
    if len(ours.log) != len(native.log):
        found.append(f"log: ours {ours.log}, native {native.log}")
    else:
        found.extend(
            f"log line {index}: ours {left}, native {right}"
            for index, (left, right) in enumerate(zip(ours.log, native.log, strict=True))
            if left != right
        )
    for path in sorted(ours.sysfs.keys() | native.sysfs.keys()):
        if ours.sysfs.get(path) != native.sysfs.get(path):
            found.append(f"sysfs: {path}: ours {ours.sysfs.get(path)!r}, native {native.sysfs.get(path)!r}")
    found.extend(_struct_differences(kernel, ours, native))
    found.extend(_memory_differences(kernel, ours, native))
    return found


def _same(ours: bytes, native: bytes) -> bool:
    """Whether the same modules are listed, though in another order and place: their loads ran at the same time."""
    return _unordered(ours) == _unordered(native)


def _unordered(listing: bytes) -> list[tuple[bytes, ...]]:
    """Name, size, references, who uses it, and state, of each module of /proc/modules."""
    rows = [line.split() for line in listing.splitlines()]
    return sorted((*row[:3], *sorted(row[3].split(b",")), row[4]) for row in rows)


def _heaps(kernel: Kernel) -> tuple[tuple[int, int], ...]:
    if kernel.image.architecture != "aarch64":
        return (_HEAP,)
    last = kernel.image.segments[-1]
    return _ARM64_DIRECT, (last.vaddr + last.memsz, _ARM64_VMALLOC_END)


def _words_that_differ(kernel: Kernel, ours: bytes, native: bytes, others: Ranges = ((), ())) -> list[int]:
    """Offsets of 8-byte words that differ and are not two pointers to separately allocated objects.

    :param others: where such objects are besides, on our side and on the native one.
    """
    if len(ours) != len(native):
        return [0]
    size = len(ours) & ~7
    heaps = _heaps(kernel)
    left, right = (struct.unpack(f"<{size // 8}Q", side[:size]) for side in (ours, native))
    return [
        8 * i
        for i, (a, b) in enumerate(zip(left, right, strict=True))
        if a != b
        and not any(start <= a < end and start <= b < end for start, end in heaps)
        and not (_is_in(a, others[0]) and _is_in(b, others[1]))
    ]


def _is_in(address: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= address < end for start, end in ranges)


def _struct_differences(kernel: Kernel, one: Outcome, other: Outcome) -> list[str]:
    members = kernel.image.btf.struct("module").members
    ours, native = one.struct_module, other.struct_module
    found = []
    for offset in _words_that_differ(kernel, ours, native, (one.others, other.others)):
        name = max((m for m in members if m.offset <= offset), key=lambda m: m.offset).name
        found.append(
            f"struct module: {name} (+{offset:#x}): ours {ours[offset : offset + 8].hex()}, "
            f"native {native[offset : offset + 8].hex()}"
        )
    return found


def _memory_differences(kernel: Kernel, ours: Outcome, native: Outcome) -> list[str]:
    found = []
    size = len(native.struct_module)
    for kind in sorted(ours.memory.keys() | native.memory.keys()):
        left, right = ours.memory.get(kind), native.memory.get(kind)
        if left is None or right is None or left[0] != right[0] or len(left[1]) != len(right[1]):
            found.append(f"memory: {kind}: another place or size")
            continue
        position = native.memory[kind][1].find(native.struct_module) if size else -1
        for offset in _words_that_differ(kernel, left[1], right[1], (ours.others, native.others)):
            if position <= offset < position + size and position >= 0:
                continue  # struct module, compared by itself
            found.append(
                f"memory: {kind}+{offset:#x} ({left[0] + offset:#x}): ours {left[1][offset : offset + 8].hex()}, "
                f"native {right[1][offset : offset + 8].hex()}"
            )
    return found
