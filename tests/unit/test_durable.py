"""Locks, atomic writes and checked files."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kodojo.durable import lock, read_checked, write_atomically, write_checked
from kodojo.errors import CorruptError, StoreError

HOLDER = """
import sys
from pathlib import Path
from kodojo.durable import lock
with lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path, how):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_write_replaces_the_old_content(tmp_path):
    """The file has the new content and mode 0600, and nothing else is in its directory."""
    path = tmp_path / "new" / "state"
    write_atomically(path, b"old")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failed_write_leaves_the_old_content(tmp_path, failure):
    """When a write fails half way the old file stays, the new one goes, and the error names the file."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(failure, os.strerror(failure))

    with pytest.raises(StoreError, match=os.strerror(failure)) as caught:
        write_atomically(path, fail)
    assert str(path) in str(caught.value)
    if failure != errno.EIO:
        assert "MB free" in str(caught.value)
        assert "make room" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_sync_is_a_failed_write(tmp_path, monkeypatch):
    """A file that did not reach the disk does not replace the old one."""
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_the_writer_pass(tmp_path):
    """What the writing function raises arrives unchanged, and nothing stays."""

    def fail(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "state", fail)
    assert list(tmp_path.iterdir()) == []


def test_checked_file(tmp_path):
    """What is written is read back, and its first line tells a person what the file is."""
    write_checked(tmp_path / "state", b"\0payload\n\xff", "delta")
    assert read_checked(tmp_path / "state", "delta") == b"\0payload\n\xff"
    assert (tmp_path / "state").read_bytes().startswith(b"kodojo delta 1 10 ")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_detected(tmp_path, data):
    """A checked file with one changed byte, cut short, or with something appended is refused."""
    path = tmp_path / "state"
    write_checked(path, b"payload" * 10, "delta")
    whole = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["change", "cut", "append"])):
        case "change":
            whole[where] ^= data.draw(st.integers(1, 255))
            # White space separates words; a tab for a blank is no damage to speak of.
            if bytes(whole).split() == path.read_bytes().split():
                return
        case "cut":
            del whole[where:]
        case "append":
            whole.append(0)
    path.write_bytes(whole)
    with pytest.raises(CorruptError, match="damaged") as caught:
        read_checked(path, "delta")
    assert str(path) in str(caught.value)
    assert str(path) in caught.value.hint


def test_another_kind_is_refused(tmp_path):
    """A checked file of one kind is not taken for one of another, nor one of a later format for ours."""
    path = tmp_path / "state"
    write_checked(path, b"x", "image")
    with pytest.raises(CorruptError, match="image file, not a delta file"):
        read_checked(path, "delta")
    path.write_bytes(path.read_bytes().replace(b"image 1", b"image 2"))
    with pytest.raises(CorruptError, match="format 2"):
        read_checked(path, "image")


def test_absent_checked_file(tmp_path):
    """An absent file is not a damaged one."""
    with pytest.raises(StoreError, match="No such file") as caught:
        read_checked(tmp_path / "state", "delta")
    assert not isinstance(caught.value, CorruptError)


def test_lock_names_its_holder(tmp_path):
    """Who waits in vain is told which process holds the lock; once it ends, the lock is free."""
    path = tmp_path / "lock"
    process = hold(path, "exclusive")
    with pytest.raises(StoreError, match=f"process {process.pid}") as caught, lock(path, timeout=0):
        pass
    assert str(path) in str(caught.value)
    end(process)
    with lock(path, timeout=0):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path):
    """A lock does not outlive its holder, however that ended."""
    process = hold(tmp_path / "lock", "exclusive")
    process.kill()
    end(process)
    with lock(tmp_path / "lock", timeout=0):
        pass


def test_shared_locks(tmp_path):
    """Several may share a lock; nobody has it alone meanwhile."""
    path = tmp_path / "lock"
    process = hold(path, "shared")
    with lock(path, shared=True, timeout=0):
        pass
    with pytest.raises(StoreError, match="in use by another process"), lock(path, timeout=0):
        pass
    end(process)


def test_waiting_is_announced_once(tmp_path):
    """After a moment the waiting person learns whom they wait for, once; then the lock is theirs."""
    path = tmp_path / "lock"
    process = hold(path, "exclusive")
    said = []

    def on_wait(text):
        said.append(text)
        threading.Thread(target=end, args=(process,)).start()

    with lock(path, on_wait=on_wait):
        pass
    assert len(said) == 1
    assert f"process {process.pid}" in said[0]


def test_lock_is_released_by_an_exception(tmp_path):
    """A failure inside the block releases the lock."""
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "lock"):
        raise ZeroDivisionError
    with lock(tmp_path / "lock", timeout=0):
        pass
