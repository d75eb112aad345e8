"""Figures of long runs are kept with where they come from, and shown."""

from __future__ import annotations

import json

from tests.support import figures

FACTS = {"compared": 4023, "same": 4020, "accepted": 1, "failures": ["a: disagreed", "b: crashed"]}


def test_one_kind_of_run_keeps_the_others(tmp_path, monkeypatch):
    """A run takes the place of the last of its kind on this kernel, and of nothing else."""
    origin = {"date": "2026-01-02", "commit": "0123456789ab"}  # a fresh machine has no git to ask
    monkeypatch.setattr(figures, "provenance", lambda: origin)
    file = tmp_path / "results" / "reliability.json"
    figures.record("sweep", "6.12", FACTS, file)
    figures.record("sweep", "6.1", {**FACTS, "same": 1}, file)
    figures.record("damage", "6.1", FACTS, file)
    figures.record("sweep", "6.1", FACTS, file)
    kept = json.loads(file.read_text())
    assert {name: list(kernels) for name, kernels in kept.items()} == {"damage": ["6.1"], "sweep": ["6.1", "6.12"]}
    assert kept["sweep"]["6.1"] == {**origin, **FACTS}


def test_table():
    """What is not the same is counted, and code that no commit has is said to be so."""
    one = {"date": "2026-01-02", "commit": "0123456789ab with changes", **FACTS}
    assert figures.table({"sweep": {"6.1": one}}).splitlines()[2] == (
        "| sweep | 6.1 | 2026-01-02, 0123456 with changes | 4,023 | 4,020 | 1 | 2 |"
    )


def test_counted():
    """What is neither the same nor accepted is named, with what became of it."""
    statuses = {"a": "agreed", "b": "accepted", "c": "crashed", "d": "agreed"}
    found = figures.counted([{"module": name, "status": status} for name, status in statuses.items()])
    assert found == {"compared": 4, "same": 2, "accepted": 1, "failures": ["c: crashed"]}


def test_put_table(tmp_path):
    """Only the table of this file is another one."""
    page = tmp_path / "page.md"
    other = "<!-- table of b.json -->\nkept\n<!-- end of the table -->\n"
    page.write_text(f"before\n<!-- table of a.json -->\nold\n<!-- end of the table -->\nbehind\n{other}")
    figures.put_table(page, "a.json", "new\n")
    assert page.read_text() == (f"before\n<!-- table of a.json -->\nnew\n<!-- end of the table -->\nbehind\n{other}")
