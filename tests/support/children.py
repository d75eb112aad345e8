"""Code that may kill its process, run in a child."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable

__all__ = ["in_a_child"]


def in_a_child(action: Callable[[], str]) -> str:
    """What the action returns; the signal's name if it dies of one, the exception's if there is one."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                answer = action()
            except Exception as error:  # noqa: BLE001  the parent looks at it
                answer = f"{type(error).__name__}: {error}"
            os.write(writer, answer.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        content = answers.read().decode()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else content
