from __future__ import annotations

from pathlib import Path

from tests.sweep.results import read


def test_unfinished_line(tmp_path: Path) -> None:
    """A run that was killed while it wrote leaves all results but the last."""
    path = tmp_path / "results"
    path.write_text('{"module": "a"}\n{"module": "b"')
    assert read(path) == {"a": {"module": "a"}}
