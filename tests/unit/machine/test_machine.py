from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from kodojo.durable import read_checked, write_checked
from kodojo.errors import CorruptError, MachineError, StoreError
from kodojo.machine.machine import Machine, Snapshot
from tests.support.bare_machine import (
    ABSENT,
    CODE,
    DATA,
    OPEN_TIMER,
    PAGE_FAULT,
    TIMER,
    BareMachine,
    handler,
)

COUNT = "48 ff 04 25 00 00 04 00"  # inc qword [DATA]


def count(guest: BareMachine) -> int:
    return int.from_bytes(guest.cpu.read(DATA, 8), "little")


def guest_with_history() -> BareMachine:
    """A guest with everything that must not get lost: memory, registers, ticks, masks, a fault behind it."""
    guest = BareMachine()
    guest.cpu.write(handler(TIMER), bytes.fromhex(COUNT + "48 cf"))
    guest.run(OPEN_TIMER + "fb f4 f4 fa")  # sti; hlt; hlt; cli
    guest.code("8a 00", rax=ABSENT)
    guest.run_to_handler(PAGE_FAULT)
    guest.cpu.trap_time_stamp_reads([0x7000])
    guest.cpu.write_registers({"rbx": 0xB0B, "r15": 0xF15})
    return guest


def same(one: Machine, other: Machine) -> bool:
    """The emulator's own record has host pointers in it that mean nothing: what it stands for is compared."""
    names = ("cr0", "cr2", "cr3", "cr4", "cs", "ss", "ds", "tr", "gdtr", "idtr", "gs_base", "xmm0")
    left, right = ({**machine.state(), "engine": None} for machine in (one, other))
    registers = [
        (machine.cpu.read_registers(), [machine.cpu.engine.get(name) for name in names]) for machine in (one, other)
    ]
    return left == right and registers[0] == registers[1] and one.ram.pages.tobytes() == other.ram.pages.tobytes()


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return Snapshot.write(tmp_path / "snapshot", guest_with_history().machine, {"who": "test"})


# -- forks ----------------------------------------------------------------------------------------------


def test_fork_has_the_same_state():
    """A fork begins where its parent stands, in memory, processor and devices."""
    guest = guest_with_history()
    fork = guest.machine.fork()
    assert same(guest.machine, fork)
    assert (fork.cpu.get("rbx"), fork.cpu.get("r15"), fork.cpu.ticks, fork.board.masks[0]) == (0xB0B, 0xF15, 2, 0xFE)


def test_fork_is_independent():
    """What happens to one of two forks does not happen to the other, nor to their parent."""
    guest = guest_with_history()
    one, other = BareMachine(guest.machine.fork()), BareMachine(guest.machine.fork())
    one.run(COUNT)
    one.cpu.write(CODE + 0x1000, b"one")
    other.run(OPEN_TIMER + "fb f4")  # sti; hlt
    other.board.port_out(0x21, 0xFF)
    assert (count(one), count(other), count(guest)) == (3, 3, 2)
    assert (one.cpu.ticks, other.cpu.ticks, guest.cpu.ticks) == (2, 3, 2)
    assert guest.cpu.read(CODE + 0x1000, 3) == other.cpu.read(CODE + 0x1000, 3) == bytes(3)
    assert (guest.board.masks[0], one.board.masks[0]) == (0xFE, 0xFE)
    assert guest.cpu.get("rbx") == 0xB0B


def test_forks_do_the_same():
    """Two forks that do the same end in the same state, to the last byte."""
    parent = guest_with_history()
    forks = [BareMachine(parent.machine.fork()) for _ in range(2)]
    for fork in forks:
        fork.run(OPEN_TIMER + "fb b9 00 00 08 00 e2 fe" + COUNT)  # sti; mov ecx, 1 << 19; 1: loop 1b; inc
    assert same(forks[0].machine, forks[1].machine)
    assert count(forks[0]) > 3


def test_fork_of_a_fork():
    """A fork of a fork has the changes of both."""
    guest = guest_with_history()
    first = BareMachine(guest.machine.fork())
    first.run(COUNT)
    second = BareMachine(first.machine.fork())
    second.run(COUNT)
    assert (count(guest), count(first), count(second)) == (2, 3, 4)


