"""Whichever allocation of a load fails, ours and the native loader say the same, undo the same, leave the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import pytest

from kodojo.kernel.kernel import Kernel
from tests.conftest import booted_kernel
from tests.damage.outcomes import without_traces
from tests.differential.compare import (
    SETTLE,
    Outcome,
    differences,
    native_init_module,
    our_init_module,
    outcome_of,
    without_counts,
)
from tests.differential.failing import Allocations
from tests.support import kbuild

# Module, what it needs, arguments, every how manieth allocation fails: parameters of several types, exports used,
# per-CPU data, tracepoints. `python -m tests.differential.test_inner_allocations 6.1 kd_hello` tries them all.
CASES = {
    "kd_hello": ((), "number=3 whom=me list=1,2 dyndbg=+p async_probe", 11),
    "kd_import": (("kd_export",), "", 29),
    "kd_percpu": ((), "", 31),
    "kd_trace": ((), "", 37),
}
ENOMEM = 12


@dataclass
class Attempt:
    """A load in which one allocation failed, and what is there then."""

    outcome: Outcome
    allocations: Allocations
    vmalloc_areas: int
    retried: Outcome | None = None


@lru_cache
def base(series: str, name: str, load) -> Kernel:
    """A kernel that has what the module needs. Each loader prints for itself what is printed once since boot."""
    kernel = booted_kernel(series).fork()
    for needed in CASES[name][0]:
        assert load(kernel, kbuild.build(series)[needed].read_bytes()) == 0
    kernel.sleep(SETTLE)
    return kernel


def attempt(series: str, name: str, load, fail: int | None) -> Attempt:
    kernel = base(series, name, load).fork()
    data, arguments = kbuild.build(series)[name].read_bytes(), CASES[name][1]
    mark = kernel.printk.next_sequence()
    allocations = Allocations(kernel, fail)
    value = load(kernel, data, arguments)
    allocations.fail = None
    kernel.sleep(0.05)  # what is freed later
    allocations.stop()
    log = without_traces([(record.level, record.text) for record in kernel.printk.records(mark)])
    outcome = Outcome(value, [(level, without_counts(text)) for level, text in log])
    outcome.proc_modules = kernel.read_file("/proc/modules")
    outcome.tainted = kernel.read_file("/proc/sys/kernel/tainted")
    outcome.sysfs = {entry.name: b"" for entry in kernel.files.list("/sys/module")}
    areas = kernel.read_file("/proc/vmallocinfo").count(b"\n")
    result = Attempt(outcome, allocations, areas)
    if value < 0:
        result.retried = outcome_of(kernel, load, data, arguments, name)
    return result


def first_difference(ours: list[str], native: list[str]) -> tuple[int, tuple[str | None, str | None]]:
    pairs = enumerate(zip_longest(ours, native))
    return next((number, pair) for number, pair in pairs if pair[0] != pair[1])


def compare(series: str, name: str, fail: int) -> list[str]:
    ours, native = (attempt(series, name, load, fail) for load in (our_init_module, native_init_module))
    kernel = base(series, name, native_init_module)
    found = differences(kernel, ours.outcome, native.outcome)
    if ours.allocations.made != native.allocations.made:
        number, pair = first_difference(ours.allocations.made, native.allocations.made)
        found.append(f"allocation {number} of ours, of native: {pair}")
    if ours.allocations.freed != native.allocations.freed:
        found.append(f"freed: ours {ours.allocations.freed}, native {native.allocations.freed}")
    if ours.vmalloc_areas != native.vmalloc_areas:
        found.append(f"areas: ours {ours.vmalloc_areas}, native {native.vmalloc_areas}")
    if ours.retried and native.retried:
        assert ours.retried.value == 0, f"after failure {fail}: {ours.retried.log}"
        found += [f"after that: {line}" for line in differences(kernel, ours.retried, native.retried)]
    return [f"allocation {fail}: {line}" for line in found]


def failures(series: str, name: str, step: int) -> list[str]:
    number = len(attempt(series, name, native_init_module, None).allocations.made)
    return [line for fail in range(step // 2, number, step) for line in compare(series, name, fail)]


@pytest.mark.kernel
@pytest.mark.parametrize("name", CASES)
def test_a_failing_allocation(series: str, name: str) -> None:
    """errno, log, what is freed, lists and sysfs are the native ones; and the next load of the file succeeds."""
    assert failures(series, name, CASES[name][2]) == []


@pytest.mark.kernel
def test_same_allocations(series: str) -> None:
    """Our loader asks the allocators for the same things in the same order as the native one does."""
    for name in CASES:
        ours, native = (attempt(series, name, load, None) for load in (our_init_module, native_init_module))
        assert ours.allocations.made == native.allocations.made
        assert ours.allocations.freed == native.allocations.freed


@pytest.mark.kernel
def test_failures_are_felt(series: str) -> None:
    """A failing allocation does make loads fail: the first one that of the copy of the file."""
    result = attempt(series, "kd_hello", our_init_module, 0)
    assert result.outcome.value == -ENOMEM


if __name__ == "__main__":
    print(*failures(sys.argv[1], sys.argv[2], 1), sep="\n")  # noqa: T201
