"""Everything that is wrong with a module, not only what the kernel meets first.

The stages are those of any load (:mod:`kodojo.loader.load_module`). Where one refuses and later ones can still
say something sensible, a survey notes the refusal and lets them; at the end it refuses as the kernel did first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from kodojo.errors import DamageError, LoadError
from kodojo.loader.steps import Step, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kodojo.errors import Refusal
    from kodojo.loader.target import Target

__all__ = ["Survey"]

P = ParamSpec("P")
T = TypeVar("T")


MISFIT = ("struct-module-size", "module-layout-crc")
"""Refusals behind which struct module in the file may not be what the kernel takes it for."""


class Survey(Steps):
    """The steps of a dry load that goes on after refusals.

    Only for kernels on paper: what a running kernel was told to do after a refusal could not be trusted.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._start = self._mark = target.log_mark()
        self._noted: list[tuple[LoadError, Refusal]] = []
        self._answer: tuple[LoadError, Refusal] | None = None
        self._taken = 0

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """All that were met, those of one reason and step together; the kernel's answer comes first.

        The answer has all lines until then in its log, the others only their own.
        """
        if self._answer is None:
            return ()
        groups: dict[tuple[str, str], list[Refusal]] = {}
        for _error, refusal in self._noted:
            groups.setdefault((refusal.step, refusal.slug), []).append(refusal)
        answer = self._answer[1]
        first = groups.pop((answer.step, answer.slug))
        return (_together(answer, first), *(_together(_with_lines(group), group) for group in groups.values()))

    @property
    def taken(self) -> list[Step]:
        """The steps that the kernel takes: up to the first one that refuses."""
        return self[: self._taken] if self._answer else list(self)

    def begin(self, name: str, **facts: int | str) -> None:
        super().begin(name, **facts)
        self._mark = self._target.log_mark()

    def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            self.run(function, *args, **kwargs)
        except DamageError:
            raise
        except LoadError as error:
            self.refused(error)

    def refused(self, error: LoadError) -> None:
        """Note it; the first one is the kernel's answer."""
        self.also(error)
        if self._answer is None:
            refusal = next(refusal for noted, refusal in self._noted if noted is error)
            self._answer = error, replace(refusal, log=self._target.log_since(self._start))
            self._taken = len(self)

    def also(self, error: LoadError) -> None:
        """Note it with the lines that have been printed since the one before."""
        if any(noted is error for noted, _refusal in self._noted):
            return
        refusal = error.refusal
        log = self._target.log_since(self._mark)
        self._mark = self._target.log_mark()
        self._noted.append((error, replace(refusal, step=refusal.step or self.current, log=log)))

    def all_of(self, errors: Sequence[LoadError]) -> LoadError:
        """The last one: they have been noted one by one."""
        return errors[-1]

    def ended(self, error: LoadError) -> None:
        """A refusal has ended it, behind which nothing can be told.

        Damage behind a refusal is not told of: no kernel got there with such a file, and so it may come from that.
        Nor is what ends it where struct module is another one: it has been filled in at the wrong places.
        """
        misfit = any(refusal.slug in MISFIT for _error, refusal in self._noted)
        if self._answer is None or not (misfit or isinstance(error, DamageError)):
            self.refused(error)

    def conclude(self) -> None:
        if self._answer is not None:
            raise self._answer[0]


def _with_lines(group: list[Refusal]) -> Refusal:
    return replace(group[0], log=tuple(record for refusal in group for record in refusal.log))


def _together(refusal: Refusal, group: list[Refusal]) -> Refusal:
    """One refusal for all of a group: of ``refusal``, with the details of everyone."""
    details = tuple(detail for each in group for detail in each.details)
    others = len({each.why for each in group}) - 1
    why = f"{refusal.why} (and {others} more like this)" if others else refusal.why
    return replace(refusal, why=why, details=details)