def test_fork_goes_on_after_a_fault():
    """A fork made in a fault's handler returns from it, and takes the next fault as a first one."""
    guest = guest_with_history()
    fork = BareMachine(guest.machine.fork())
    fork.cpu.set("rip", handler(PAGE_FAULT))
    fork.code("c6 00 01", rax=ABSENT)
    assert fork.run_to_handler(PAGE_FAULT).error_code == 2


def test_fork_has_no_breakpoints_but_time_stamps():
    """Breakpoints stay with the machine on which they were set; trapped time stamps are part of the state."""
    guest = guest_with_history()
    seen = []
    guest.cpu.add_breakpoint(0x6000, lambda: seen.append(1))
    fork = BareMachine(guest.machine.fork())
    fork.run("90", at=0x6000)
    assert seen == []
    fork.run("0f 31", at=0x7000, rdx=5)
    assert (fork.cpu.get("rdx"), fork.cpu.get("rax") // 8 < 1000) == (0, True)


# -- snapshots --------------------------------------------------------------------------------------------


def test_snapshot(snapshot):
    """A machine that starts from a snapshot stands where the snapshot was taken."""
    opened = Snapshot.open(snapshot.directory)
    assert opened == snapshot
    assert opened.facts == {"who": "test"}
    assert same(opened.start(), guest_with_history().machine)


def test_starts_are_independent(snapshot):
    """Machines of one snapshot have nothing to do with each other, nor with the file."""
    one, other = BareMachine(snapshot.start()), BareMachine(snapshot.start())
    one.run(COUNT)
    assert (count(one), count(other)) == (3, 2)
    assert Snapshot.open(snapshot.directory).digest == snapshot.digest
    assert count(BareMachine(snapshot.start())) == 2


def test_fork_of_a_start(snapshot):
    """A fork of a machine from a snapshot has what was written since."""
    one = BareMachine(snapshot.start())
    one.run(COUNT)
    fork = one.machine.fork()
    assert same(one.machine, fork)
    assert fork.ram.dirty_pages().tolist() == one.ram.dirty_pages().tolist()


def test_snapshot_file_is_sparse(snapshot):
    """Pages that are zero take no room on the disk."""
    status = (snapshot.directory / "ram").stat()
    assert status.st_size == snapshot.memory
    assert status.st_blocks * 512 < snapshot.memory / 4


def test_snapshot_replaces(snapshot):
    """Writing a snapshot again replaces the old one, whole."""
    guest = BareMachine(snapshot.start())
    guest.run(COUNT)
    again = Snapshot.write(snapshot.directory, guest.machine, {})
    assert again.digest != snapshot.digest
    assert count(BareMachine(again.start())) == 3
    assert [path.name for path in snapshot.directory.parent.iterdir()] == [snapshot.directory.name]


def test_same_machine_same_digest(snapshot, tmp_path):
    """The digest is of the memory's content, however the machine came to it."""
    again = Snapshot.write(tmp_path / "again", snapshot.start().fork(), {"other": 1})
    assert again.digest == snapshot.digest


def test_snapshot_that_cannot_be_written(tmp_path):
    """A directory that cannot be made is the store's error, and nothing is left behind."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        Snapshot.write(tmp_path / "file" / "snapshot", BareMachine().machine, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_flipped_bit(snapshot):
    """One changed bit of the memory file is found."""
    with (snapshot.directory / "ram").open("r+b") as file:
        file.seek(DATA + 100)
        file.write(b"\1")
    with pytest.raises(CorruptError, match="checksum"):
        Snapshot.open(snapshot.directory)


@pytest.mark.parametrize("change", [-4096, -1, 4096])
def test_memory_file_of_another_size(snapshot, change):
    """A memory file that is too short or too long is found."""
    os.truncate(snapshot.directory / "ram", snapshot.memory + change)
    with pytest.raises(CorruptError):
        Snapshot.open(snapshot.directory)


def test_touched_file(snapshot):
    """A file with another time but the same content is good; the content is not read again after that."""
    ram = snapshot.directory / "ram"
    os.utime(ram, ns=(1, 1))
    assert Snapshot.open(snapshot.directory) == snapshot
    payload = json.loads(read_checked(snapshot.directory / "state", "snapshot"))
    assert payload["mark"] == [ram.stat().st_size, 1, ram.stat().st_ctime_ns, ram.stat().st_ino]


def test_damaged_state(snapshot):
    """A state file that is not what was written is found."""
    state = snapshot.directory / "state"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CorruptError):
        Snapshot.open(snapshot.directory)


@pytest.mark.parametrize("name", ["ram", "state"])
def test_missing_file(snapshot, name):
    """A snapshot of which a file is missing is not used."""
    (snapshot.directory / name).unlink()
    with pytest.raises(StoreError):
        Snapshot.open(snapshot.directory)


def rewrite_state(snapshot: Snapshot, **changes: object) -> None:
    path = snapshot.directory / "state"
    payload = json.loads(read_checked(path, "snapshot")) | changes
    write_checked(path, json.dumps(payload).encode(), "snapshot")


def test_other_format(snapshot):
    """A snapshot of another version of kodojo is not used."""
    rewrite_state(snapshot, format=0)
    with pytest.raises(CorruptError, match="another version"):
        Snapshot.open(snapshot.directory)


def test_other_emulator(snapshot):
    """A state that another emulator saved is not given to this one: the snapshot has to be made again."""
    rewrite_state(snapshot, machine={**snapshot.machine_state, "identity": "another"})
    with pytest.raises(CorruptError, match="another emulator"):
        Snapshot.open(snapshot.directory)


# -- deltas -----------------------------------------------------------------------------------------------


def test_delta(snapshot):
    """Snapshot and delta give the machine back."""
    guest = BareMachine(snapshot.start())
    guest.run(OPEN_TIMER + "fb f4" + COUNT)
    delta = guest.machine.delta()
    back = Machine.apply(Snapshot.open(snapshot.directory), delta)
    assert same(back, guest.machine)
    assert len(delta) < snapshot.memory / 20
    back_guest = BareMachine(back)
    back_guest.run(COUNT)
    assert (count(back_guest), count(guest)) == (5, 4)


def test_delta_after_delta(snapshot):
    """A machine made from a delta has a delta of its own, from the same snapshot."""
    guest = BareMachine(snapshot.start())
    guest.run(COUNT)
    middle = BareMachine(Machine.apply(snapshot, guest.machine.delta()))
    middle.cpu.write(0x100000, b"more")
    assert same(Machine.apply(snapshot, middle.machine.delta()), middle.machine)


def test_delta_of_nothing(snapshot):
    """A machine that did nothing has no pages in its delta."""
    start = snapshot.start()
    assert same(Machine.apply(snapshot, start.delta()), start)
    assert json.loads(start.delta().partition(b"\n")[0])["pages"] == 0


def test_delta_needs_a_snapshot():
    """A machine that was powered on here has nothing to differ from."""
    with pytest.raises(MachineError, match="snapshot"):
        BareMachine().machine.delta()


def test_delta_of_another_snapshot(snapshot, tmp_path):
    """A delta is only applied to the snapshot that it is of."""
    guest = BareMachine(snapshot.start())
    guest.run(COUNT)
    other = Snapshot.write(tmp_path / "other", guest.machine, {})
    with pytest.raises(CorruptError, match="another snapshot"):
        Machine.apply(other, guest.machine.delta())


def damaged(delta: bytes, kind: str) -> bytes:
    line, _, rest = delta.partition(b"\n")
    head = json.loads(line)
    if kind == "page number":
        rest = struct.pack("<I", 1 << 30) + rest[4:]
    elif kind == "state":
        del head["state"]["board"]
    elif kind == "engine":
        head["state"]["engine"] = "no base64!"
    elif kind == "identity":
        head["state"]["identity"] = "another"
    elif kind == "count":
        head["pages"] += 1
    return json.dumps(head).encode() + b"\n" + rest


@pytest.mark.parametrize("kind", ["page number", "state", "engine", "identity", "count"])
def test_damaged_delta(snapshot, kind):
    """A delta that cannot be right is refused, whatever is wrong with it."""
    guest = BareMachine(snapshot.start())
    guest.run(COUNT)
    with pytest.raises(CorruptError):
        Machine.apply(snapshot, damaged(guest.machine.delta(), kind))


@pytest.mark.parametrize("data", [b"", b"{}\n", b"[]\n", b"\xff\xfe\n", b"no json"], ids=repr)
def test_no_delta(snapshot, data):
    """Neither is something that is no delta at all."""
    with pytest.raises(CorruptError):
        Machine.apply(snapshot, data)


def test_cut_delta(snapshot):
    """Nor one of which the end is missing."""
    guest = BareMachine(snapshot.start())
    guest.run(COUNT)
    with pytest.raises(CorruptError):
        Machine.apply(snapshot, guest.machine.delta()[:-1])
