"""Modules of the distribution's own trees: our load leaves what the native load leaves."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from kodojo.kernel.kernel import Kernel
from tests.conftest import booted_kernel
from tests.differential.compare import Comparison

LIST = Path(__file__).with_name("modules.txt")
# What modprobe would bring in through request_module and softdeps: there is no user space here to do it.
HELPERS = ("crc32c_generic",)


def listed() -> list[tuple[str, str]]:
    lines = LIST.read_text().splitlines()
    words = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, arguments) for name, _, arguments in words]


@lru_cache
def with_helpers(series: str) -> Kernel:
    kernel = booted_kernel(series).fork()
    for name in HELPERS:
        kernel.insmod(kernel.image.modules[name].path)
    return kernel


@pytest.mark.kernel
@pytest.mark.parametrize(("name", "arguments"), listed(), ids=[name for name, _ in listed()])
def test_same_as_native(series: str, name: str, arguments: str) -> None:
    """errno, log, /proc/modules, taints, sysfs, memory and struct module are those of the native load."""
    base = booted_kernel(series) if name in HELPERS else with_helpers(series)
    comparison = Comparison(base, name)
    assert comparison.differences(arguments) == []
