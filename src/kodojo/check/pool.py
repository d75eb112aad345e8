"""Tasks done by the processes of this computer, which may die without anything being lost.

A worker has one task at a time. If it dies, or does not come back, its task is given out again, each job on its
own; a job that was on its own is reported as one that could not be checked.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from kodojo.check.memory import available_memory, room_of
from kodojo.check.results import Result
from kodojo.check.work import Task, do, failed

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from kodojo.check.sources import Key

__all__ = ["available_cores", "run_in_processes"]

_PATIENCE = 60.0
"""Seconds that one module may take; a large one takes a second."""

_MOMENT = 5.0  # seconds; enough to die after the line was cut


def available_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(tasks: Iterable[Task], jobs: int, patience: float = _PATIENCE) -> Iterator[list[Result]]:
    """Do the tasks in ``jobs`` processes; results come as they are ready.

    :param patience: seconds for each module of a task.
    """
    waiting = deque(tasks)
    room = _Room()
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.task for worker in workers):
            while len(workers) < jobs and len(waiting) > sum(worker.task is None for worker in workers):
                workers.append(_Worker.start(workers))
            for worker in workers:
                if worker.task is None and (task := room.take(waiting, workers)) is not None:
                    worker.give(task, room.of(task), patience)
            for worker in _ready(workers):
                task, results = worker.take()
                if results is None:
                    workers.remove(worker)
                    how = worker.bury()
                    if len(task.jobs) > 1:
                        waiting.extend(task.only(job) for job in task.jobs)
                        continue
                    failure = f"the process that checked it {how}"
                    results = [failed(task, task.jobs[0], failure, "try again with --jobs 1")]
                yield results
    finally:
        for worker in workers:
            worker.end()


class _Room:
    """How much memory tasks take: a task's modules are looked at one after the other."""

    def __init__(self) -> None:
        self._available = available_memory()
        self._known: dict[Key, int] = {}

    def of(self, task: Task) -> int:
        """Bytes for a task."""
        for key, node in task.nodes.items():
            if key not in self._known:
                self._known[key] = room_of(node.module)
        return max(self._known[key] for key in task.nodes)

    def take(self, waiting: deque[Task], workers: list[_Worker]) -> Task | None:
        """The next task for whose modules there is memory beside those of others; any if nobody works."""
        used = sum(worker.room for worker in workers if worker.task)
        busy = any(worker.task for worker in workers)
        for place, task in enumerate(waiting):
            room = self.of(task)
            if self._available is None or not room or not busy or used + room <= self._available:
                del waiting[place]
                return task
        return None


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """Those that have answered, have died, or have had time enough."""
    busy = {worker.connection: worker for worker in workers if worker.task}
    first = min(worker.deadline for worker in busy.values())
    answered = wait(list(busy), timeout=max(0.0, first - time.monotonic()))
    now = time.monotonic()
    return [worker for link, worker in busy.items() if link in answered or worker.deadline <= now]


@dataclass(slots=True, eq=False)
class _Worker:
    """One process and the line to it."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None
    room: int = 0  # bytes of memory for it
    deadline: float = 0.0

    @classmethod
    def start(cls, others: Iterable[_Worker]) -> _Worker:
        """A process that has what this one has in memory: the kernels' tables are there already."""
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        foreign = [ours, *(worker.connection for worker in others)]
        process = context.Process(target=_serve, args=(theirs, foreign), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, task: Task, room: int, patience: float) -> None:
        self.task, self.room = task, room
        self.deadline = time.monotonic() + patience * (1 + len(task.jobs))
        with contextlib.suppress(OSError):  # it has died: its end of the line tells
            self.connection.send(task)

    def take(self) -> tuple[Task, list[Result] | None]:
        """Its task, and the results if there are any."""
        task, self.task = self.task, None
        assert task is not None
        try:
            return task, self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return task, None

    def bury(self) -> str:
        """End it, and say how it ended."""
        self.process.join(0 if self.deadline <= time.monotonic() else _MOMENT)
        code = self.process.exitcode
        self.end()
        if code is None:
            return "did not come back"
        return f"was ended: {signal.strsignal(-code)}" if code < 0 else f"ended with status {code}"

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _serve(line: Connection, foreign: Iterable[Connection]) -> None:
    """What a worker does until the line is cut, be it that the parent has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and ends us
    for other in foreign:
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            line.send(do(line.recv()))
