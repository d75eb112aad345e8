"""Damaged modules: our loader gives the native loader's answer, or says that the file would damage the kernel."""

from __future__ import annotations

import pytest

from tests.damage.judge import GOOD, judge
from tests.damage.machines import warm
from tests.damage.mutations import KINDS, make_case
from tests.damage.outcomes import in_children, our_load

SEED = 7
PARTS, SIZE = 8, 25


@pytest.mark.kernel
@pytest.mark.parametrize("part", range(PARTS))
def test_same_answer(series: str, part: int) -> None:
    """Every damaged module gets the same answer from both; what is called damage, the kernel shows to be that."""
    machine = warm(series)
    cases = [make_case(machine.bases, SEED, number) for number in range(part * SIZE, (part + 1) * SIZE)]
    judgements = list(judge(machine.kernel, cases))
    assert len(judgements) == SIZE
    assert [one for one in judgements if one.verdict not in GOOD] == []


@pytest.mark.kernel
def test_refusals_leave_nothing(series: str) -> None:
    """After modules that are refused early, the kernel's memory map has not grown, and the next module loads."""
    machine = warm(series)
    kernel = machine.kernel.fork()
    numbers = [number for number in range(120) if make_case(machine.bases, SEED, number).kind == "ELF header"]

    def areas() -> int:
        return len(kernel.read_file("/proc/vmallocinfo").splitlines())

    whole = next(base for base in machine.bases if base.name == "xt_limit")
    our_load(kernel, whole.data[:2000], "")  # the kernel keeps an area or two to itself
    before = areas()
    refused = 0
    for number in numbers:
        case = make_case(machine.bases, SEED, number)
        result = our_load(kernel, case.data, case.arguments)
        if not result.nothing_changed:
            break
        refused += 1
    assert refused
    assert areas() <= before
    assert our_load(kernel, whole.signed, "").outcome.value == 0


@pytest.mark.kernel
def test_cases_are_determined(series: str) -> None:
    """Seed and number alone make a case, and every kind of damage comes up."""
    bases = warm(series).bases
    cases = [make_case(bases, SEED, number) for number in range(40)]
    assert cases == [make_case(bases, SEED, number) for number in range(40)]
    assert {case.kind for case in cases} == set(KINDS)
    assert cases != [make_case(bases, SEED + 1, number) for number in range(40)]


@pytest.mark.kernel
def test_judge_sees_a_difference(series: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that answers otherwise is found out."""
    machine = warm(series)
    whole = next(base for base in machine.bases if base.name == "xt_limit")
    case = make_case(machine.bases, SEED, 0)
    cut = type(case)(0, "bytes", whole.name, "whole, but another file is loaded by ours", whole.data)

    def another(kernel, image, arguments):
        return our_load(kernel, image[:2000], arguments)

    monkeypatch.setattr("tests.damage.judge.our_load", another)
    (judgement,) = judge(machine.kernel, [cut])
    assert judgement.verdict not in GOOD


@pytest.mark.kernel
def test_a_broken_loader_is_told(series: str) -> None:
    """A Python exception in a child comes back as a broken result."""
    machine = warm(series)

    def broken(kernel, image, arguments):
        raise ZeroDivisionError

    (result,) = in_children(machine.kernel, broken, [make_case(machine.bases, SEED, 0)], early=False)
    assert "ZeroDivisionError" in result.broken
