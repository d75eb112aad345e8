"""Modules of the distribution's own trees: our load leaves what the native load leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import booted_kernel
from tests.differential.compare import Comparison
from tests.support.distribution import ARM64

LIST = Path(__file__).with_name("modules.txt")


def listed() -> list[tuple[str, str]]:
    lines = LIST.read_text().splitlines()
    words = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, arguments) for name, _, arguments in words]


@pytest.mark.kernel
@pytest.mark.parametrize(("name", "arguments"), listed(), ids=[name for name, _ in listed()])
def test_same_as_native(series: str, name: str, arguments: str) -> None:
    """errno, log, /proc/modules, taints, sysfs, memory and struct module are those of the native load."""
    kernel = booted_kernel(series)
    if series in ARM64 and name not in kernel.image.modules:
        pytest.skip("no module on arm64: built in, or for other processors")
    comparison = Comparison(kernel, name)
    assert comparison.differences(arguments) == []
