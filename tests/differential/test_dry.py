"""Damaged modules: the dry load gives the real load's answer, and goes on to explain it without falling over."""

from __future__ import annotations

import pytest

from kodojo.loader.verdict import Verdict
from tests.damage.dry import compare
from tests.damage.machines import warm
from tests.damage.mutations import make_case

SEED = 7
PARTS, SIZE = 2, 30


@pytest.mark.kernel
@pytest.mark.parametrize("part", range(PARTS))
def test_same_answer(series: str, part: int) -> None:
    """Errno and log lines are the same, whatever is wrong with the file; nothing but a verdict comes back."""
    machine = warm(series)
    cases = [make_case(machine.bases, SEED, number) for number in range(part * SIZE, (part + 1) * SIZE)]
    answers = list(compare(machine.kernel, cases))
    assert [answer.case.number for answer in answers] == [case.number for case in cases]
    assert [(answer.case.number, answer.lines) for answer in answers if answer.lines] == []


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("verdict", "words"),
    [(Verdict(ok=True), "errno: dry 0"), (Verdict(ok=False, errno=99, slug="elf-magic"), "no problem told")],
)
def test_compare_sees_a_difference(
    series: str, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, words: str
) -> None:
    """A dry load that answers otherwise is found out."""
    machine = warm(series)
    whole = machine.bases[0]
    case = make_case(machine.bases, SEED, 0)
    cut = type(case)(0, "bytes", whole.name, "cut", whole.data[:2000])
    monkeypatch.setattr("tests.damage.dry.dry_answer", lambda _image, _case: verdict)
    (answer,) = compare(machine.kernel, [cut])
    assert any(words in line for line in answer.lines)


@pytest.mark.kernel
def test_exceptions_are_told(series: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python exception in the dry load is a difference, too."""
    machine = warm(series)

    def broken(_image, _case):
        raise ZeroDivisionError

    monkeypatch.setattr("tests.damage.dry.dry_answer", broken)
    (answer,) = compare(machine.kernel, [make_case(machine.bases, SEED, 0)])
    assert "ZeroDivisionError" in answer.lines[0]
