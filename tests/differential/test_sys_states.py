"""The system calls while a module is on its way in or out: by our loader and by the kernel's own, the same."""

from __future__ import annotations

import pytest

from kodojo.errors import MachineFault
from tests.kernel.callers import Calls, during

pytestmark = pytest.mark.kernel

ENOENT, EAGAIN, EBUSY, EEXIST = 2, 11, 16, 17
O_NONBLOCK, O_TRUNC = 0o4000, 0o1000
FLAGS = (0, O_NONBLOCK, O_TRUNC, O_NONBLOCK | O_TRUNC)
FORCED_RMMOD = 3


def exit_of(calls: Calls, name: str) -> int:
    """Address of a module's exit function."""
    (module,) = (module for module in calls.kernel.modules if module.name == name)
    return calls.kernel.memory.struct("module", module.address).get("exit")


def hold(calls: Calls, name: str) -> int:
    """Take a reference, as an open file of the module's does."""
    (module,) = (module for module in calls.kernel.modules if module.name == name)
    return calls.kernel.calls("try_module_get", module.address) & 0xFF


def load_and(calls: Calls, image: bytes, action) -> tuple[object, object]:
    """What comes of an action in the module's init, and of the module."""
    with during(calls, "do_one_initcall", action) as answers:
        value = calls.init(image)
    return answers[0], value


def delete_and(calls: Calls, name: str, action) -> tuple[object, object]:
    """What comes of an action in the module's exit, and of its removal."""
    with during(calls, exit_of(calls, name), action) as answers:
        value = calls.delete(name)
    return answers[0], value


@pytest.mark.parametrize("flags", FLAGS)
def test_delete_from_its_own_init(both, built, flags):
    """A module that is still loading is busy, by force too."""
    image = built["kd_hello"].read_bytes()
    answer = both(lambda calls: load_and(calls, image, lambda calls: calls.delete("kd_hello", flags)))
    assert answer == (-EBUSY, 0)


def test_delete_what_it_uses_from_its_init(both, built):
    """What a module uses stays while that loads; what nobody uses goes."""
    for name in ("kd_export", "kd_noinit"):
        both(lambda calls, name=name: calls.init(built[name].read_bytes()))

    def both_of_them(calls):
        return calls.delete("kd_export", O_TRUNC), calls.delete("kd_noinit")

    answer = both(lambda calls: load_and(calls, built["kd_import"].read_bytes(), both_of_them))
    assert answer == ((-EAGAIN, 0), 0)


def test_load_in_init(both, built):
    """A module's init may have others loaded, and others removed."""
    both(lambda calls: calls.init(built["kd_noinit"].read_bytes()))

    def another(calls):
        return (
            calls.init(built["kd_fail"].read_bytes(), "error=0"),
            calls.delete("kd_noinit"),
            calls.delete("kd_fail"),
        )

    assert both(lambda calls: load_and(calls, built["kd_hello"].read_bytes(), another)) == ((0, 0, 0), 0)


@pytest.mark.parametrize("flags", FLAGS)
def test_calls_from_its_own_exit(both, built, flags):
    """A module that is going can be neither removed nor loaded."""
    image = built["kd_hello"].read_bytes()
    both(lambda calls: calls.init(image))

    def again(calls):
        return calls.delete("kd_hello", flags), calls.init(image)

    assert both(lambda calls: delete_and(calls, "kd_hello", again)) == ((-EBUSY, -EBUSY), 0)
    assert both(lambda calls: calls.init(image)) == 0


def test_user_of_a_module_that_is_going(both, built):
    """A module that needs one that is going does not find what it needs there."""
    both(lambda calls: calls.init(built["kd_export"].read_bytes()))
    user = built["kd_import"].read_bytes()
    assert both(lambda calls: delete_and(calls, "kd_export", lambda calls: calls.init(user)))[1] == 0


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("name", ["kd_hello", "kd_noinit", "kd_noexit", "kd_proprietary"])
def test_delete_what_is_held(both, built, name, flags):
    """A module to which somebody holds a reference goes by force only, which taints."""
    both(lambda calls: calls.init(built[name].read_bytes()))
    assert both(lambda calls: hold(calls, name)) == 1
    permanent = name == "kd_noexit"
    expected = 0 if flags & O_TRUNC else -(EBUSY if permanent else EAGAIN)
    assert both(lambda calls: calls.delete(name, flags)) == expected
    again = both(lambda calls: calls.init(built[name].read_bytes()))
    assert again == (0 if flags & O_TRUNC else -EEXIST)


def test_forced_twice(both, built):
    """The taint of a forced removal is mentioned once."""
    for _ in range(2):
        for name in ("kd_noexit", "kd_hello"):
            both(lambda calls, name=name: calls.init(built[name].read_bytes()))
            both(lambda calls, name=name: hold(calls, name))
            assert both(lambda calls, name=name: calls.delete(name, O_TRUNC)) == 0


def test_no_reference_left(both, built):
    """Removing a module that has given its last reference away ends in the kernel's BUG()."""
    both(lambda calls: calls.init(built["kd_hello"].read_bytes()))

    def give_away(calls):
        (module,) = calls.kernel.modules
        calls.kernel.memory.struct("module", module.address).set("refcnt.counter", 0)
        with pytest.raises(MachineFault) as fault:
            calls.delete("kd_hello")
        return fault.value.report.cause

    causes = [give_away(calls) for calls in (both.ours, both.native)]
    assert causes[0] == causes[1]
    assert causes[0].startswith("kernel BUG at kernel/module/main.c")


@pytest.mark.parametrize("action", ["init", "finit"])
def test_load_itself_in_init(both, built, action):
    """A module that has itself loaded once more from its init waits for itself."""
    file = built["kd_hello"]

    def again(calls):
        calls.kernel.limit(1)
        return calls.init(file.read_bytes()) if action == "init" else calls.finit(file)

    def load(calls):
        with during(calls, "do_one_initcall", again):
            return calls.finit(file)

    assert both(load) == "MachineHang"
