from __future__ import annotations

from tests.support.accepted import Accepted, accepted, judge

ENTRY = Accepted("nls_*", "log line 0: ", "because")


def record(module: str, *lines: str, count: int = 0) -> dict:
    status = "disagreed" if lines else "agreed"
    return {"module": module, "series": "6.1", "status": status, "lines": list(lines), "count": count or len(lines)}


def test_accepted_difference() -> None:
    """A module all of whose differences are allowed counts as accepted."""
    records = [record("nls_a", "log line 0: ours x, native y"), record("other", "log line 0: ours x, native y")]
    assert judge(records, [ENTRY]) == []
    assert [one["status"] for one in records] == ["accepted", "disagreed"]


def test_another_difference_beside_it() -> None:
    """One difference that is not allowed is enough; so is one that was not kept."""
    records = [record("nls_a", "log line 0: ", "value: "), record("nls_b", "log line 0: ", count=2)]
    assert judge(records, [ENTRY]) == []
    assert [one["status"] for one in records] == ["disagreed", "disagreed"]


def test_superfluous_entry() -> None:
    """An entry is superfluous if a module that it concerns was tested and did not need it, not otherwise."""
    assert judge([record("nls_a")], [ENTRY]) == [ENTRY]
    assert judge([record("other")], [ENTRY]) == []


def test_crash_is_never_accepted() -> None:
    """A crash cannot be allowed."""
    crashed = {**record("nls_a", "log line 0: "), "status": "crashed"}
    judge([crashed], [ENTRY])
    assert crashed["status"] == "crashed"


def test_every_entry_has_a_reason() -> None:
    """The list of accepted differences can be read, and says why."""
    assert all(entry.reason for entry in accepted())
