"""What ends a run from outside: Ctrl-C, and the time on this computer's clock."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Watch"]


class Watch:
    """Looked at wherever a processor comes to rest, which is at least once in each tick.

    While the engine runs, Python may be called by it, and an exception that is raised there is lost on its way
    through the engine. So Ctrl-C is noted then, and raised as KeyboardInterrupt where the engine is at rest. Who
    has a handler of their own for SIGINT keeps it.
    """

    def __init__(self) -> None:
        self._until = math.inf
        self._seconds = math.inf
        self._interrupted = False

    def begin(self, seconds: float) -> None:
        """From now on there are so many seconds of this computer's time; ``math.inf`` takes the limit away."""
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    @contextmanager
    def ending(self) -> Iterator[None]:
        """After the ``with`` block there is no limit any more."""
        try:
            yield
        finally:
            self.begin(math.inf)

    def look(self) -> float | None:
        """The limit in seconds if it is reached, else None. Raises KeyboardInterrupt after Ctrl-C."""
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        return self._seconds if time.monotonic() > self._until else None

    @contextmanager
    def minding(self, stop: Callable[[], None]) -> Iterator[None]:
        """In the ``with`` block the engine may run.

        :param stop: lets it come to rest soon.
        """
        if threading.get_ident() != threading.main_thread().ident:  # nobody else gets signals
            yield
            return
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def note(_number: int, _frame: object) -> None:
            self._interrupted = True
            stop()

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            interrupted, self._interrupted = self._interrupted, False
        if interrupted:
            raise KeyboardInterrupt
