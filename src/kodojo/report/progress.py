"""Progress bars on a terminal, for work that takes longer than a moment."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bar"]

_MOMENT = 0.5  # seconds: what is over sooner needs no bar
_INTERVAL = 0.1  # seconds between two drawings
_STEPS = 1000  # of a share


class Bar:
    """One bar, drawn when the work has gone on for a moment, gone when the ``with`` block ends.

    :param stream: nothing is ever written to one that is not a terminal.
    :param title: words for :meth:`share`.
    """

    def __init__(self, stream: TextIO, title: str = "") -> None:
        self._stream = stream
        self._title = title
        self._silent = not stream.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def share(self, share: float) -> None:
        """The work is done to this share, 0 to 1."""
        self.update(round(share * _STEPS), _STEPS, self._title)

    def update(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` (0: unknown) is done of ``what``."""
        now = time.monotonic()
        if self._silent or now - self._began < _MOMENT or (now - self._drawn < _INTERVAL and done != total):
            return
        self._drawn = now
        progress = self._progress or self._start()
        if self._task is None:
            self._task = progress.add_task(what, total=total or None)
        progress.update(self._task, completed=done, total=total or None, description=what)
        progress.refresh()

    def close(self) -> None:
        """Wipe the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._task = None
        self._silent = True

    def _start(self) -> Progress:
        from rich.console import Console  # noqa: PLC0415  slow to import
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(file=self._stream),
            transient=True,
            auto_refresh=False,  # a thread would take time from the emulator
        )
        self._progress.start()
        return self._progress
