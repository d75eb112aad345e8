"""Tasks done by a Dask cluster (``pip install 'kodojo[dask]'``), whose workers may die without anything being lost.

The workers need kodojo and must see the kernels' files at the same paths; the modules that were given travel with
the tasks. Dask gives a dead worker's tasks to the others. One that took several workers down is given out again in
pieces, and a single job that did is reported as one that could not be checked: this is what
:mod:`kodojo.check.pool` does, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from socket import gethostname
from typing import TYPE_CHECKING, Any

from kodojo.check.work import Task, do, failed
from kodojo.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from kodojo.check.results import Result
    from kodojo.image.image import Image

__all__ = ["Cluster", "do_there"]

_PATIENCE = 15
_SHARE = (
    "give the workers the kernel's files at the same path: put the store on a disk that all of them share, and set"
    " KODOJO_STORE to it everywhere"
)
_ADVICE = "look at the log of the cluster's workers, or check it without --scheduler"


def do_there(task: Task) -> list[Result]:
    """What a worker does: the task, if it sees the files of the kernel."""
    unseen = _unseen(task.image)
    if unseen is None:
        return do(task)
    failure = f"the worker on {gethostname()} does not see the kernel's file {unseen}"
    return [failed(task, job, failure, _SHARE) for job in task.jobs]


def _unseen(image: Image) -> Path | None:
    if not image.path.exists():
        return image.path
    root = image.modules.root
    return root if root is not None and not root.exists() else None


class Cluster:
    """A Dask cluster.

    :param address: of the scheduler, ``tcp://HOST:PORT``.
    :param patience: seconds for the scheduler to answer, and for workers to come back when all have gone.
    :raises InputError: Dask is not installed, or there is no scheduler.
    """

    def __init__(self, address: str, patience: int = _PATIENCE) -> None:
        try:
            from distributed import Client  # noqa: PLC0415  slow to import, and an extra
        except ImportError as error:
            hint = "pip install 'kodojo[dask]'"
            raise InputError("Dask is not installed, which --scheduler needs", hint=hint) from error
        try:
            self._client: Any = Client(address, timeout=patience)
        except (OSError, TimeoutError, ValueError) as error:
            hint = "start one: dask scheduler; and workers: dask worker ADDRESS"
            raise InputError(f"{address}: no Dask scheduler answers: {error}", hint=hint) from error
        self._patience = patience
        self._tasks: dict[Any, Task] = {}

    @property
    def size(self) -> int:
        """How many tasks it does at a time; at least 1, for workers may still come."""
        threads: int = sum(self._client.nthreads().values())
        return max(1, threads)

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Result]]:
        """Do the tasks; results come as they are ready."""
        with self._client:
            self._tasks.clear()
            for task in tasks:
                self._submit(task)
            deserted = 0  # seconds
            while self._tasks and deserted < self._patience:
                for future in self._finished():
                    yield from self._answers(future)
                deserted = 0 if self._has_workers() else deserted + 1
            undone = [(task, job) for task in self._tasks.values() for job in task.jobs]
            yield [failed(task, job, "the cluster has no workers left", _ADVICE) for task, job in undone]

    def _submit(self, task: Task) -> None:
        self._tasks[self._client.submit(do_there, task.travelling(), pure=False)] = task

    def _finished(self) -> list[Any]:
        """Tasks that are said to be done; none if there are none within a second."""
        from distributed import wait  # noqa: PLC0415

        try:
            return list(wait(list(self._tasks), timeout=1, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return []

    def _answers(self, future: Any) -> Iterator[list[Result]]:
        """The results of a task, unless it has to be done again."""
        try:
            results = future.result(timeout=1)
        except TimeoutError:  # they were gone with their worker; Dask has the task done once more
            return
        except Exception as error:  # noqa: BLE001  what a cluster can come up with: KilledWorker, CancelledError, ...
            task = self._tasks.pop(future)
            if len(task.jobs) > 1:
                for job in task.jobs:
                    self._submit(task.only(job))
                return
            failure = f"the cluster did not do it: {type(error).__name__}: {error}".splitlines()[0]
            results = [failed(task, task.jobs[0], failure, _ADVICE)]
        self._tasks.pop(future, None)
        yield results

    def _has_workers(self) -> bool:
        return self._client.status == "running" and bool(self._client.nthreads())
