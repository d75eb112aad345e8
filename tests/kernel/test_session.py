"""The machine that lasts from one command to the next."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kodojo.durable import read_checked, write_checked
from kodojo.errors import (
    CorruptError,
    GuestOSError,
    InputError,
    LoadError,
    MachineFault,
    MachineHang,
    StoreError,
    UnloadError,
)
from kodojo.image.image import Image
from kodojo.image.store import Store
from kodojo.kernel import session as sessions
from kodojo.kernel import snapshots
from kodojo.kernel.session import Session
from tests.conftest import EVERY_SERIES, SERIES, image_of, shared_store
from tests.kernel.looking import exists

pytestmark = pytest.mark.kernel

REPOSITORY = Path(__file__).resolve().parents[2]


class OneImageStore(Store):
    """A store with a place of its own for the machine, and the tests' kernels and snapshots."""

    def __init__(self, root: Path, series: str) -> None:
        super().__init__(root)
        self._series = series

    def snapshots_directory(self, image):
        return shared_store().snapshots_directory(image)

    def images(self):
        return [image_of(series) for series in EVERY_SERIES]

    def current(self):
        return image_of(self._series)


@pytest.fixture
def session(tmp_path, series) -> Session:
    return Session(OneImageStore(tmp_path, series))


@pytest.fixture
def state(tmp_path) -> Path:
    """The file that holds the machine."""
    return tmp_path / "machine" / "state"


def loaded(session: Session) -> list[str]:
    with session.machine(save=False) as kernel:
        return [module.name for module in kernel.modules]


def parts(state: Path) -> list[str]:
    """What is in the machine's directory."""
    return sorted(path.name for path in state.parent.iterdir())


def test_state_lasts(session, state, tmp_path, series, built):
    """What one command did the next one finds: modules, files, time, taints and log."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_hello"], "byte=77")
        kernel.write_file("/tmp/note", b"left here")
        kernel.sleep(1)
        log, time = kernel.log, kernel.time
    other = Session(OneImageStore(tmp_path, series))
    with other.machine() as kernel:
        [module] = kernel.modules
        assert module.parameters["byte"] == "77"
        assert kernel.read_file("/tmp/note") == b"left here"
        assert (kernel.log, kernel.time) == (log, pytest.approx(time, abs=0.1))
        module.remove()
    assert loaded(session) == []
    assert parts(state) == ["lock", "state"]


def test_first_use_boots_the_current_kernel(session, state, image):
    """Without a machine the store's current kernel is booted, and kept."""
    assert session.describe() is None
    with session.machine() as kernel:
        assert kernel.image is image
    described = session.describe()
    assert (described.release, described.image, described.cmdline) == (image.release, image.identity, "")
    assert state.stat().st_mode & 0o077 == 0


def test_another_kernel_is_refused(session, image):
    """A machine that runs one kernel is not another kernel's."""
    with session.machine():
        pass
    other = next(one for one in map(image_of, SERIES) if one is not image)
    with pytest.raises(InputError, match=re.escape(image.release)) as refusal, session.machine(image=other):
        pass
    assert "kodojo boot" in refusal.value.hint
    with session.machine(image=image):
        pass


def test_boot_starts_over(session, built):
    """Booting anew forgets everything."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    assert loaded(session) == ["kd_noinit"]
    with session.machine(save=False) as kernel:
        image = kernel.image
    assert session.boot(image).modules == []
    assert loaded(session) == []


def test_fresh_leaves_no_trace(session, state, built):
    """A fresh machine sees the state as it is, and what it does is not kept."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    before = state.read_bytes()
    with session.machine(fresh=True) as kernel:
        assert [module.name for module in kernel.modules] == ["kd_noinit"]
        kernel.insmod(built["kd_proc"])
    assert state.read_bytes() == before
    assert loaded(session) == ["kd_noinit"]


def test_fresh_without_a_machine(session, state, built):
    """A fresh machine needs none to be there, and leaves none."""
    with session.machine(fresh=True) as kernel:
        kernel.insmod(built["kd_noinit"])
    assert not state.exists()
    assert session.describe() is None


