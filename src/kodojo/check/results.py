"""What came out, for each module and each kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kodojo.loader.verdict import Verdict

__all__ = ["NOT_BUILT", "UNCHECKED", "KernelColumn", "Matrix", "NotBuilt", "Result", "Status"]

UNCHECKED = "could-not-be-checked"
"""The slug of a result without a verdict."""

NOT_BUILT = "does-not-build"
"""The slug of a result of a source from which no module could be built for the kernel."""


class Status(Enum):
    """How a module and a kernel get on."""

    OK = "ok"
    REFUSED = "refused"
    NOT_BUILT = "not-built"
    UNCHECKED = "unchecked"


class NotBuilt(NamedTuple):
    """Why there is no module to check: its source cannot be built for the kernel.

    :param source: the label of the source. :param why: the first complaint, or which limit the build reached.
    :param complaints: the compiler's and others', at most a few. :param log: the file with all of the build's output;
        empty if that was not kept.
    """

    source: str
    why: str
    complaints: tuple[str, ...] = ()
    log: str = ""

    @property
    def hint(self) -> str:
        return f"the whole log: {self.log}" if self.log else "see all that the build printed: --build-log DIRECTORY"


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
    :param not_built: it had to be built first, and that failed.
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
    not_built: NotBuilt | None = None

    @property
    def status(self) -> Status:
        if self.not_built is not None:
            return Status.NOT_BUILT
        if self.verdict is None:
            return Status.UNCHECKED
        return Status.OK if self.verdict.ok else Status.REFUSED

    @property
    def slug(self) -> str:
        if self.not_built is not None:
            return NOT_BUILT
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
        if self.not_built is not None:
            return self.not_built.why
        return self.verdict.why if self.verdict else self.failure

    @property
    def hint(self) -> str:
        if self.not_built is not None:
            return self.not_built.hint
        return self.verdict.hint if self.verdict else self.advice


class KernelColumn(NamedTuple):
    """A kernel as a column.

    :param name: tells it from the others.
    :param kind: ``kernel``, or ``headers`` if it is only described.
    :param warnings: what is wrong with that, or should be known.
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
        """0 all load, 1 some would not or do not build, 2 something could not be checked, whatever the others are."""
        counts = self.counts()
        if counts[Status.UNCHECKED] or not self.results:
            return 2
        return 1 if counts[Status.REFUSED] or counts[Status.NOT_BUILT] else 0
