"""Whatever is loaded and removed, in whatever order, the kernel is afterwards what it was before."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodojo.errors import LoadError, UnloadError
from kodojo.kernel.kernel import Kernel
from tests.conftest import SERIES, booted_kernel
from tests.support import kbuild

pytestmark = pytest.mark.kernel

# kd_fail, kd_unknown, and kd_import without kd_export, are refused: they have to leave as little behind.
NAMES = (
    "kd_export", "kd_import", "kd_hello", "kd_noinit", "kd_proc", "kd_misc", "kd_percpu", "kd_trace", "kd_fail",
    "kd_unknown",
)  # fmt: skip
DIRECTORIES = ("/sys/module", "/sys/class/misc", "/sys/kernel/debug/tracing/events", "/proc", "/dev")


def state(kernel: Kernel) -> dict[str, object]:
    """What a module may leave behind: names in the lists and file systems, and areas of module memory."""
    listed = {path: {entry.name for entry in kernel.list_directory(path)} for path in DIRECTORIES}
    listed["/proc"] = {name for name in listed["/proc"] if not name.isdigit()}
    areas = [line for line in kernel.read_file("/proc/vmallocinfo").decode().splitlines() if " unpurged " not in line]
    # The loader's allocations are made by calls that return to kernel_init; see kodojo.kernel.calls.
    ours = sorted(int(line.split()[1]) for line in areas if " kernel_init+" in line)
    return {
        **listed,
        "modules": [module.name for module in kernel.modules],
        "/proc/modules": kernel.read_file("/proc/modules"),
        "areas": ours,
    }


@pytest.mark.parametrize("series", SERIES)
@settings(max_examples=5)
@given(
    steps=st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), min_size=3, max_size=10),
    last=st.permutations(NAMES),
)
def test_load_then_unload(series, steps, last):
    """Modules are loaded (or refused) and removed (or not) as it comes; when all are gone, nothing is left."""
    files = kbuild.build(series)
    kernel = booted_kernel(series).fork()
    before = state(kernel)
    for name, load in steps:
        with suppress(LoadError, UnloadError):
            if load:
                kernel.insmod(files[name])
            else:
                kernel.rmmod(name)
    assert (state(kernel) != before) == bool(kernel.modules)
    for _ in range(len(kernel.modules)):  # one round for each that is used by another
        for name in last:
            with suppress(UnloadError):
                kernel.rmmod(name)
    kernel.sleep(0.1)  # what is freed by a work queue
    assert state(kernel) == before


@pytest.mark.parametrize("series", SERIES)
@settings(max_examples=3)
@given(name=st.sampled_from(("kd_hello", "kd_proc", "kd_trace")), where=st.floats(0.02, 1, exclude_max=True))
def test_damaged_file(series, name, where):
    """A file of which the end is missing is refused, and leaves nothing either."""
    content = kbuild.build(series)[name].read_bytes()
    kernel = booted_kernel(series).fork()
    before = state(kernel)
    with pytest.raises(LoadError) as refusal:
        kernel.insmod(content[: int(where * len(content))])
    assert refusal.value.errno == 8  # ENOEXEC
    kernel.sleep(0.1)
    assert state(kernel) == before
