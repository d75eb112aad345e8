"""Kernels booted with words about modules on their command line: both loaders obey them, and say the same."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

from kodojo.errors import LoadError, UnloadError
from kodojo.kernel.kernel import Kernel
from kodojo.loader.dry import DryTarget
from tests.conftest import image_of, shared_store
from tests.kernel.callers import Calls, Pair
from tests.kernel.looking import listening
from tests.support.loading import load

pytestmark = pytest.mark.kernel

EPERM, EBADF, EACCES, EKEYREJECTED = 1, 9, 13, 129
FLAGS = (0, 1, 2, 3)

# Words that have nothing to do with each other, to save boots.
INTEGRITY = "lockdown=integrity module_blacklist=dummy,kd_hello initcall_blacklist=init_fat_fs,kd_noinit_init"
ENFORCED = "lockdown=confidentiality module.sig_enforce=1"
NO_MODULES = "nomodule"
APPRAISED = "ima_policy=secure_boot"


@lru_cache
def booted(series: str, cmdline: str) -> Kernel:
    return Kernel.boot(image_of(series), cmdline, store=shared_store())


@pytest.fixture
def both_with(series):
    """A pair of kernels with that command line."""
    return lambda cmdline: Pair(booted(series, cmdline).fork())


def signed(calls: Calls, name: str) -> bytes:
    """A module of the distribution, with its signature."""
    return calls.kernel.image.modules[name].read()


# -- lockdown=integrity ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", FLAGS)
def test_lockdown(both_with, built, flags):
    """A locked down kernel loads signed modules only, and by force none."""
    both = both_with(INTEGRITY)
    assert both(lambda calls: calls.finit(built["kd_noinit"], "", flags)) == -EPERM
    assert any(text.startswith("Lockdown: ") for _, text in both.ours.log)
    path = both.ours.kernel.image.modules["ifb"].path
    if path.suffix == ".ko":
        assert both(lambda calls: calls.finit(path, "numifbs=0", flags)) == (-EPERM if flags else 0)


def test_lockdown_by_init_module(both_with, built):
    """It is the module that counts, not the way by which it comes."""
    both = both_with(INTEGRITY)
    assert both(lambda calls: calls.init(built["kd_noinit"].read_bytes())) == -EPERM
    assert both(lambda calls: calls.init(signed(calls, "ifb"), "numifbs=0")) == 0
    assert both(lambda calls: calls.delete("ifb")) == 0
    with pytest.raises(LoadError) as refusal:
        both.ours.kernel.insmod(built["kd_noinit"])
    assert (refusal.value.errno, refusal.value.slug) == (EPERM, "locked-down")


def test_lockdown_of_parameters(both_with):
    """A parameter that speaks of hardware addresses cannot be set in a kernel that is locked down."""
    both = both_with(INTEGRITY)
    both(lambda calls: calls.init(signed(calls, "parport")))
    assert both(lambda calls: calls.init(signed(calls, "parport_pc"), "io=0x378")) == -EPERM
    assert any("Lockdown" in text for _, text in both.ours.log)


def test_dry_load_into_a_kernel_that_is_locked_down(both_with, built, image):
    """On paper it is the same: the errno, and what insmod would find in the log."""
    kernel = both_with(INTEGRITY).ours.kernel
    target = DryTarget(image, lockdown=True, module_blacklist="dummy")
    unsigned, signed_ones = built["kd_noinit"].read_bytes(), [image.modules[name].read() for name in ("dummy", "ifb")]
    for data in (unsigned, *signed_ones):
        mark = target.log_mark()
        with listening(kernel) as said:
            errno = errno_of_load(lambda data=data: kernel.insmod(data, "numifbs=0"))
        assert errno_of_load(lambda data=data: load(target, data, b"numifbs=0")) == errno
        assert target.log_since(mark) == tuple(replace(record, time=0.0) for record in said.records)
    assert [mod.name for mod in target.modules()] == ["ifb"]


def errno_of_load(action) -> int:
    try:
        action()
    except LoadError as error:
        return error.errno
    return 0


def test_lockdown_becomes_stricter(kernel, built):
    """A kernel that runs can be locked down, too, once and for all."""
    both = Pair(kernel)
    assert both(lambda calls: calls.init(built["kd_noinit"].read_bytes())) == 0
    for level in (b"integrity", b"confidentiality"):
        for one in both.kernels:
            one.write_file("/sys/kernel/security/lockdown", level)
        assert both(lambda calls: calls.init(built["kd_hello"].read_bytes())) == -EPERM
    both.settle()
    assert both(lambda calls: calls.init(signed(calls, "ifb"), "numifbs=0")) == 0
    assert both(lambda calls: calls.delete("kd_noinit")) == 0


def test_module_blacklist(both_with, built):
    """A module that is named there is refused by name, before a locked down kernel's signed one is laid out."""
    both = both_with(INTEGRITY)
    assert both(lambda calls: calls.init(signed(calls, "dummy"))) == -EPERM
    assert both.ours.log == [(3, "Module dummy is blacklisted")]
    assert both(lambda calls: calls.init(signed(calls, "dummy")[:-100])) == -EPERM


