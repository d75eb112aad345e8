"""Machines that are forked, found again on disk, and made again where what is on disk cannot be used."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kodojo.durable import read_checked, write_checked
from kodojo.errors import CorruptError, MachineHang, StoreError
from kodojo.image.store import Store
from kodojo.kernel import snapshots
from kodojo.kernel.kernel import Kernel
from kodojo.kernel.snapshots import existing, snapshot_for
from kodojo.machine.machine import Machine, Snapshot
from tests.conftest import booted_kernel, image_of, shared_store
from tests.kernel.looking import exists, listening

pytestmark = pytest.mark.kernel

ONE_SERIES = "6.1"  # where one is enough


@pytest.fixture(autouse=True)
def _no_litter(tmp_path) -> Iterator[None]:
    """Snapshots are large, and pytest keeps what it has: take them away at once."""
    yield
    shutil.rmtree(tmp_path)


def copied_store(image, directory: Path) -> tuple[Store, Path]:
    """A store with a copy of the image's snapshot, and the snapshot's place in it."""
    store = Store(directory)
    snapshot, _ = snapshot_for(shared_store(), image, "", 256 << 20)
    place = store.snapshots_directory(image) / snapshot.directory.name
    place.parent.mkdir(parents=True)
    subprocess.run(["cp", "--recursive", "--sparse=always", snapshot.directory, place], check=True)
    return store, place


@pytest.fixture
def boots(monkeypatch, request) -> list[str]:
    """The command lines of the boots since; none is made, its result is that of an earlier one."""
    made = []
    names = {ONE_SERIES, request.getfixturevalue("series") if "series" in request.fixturenames else ONE_SERIES}
    booted = [booted_kernel(name) for name in names]

    def boot_machine(image, cmdline, memory, progress=None, *, bare):
        made.append(cmdline)
        kernel = next(kernel for kernel in booted if kernel.image is image)
        return kernel.machine.fork(), kernel._facts

    monkeypatch.setattr(snapshots, "boot_machine", boot_machine)
    return made


def state(machine: Machine) -> dict[str, object]:
    """All but the memory. The emulator's own record has addresses of this process in it; the registers have not."""
    return {**machine.state(), "engine": machine.cpu.read_registers()}


def content(machine: Machine) -> tuple[list[int], bytes, dict[str, object]]:
    """Everything about a machine: which pages were written, what they hold, and the rest of its state."""
    pages = machine.ram.dirty_pages()
    return pages.tolist(), machine.ram.pages[pages].tobytes(), state(machine)


# -- forks ---------------------------------------------------------------------------------------------------
def test_forks_are_independent(kernel, built):
    """What happens in a fork does not happen in its parent, and the other way round."""
    kernel.insmod(built["kd_noinit"], "number=1")
    twin = kernel.fork()
    assert content(twin.machine) == content(kernel.machine)
    twin.insmod(built["kd_export"])
    twin.write_file("/sys/module/kd_noinit/parameters/number", b"2")
    twin.write_file("/tmp/twin", b"")
    kernel.write_file("/sys/module/kd_noinit/parameters/number", b"3")
    kernel.insmod(built["kd_proc"])
    assert [module.name for module in kernel.modules] == ["kd_proc", "kd_noinit"]
    assert [module.name for module in twin.modules] == ["kd_export", "kd_noinit"]
    assert kernel.modules[-1].parameters == {"number": "3"}
    assert twin.modules[-1].parameters == {"number": "2"}
    assert not exists(kernel, "/tmp/twin")
    assert not exists(twin, "/proc/kd_proc")
    kernel.rmmod("kd_noinit")
    assert twin.modules[-1].parameters == {"number": "2"}


def test_fork_of_a_fork_outlives_its_parents(image):
    """A fork needs nothing of the kernel that it was made from."""
    first = booted_kernel_of(image).fork()
    first.write_file("/tmp/first", b"1")
    second = first.fork()
    second.write_file("/tmp/second", b"2")
    third = second.fork()
    del first, second
    assert (third.read_file("/tmp/first"), third.read_file("/tmp/second")) == (b"1", b"2")


def booted_kernel_of(image) -> Kernel:
    return Kernel.boot(image, store=shared_store())


