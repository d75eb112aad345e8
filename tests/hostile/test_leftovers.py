"""What a killed process leaves is swept by the next one; what a living one has, never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from kodojo import durable
from kodojo.durable import part_directory, sweep, temporary_directory, write_atomically

WRITER = """
import sys, time
from pathlib import Path
from kodojo import durable
def content(file):
    file.write(b"half"); file.flush()
    print("ready", flush=True); time.sleep(600)
what, place = sys.argv[1], Path(sys.argv[2])
if what == "file":
    durable.write_atomically(place, content)
with durable.part_directory(place) if what == "part" else durable.temporary_directory("spool") as path:
    (path / "below").mkdir()
    (path / "below/1.ko").write_bytes(b"half")
    print("ready", flush=True); time.sleep(600)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a process that stays in the middle of its work."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    running = []

    def begin(what):
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        words = [sys.executable, "-c", WRITER, what, str(tmp_path / "place")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)
        running.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def next_one(what, place):
    """The same work once more."""
    if what == "file":
        write_atomically(place, b"whole")
    else:
        with part_directory(place) if what == "part" else temporary_directory("spool"):
            pass


@pytest.mark.parametrize("what", ["file", "part", "spool"])
def test_kill(start, tmp_path, what):
    """After kill -9 the next one of the same kind removes what is left (S5, S15)."""
    process = start(what)
    (left,) = tmp_path.iterdir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    next_one(what, tmp_path / "place")
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == ({"place"} if what == "file" else set())


@pytest.mark.parametrize("what", ["file", "part", "spool"])
def test_the_living_keep_theirs(start, tmp_path, what):
    """What another process is working on is not touched."""
    start(what)
    (theirs,) = tmp_path.iterdir()
    next_one(what, tmp_path / "place")
    assert theirs.exists()


def test_looking_sweeps_too(start, tmp_path):
    """A command that only looks sweeps what writers left."""
    process = start("file")
    process.kill()
    process.wait()
    sweep(tmp_path / "place")
    assert list(tmp_path.iterdir()) == []


def test_only_ours(tmp_path, monkeypatch):
    """Nothing goes that has another name, or is a link: not what a person calls nearly so."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ["kodojo-spool-results", "kodojo-spool-0123456789abcde", "kodojo-spool-0123456789ABCDEF", "kodojo-spool-"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_bytes(b"")
    (tmp_path / "target").mkdir()
    (tmp_path / "target/mine").write_bytes(b"")
    (tmp_path / "kodojo-spool-0123456789abcdef").symlink_to("target")
    with temporary_directory("spool"):
        pass
    assert all((tmp_path / name / "mine").exists() for name in [*names, "target"])
    assert (tmp_path / "kodojo-spool-0123456789abcdef").is_symlink()


def test_who_makes_and_who_sweeps_at_once(tmp_path):
    """Two that begin at the same moment never take each other's: each file is written by somebody, whole."""
    script = (
        "import sys; from pathlib import Path; from kodojo.durable import write_atomically\n"
        "for n in range(300): write_atomically(Path(sys.argv[1]), b'whole')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "place")]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "place").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """On a file system without locks files are written as ever, and nothing is swept."""

    def flock(*_):
        raise OSError(95, "Operation not supported")

    left = tmp_path / ".place.0123456789abcdef.part"
    left.write_bytes(b"somebody's")
    monkeypatch.setattr(durable.fcntl, "flock", flock)
    write_atomically(tmp_path / "place", b"whole")
    assert left.exists()
    assert (tmp_path / "place").read_bytes() == b"whole"
    assert time.monotonic()
