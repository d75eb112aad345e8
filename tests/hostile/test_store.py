"""Several processes on one store, and a store that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback

import pytest

from kodojo.errors import KodojoError, StoreError
from kodojo.image.store import Store

MIXED = """
import random, sys
from pathlib import Path
from kodojo.errors import KodojoError, InputError
from kodojo.durable import lock, read_checked, write_checked
root, number = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(number)
for turn in range(25):
    what = rng.randrange(3)
    if what == 0:
        with lock(root / "machine/lock", timeout=None):
            old = int(read_checked(root / "machine/state", "state"))
            write_checked(root / "machine/state", b"%d" % (old + 1), "state")
            with open(root / f"done.{number}", "a") as file: file.write("x")
    elif what == 1:
        int(read_checked(root / "machine/state", "state"))
    else:
        write_checked(root / "current", b"%d" % number, "current")
        read_checked(root / "current", "current")
"""


def test_two_and_more_processes(tmp_path):
    """100 mixed commands of four processes: every change counts once, and readers see whole files without waiting."""
    from kodojo.durable import read_checked, write_checked

    write_checked(tmp_path / "machine/state", b"0", "state")
    words = [sys.executable, "-c", MIXED, str(tmp_path)]
    running = [subprocess.Popen([*words, str(number)], stderr=subprocess.PIPE) for number in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 4
    done = sum(path.stat().st_size for path in tmp_path.glob("done.*"))
    assert int(read_checked(tmp_path / "machine/state", "state")) == done > 0
    assert not list(tmp_path.rglob("*.part"))


def without_power(function):
    """Run it without root's powers over files, in a child where they are there."""
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            function()
            status = 0
        except BaseException:  # noqa: BLE001  it is shown, and the status says so
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("mode", [0o555, 0o000, 0o444])
def test_a_store_that_cannot_be_written(tmp_path, mode):
    """A sentence with the path, and where to put the store instead."""
    root = tmp_path / "store"
    (root / "images").mkdir(parents=True)
    (tmp_path / "vmlinuz").write_bytes(b"no kernel")
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path):
        path.chmod(path.stat().st_mode | 0o011)
    with pytest.raises(KodojoError):  # and what it imports is imported: nobody may read everything
        Store(root).add(tmp_path / "vmlinuz")

    def attempt():
        with pytest.raises(StoreError) as caught:
            Store(root).add(tmp_path / "vmlinuz")
        assert str(root) in caught.value.message
        assert "KODOJO_STORE" in caught.value.hint
        try:
            names, said = Store(root).names(), str(root)
        except StoreError as error:
            names, said = [], error.message
        assert names == []
        assert str(root) in said

    for path in (root / "images", root):
        path.chmod(mode)
    try:
        without_power(attempt)
    finally:
        root.chmod(0o755)
        (root / "images").chmod(0o755)
