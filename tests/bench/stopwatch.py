"""Where the time of a process goes: every moment is booked to the innermost function that is watched."""

from __future__ import annotations

import builtins
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds by the name of what was going on.

    :attr own: without what was watched inside; all of them together are the time that passed.
    :attr whole: from the first call to the end of it, everything inside included; ``processor``: the same in
        seconds of processor time.
    """

    def __init__(self) -> None:
        self.own: dict[str, float] = defaultdict(float)
        self.whole: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._originals: list[tuple[Any, str, Any]] = []
        self._since = time.perf_counter()

    def _book(self, name: str) -> float:
        now = time.perf_counter()
        self.own[name] += now - self._since
        self._since = now
        return now

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        began, processor = self._book(self._stack[-1] if self._stack else "the rest"), time.process_time()
        outermost = name not in self._stack
        self._stack.append(name)
        try:
            yield
        finally:
            now = self._book(self._stack.pop())
            if outermost:
                self.whole[name] += now - began
                self.processor[name] += time.process_time() - processor

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.during(name):
                return function(*args, **kwargs)

        return timed

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Book what a function, method or class method does, until :meth:`unwatch`."""
        found = owner.__dict__[attribute] if isinstance(owner, type) else getattr(owner, attribute)
        self._originals.append((owner, attribute, found))
        if isinstance(found, classmethod):
            setattr(owner, attribute, classmethod(self.watched(name, found.__func__)))
        else:
            setattr(owner, attribute, self.watched(name, found))

    def unwatch(self) -> None:
        """Leave everything as it was."""
        while self._originals:
            setattr(*self._originals.pop())

    def watch_imports(self, name: str) -> None:
        """Book all imports. Asking for a module that is there already costs nothing worth booking."""
        original = builtins.__import__
        self._originals.append((builtins, "__import__", original))
        deep = [False]

        def timed(*args: Any, **kwargs: Any) -> Any:
            if deep[0]:
                return original(*args, **kwargs)
            deep[0] = True
            try:
                with self.during(name):
                    return original(*args, **kwargs)
            finally:
                deep[0] = False

        builtins.__import__ = timed

    def forget(self) -> None:
        """Start anew."""
        self.own.clear()
        self.whole.clear()
        self.processor.clear()
        self._since = time.perf_counter()