def test_looking_does_not_write(session, state):
    """A command that only looks leaves the file untouched."""
    with session.machine():
        pass
    before = state.stat()
    with session.machine(save=False) as kernel:
        kernel.sleep(1)
    after = state.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_interruption_leaves_the_state_before(session, state, built):
    """After an exception in the middle of a command the machine is what it was before that command."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    before = state.read_bytes()

    def interrupted(interruption: type[BaseException]) -> None:
        with session.machine() as kernel:
            kernel.insmod(built["kd_proc"])
            raise interruption

    for interruption in (KeyboardInterrupt, ValueError, SystemExit):
        with pytest.raises(interruption):
            interrupted(interruption)
    assert state.read_bytes() == before
    assert parts(state) == ["lock", "state"]
    assert loaded(session) == ["kd_noinit"]


def test_refusals_are_kept(session, built):
    """When the kernel says no, what it did until then stays: its log and its taints."""

    def command(name: str, do) -> None:
        with session.machine() as kernel:
            kernel.write_file(f"/tmp/{name}", b"")
            do(kernel)

    with pytest.raises(LoadError):
        command("first", lambda kernel: kernel.insmod(built["kd_unknown"]))
    with pytest.raises(UnloadError):
        command("second", lambda kernel: kernel.rmmod("kd_nothing"))
    with pytest.raises(GuestOSError):
        command("third", lambda kernel: kernel.read_file("/nowhere"))
    with session.machine(save=False) as kernel:
        assert any("kd_exists_nowhere" in record.text for record in kernel.log)
        assert kernel.read_file("/proc/sys/kernel/tainted") != b"0\n"
        assert [name for name in ("first", "second", "third") if not exists(kernel, f"/tmp/{name}")] == []


def test_crash_leaves_the_state_before(session, state, built):
    """What crashes leaves the machine as it was before the command, and so does what ends with a dead machine."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    before = state.read_bytes()
    with pytest.raises(MachineFault), session.machine() as kernel:
        kernel.insmod(built["kd_oops"], "how=0")
    with session.machine() as kernel, pytest.raises(MachineFault):
        kernel.insmod(built["kd_oops"], "how=8")  # panic
    assert state.read_bytes() == before
    assert loaded(session) == ["kd_noinit"]


def test_oops_that_was_expected(session, built):
    """Who catches an oops goes on with the machine, in which the module is half loaded."""
    with session.machine() as kernel, pytest.raises(MachineFault) as caught:
        kernel.insmod(built["kd_oops"], "how=0")
    assert caught.value.survived
    with session.machine(save=False) as kernel:
        assert [(module.name, module.state) for module in kernel.modules] == [("kd_oops", "Loading")]


