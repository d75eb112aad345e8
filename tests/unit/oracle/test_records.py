"""Kept answers."""

from __future__ import annotations

import pytest

from tests.oracle import records
from tests.oracle.answers import KILLED, Answer
from tests.oracle.cases import Call, Case, text


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "DIRECTORY", tmp_path / "answers")


def test_round_trip(directory):
    """What is written is read again, for the cases that there are now."""
    cases = [Case("group", name, (Call("delete_module", (text(name),)),)) for name in ("a", "b")]
    whole = [Answer(0, "", [(4, "odd \udcff")], 1, "a\n", {"/sys/module/a/": ""}), Answer(-2)]
    answers = {cases[0].digest: whole, cases[1].digest: [Answer(end=KILLED)], "0": [Answer(3)]}
    records.write(records.Records("9.9-test", "Linux 9.9", "processor: 0", "QEMU 1", answers), cases)
    found = records.read("9.9-test")
    assert found is not None
    assert (found.release, found.version, found.processor, found.qemu) == (
        "9.9-test", "Linux 9.9", "processor: 0", "QEMU 1",
    )  # fmt: skip
    assert found.answers == {case.digest: answers[case.digest] for case in cases}
    assert records.recorded_releases() == ["9.9-test"]


def test_unknown_release(directory):
    """Of a release that was never asked there is nothing."""
    assert records.read("9.9-test") is None
    assert records.recorded_releases() == []
