"""The answer of our machine beside QEMU's: what differs, one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tests.oracle.answers import DAMAGE, HANG, KILLED, PANIC, Answer
from tests.oracle.cases import Call, Case

__all__ = ["differences"]

# What cannot be the same in the log, and why.
_MASKS = (
    # A call that may kill its process is made by a child of PID 1 in QEMU's machine, by PID 1 in ours.
    (re.compile(r"\bPID: [0-9]+"), "PID: N"),
    (re.compile(r"^note: init\[[0-9]+\]"), "note: init[N]"),
    # Nor are its stack and its task in the same place, to which registers point at the time of an oops.
    (re.compile(r"^(?:RSP|RAX|RDX|RBP|R10|R13|FS|CS|CR2): .*"), "registers"),
    # The walk to an address that faulted leads through the page tables of the caller, which is another program.
    (re.compile(r"^PGD [0-9a-f]+ .*"), "PGD"),
    (re.compile(r"^(\[[0-9a-f]{16}\]) pgd=.*"), r"\1 pgd"),
    # Nor is the kernel's copy of the file in the same place, into which damaged modules point. (Modules have a range
    # of their own, of which the next digits are these.)
    (re.compile(r"( virtual address |^\[)ffff8000(?!0[0-7]|7)[0-9a-f]{8}\b"), r"\1in vmalloc"),
    (re.compile(r"\bpgdp=[0-9a-f]{16}$"), "pgdp"),
    # The kernel's tests of its BPF compiler measure how long each takes.
    (re.compile(r"^(test_bpf: #.* jited:[01])(?: [0-9]+)+ (PASS)"), r"\1 in some time \2"),
)
# These calls return descriptors: whoever makes them has others open than the other one.
_DESCRIPTORS = frozenset({"socket", "openat"})
_MODULE_ADDRESS = re.compile(r"\bLive 0x[0-9a-f]{16}\b")
# Who was traced when (see the two lines above it in the file): tasks have other numbers, and other clocks.
_TRACED = re.compile(r"^ +\S+-[0-9]+ +\[[0-9]{3}\] \S+ +[0-9]+\.[0-9]+: ", re.MULTILINE)
_USER_TABLE = "user pgtable: "
# Nor is the level of these tables the same at which there is no entry (in ESR: the last two bits).
_LEVELS = (
    (re.compile(r"\b((?:ESR = 0x|ISS = 0x|Oops: )[0-9a-f]+)[4-7]\b"), r"\1 and the level"),
    (re.compile(r"FSC = 0x0[4-7]: level [0-3] "), "FSC and the level: "),
)


def differences(case: Case, emulated: Sequence[Answer], real: Sequence[Answer]) -> list[str]:
    """Differences, each beginning with the place and its kind.

    A call that our loader says would damage the kernel agrees with one that the kernel did not survive.
    """
    found: list[str] = []
    for index, (ours, theirs) in enumerate(zip(emulated, real, strict=False)):
        if ours.end == DAMAGE and theirs.end:
            return found
        where, call = f"call {index} {case.calls[index].name}", case.calls[index]
        left, right = (_as_comparable(case, answer) for answer in (ours, theirs))
        found += (f"{where}: {line}" for line in (*_of_a_call(left, right), *_earlier(call.earlier, ours, theirs)))
        if ours.end or theirs.end:
            return found
    if len(emulated) != len(real):
        found.append(f"calls: ours {len(emulated)}, QEMU {len(real)}")
    return found


def _of_a_call(ours: Answer, theirs: Answer) -> Iterator[str]:
    # Our machine stops where the report of an oops ends. A panic comes later, and leaves nobody to read the log; so
    # does code that never lets go of the processor, and a report that itself faults, for ever.
    panicked = theirs.end in (PANIC, HANG) and ours.end in (KILLED, PANIC)
    if (panicked or ours.end == theirs.end == HANG) and not theirs.log:
        return
    for name in ("value",) if panicked else ("end", "value"):
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name}: ours {getattr(ours, name)!r}, QEMU {getattr(theirs, name)!r}"
    yield from _log(ours, theirs)
    if theirs.traces and ours.traces != theirs.traces:
        yield f"traces: ours {ours.traces}, QEMU {theirs.traces}"
    if ours.end or theirs.end:
        return
    for name in ("tainted", "modules"):
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name}: ours {getattr(ours, name)!r}, QEMU {getattr(theirs, name)!r}"
    for path in sorted(ours.sysfs.keys() | theirs.sysfs.keys()):
        left, right = (_file(path, answer.sysfs.get(path)) for answer in (ours, theirs))
        if left != right:
            yield f"sysfs {path}: ours {left!r}, QEMU {right!r}"


def _file(path: str, content: str | None) -> str | None:
    """A file without what cannot be the same in it."""
    if content is not None and path == "/proc/crypto":
        # Threads register algorithms at boot, in whatever order they come to it.
        return "\n\n".join(sorted(content.split("\n\n")))
    return None if content is None else _TRACED.sub("", content)


def _as_comparable(case: Case, answer: Answer) -> Answer:
    """Where modules lie that other processes load depends on when a worker has freed what init needed."""
    if case.modprobe is None:
        return answer
    return replace(answer, modules=_MODULE_ADDRESS.sub("Live somewhere", answer.modules))


def _earlier(calls: Sequence[Call], ours: Answer, theirs: Answer) -> Iterator[str]:
    for index, (call, left, right) in enumerate(zip(calls, ours.earlier, theirs.earlier, strict=False)):
        one, other = (min(value, 0) if call.name in _DESCRIPTORS else value for value in (left, right))
        if one != other:
            yield f"earlier call {index} {call.name}: ours {left}, QEMU {right}"


def _log(ours: Answer, theirs: Answer) -> Iterator[str]:
    left, right = (_masked(answer.log) for answer in (ours, theirs))
    if ours.end and ours.end == theirs.end:
        right = right[: len(left)]  # our machine stops where the kernel's report ends; a real one goes on
    if len(left) != len(right):
        yield f"log: ours {left}, QEMU {right}"
        return
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        if one != other:
            yield f"log line {index}: ours {one}, QEMU {other}"


def _masked(log: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    masks = (*_MASKS, *_LEVELS) if any(line.startswith(_USER_TABLE) for _, line in log) else _MASKS
    return [(level, _masked_line(line, masks)) for level, line in log]


def _masked_line(line: str, masks: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in masks:
        line = pattern.sub(replacement, line)
    return line