def test_fork_keeps_the_limit_and_what_was_said(kernel, built):
    """The limit goes on to a fork, and so does what is printed only once."""
    kernel.limit(0.2)
    kernel.insmod(built["kd_noinit"]).remove()
    twin = kernel.fork()
    with listening(twin) as said:
        twin.insmod(built["kd_noinit"])
    assert said.lines == []
    with pytest.raises(MachineHang):
        twin.call("schedule_timeout_uninterruptible", twin.hertz)


def test_same_load_twice(kernel, built):
    """The same load in two forks gives the same log, timestamps included, and the same memory."""
    results = []
    for _ in range(2):
        twin = kernel.fork()
        twin.insmod(built["kd_timer"], "wait=1")
        twin.insmod(built["kd_hello"], "whom=twin")
        twin.rmmod("kd_timer")
        results.append((twin.log, content(twin.machine)))
    assert results[0] == results[1]


def test_resumed_machine_goes_on_alike(kernel, built):
    """A machine that was saved and resumed in between ends as one that was not."""
    snapshot = kernel.machine.snapshot
    saved = kernel.fork()
    for one in (kernel, saved):
        one.insmod(built["kd_hello"])
    delta, rest = saved.save()
    resumed = Kernel.resume(kernel.image, Machine.apply(snapshot, delta), kernel._facts, json.loads(json.dumps(rest)))
    assert content(resumed.machine) == content(kernel.machine)
    for one in (kernel, resumed):
        one.insmod(built["kd_timer"], "wait=1")
    assert resumed.log == kernel.log
    assert content(resumed.machine) == content(kernel.machine)


# -- found again ---------------------------------------------------------------------------------------------
def test_found_again(image, boots):
    """The second boot of the same image is no boot."""
    snapshot, facts = snapshot_for(shared_store(), image, "", 256 << 20)
    again, same = snapshot_for(shared_store(), image, "  ", 256 << 20)
    assert boots == []
    assert (again.directory, again.digest, same) == (snapshot.directory, snapshot.digest, facts)
    assert snapshot.directory in [path for _, path in existing(shared_store(), image)]


def test_moved_store(image, boots, tmp_path, built):
    """A snapshot that was copied elsewhere is checked, found good, and used."""
    store, place = copied_store(image, tmp_path)
    kernel = Kernel.boot(image, store=store)
    assert boots == []
    assert kernel.machine.snapshot.directory == place
    kernel.insmod(built["kd_noinit"])


def test_made_when_missing(image, boots, tmp_path):
    """Without a snapshot there is one boot, and one snapshot afterwards, the same as any other of this boot."""
    store = Store(tmp_path)
    first = Kernel.boot(image, store=store)
    second = Kernel.boot(image, store=store)
    assert boots == [""]
    assert content(first.machine) == content(second.machine)
    assert first.machine.snapshot.digest == booted_kernel_of(image).machine.snapshot.digest
    assert [key.cmdline for key, _ in existing(store, image)] == [""]


def test_each_boot_has_its_own(image, boots, tmp_path):
    """Command line and memory size make other snapshots; blanks do not."""
    store = Store(tmp_path)
    places = {
        snapshot_for(store, image, cmdline, memory)[0].directory
        for cmdline, memory in [("", 256 << 20), ("a", 256 << 20), (" a  b ", 256 << 20), ("a b", 256 << 20)]
    }
    assert boots == ["", "a", "a b"]
    assert len(places) == 3
    assert {key.cmdline for key, _ in existing(store, image)} == {"", "a", "a b"}
    snapshot_for(store, image, "", 128 << 20)
    assert boots == ["", "a", "a b", ""]


def test_other_command_line():
    """Words for the command line reach the kernel, and its snapshot is another one."""
    image = image_of(ONE_SERIES)
    kernel = Kernel.boot(image, "slub_debug=FZPU  kd_test.word=1", store=shared_store())
    line = kernel.read_file("/proc/cmdline").decode().rstrip("\n")
    assert line.endswith(" slub_debug=FZPU kd_test.word=1")
    plain = booted_kernel(ONE_SERIES)
    assert (
        line.removesuffix(" slub_debug=FZPU kd_test.word=1") == plain.fork().read_file("/proc/cmdline").decode()[:-1]
    )
    assert kernel.machine.snapshot.digest != plain.machine.snapshot.digest
    assert kernel.read_file("/sys/kernel/slab/kmalloc-64/red_zone") == b"1\n"
    assert plain.fork().read_file("/sys/kernel/slab/kmalloc-64/red_zone") == b"0\n"


