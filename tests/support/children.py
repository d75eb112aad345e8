"""Code that may kill its process, run in a child."""

from __future__ import annotations

import os
import resource
import signal
import traceback
from collections.abc import Callable, Mapping

__all__ = ["in_a_child", "run_in_a_child"]

DONE = 42  # what nothing but us exits with: a library may call exit()


def run_in_a_child(action: Callable[[], bytes], limits: Mapping[int, tuple[int, int]]) -> tuple[bytes, int]:
    """What the action returns, and how its process ended: 0, or the number of a signal, or -1 for any other way.

    :param limits: of the process (``resource.RLIMIT_...``), beside that it leaves no core. The traceback of an
        exception is on standard error.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            for limit, values in {resource.RLIMIT_CORE: (0, 0), **limits}.items():
                resource.setrlimit(limit, values)
            with os.fdopen(writer, "wb") as answer:
                answer.write(action())
            status = DONE
        except BaseException:  # noqa: BLE001  nobody else hears of it
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return content, os.WTERMSIG(status)
    return content, 0 if os.WEXITSTATUS(status) == DONE else -1


def in_a_child(action: Callable[[], str]) -> str:
    """What the action returns; the signal's name if it dies of one, the exception's if there is one."""

    def answer() -> bytes:
        try:
            return action().encode()
        except Exception as error:  # noqa: BLE001  the parent looks at it
            return f"{type(error).__name__}: {error}".encode()

    content, number = run_in_a_child(answer, {})
    return signal.Signals(number).name if number > 0 else content.decode()
