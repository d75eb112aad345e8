"""A sample of the modules of arm64 kernels, loaded by our loader and by the kernel's own."""

from __future__ import annotations

import hashlib

import pytest

from tests.conftest import booted_kernel
from tests.differential.compare import Comparison
from tests.support.distribution import ARM64

SAMPLE = 8


@pytest.mark.kernel
@pytest.mark.parametrize("series", ARM64)
def test_sample_of_the_tree(series: str) -> None:
    """Modules chosen by hash are what the native loader makes of them: value, log, sysfs, every byte."""
    base = booted_kernel(series)
    names = sorted(base.image.modules, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:SAMPLE]
    found = {name: Comparison(base, name).differences("") for name in names}
    assert found == {name: [] for name in names}
