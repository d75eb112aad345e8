from __future__ import annotations

import pytest

from kodojo.check.explain.vermagic import vermagic_mismatch, vermagic_missing
from kodojo.errors import Detail
from tests.unit.check.explain.conftest import case, problem


def differing(module: str, kernel: str) -> dict[str, str]:
    both = Detail("vermagic", facts={"module": module, "kernel": kernel})
    found = vermagic_mismatch(case(), problem("vermagic-mismatch", both))
    return {detail.subject: detail.text for detail in found.details}


@pytest.mark.parametrize(
    ("module", "kernel", "subjects"),
    [
        ("1.0 SMP mod_unload ", "1.1 SMP mod_unload ", ["release"]),
        ("1.0 SMP ", "1.0 ", ["SMP"]),
        ("1.0 ", "1.0 SMP ", ["SMP"]),
        ("1.0 SMP preempt ", "1.0 SMP preempt_rt ", ["preempt"]),
        ("1.0 SMP ", "1.0 SMP preempt ", ["preempt"]),
        ("1.0 SMP modversions ", "2.0 SMP preempt modversions ", ["preempt"]),
        ("1.0 SMP modversions ", "1.1 SMP ", ["release", "modversions"]),
        ("1.0 aarch64 ", "1.0 something ", ["aarch64", "something"]),
    ],
)
def test_words(module, kernel, subjects):
    """Each word that one side has and the other lacks is told; the release only where it is compared."""
    assert list(differing(module, kernel)) == subjects


def test_who_has_it():
    """It is said which side has a word, and what the word stands for."""
    assert differing("1 SMP ", "1 ")["SMP"].endswith("the module was built with it, the kernel without")
    assert differing("1 ", "1 SMP ")["SMP"].endswith("the kernel was built with it, the module without")
    assert "CONFIG_SMP" in differing("1 ", "1 SMP ")["SMP"]
    text = differing("1 preempt ", "1 preempt_rt ")["preempt"]
    assert "module was built with preemption inside the kernel" in text
    assert "the kernel with real-time" in text


def test_magics_that_differ_in_nothing_but_blanks():
    """Magics that have the same words stay as they are."""
    assert list(differing("1.0  SMP", "1.0 SMP")) == ["vermagic"]


def test_missing():
    """A module without version magic is told which it should have."""
    (detail,) = vermagic_missing(case(), problem("vermagic-missing")).details
    assert detail.text == "should be '9.9-paper SMP'"
