"""Memory that held one module's code, and then another's."""

import pytest

from tests.damage.outcomes import native_load, our_load

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

NAMES = ("softdog", "em_nbyte", "ts_fsm", "dummy")


def test_modules_take_turns_in_the_same_memory(kernel):
    """A module never runs the code of one that was removed before, whichever loader put it there."""
    for needed in kernel.image.modules["softdog"].depends:
        kernel.insmod(kernel.image.modules[needed].path)
    places = []
    for load in (our_load, native_load, our_load, native_load, native_load):
        for name in NAMES:
            result = load(kernel, kernel.image.modules[name].read(), "")
            assert (result.outcome.value, result.outcome.fault) == (0, "")
            places += [base for base, _content in result.outcome.memory.values()]
            kernel.rmmod(name)
    assert len(set(places)) < len(places)
