"""The command as people run it: a process for each line, in a store of the tests' own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from kodojo.durable import lock
from kodojo.image.store import Store
from tests.support import distribution

__all__ = ["Shell", "one_machine", "store_with_kernels"]


@lru_cache
def store_with_kernels() -> Path:
    """A store of its own that lasts from one run to the next, so that the kernels are booted once."""
    root = distribution.cache_directory() / "cli-store"
    store = Store(root)
    for files in distribution.kernels((*distribution.SERIES, *distribution.ARM64)).values():
        store.add(files.image_root)
    return root


def _as_in_a_terminal() -> None:
    """A test run in the background of a shell ignores Ctrl-C, one under nohup hangups, and so would its children."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Shell:
    """Runs ``kodojo`` in the store, with a freshly booted machine to begin with."""

    def __init__(self, release: str) -> None:
        self.environment = {**os.environ, "KODOJO_STORE": str(store_with_kernels())}
        assert self("boot", release).returncode == 0

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kodojo", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            preexec_fn=_as_in_a_terminal,  # noqa: PLW1509  no threads here
            text=True,
        )

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout


@contextmanager
def one_machine(series: str) -> Iterator[Shell]:
    """A shell for one test after the other, whichever processes they run in."""
    with lock(distribution.cache_directory() / "cli-store.lock", timeout=None):
        yield Shell(distribution.kernel_of(series).release)
