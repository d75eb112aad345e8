"""The stopwatch knows what it watches."""

from __future__ import annotations

from kodojo.kernel import kernel
from tests.bench.inside import watch_everything
from tests.bench.stopwatch import Stopwatch


def test_all_that_is_watched_is_there():
    """Functions move and are renamed; the benchmark follows them, and leaves them as they were."""
    before, watch = kernel.read_module, Stopwatch()
    watch_everything(watch)
    try:
        assert kernel.read_module is not before
    finally:
        watch.unwatch()
    assert kernel.read_module is before
