"""Ask QEMU and both loaders of our machine, in several processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.oracle.answers import Answer
from tests.oracle.cases import Case
from tests.oracle.emulated import LOADERS, answer, ready
from tests.oracle.qemu import Booted, Qemu, QemuError
from tests.sweep.processes import NoAnswer, fork

__all__ = ["Answers", "Asked", "ask"]

Progress = Callable[[int, int], None]
_LOOK = 0.3  # seconds between two looks at the results


@dataclass
class Answers:
    """The three answers to a case.

    :param emulated: those of our machine, by loader.
    :param failures: why there is none, by loader or of QEMU.
    """

    qemu: list[Answer]
    emulated: dict[str, list[Answer]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """Who is asked: QEMU, and our machine with the same kernel.

    :param known: answers that QEMU has given already, by digest.
    :param loaders: which of ours are asked.
    """

    series: str
    qemu: Qemu
    booted: Booted
    known: Mapping[str, list[Answer]]
    loaders: Sequence[str] = tuple(LOADERS)

    def of_qemu(self, case: Case) -> list[Answer]:
        return self.known.get(case.digest) or self.qemu.run(self.booted, case)


def ask(asked: Asked, cases: Sequence[Case], path: Path, jobs: int, progress: Progress) -> dict[str, Answers]:
    """The answers to all cases, by digest.

    :param path: a file for the results, written anew.
    """
    ready(asked.series)  # before the processes are made, so that they share it
    path.write_bytes(b"")

    def work(job: int) -> None:
        with path.open("ab", buffering=0) as results:
            for case in cases[job::jobs]:
                results.write(json.dumps(_ask(asked, case)).encode() + b"\n")

    children = {fork(lambda job=job: work(job)) for job in range(jobs)}
    while children:
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        progress(path.read_bytes().count(b"\n"), len(cases))
        time.sleep(_LOOK)
    return {entry["digest"]: _from_json(entry) for entry in map(json.loads, path.read_bytes().splitlines())}


def _ask(asked: Asked, case: Case) -> dict[str, Any]:
    askers = {"qemu": partial(asked.of_qemu, case)}
    askers |= {loader: partial(answer, asked.series, case, loader) for loader in asked.loaders}
    found: dict[str, Any] = {"digest": case.digest}
    for name, asker in askers.items():
        try:
            found[name] = [one.as_json() for one in asker()]
        except (NoAnswer, QemuError) as error:
            found[name] = str(error)
    return found


def _from_json(entry: dict[str, Any]) -> Answers:
    who = [name for name in ("qemu", *LOADERS) if name in entry]
    given = {name: [Answer.from_json(one) for one in entry[name]] for name in who if not isinstance(entry[name], str)}
    failures = {name: entry[name] for name in who if name not in given}
    return Answers(given.pop("qemu", []), given, failures)
