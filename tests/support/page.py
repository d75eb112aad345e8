"""Results for the tests of the page, made up, and what is read from it."""

from __future__ import annotations

import enum

from kodojo.check.results import KernelColumn, Matrix, Result
from kodojo.loader.verdict import Verdict
from tests.support.browser import Tab
from tests.support.results import REFUSED, refusal

__all__ = ["GONE", "LOADS", "NEW", "OLD", "ROWS", "Postponed", "example", "names"]

OLD, NEW = "6.1.0-amd64", "6.12.0-amd64"
LOADS = Verdict(ok=True)
GONE = refusal("unknown-symbol", "the kernel has no gone_symbol")
PHONE = 390

ROWS = "#rows > tr.row"


def example() -> Matrix:
    """Modules that load, are refused by one kernel, by both for different reasons, are damaged, are in one tree."""
    labels = tuple(f"build/{name}.ko" for name in ("net/alpha", "net/beta", "gpu/gamma", "delta", "m10"))
    made = Matrix(
        labels,
        (
            KernelColumn(OLD, OLD, "x86_64", "kernel"),
            KernelColumn(f"{NEW} (./headers)", NEW, "x86_64", "headers", ("no Module.symvers",)),
        ),
    )
    old, new = (kernel.name for kernel in made.kernels)
    alpha, beta, gamma, delta, last = labels
    made.add(
        [
            Result(alpha, old, LOADS, sha256="ab" * 32, size=4711, first=("build/net/beta.ko",)),
            Result(alpha, new, Verdict(ok=True, unmade=("its signature: no keys are known",), unchecked=("speed",))),
            Result(beta, old, LOADS, notes=("beta needs itself",)),
            Result(beta, new, GONE, "simplify_symbols"),
            Result(gamma, old, REFUSED, "check_modinfo", suitable=("5.10",)),
            Result(gamma, new, GONE, "simplify_symbols"),
            Result(delta, old, failure="delta.ko is cut off", advice="get the file again"),
            Result(delta, new, failure="delta.ko is cut off", advice="get the file again"),
            Result(last, old, LOADS),
        ]
    )
    return made


def names(tab: Tab) -> list[str]:
    return tab.texts(".row .name")


class Later(enum.Enum):
    POSTPONED = "put-off"


class Postponed(Result):
    status = Later.POSTPONED