# -- disk full, damage ---------------------------------------------------------------------------------------
def test_disk_full(session, state, built, monkeypatch):
    """When the state cannot be written the old one stays, and nothing half-written is left."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    before = state.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="No space left") as failure, session.machine() as kernel:
            kernel.insmod(built["kd_proc"])
    assert str(state) in str(failure.value)
    assert "KODOJO_STORE" in failure.value.hint
    assert state.read_bytes() == before
    assert parts(state) == ["lock", "state"]
    assert loaded(session) == ["kd_noinit"]


def payload_of(state: Path) -> bytes:
    return read_checked(state, "machine")


DAMAGES = {
    "first-byte": lambda state: state.write_bytes(b"K" + state.read_bytes()[1:]),
    "header": lambda state: state.write_bytes(state.read_bytes().replace(b"kodojo machine", b"kodojo snapshot", 1)),
    "middle": lambda state: state.write_bytes(flipped(state.read_bytes(), 2000)),
    "last-byte": lambda state: state.write_bytes(flipped(state.read_bytes(), -1)),
    "a-byte-short": lambda state: state.write_bytes(state.read_bytes()[:-1]),
    "a-byte-long": lambda state: state.write_bytes(state.read_bytes() + b"\0"),
    "half": lambda state: state.write_bytes(state.read_bytes()[: state.stat().st_size // 2]),
    "empty": lambda state: state.write_bytes(b""),
    "zeros": lambda state: state.write_bytes(bytes(5000)),
    "no-json": lambda state: write_checked(state, b"{", "machine"),
    "no-object": lambda state: write_checked(state, b"[]\n", "machine"),
    "no-members": lambda state: write_checked(state, b"{}\n", "machine"),
    "other-format": lambda state: rewrite(state, b'"format": %d' % sessions._FORMAT, b'"format": 0'),
    "other-snapshot": lambda state: rewrite(state, b'"snapshot": "', b'"snapshot": "0'),
    "other-emulator": lambda state: rewrite(state, b'"identity": "', b'"identity": "x'),
    "no-once": lambda state: rewrite(state, b'"once"', b'"twice"'),
    "no-board": lambda state: rewrite(state, b'"board": {', b'"board": {"more": '),
}


def flipped(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 0x10
    return bytes(changed)


def rewrite(state: Path, old: bytes, new: bytes) -> None:
    payload = payload_of(state)
    assert old in payload
    write_checked(state, payload.replace(old, new, 1), "machine")


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_state_is_refused(tmp_path, state, damage):
    """A state that is not what was written is refused with the way out, left alone, and a boot starts over."""
    session = Session(OneImageStore(tmp_path, "6.1"))
    with session.machine() as kernel:
        kernel.write_file("/tmp/something", b"so that there is a difference")
    DAMAGES[damage](state)
    before = state.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptError) as refusal, session.machine():
            pytest.fail("it was used")
        assert str(state) in str(refusal.value)
        assert "kodojo boot" in refusal.value.hint
        assert state.read_bytes() == before
    session.boot(image_of("6.1"))
    assert loaded(session) == []


def test_kernel_that_is_gone(tmp_path, state):
    """A machine whose kernel is not in the store any more is a clear error."""
    with Session(OneImageStore(tmp_path, "6.1")).machine():
        pass
    rewrite(state, b'"image": "', b'"image": "0')
    with (
        pytest.raises(StoreError, match="not in the store") as refusal,
        Session(OneImageStore(tmp_path, "6.1")).machine(),
    ):
        pass
    assert "kodojo kernel add" in refusal.value.hint


class NoImageStore(OneImageStore):
    """The same, without any kernel."""

    def images(self):
        return []


def test_a_kernel_that_was_given_by_path(tmp_path, monkeypatch):
    """It is opened again from where it was; when it has gone, the way out is another kernel."""
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))
    root = tmp_path / "root"
    shutil.copytree(image_of("6.1").path.parent, root / "boot")
    store = NoImageStore(tmp_path / "store", "6.1")
    given = Image.from_directory(root, tmp_path / "index")
    Session(store).boot(given)
    found = Session(store).running_image()
    assert found is not None
    assert found.files == given.files
    with Session(store).machine() as kernel:
        assert kernel.image.path == given.path
    given.path.unlink()
    with pytest.raises(StoreError, match="is not there any more") as refusal, Session(store).machine():
        pass
    assert "kodojo boot PATH" in refusal.value.hint


def test_command_line_lasts(tmp_path, monkeypatch):
    """The machine remembers what it was booted with."""
    asked = []
    real = snapshots.snapshot_for

    def snapshot_for(store, image, cmdline, *rest, bare):
        asked.append((cmdline, bare))
        return real(store, image, "", *rest)

    monkeypatch.setattr("kodojo.kernel.kernel.snapshot_for", snapshot_for)
    monkeypatch.setattr("kodojo.kernel.session.snapshot_for", snapshot_for)
    session = Session(OneImageStore(tmp_path, "6.1"))
    session.boot(image_of("6.1"), "quiet  slub_debug=F", bare=True)
    assert session.describe().cmdline == "quiet slub_debug=F"
    with session.machine():
        pass
    assert [(" ".join(cmdline.split()), bare) for cmdline, bare in asked] == 2 * [("quiet slub_debug=F", True)]


# -- two at once ---------------------------------------------------------------------------------------------
def test_two_at_once(tmp_path, built, series):
    """Commands at the same time wait for each other, and none undoes what another did."""
    names = ["kd_noinit", "kd_proc", "kd_export", "kd_timer"]
    inside: list[str] = []
    overlaps: list[str] = []

    def command(name: str) -> None:
        with Session(OneImageStore(tmp_path, series)).machine() as kernel:
            overlaps.extend(inside)
            inside.append(name)
            kernel.insmod(built[name])
            inside.remove(name)

    threads = [threading.Thread(target=command, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert sorted(loaded(Session(OneImageStore(tmp_path, series)))) == sorted(names)


KILLED = """
import sys
from pathlib import Path
from tests.conftest import image_of
from tests.kernel.test_session import OneImageStore
from kodojo.kernel.session import Session
with Session(OneImageStore(Path(sys.argv[1]), sys.argv[2])).machine() as kernel:
    kernel.write_file("/tmp/by-the-killed-one", b"")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_killed_command(session, state, tmp_path, series, built):
    """A command in another process holds the machine; when it is killed the machine is free, and as it was before."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_noinit"])
    before = state.read_bytes()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(tmp_path), series]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"
        messages: list[str] = []

        def kill(message: str) -> None:
            messages.append(message)
            os.kill(other.pid, signal.SIGKILL)

        with session.machine(on_wait=kill) as kernel:
            assert not exists(kernel, "/tmp/by-the-killed-one")
            assert [module.name for module in kernel.modules] == ["kd_noinit"]
            assert state.read_bytes() == before
        [message] = messages
        assert str(other.pid) in message
    assert parts(state) == ["lock", "state"]


def test_what_waits_is_kept(session, built):
    """What waits too long leaves the machine as it was before, or is saved with it where it is, as one likes."""
    with session.machine() as kernel:
        kernel.insmod(built["kd_wait"], "how=3")
    for leave in (False, True):
        with pytest.raises(MachineHang):
            _wait(session, leave=leave)
        with session.machine() as kernel:
            waits = b"kd_wait_event" in kernel.read_file("/proc/1/stack")
            assert waits == leave
            assert kernel.read_file("/proc/self/stat").startswith(b"1 (") != leave
    with session.machine() as kernel:
        kernel.write_file("/dev/kd_wait", b"!")
        kernel.sleep(0.1)
        assert kernel.read_file("/sys/module/kd_wait/parameters/reads") == b"1\n"
        kernel.rmmod("kd_wait")


def _wait(session: Session, *, leave: bool) -> None:
    with session.machine(leave=leave) as kernel:
        kernel.limit(0.5, leave=leave)
        kernel.read_file("/dev/kd_wait")
