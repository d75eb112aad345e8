"""Walk over a plan in forked processes: the copy of a machine that has loaded a module serves what depends on it.

``os.fork()`` copies the emulator with the code that it has translated, and the guest's memory page by page when it
is written. Each load happens in a copy of its own; the copy that loaded natively goes on as the machine for
what is below in the plan.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kodojo.errors import MachineError
from kodojo.kernel.kernel import Kernel
from tests.differential.compare import (
    SETTLE,
    TIMED,
    Outcome,
    differences,
    native_init_module,
    our_init_module,
    outcome_of,
    place,
)
from tests.sweep.plan import Node
from tests.sweep.processes import Answering, NoAnswer, Tokens, fork

__all__ = ["Job", "run"]

Load = Callable[[Kernel, bytes, str], int]

GUEST_LIMIT = 20.0  # seconds of guest time
WALL_LIMIT = 600.0  # seconds: a module that tests itself for 16 guest seconds takes a hundred
LINES_KEPT, LINE_LENGTH = 128, 300
# Small modules that are loaded and removed once by both loaders, so that all copies have their code translated.
_WARMING = ("ts_kmp", "nls_iso8859_2", "dummy")
_MOMENTS = (0.1, 0.2, 0.3, 0.38)


@dataclass(frozen=True)
class Job:
    """What all processes of a run have in common.

    :param native: compare with the native loader; without it our loader is only run.
    :param record: makes a line of the results of a module's fields.
    """

    native: bool
    jobs: int
    results: Path
    record: Callable[[str, dict[str, Any]], dict[str, Any]]


def run(kernel: Kernel, plan: Node, job: Job) -> None:
    """Test everything in the plan; the results are appended to the file."""
    gc.collect()
    gc.freeze()  # what the collector never looks at stays shared
    kernel.limit(GUEST_LIMIT)
    _warm(kernel)
    with job.results.open("ab", buffering=0) as results:
        _Worker(kernel, job, Tokens(job.jobs), results.fileno()).serve(plan)


def _warm(kernel: Kernel) -> None:
    for name in _WARMING:
        if name not in kernel.image.modules:
            continue
        data = kernel.image.modules[name].read()
        for load in (our_init_module, native_init_module):
            if outcome_of(kernel, load, data, "", name).value == 0:
                kernel.delete_module(name)
    kernel.sleep(SETTLE)


class _Worker:
    """One process: its machine and what it has to do."""

    def __init__(self, kernel: Kernel, job: Job, tokens: Tokens, results: int) -> None:
        self._kernel = kernel
        self._job = job
        self._tokens = tokens
        self._results = results

    def serve(self, node: Node) -> None:
        """Test what is below the node that this machine stands at, in other processes where there is a core free."""
        beside = []
        for child in sorted(node.children.values(), key=lambda child: -child.size):
            if self._tokens.take():
                beside.append(fork(lambda child=child: self._handle_beside(child)))
            else:
                self._handle(child)
        if beside:
            self._tokens.wait_for(beside)

    def _handle_beside(self, node: Node) -> None:
        try:
            self._handle(node)
        finally:
            self._tokens.give()

    def _handle(self, node: Node) -> None:
        """Test a module on this machine as it stands, and everything that depends on it."""
        began = time.monotonic()
        data = self._kernel.image.modules[node.name].read()
        below = partial(self.serve, node) if node.children else None
        found: dict[str, Any] = {}
        goes_on: Answering | None = None
        try:
            if not self._job.native:
                outcome, goes_on = self._load(our_init_module, node.name, data, then=below)
                found = {"status": "agreed", "lines": []}
            elif not node.tested:
                outcome, goes_on = self._load(native_init_module, node.name, data, then=below)
            else:
                ours, _ = self._load(our_init_module, node.name, data, look=True)
                outcome, goes_on = self._load(native_init_module, node.name, data, look=True, then=below)
                lines = self._compare(node.name, data, ours, outcome)
                found = {"status": "disagreed" if lines else "agreed", "lines": lines}
            found |= {"value": outcome.value, "fault": outcome.fault}
        except NoAnswer as error:
            found = {"status": error.status, "lines": [str(error)]}
        if node.tested:
            self._write(node.name, {**found, "seconds": round(time.monotonic() - began, 3)})
        if goes_on is not None:
            goes_on.wait()
        elif below is not None:
            below()  # as on a system where this module could not be loaded

    def _load(
        self,
        load: Load,
        name: str,
        data: bytes,
        *,
        look: bool = False,
        then: Callable[[], None] | None = None,
        moment: float = 0,
    ) -> tuple[Outcome, Answering | None]:
        """What a load in a copy of this machine comes to, and the process that goes on with ``then``, if one does.

        :param look: at everything that the load has left, not only at what it returned.
        :param moment: seconds of guest time to wait before.
        """
        kernel = self._kernel

        def work() -> Outcome:
            if moment:
                kernel.sleep(moment)
                kernel.calls("__delay", round(500_000 * moment))  # another point between two ticks
            try:
                if look:
                    return outcome_of(kernel, load, data, "", name)
                value = load(kernel, data, "")
                if then is not None:
                    kernel.sleep(SETTLE)
            except MachineError as error:
                return Outcome(0, fault=type(error).__name__)
            return Outcome(value)

        def goes_on() -> None:
            if then is not None and kernel.calls.stopped is None:
                then()

        process = Answering.start(work, goes_on, WALL_LIMIT)
        try:
            outcome: Outcome = process.answer()
        except NoAnswer as error:
            raise type(error)(f"{load.__name__}: {error}") from None
        if then is not None and not outcome.fault:
            return outcome, process
        process.wait()
        return outcome, None

    def _compare(self, name: str, data: bytes, ours: Outcome, native: Outcome) -> list[str]:
        """The differences, but for what two native loads at different moments do not have in common either."""
        found = differences(self._kernel, ours, native)
        for moment in _MOMENTS:
            if not any(line.startswith(TIMED) for line in found):
                break
            again, _ = self._load(native_init_module, name, data, look=True, moment=moment)
            unstable = {place(line) for line in differences(self._kernel, again, native)}
            found = [line for line in found if not line.startswith(TIMED) or place(line) not in unstable]
        return found

    def _write(self, name: str, found: dict[str, Any]) -> None:
        lines = found.pop("lines")
        kept = {"lines": [line[:LINE_LENGTH] for line in lines[:LINES_KEPT]], "count": len(lines)}
        os.write(self._results, json.dumps(self._job.record(name, found | kept)).encode() + b"\n")