@pytest.mark.arm64
@pytest.mark.parametrize("series", [ONE_SERIES, "6.12-arm64"])
def test_power_on_twice(series):
    """Booting the same image with the same command line gives byte-identical memory, and the same processor."""
    kernel = Kernel.power_on(image_of(series))
    snapshot = booted_kernel(series).machine.snapshot
    ram = np.memmap(snapshot.directory / "ram", dtype=np.uint8, mode="r").reshape(kernel.machine.ram.pages.shape)
    assert np.flatnonzero((kernel.machine.ram.pages != ram).any(axis=1)).tolist() == []
    assert state(kernel.machine) == state(snapshot.start())
    assert kernel.log == booted_kernel(series).log


# -- damaged -------------------------------------------------------------------------------------------------
def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def rewrite(path: Path, change) -> None:
    """Change the snapshot's state and write it with a right checksum."""
    payload = json.loads(read_checked(path, "snapshot"))
    change(payload)
    write_checked(path, json.dumps(payload).encode(), "snapshot")


def nonzero_offset(path: Path) -> int:
    pages = np.memmap(path, dtype=np.uint8, mode="r")
    return int(np.flatnonzero(pages[: 64 << 20])[-1])


DAMAGES = {
    "ram-used-byte": lambda place: flip(place / "ram", nonzero_offset(place / "ram")),
    "ram-hole": lambda place: flip(place / "ram", (200 << 20) + 5),
    "ram-truncated": lambda place: os.truncate(place / "ram", 100 << 20),
    "ram-longer": lambda place: os.truncate(place / "ram", 300 << 20),
    "ram-empty": lambda place: os.truncate(place / "ram", 0),
    "ram-missing": lambda place: (place / "ram").unlink(),
    "ram-directory": lambda place: ((place / "ram").unlink(), (place / "ram").mkdir()),
    "state-first-byte": lambda place: flip(place / "state", 0),
    "state-checksum": lambda place: flip(place / "state", 40),
    "state-payload": lambda place: flip(place / "state", 400),
    "state-last-byte": lambda place: flip(place / "state", (place / "state").stat().st_size - 1),
    "state-truncated": lambda place: os.truncate(place / "state", 200),
    "state-empty": lambda place: os.truncate(place / "state", 0),
    "state-missing": lambda place: (place / "state").unlink(),
    "state-no-json": lambda place: write_checked(place / "state", b"{", "snapshot"),
    "state-no-object": lambda place: write_checked(place / "state", b"[]", "snapshot"),
    "state-other-format": lambda place: rewrite(place / "state", lambda p: p.update(format=99)),
    "state-other-digest": lambda place: rewrite(place / "state", lambda p: p.update(digest="0" * 64, mark=[])),
    "state-no-facts": lambda place: rewrite(place / "state", lambda p: p.update(facts={})),
    "state-other-facts": lambda place: rewrite(place / "state", lambda p: p["facts"].update(boot={"x": 1})),
    "state-other-emulator": lambda place: rewrite(place / "state", lambda p: p["machine"].update(identity="x")),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damaged_snapshot_is_not_used(monkeypatch, tmp_path, damage):
    """A snapshot that is not what was written is never used: the kernel is booted again."""
    image = image_of(ONE_SERIES)
    store, place = copied_store(image, tmp_path)
    DAMAGES[damage](place)

    class BootedError(Exception):
        pass

    def boot_machine(*_: object, bare: bool) -> None:
        raise BootedError

    monkeypatch.setattr(snapshots, "boot_machine", boot_machine)
    with pytest.raises(BootedError):
        Kernel.boot(image, store=store)


@pytest.mark.parametrize("damage", ["ram-used-byte", "ram-missing", "state-payload", "state-other-emulator"])
def test_damaged_snapshot_is_made_again(boots, tmp_path, damage):
    """A damaged snapshot is replaced by a good one."""
    image = image_of(ONE_SERIES)
    store, place = copied_store(image, tmp_path)
    DAMAGES[damage](place)
    kernel = Kernel.boot(image, store=store)
    assert boots == [""]
    assert kernel.call("int_sqrt", 144) == 12
    assert sorted(path.name for path in place.iterdir()) == ["ram", "state"]
    assert Snapshot.open(place).digest == booted_kernel(ONE_SERIES).machine.snapshot.digest


# -- disk full -----------------------------------------------------------------------------------------------
@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file may grow beyond a size (EFBIG): as near to a full disk as one comes without root."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextmanager
def full_disk(monkeypatch) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


def left_in(directory: Path) -> list[str]:
    """Files but locks."""
    return sorted(path.name for path in directory.rglob("*") if path.is_file() and not path.name.endswith("lock"))


def test_disk_full_while_memory_is_written(boots, tmp_path):
    """A write that fails leaves nothing behind, and the message names the place and the way out."""
    image, store = image_of(ONE_SERIES), Store(tmp_path)
    place = store.snapshots_directory(image)
    with small_files(1 << 20), pytest.raises(StoreError) as failure:
        Kernel.boot(image, store=store)
    assert str(place) in str(failure.value)
    assert "KODOJO_STORE" in failure.value.hint
    assert left_in(tmp_path) == []
    assert [path.name for path in place.iterdir() if path.is_dir()] == []


def test_disk_full(boots, tmp_path, monkeypatch):
    """So does a disk that is found to be full late; with room again the snapshot is made."""
    image, store = image_of(ONE_SERIES), Store(tmp_path)
    with full_disk(monkeypatch), pytest.raises(StoreError, match="No space left") as failure:
        Kernel.boot(image, store=store)
    assert str(store.snapshots_directory(image)) in str(failure.value)
    assert left_in(tmp_path) == []
    Kernel.boot(image, store=store)
    assert left_in(tmp_path) == ["ram", "state"]


def test_unwritable_place(boots, tmp_path):
    """A store that is a file is a clear error."""
    image = image_of(ONE_SERIES)
    (tmp_path / "store").touch()
    with pytest.raises(StoreError) as failure:
        Kernel.boot(image, store=Store(tmp_path / "store"))
    assert str(tmp_path / "store") in str(failure.value)


# -- deltas --------------------------------------------------------------------------------------------------
def test_delta_is_small_and_whole(kernel, built):
    """The difference from the snapshot holds the pages that were written and no others."""
    idle, _ = kernel.fork().save()
    kernel.insmod(built["kd_noinit"])
    delta, _ = kernel.save()
    assert len(idle) < len(delta) < 16 << 20
    again = Machine.apply(kernel.machine.snapshot, delta)
    assert content(again) == content(kernel.machine)


DELTA_DAMAGES = {
    "empty": lambda delta: b"",
    "no-head": lambda delta: b"{}\n",
    "no-json": lambda delta: b"not json" + delta,
    "a-byte-short": lambda delta: delta[:-1],
    "a-byte-long": lambda delta: delta + b"x",
    "half": lambda delta: delta[: len(delta) // 2],
    "other-snapshot": lambda delta: delta.replace(b'"snapshot": "', b'"snapshot": "0', 1),
    "other-format": lambda delta: delta.replace(b'"format": ', b'"format": 9', 1),
    "other-emulator": lambda delta: delta.replace(b'"identity": "', b'"identity": "x', 1),
    "more-pages": lambda delta: delta.replace(b'"pages": ', b'"pages": 9', 1),
    "negative-pages": lambda delta: delta.replace(b'"pages": ', b'"pages": -', 1),
    "page-outside": lambda delta: delta.replace(b"}\n", b"}\n\xff\xff\xff\xff", 1)[:-4],
    "other-engine": lambda delta: delta.replace(b'"engine": "', b'"engine": "AAAA', 1),
    "engine-no-base64": lambda delta: delta.replace(b'"engine": "', b'"engine": "A', 1),
}


@pytest.mark.parametrize("damage", sorted(DELTA_DAMAGES))
def test_damaged_delta(kernel, built, damage):
    """A delta that is none, or that belongs to another snapshot, is refused."""
    kernel.insmod(built["kd_noinit"])
    delta, _ = kernel.save()
    damaged = DELTA_DAMAGES[damage](delta)
    assert damaged != delta
    with pytest.raises(CorruptError):
        Machine.apply(kernel.machine.snapshot, damaged)
