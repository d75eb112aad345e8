"""Modules times kernels: who is checked against whom, in which pieces, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kodojo.check.plan import Plan
from kodojo.check.results import KernelColumn, Matrix, Result
from kodojo.check.sources import own_modules
from kodojo.check.work import Task

if TYPE_CHECKING:
    from kodojo.check.examine import Examined
    from kodojo.check.sources import GivenModule
    from kodojo.durable import Progress
    from kodojo.image.image import Image

__all__ = ["Built", "Kernel", "check_matrix", "make_tasks"]

Executor = Callable[[Sequence[Task]], Iterator[list[Result]]]

_LARGEST_BATCH = 32
_MOST_NOTES = 10
_BATCHES_PER_JOB = 6  # so that no process is left alone with the last one


class Kernel(NamedTuple):
    """A kernel to check against; or the reason why it cannot be, and what to do about it.

    :param name: tells it from the others.
    """

    name: str
    image: Image | None
    problem: str = ""
    hint: str = ""


class Built(NamedTuple):
    """What was built from sources for one kernel.

    :param labels: of all of them, in the order of the sources.
    :param modules: to be checked against that kernel only. :param others: results of what there is no module of.
    :param notes: what a person should know about how they were built.
    """

    labels: tuple[str, ...] = ()
    modules: tuple[Examined, ...] = ()
    others: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()


def check_matrix(
    kernels: Sequence[Kernel],
    given: Sequence[Examined],
    execute: Executor,
    *,
    built: Mapping[str, Built] | None = None,
    own: bool = False,
    parameters: tuple[str, ...] = (),
    explain: bool = False,
    relatives: Mapping[str, Image] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Matrix:
    """Check every module against every kernel. Whatever cannot be done is a result, too.

    :param given: modules for all kernels.
    :param execute: does tasks; results may come in any order.
    :param built: what was built for each kernel, by its name; they and the given modules see each other.
    :param own: check the modules of each kernel's own tree against that kernel, too.
    :param parameters: ``NAME=VALUE`` each, for all modules. :param explain: find out what is behind refusals, too.
    :param relatives: further kernels, by release, that modules may have been built for; for explanations.
    :param jobs: how many processes there are to share the work.
    :param progress: told how many results there are.
    """
    rows: dict[str, None] = {examined.module.label: None for examined in given}
    built = built or {}
    for results_of in built.values():
        rows |= dict.fromkeys(results_of.labels)
    labels = frozenset(rows)
    tasks: list[Task] = []
    cells: list[Result] = []
    unused: dict[str, list[str]] = {}
    known = {**(relatives or {}), **_by_release(kernels)} if explain else {}
    for kernel in kernels:
        here = [*given, *built.get(kernel.name, Built()).modules]
        modules = [examined.module for examined in here]
        cells += built.get(kernel.name, Built()).others
        if kernel.image is None:
            cells += (Result(each.label, kernel.name, failure=kernel.problem, advice=kernel.hint) for each in modules)
            continue
        if own:
            of_tree = own_modules(kernel.image)
            unused[kernel.name] = [f"{each.label}: {each.unused}" for each in of_tree if each.unused]
            modules += _told_apart(of_tree, labels)
        pieces = make_tasks(kernel.name, kernel.image, here, modules, jobs=jobs)
        tasks += (piece._replace(parameters=parameters, explain=explain, relatives=known) for piece in pieces)
        rows |= dict.fromkeys(module.label for module in modules)
    columns = (_column(kernel, built, unused.get(kernel.name, [])) for kernel in kernels)
    matrix = Matrix(tuple(sorted(rows) if own else rows), tuple(columns))
    matrix.add(cells)
    total = sum(len(task.jobs) for task in tasks)
    done = 0
    for results in execute(tasks):
        matrix.add(results)
        done += len(results)
        if progress is not None:
            progress(done, total, "checking")
    return matrix


def make_tasks(
    name: str,
    image: Image,
    given: Sequence[Examined],
    modules: Sequence[GivenModule],
    *,
    jobs: int = 1,
) -> Iterator[Task]:
    """The work on one kernel, in pieces whose modules are neighbours: those often need the same others.

    :param given: the modules that see each other.
    :param modules: those to check.
    """
    plan = Plan(image, given)
    size = max(1, min(_LARGEST_BATCH, len(modules) // (jobs * _BATCHES_PER_JOB)))
    run = os.urandom(8).hex()
    for batch in _batches(modules, size):
        yield Task(run, name, image, plan.nodes(batch), tuple(module.key for module in batch))


def _batches(modules: Sequence[GivenModule], size: int) -> Iterable[Sequence[GivenModule]]:
    return (modules[start : start + size] for start in range(0, len(modules), size))


def _told_apart(modules: Iterable[GivenModule], labels: Container[str]) -> Iterator[GivenModule]:
    """A kernel's own modules, but with other labels than those that given ones have: a row is about one file."""
    for module in modules:
        yield module._replace(label=f"./{module.label}") if module.label in labels else module


def _by_release(kernels: Iterable[Kernel]) -> dict[str, Image]:
    return {kernel.image.release: kernel.image for kernel in kernels if kernel.image is not None}


def _column(kernel: Kernel, built: Mapping[str, Built], unused: Sequence[str]) -> KernelColumn:
    """:param unused: files of the tree that modprobe would not load, each with the reason."""
    image = kernel.image
    if image is None:
        return KernelColumn(kernel.name, problem=kernel.problem)
    warnings = (*image.warnings, *(built[kernel.name].notes if kernel.name in built else ()), *unused[:_MOST_NOTES])
    if len(unused) > _MOST_NOTES:
        warnings += (f"and {len(unused) - _MOST_NOTES} more files that modprobe would not load",)
    return KernelColumn(kernel.name, image.release, image.architecture, image.kind, warnings)
