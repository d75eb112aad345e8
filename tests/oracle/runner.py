"""Ask QEMU and both loaders of our machine, in several processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.oracle.answers import Answer
from tests.oracle.cases import Case
from tests.oracle.emulated import LOADERS, answer, ready
from tests.oracle.qemu import Booted, Qemu
from tests.sweep.processes import NoAnswer, fork

__all__ = ["Answers", "ask"]

Progress = Callable[[int, int], None]
_LOOK = 0.3  # seconds between two looks at the results


@dataclass
class Answers:
    """The three answers to a case.

    :param failures: by loader: why it gave none.
    """

    qemu: list[Answer]
    emulated: dict[str, list[Answer]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def ask(
    series: str, cases: Sequence[Case], qemu: Qemu, booted: Booted, path: Path, jobs: int, progress: Progress
) -> dict[str, Answers]:
    """The answers to all cases, by digest.

    :param path: a file for the results, written anew.
    """
    ready(series)  # before the processes are made, so that they share it
    path.write_bytes(b"")

    def work(job: int) -> None:
        with path.open("ab", buffering=0) as results:
            for case in cases[job::jobs]:
                results.write(json.dumps(_ask(series, case, qemu, booted)).encode() + b"\n")

    children = {fork(lambda job=job: work(job)) for job in range(jobs)}
    while children:
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        progress(path.read_bytes().count(b"\n"), len(cases))
        time.sleep(_LOOK)
    return {entry["digest"]: _from_json(entry) for entry in map(json.loads, path.read_bytes().splitlines())}


def _ask(series: str, case: Case, qemu: Qemu, booted: Booted) -> dict[str, object]:
    found: dict[str, object] = {"digest": case.digest, "qemu": [one.as_json() for one in qemu.run(booted, case)]}
    for loader in LOADERS:
        try:
            found[loader] = [one.as_json() for one in answer(series, case, loader)]
        except NoAnswer as error:
            found[loader] = str(error)
    return found


def _from_json(entry: dict[str, object]) -> Answers:
    answers = Answers([Answer.from_json(one) for one in entry["qemu"]])  # type: ignore[attr-defined]
    for loader in LOADERS:
        content = entry[loader]
        if isinstance(content, str):
            answers.failures[loader] = content
        else:
            answers.emulated[loader] = [Answer.from_json(one) for one in content]  # type: ignore[attr-defined]
    return answers
