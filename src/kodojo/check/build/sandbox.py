"""Running what nobody vouches for: in namespaces of its own, with limits, and with an end that nothing outlives.

What it sees and may do is decided by :mod:`kodojo.check.build.inside`, a program that this file starts. It needs
root or unprivileged user namespaces, and Linux 5.12 or newer; nothing has to be installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kodojo.errors import InputError

__all__ = ["CancelledError", "Done", "Limits", "Sandbox"]

_INSIDE = Path(__file__).with_name("inside.py")
_NOBODY = 65534
_GRACE = 10.0  # seconds beyond the time limit, which the sandbox keeps itself
_LOOK = 0.5  # seconds between two looks at whether it should go on
_MARK = "\n[... kodojo left out the rest of this log ...]\n"


class Limits(NamedTuple):
    """How far a command may go.

    :param time: seconds on the clock. :param cpu: seconds for each process.
    :param memory: bytes, of each process and of all of them together.
    :param file_size: bytes. :param disk: bytes in the directory, checked every other second.
    :param processes: and threads. :param log: bytes of output that are kept.
    """

    time: float = 1800.0
    cpu: int = 1200
    memory: int = 4 << 30
    file_size: int = 1 << 30
    disk: int = 4 << 30
    processes: int = 2048
    log: int = 8 << 20


class CancelledError(Exception):
    """Nobody waits for the command any longer."""


_USUAL = Limits()


class Done(NamedTuple):
    """How a command ended.

    :param status: its exit status, negative for a signal; 0 if it was stopped.
    :param stopped: the limit that it reached, as a sentence's end; empty if none.
    :param output: what it printed, standard output and error.
    """

    status: int
    stopped: str
    output: str


class Sandbox:
    """A directory to work in, and the commands that are run there, one after another.

    :param directory: empty, of its own; real path.
    :param shown: what has to be there besides the system, at the same path. :param links: path -> target.
    :param namespaces: False: only limits; the commands see and may do what this process may.
    :param cancelled: asked now and then whether to stop.
    """

    def __init__(
        self,
        directory: Path,
        *,
        shown: Sequence[Path] = (),
        links: Mapping[str, str] | None = None,
        namespaces: bool = True,
        limits: Limits = _USUAL,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.work = directory / "work"
        self._root = directory / "root"
        self.shown = list(shown)
        self.links = dict(links or {})
        self._namespaces = namespaces
        self._limits = limits
        self._cancelled = cancelled
        for path in (self.work, self._root, self.work / "home", self.work / "tmp"):
            path.mkdir()

    def hand_over(self) -> None:
        """Give the directory to whom the commands run as; what was put there since the last time, too."""
        if not self._namespaces or os.geteuid() != 0:
            return
        for root, directories, files in os.walk(self.work):
            for path in (root, *(f"{root}/{name}" for name in (*directories, *files))):
                os.lchown(path, _NOBODY, _NOBODY)

    def run(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> Done:
        """Run a command to its end, or to the first limit that it reaches.

        :raises InputError: there can be no sandbox here.
        :raises CancelledError: as soon as it is known.
        """
        self.hand_over()
        home = {"HOME": str(self.work / "home"), "TMPDIR": str(self.work / "tmp"), "LC_ALL": "C"}
        spec = self._limits._asdict() | {
            "command": list(command),
            "environment": home | dict(environment),
            "cwd": str(cwd or self.work),
            "work": str(self.work),
            "root": str(self._root),
            "shown": [str(path) for path in self.shown],
            "links": self.links,
            "namespaces": self._namespaces,
        }
        answer, output = self._run(json.dumps(spec))
        if "refused" in answer:
            raise InputError(
                f"no sandbox can be made here to build in: {answer['refused']}",
                hint="run it as root, or where unprivileged user namespaces are allowed (in a container: with "
                "--privileged); or, if you trust the sources: --no-sandbox",
            )
        stopped = str(answer.get("stopped", ""))
        return Done(int(answer.get("status", 0)), stopped and self._sentence(stopped), output)

    def _sentence(self, limit: str) -> str:
        return {
            "time": f"it was not done after {self._limits.time:.0f} s",
            "memory": f"it took more than {self._limits.memory >> 20} MiB of memory",
            "disk": f"it wrote more than {self._limits.disk >> 20} MiB",
        }[limit]

    def _run(self, spec: str) -> tuple[dict[str, Any], str]:
        reading, writing = os.pipe()
        try:
            with open(reading, "rb", closefd=False) as status:
                process = self._start(spec, writing)
                os.close(writing)
                writing = -1
                try:
                    output = self._output(process)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                text = status.read(1 << 16)
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        if text:
            return json.loads(text), output
        return {"stopped": "time"} if process.returncode < 0 else {"refused": output.strip()[-500:]}, output

    def _start(self, spec: str, status: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603  (our own program)
            [sys.executable, "-I", "-S", str(_INSIDE), spec, str(status)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[status],
            start_new_session=True,
        )

    def _output(self, process: subprocess.Popen[bytes]) -> str:
        """What it prints until nobody is left who could; the first half of the limit, and the last."""
        assert process.stdout is not None
        end = time.monotonic() + self._limits.time + _GRACE
        first, last, dropped = bytearray(), bytearray(), False
        half = self._limits.log // 2
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if self._cancelled():
                    raise CancelledError
                if time.monotonic() > end:
                    break
                if not selector.select(_LOOK):
                    if process.poll() is not None:  # without a sandbox somebody may still hold the pipe
                        break
                    continue
                data = os.read(pipe.fileno(), 1 << 16)
                if not data:
                    break
                room = half - len(first)
                first += data[:room]
                last += data[room:]
                if len(last) > 2 * half:
                    dropped = True
                    del last[:-half]
        return (bytes(first) + (_MARK.encode() if dropped else b"") + bytes(last)).decode("utf-8", "replace")

    def open(self, path: Path) -> BinaryIO:
        """Open what the commands left, if it is a file and in the directory.

        :raises InputError: it is not.
        """
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(self.work):
                raise InputError(f"{path.name}: leads out of the directory that it was built in")
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise InputError(f"{path.name}: is not a regular file")
            return os.fdopen(descriptor, "rb")
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            raise InputError(f"{path.name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
