"""Booted kernels that have run the loaders before, to be forked with all that was translated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from kodojo.kernel.kernel import Kernel
from tests.conftest import booted_kernel
from tests.damage.bases import Base, bases, needed
from tests.damage.outcomes import native_load, our_load

__all__ = ["Warm", "warm"]

GUEST_SECONDS = 0.4  # endless loops are dear: many host seconds for one of the guest
WARMING = ("crc8", "xt_statistic", "dummy", "mbcache", "softdog")  # signed: they leave no taint


@dataclass(frozen=True)
class Warm:
    """A kernel that stands ready, and the whole modules for it."""

    kernel: Kernel
    bases: list[Base]


@lru_cache
def warm(series: str) -> Warm:
    """Boot; load what modules need; run both loaders, so that every child finds their code translated."""
    kernel = booted_kernel(series).fork()
    for name in needed(kernel.image):
        kernel.insmod(kernel.image.modules[name].path)
    whole = bases(kernel.image, series)
    for base in whole:
        if base.name in WARMING:
            for load in (our_load, native_load, our_load, native_load):
                result = load(kernel, base.signed, base.arguments)
                assert result.outcome.value == 0, (base.name, result)
                kernel.rmmod(base.name)
            for load in (our_load, native_load):
                load(kernel, base.signed[:900], "")
    kernel.sleep(1.0)
    kernel.limit(GUEST_SECONDS)
    return Warm(kernel, whole)
