"""What came out, for each module and each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kodojo.loader.verdict import Verdict

__all__ = ["UNCHECKED", "KernelColumn", "Matrix", "Result", "Status"]

UNCHECKED = "could-not-be-checked"
"""The slug of a result without a verdict."""


class Status(Enum):
    """How a module and a kernel get on."""

    OK = "ok"
    REFUSED = "refused"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Result:
    """One module and one kernel.

    :param module: its label. :param kernel: the name of the column.
    :param verdict: without its steps; None if there is none. :param step: the step that refused.
    :param failure: why there is no verdict. :param advice: what to do about that.
    :param first: what was loaded before it, in load order.
    :param notes: what a person should know besides.
    :param sha256: of the module, decompressed; empty if it could not be read. :param size: likewise, in bytes.
    :param suitable: kernels of the store that it is for, where this one is another.
    """

    module: str
    kernel: str
    verdict: Verdict | None = None
    step: str = ""
    failure: str = ""
    advice: str = ""
    first: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str = ""
    size: int = 0
    suitable: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        if self.verdict is None:
            return Status.UNCHECKED
        return Status.OK if self.verdict.ok else Status.REFUSED

    @property
    def slug(self) -> str:
        return self.verdict.slug if self.verdict else UNCHECKED

    @property
    def unmade(self) -> tuple[str, ...]:
        """Checks that could not be made with what is known about the kernel, each with the reason."""
        return self.verdict.unmade if self.verdict else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know of the file: how other versions of kmod, or the kernel's own decoder, would answer."""
        return self.verdict.warnings if self.verdict else ()

    @property
    def errno(self) -> int:
        """The kernel's answer, positive; 0 if it is not no, or not known."""
        return self.verdict.errno if self.verdict else 0

    @property
    def why(self) -> str:
        return self.verdict.why if self.verdict else self.failure

    @property
    def hint(self) -> str:
        return self.verdict.hint if self.verdict else self.advice


class KernelColumn(NamedTuple):
    """A kernel as a column.

    :param name: tells it from the others.
    :param kind: ``kernel``, or ``headers`` if it is only described. :param warnings: what is wrong with that.
    :param problem: why it cannot be used at all.
    """

    name: str
    release: str = ""
    architecture: str = ""
    kind: str = ""
    warnings: tuple[str, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class Matrix:
    """All results.

    :param modules: labels, in the order of the rows.
    :param results: by label and name of the kernel; a kernel's own tree may lack what another's has.
    """

    modules: tuple[str, ...]
    kernels: tuple[KernelColumn, ...]
    results: dict[tuple[str, str], Result] = field(default_factory=dict)

    def add(self, results: Iterable[Result]) -> None:
        for result in results:
            self.results[result.module, result.kernel] = result

    def __iter__(self) -> Iterator[Result]:
        """Row by row, whatever the order was in which they came."""
        for module in self.modules:
            yield from (result for result in self.row(module) if result is not None)

    def row(self, module: str) -> list[Result | None]:
        return [self.results.get((module, kernel.name)) for kernel in self.kernels]

    def counts(self) -> Counter[Status]:
        return Counter(result.status for result in self.results.values())

    @property
    def exit_status(self) -> int:
        """0 all load, 1 some would not, 2 something could not be checked (whatever the others are)."""
        counts = self.counts()
        if counts[Status.UNCHECKED] or not self.results:
            return 2
        return 1 if counts[Status.REFUSED] else 0
