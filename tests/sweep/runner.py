"""Run a sweep over one kernel's tree in a process of its own, and watch it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import booted_kernel, image_of
from tests.support.distribution import cache_directory
from tests.sweep import results
from tests.sweep.plan import Modules
from tests.sweep.processes import fork
from tests.sweep.workers import Job, run

__all__ = ["facts_file", "sweep"]

Progress = Callable[[int, int], None]
_LOOK = 0.2  # seconds between two looks at the results


def facts_file(series: str) -> Path:
    """Where what the plan needs to know of a tree's modules is kept."""
    return cache_directory() / "sweep" / f"{series}.facts.json"


def sweep(
    series: str,
    path: Path,
    *,
    names: Sequence[str] = (),
    sample: int = 0,
    jobs: int = 1,
    native: bool = True,
    resume: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[list[dict[str, Any]], int, float]:
    """Test modules of a tree: all, those named, or a sample.

    :param path: the file of results; what stands there for the same code and module is kept with ``resume``.
    :returns: one record for each module, how many of them were tested now, and the seconds which that took.
    """
    modules = Modules(image_of(series), facts_file(series))
    chosen = [name for name in names if name in modules.facts]
    wanted = chosen if names else modules.sample(sample or len(modules.facts))
    source = results.source_hash()
    keys = {
        name: results.key(source, modules.image.identity, modules.facts[name].digest, str(native)) for name in wanted
    }
    known = results.read(path) if resume else {}
    known = {name: known[name] for name in wanted if name in known and known[name]["key"] == keys[name]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not resume:
            file.truncate(0)
    todo = [name for name in wanted if name not in known]

    def record(name: str, found: dict[str, Any]) -> dict[str, Any]:
        return {"module": name, "series": series, "key": keys[name], **found}

    kernel = booted_kernel(series)
    began = time.monotonic()
    pid = fork(lambda: run(kernel.fork(), modules.plan(todo), Job(native, jobs, path, record)))
    try:
        _watch(pid, path, len(known), len(wanted), progress)
    except BaseException:
        os.kill(pid, signal.SIGKILL)  # and all that it started: they die with their parents
        os.waitpid(pid, 0)
        raise
    seconds = time.monotonic() - began
    found = results.read(path)
    missing = {"status": "crashed", "lines": ["no result: the run itself has ended"], "count": 1, "seconds": 0.0}
    return (
        [found[name] if found.get(name, {}).get("key") == keys[name] else record(name, missing) for name in wanted],
        len(todo),
        seconds,
    )


def _watch(pid: int, path: Path, known: int, total: int, progress: Progress) -> None:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        done = known
        ended = False
        while not ended:
            ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            done += file.read().count(b"\n")
            progress(min(done, total), total)
            if not ended:
                time.sleep(_LOOK)
