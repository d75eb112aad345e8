from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from kodojo.check.sources import Spool
from kodojo.image import bounds

SECONDS = 20
"""Of processor time; what comes back takes hundredths."""


@pytest.fixture(autouse=True)
def in_time():
    """A test that hangs is a failure with a traceback, not a build that waits."""

    def over(_signal, _frame):
        raise AssertionError(f"not done after {SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def limits(monkeypatch):
    """Lower limits for one test: ``limits(members=10)``."""

    def lower(**changes):
        monkeypatch.setattr(bounds, "LIMITS", replace(bounds.Limits(), **changes))

    return lower


@pytest.fixture
def spool(tmp_path):
    place = tmp_path / "spool"
    place.mkdir()
    return Spool(place)


@pytest.fixture
def written(spool):
    """Bytes that lie in the spool."""
    return lambda: sum(path.stat().st_size for path in spool._directory.iterdir())
