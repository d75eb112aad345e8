"""Kernels for tests: fetched and booted once, forked for each test.

What is asked of a kernel is asked of every one. To be quick, only a part of the tests runs on arm64 kernels: those
that are marked so (exceptions, faults, clocks), and one in :data:`SHARE` of the others, chosen by name. ``make test
ARGS=--every-kernel`` runs all of them.

Properties are tried at random for a person, with the same examples each time where ``CI`` is set, and by no clock: a
machine may be busy.
"""

from __future__ import annotations

import os
import zlib
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kodojo.image.image import Image
from kodojo.image.store import Store
from kodojo.kernel.kernel import Kernel
from tests.kernel.callers import Pair
from tests.support import distribution, kbuild

SERIES = ("6.1", "6.12")
EVERY_SERIES = (*SERIES, *distribution.ARM64)


SHARE = 6
LINES = 20  # of what has failed, at once; the whole comes at the end
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("person", deadline=None, max_examples=100, suppress_health_check=SLOW)
settings.register_profile("ci", settings.get_profile("person"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "person")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-kernel", action="store_true", help="all tests on arm64 kernels, too (twice the time)")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(terminal))


class AtOnce:
    """Says what has failed when it has, not only at the end of a long run."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.when} failed: {report.nodeid}")
            for line in [line for line in report.longreprtext.splitlines() if line.startswith("E ")][:LINES]:
                self._terminal.write_line(line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item, every=config.getoption("--every-kernel"))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _is_left_out(item: pytest.Item, *, every: bool) -> bool:
    call = getattr(item, "callspec", None)
    if call is None or call.params.get("series") not in distribution.ARM64:
        return False
    if item.get_closest_marker("x86_64"):
        return True
    chosen = item.get_closest_marker("arm64") or zlib.crc32(item.nodeid.encode()) % SHARE == 0
    return not every and not chosen


@lru_cache
def image_of(series: str) -> Image:
    files = distribution.kernel_of(series)
    return Image.from_directory(files.image_root, distribution.cache_directory() / series / "index")


@lru_cache
def shared_store() -> Store:
    """Snapshots last from one test run to the next: they are found again by content."""
    return Store(distribution.cache_directory() / "store")


@lru_cache
def booted_kernel(series: str) -> Kernel:
    """Never changed: tests get forks of it."""
    return Kernel.boot(image_of(series), store=shared_store())


@pytest.fixture(params=EVERY_SERIES)
def series(request: pytest.FixtureRequest) -> str:
    """A kernel series; every test that asks for a kernel runs once for each."""
    return request.param


@pytest.fixture
def image(series: str) -> Image:
    return image_of(series)


@pytest.fixture
def kernel(series: str) -> Kernel:
    """A freshly booted kernel of this test's own."""
    return booted_kernel(series).fork()


@pytest.fixture
def store() -> Store:
    return shared_store()


@pytest.fixture
def built(series: str) -> dict[str, Path]:
    """The modules of tests/modules, built for the series."""
    return kbuild.build(series)


@pytest.fixture
def noinit(built: dict[str, Path]) -> bytes:
    """The smallest module: loads and does nothing."""
    return built["kd_noinit"].read_bytes()


@pytest.fixture
def both(kernel: Kernel) -> Pair:
    """Our system calls and the kernel's own, each on a copy of a freshly booted kernel."""
    return Pair(kernel)
