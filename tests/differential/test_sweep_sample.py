"""A sample of what ``make sweep`` does with the whole trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.accepted import accepted, judge
from tests.sweep.runner import sweep

SAMPLE = 15


@pytest.mark.kernel
@pytest.mark.arm64
def test_sample_of_the_tree(series: str, tmp_path: Path) -> None:
    """Modules chosen by hash are loaded by us as they are natively, and none crashes, hangs or is left out."""
    records, tested, _ = sweep(series, tmp_path / "results", sample=SAMPLE, jobs=os.cpu_count() or 1)
    unused = judge(records, accepted())
    assert tested == len({record["module"] for record in records}) == SAMPLE
    assert [record for record in records if record["status"] not in ("agreed", "accepted")] == []
    assert unused == []
