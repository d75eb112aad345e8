"""The entry point: streams, interruptions, exit status; everything else is in :mod:`kodojo.cli.group`.

Little is imported here, so that Ctrl-C has a decent answer from the first moment on.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import sys
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> NoReturn:
    """Run the command line of this process, and exit: 0 ok, 1 failure, 2 wrong usage, 130 interrupted."""
    # Imports make much that stays: to search it for garbage takes a tenth of a short command.
    gc.set_threshold(100_000)
    # numpy's linear algebra, which nothing here uses, would start threads: that takes another fifth.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a locale without a character is no reason to fail
        from kodojo.cli.app import App  # noqa: PLC0415
        from kodojo.cli.group import cli  # noqa: PLC0415

        app = App()
        app.guarded = sys.platform == "linux"
        cli(prog_name="kodojo", obj=app)
    except KeyboardInterrupt:
        status: int | str | None = INTERRUPTED
    except SystemExit as ending:
        status = ending.code
    gc.freeze()  # the interpreter searches all there is once more at its end: another tenth
    sys.exit(_flushed(status))


def _flushed(status: int | str | None) -> int | str | None:
    """Flush standard output while a closed pipe can still be taken quietly, and anything else be said."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        if not status:  # otherwise who wrote has said so
            print(f"kodojo: cannot write to standard output: {error.strerror}", file=sys.stderr)  # noqa: T201
        return status or 1
    except ValueError:  # closed, by somebody's wish
        return status or 1
    return status


def _discard_output() -> None:
    """So that the interpreter's own flush at its end does not fail again."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
