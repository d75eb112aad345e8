from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from kodojo.kernel import snapshots
from kodojo.kernel.snapshots import BootFacts, SnapshotKey, existing, snapshot_for
from tests.support.bare_machine import BareMachine

FACTS = BootFacts(**{name: 0x1000 * number for number, name in enumerate(BootFacts.__slots__, 1)})
IMAGE = SimpleNamespace(identity="abc123")
MEMORY = 4 << 20


@pytest.fixture
def store(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(snapshots_directory=lambda image: tmp_path / image.identity)


@pytest.fixture
def boots(monkeypatch) -> list[tuple[str, int]]:
    """The boots that were made: command line and memory of each."""
    made: list[tuple[str, int]] = []

    def boot_machine(image, cmdline, memory, progress=None, *, bare=False):
        made.append((cmdline, memory))
        return BareMachine().machine, FACTS

    monkeypatch.setattr(snapshots, "boot_machine", boot_machine)
    return made


def directory(store: SimpleNamespace) -> Path:
    (found,) = (path for path in store.snapshots_directory(IMAGE).iterdir() if path.is_dir())
    return found


def test_booted_once(store, boots):
    """A boot is made once; later ones are found, with the addresses that go with them."""
    first, facts = snapshot_for(store, IMAGE, "", MEMORY)
    second, again = snapshot_for(store, IMAGE, "", MEMORY)
    assert boots == [("", MEMORY)]
    assert first == second
    assert facts == again == FACTS


def test_different_boots(store, boots):
    """Another command line, memory size or image and a bare machine are other boots; blanks do not matter."""
    for cmdline, memory in (("a b", MEMORY), (" a  b ", MEMORY), ("b a", MEMORY), ("a b", 2 * MEMORY)):
        snapshot_for(store, IMAGE, cmdline, memory)
    snapshot_for(store, SimpleNamespace(identity="other"), "a b", MEMORY)
    snapshot_for(store, IMAGE, "a b", MEMORY, bare=True)
    assert boots == [("a b", MEMORY), ("b a", MEMORY), ("a b", 2 * MEMORY), ("a b", MEMORY), ("a b", MEMORY)]
    keys = {key for key, _path in existing(store, IMAGE)}
    assert keys == {
        SnapshotKey("abc123", "a b", MEMORY),
        SnapshotKey("abc123", "b a", MEMORY),
        SnapshotKey("abc123", "a b", 2 * MEMORY),
        SnapshotKey("abc123", "a b", MEMORY, bare=True),
    }


@pytest.mark.parametrize("name", ["ram", "state"])
def test_damaged_snapshot(store, boots, name):
    """A damaged snapshot is made again, and found after that."""
    snapshot_for(store, IMAGE, "", MEMORY)
    with (directory(store) / name).open("r+b") as file:
        file.seek(40)
        file.write(b"damage")
    assert existing(store, IMAGE) == []
    for _ in range(2):
        snapshot, _facts = snapshot_for(store, IMAGE, "", MEMORY)
        snapshot.start()
    assert len(boots) == 2


def test_snapshot_of_another_emulator(store, boots, monkeypatch):
    """After the emulator was updated the boots are made again: their processor states are of no use to it."""
    snapshot_for(store, IMAGE, "", MEMORY)
    monkeypatch.setattr("kodojo.machine.x86_64.engine_identity", lambda: "unicorn-99")
    snapshot, _facts = snapshot_for(store, IMAGE, "", MEMORY)
    snapshot.start()
    assert len(boots) == 2


def test_snapshot_of_another_version(store, boots, monkeypatch):
    """A boot that is done differently in this version of kodojo is another one."""
    snapshot_for(store, IMAGE, "", MEMORY)
    monkeypatch.setattr(snapshots, "_BOOT_FORMAT", 1000)
    snapshot_for(store, IMAGE, "", MEMORY)
    assert len(boots) == 2


def test_nothing_there(store):
    """An image that was never booted has no snapshots."""
    assert existing(store, IMAGE) == []
