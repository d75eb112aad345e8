"""What parameters' own setters return, as parse_args() of both loaders takes it."""

from __future__ import annotations

import pytest

from kodojo.errors import MachineFault

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(
    "arguments",
    [
        "answer=0", "answer=-22", "answer=-2", "answer=-28", "answer=-1", "answer=5", "answer=4095",
        "answer=5 -- rest", "answer=5 answer=0", "answer=5 answer=-22", "answer=-22 answer=5",
        "answer=-2 answer=7 -- rest", "answer=-4095", "answer=0 -- rest", "answer=x", "answer",
    ],
)  # fmt: skip
def test_answers(both, built, arguments):
    """Numbers of errnos are errnos, others are reported and taken for the address of arguments that are ignored."""
    value = both(lambda calls: calls.init(built["kd_setter"].read_bytes(), arguments))
    last = arguments.partition(" -- ")[0].split()[-1].partition("=")[2]
    if last.isdigit():
        assert value == 0
        assert any("`5' invalid" in text for _, text in both.ours.log) == ("answer=5" in arguments)
    else:
        assert value < 0


def test_an_answer_where_nothing_is(both, built):
    """A number beyond the errnos is an address, which the kernel reads to print what is there: both crash alike."""
    for calls in (both.ours, both.native):
        with pytest.raises(MachineFault, match="ffffffffffffec78") as fault:
            calls.init(built["kd_setter"].read_bytes(), "answer=-5000")
        assert fault.value.backtrace[0].symbol.startswith("string")
