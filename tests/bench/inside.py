"""One command in a process of its own that knows where its time goes: ``python -m tests.bench.inside insmod FILE``.

Prints JSON to standard error: ``own``, ``whole`` and ``processor`` seconds by what was going on (see Stopwatch).
"""

from __future__ import annotations

import json
import sys

from tests.bench.stopwatch import Stopwatch

__all__ = ["INSMOD", "watch_everything"]

IMPORTS = "imports"
OPEN = "open the image"
RESTORE = "restore the machine"
KERNEL = "make the Kernel"
INSMOD = "loader, in Python"
GUEST = "guest code, its translation included"
SIGNATURE = "verify the signature"
UNPACK = "unpack the file"
SAVE = "save"


def watch_everything(watch: Stopwatch) -> None:
    """Book the work by what it is for. Imports nearly everything, and books that too if imports are watched."""
    from kodojo.image.store import Store
    from kodojo.kernel import kernel, session
    from kodojo.loader import load_module
    from kodojo.machine.engine import Engine
    from kodojo.machine.machine import Machine, Snapshot

    watch.watch(OPEN, Store, "images")
    watch.watch(OPEN, Store, "open")
    watch.watch(RESTORE, Snapshot, "open")
    watch.watch(RESTORE, Snapshot, "start")
    watch.watch(RESTORE, Machine, "apply")
    watch.watch(RESTORE, session, "read_checked")
    watch.watch(KERNEL, kernel.Kernel, "__init__")
    watch.watch(INSMOD, kernel.Kernel, "insmod")
    watch.watch(UNPACK, kernel, "read_module")
    watch.watch(SIGNATURE, load_module, "module_sig_check")
    watch.watch(SIGNATURE, load_module, "_trust")
    watch.watch(GUEST, Engine, "start")
    watch.watch(SAVE, session.Session, "_write")


def main() -> None:
    watch = Stopwatch()
    watch.watch_imports(IMPORTS)
    from kodojo.cli.main import main as command

    watch_everything(watch)
    try:
        command()
    finally:
        json.dump({"own": watch.own, "whole": watch.whole, "processor": watch.processor}, sys.stderr)


if __name__ == "__main__":
    main()
