from __future__ import annotations

import pytest

from kodojo.check.explain.parameters import ignored, parameter, unchecked
from kodojo.errors import Detail, LogRecord
from kodojo.loader.verdict import Verdict
from tests.unit.check.explain.conftest import case, problem

INFO = {"parm": ["count:How many", "names:Whose"], "parmtype": ["count:int", "names:array of charp", "odd:own_type"]}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("count", "int", "-2147483648 to 2147483647"),
        ("names", "array of charp", "values separated by commas, each a text"),
        ("odd", "own_type", "as the module itself defines it"),
    ],
)
def test_type(name, kind, words):
    """The type of a parameter, and what it accepts."""
    (detail,) = parameter(case(**INFO), problem("parameter-invalid", Detail(name, facts={"value": "x"}))).details
    assert detail.facts == {"value": "x", "type": kind}
    assert words in detail.text


def test_unknown_type():
    """A module that does not say of what type a parameter is."""
    (detail,) = parameter(case(), problem("parameter-invalid", Detail("count"))).details
    assert detail.facts == {}


def test_ignored():
    """An argument that is no parameter is told, with the parameter that looks like it."""
    log = (LogRecord(4, "paper: unknown parameter 'coumt' ignored"), LogRecord(4, "paper: something else"))
    (detail,) = ignored(case(**INFO), Verdict(ok=True, log=log))
    assert detail.facts == {"nearest": "count"}
    assert "names (array of charp)" in detail.more[0]
    (detail,) = ignored(case(), Verdict(ok=True, log=log))
    assert (detail.facts, detail.more) == ({"nearest": ""}, ("its parameters: none",))


def test_unchecked():
    """Values that only the module can judge are named."""
    assert [detail.subject for detail in unchecked(Verdict(ok=True, unchecked=("odd",)))] == ["parameter odd"]