def test_initcall_blacklist(both_with):
    """A module whose init function is named there fails as if that had returned -EPERM."""
    both = both_with(INTEGRITY)
    assert both(lambda calls: calls.init(signed(calls, "fat"))) == -EPERM
    assert not both.ours.kernel.modules


# -- module.sig_enforce=1, lockdown=confidentiality -----------------------------------------------------------
@pytest.mark.parametrize("flags", FLAGS)
def test_signatures_enforced(both_with, built, flags):
    """Where signatures are enforced, lockdown is not asked for what has none."""
    both = both_with(ENFORCED)
    assert both(lambda calls: calls.finit(built["kd_noinit"], "", flags)) == -EKEYREJECTED
    assert both(lambda calls: calls.init(signed(calls, "ifb")[:-1])) == -EKEYREJECTED
    damaged = bytearray(signed(both.ours, "ifb"))
    damaged[-60] ^= 1
    assert both(lambda calls: calls.init(bytes(damaged))) < 0
    assert both(lambda calls: calls.init(signed(calls, "ifb"), "numifbs=0")) == 0


# -- nomodule -------------------------------------------------------------------------------------------------
def test_no_modules(both_with, built):
    """Such a kernel never loads or removes anything."""
    both = both_with(NO_MODULES)
    assert both(lambda calls: calls.init(signed(calls, "ifb"))) == -EPERM
    assert both(lambda calls: calls.init(0, 0, 0)) == -EPERM
    assert both(lambda calls: calls.finit(built["kd_noinit"])) == -EPERM
    assert both(lambda calls: calls.finit_descriptor(-1, 0x100)) == -EPERM
    assert both(lambda calls: calls.delete("ifb")) == -EPERM
    with pytest.raises(LoadError) as refusal:
        both.ours.kernel.insmod(built["kd_noinit"])
    assert (refusal.value.errno, refusal.value.slug) == (EPERM, "modules-disabled")
    with pytest.raises(UnloadError):
        both.ours.kernel.rmmod("ifb")


# -- ima_policy=secure_boot -----------------------------------------------------------------------------------
def test_appraisal(both_with, built):
    """Where IMA appraises modules, a file without a signature in its attributes is refused, a buffer always is."""
    both = both_with(APPRAISED)
    assert both(lambda calls: calls.init(signed(calls, "ifb"))) == -EACCES
    assert both(lambda calls: calls.init(built["kd_noinit"].read_bytes())) == -EACCES
    both.native.path = "/tmp/.kodojo-module"  # where ours puts a copy, for IMA to look at
    assert both(lambda calls: calls.finit(built["kd_noinit"])) == -EACCES
    assert 'name="/tmp/.kodojo-module"' in both.ours.log[0][1]
    assert both(lambda calls: calls.finit_descriptor(-1)) == -EBADF
