"""Memory: what a module may take, and what happens where there is less."""

from __future__ import annotations

import gzip
import lzma
import resource
import subprocess
import sys

import pytest
import zstandard

from kodojo.check import memory, pool
from kodojo.check.examine import examine
from kodojo.check.memory import demand_room, room_of
from kodojo.check.plan import Node
from kodojo.check.sources import GivenModule, find_modules
from kodojo.check.work import Task
from kodojo.errors import ImageError, KodojoError
from kodojo.image.payload import read_module
from tests.support.archives import deb, files
from tests.support.checking import paper_kernel, simple_module
from tests.support.loading import finish, loadable

PACKED = {
    ".ko.gz": lambda data: gzip.compress(data, 6),
    ".ko.xz": lzma.compress,
    ".ko.zst": zstandard.ZstdCompressor().compress,
}
ELF = b"\x7fELF"


@pytest.mark.parametrize("suffix", PACKED)
def test_bombs_of_modules(tmp_path, limits, suffix):
    """What no module is: hundreds of times its size (S6)."""
    limits(ratio_from=1 << 17)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(PACKED[suffix](ELF + bytes(1 << 20)))
    with pytest.raises(ImageError, match=r"x\.ko.*: refused: more than 200 times its size") as caught:
        read_module(path)
    assert caught.value.hint


@pytest.mark.parametrize("suffix", PACKED)
def test_a_bomb_is_stopped_early(tmp_path, suffix):
    """A bomb of 400 MiB takes no more memory than up to where the ratio counts: in a process of its own, measured."""
    path = tmp_path / f"x{suffix}"
    with path.open("wb") as file:
        piece = PACKED[suffix](ELF + bytes(8 << 20))
        for _ in range(50):
            file.write(piece)
    script = (
        "import resource, sys; from kodojo.image.payload import read_module\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_module(sys.argv[1])\n"
        "except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    *said, kib = answer.stdout.splitlines()
    assert "times its size" in said[0]
    assert int(kib) < 160 << 10


def test_many_small_bombs_of_modules(tmp_path, limits, spool, written):
    """Each below the limit, together above it: the sum over a command counts, and good modules pass beside them."""
    limits(ratio_from=1 << 18)
    for number in range(20):
        (tmp_path / f"bomb{number}.ko.gz").write_bytes(gzip.compress(ELF + bytes(200_000)))
    (tmp_path / "good.ko.gz").write_bytes(gzip.compress(simple_module("good")))
    found = examine(find_modules([str(tmp_path)], spool), spool)
    problems = {each.name: each.module.problem for each in found}
    assert problems["good"] == ""
    assert sum("with others, more than 200 times" in text for text in problems.values()) >= 18
    assert written() < 1 << 19


def test_bombs_in_a_package(tmp_path, limits, spool, written):
    """The same where they are in a package: modules are packed in what is packed."""
    limits(ratio_from=1 << 18)
    bomb = gzip.compress(ELF + bytes(200_000))
    contents = {f"lib/modules/1/{number}.ko.gz": bomb + bytes((number,)) for number in range(20)}
    (tmp_path / "x.deb").write_bytes(deb(files(contents)))
    found = examine(find_modules([str(tmp_path / "x.deb")], spool), spool)
    assert sum(bool(each.module.problem) for each in found) >= 18
    assert written() < 1 << 19


@pytest.mark.parametrize("section", [".text", ".data", ".init.text", ".modinfo"])
def test_four_times_its_size(tmp_path, section):
    """A check of a module of 48 MiB takes at most four times that: in a process of its own, measured."""
    writer = loadable(name="large")
    writer.section(section).data = bytes(48 << 20)
    path = tmp_path / "large.ko"
    path.write_bytes(finish(writer).build())
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from kodojo.loader.verdict import check\n"
        "from tests.support.checking import paper_kernel, simple_module\n"
        "check(paper_kernel(), simple_module('small'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(check(paper_kernel(), sys.argv[1]).slug)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    words = [sys.executable, "-c", script, str(path), "."]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    slug, kib = answer.stdout.split()
    assert slug == "ok"
    assert int(kib) << 10 <= memory.TIMES * (48 << 20)


def test_where_there_is_less(monkeypatch):
    """What cannot be had is said, with the name, what it takes and what there is."""
    monkeypatch.setattr(memory, "available_memory", lambda: 100 << 20)
    demand_room("small.ko", 10 << 20)
    demand_room("fits.ko", 25 << 20)
    with pytest.raises(
        KodojoError, match=r"large\.ko: checking it takes up to 120 MiB of memory; there are 100"
    ) as e:
        demand_room("large.ko", 30 << 20)
    assert e.value.hint


def test_what_there_is():
    """The address space that is left bounds what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    script = (
        "import resource; from kodojo.check.memory import available_memory as room\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); print(room())"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0 < int(answer.stdout) < 1 << 30
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_AS)


def task(path):
    module = GivenModule(str(path), path)
    return Task("run", "kernel", paper_kernel(), {module.key: Node(module)}, (module.key,))


def test_jobs_share_what_there_is(tmp_path, monkeypatch):
    """Processes get large modules only while these fit beside each other, small ones always."""
    large, small = tmp_path / "large.ko", tmp_path / "small.ko"
    with large.open("wb") as file:
        file.truncate(100 << 20)
    small.write_bytes(b"small")
    assert room_of(GivenModule("large.ko", large)) == 400 << 20
    assert room_of(GivenModule("small.ko", small)) == 0
    monkeypatch.setattr(pool, "available_memory", lambda: 900 << 20)
    room = pool._Room()

    class Worker:
        def __init__(self, task):
            self.task, self.room = task, room.of(task)

    waiting = pool.deque([task(large), task(large), task(large), task(small)])
    busy = []
    for _ in range(3):
        busy.append(Worker(room.take(waiting, busy)))
    assert [worker.room >> 20 for worker in busy] == [400, 400, 0]
    assert room.take(waiting, busy) is None
    assert room.take(waiting, busy[2:]) is not None


def test_alone_it_goes_even_where_it_hardly_fits(tmp_path, monkeypatch):
    """A module that takes more than there is does not wait for ever: it is tried when nobody works."""
    large = tmp_path / "large.ko"
    with large.open("wb") as file:
        file.truncate(100 << 20)
    monkeypatch.setattr(pool, "available_memory", lambda: 1 << 20)
    assert pool._Room().take(pool.deque([task(large)]), []) is not None


@pytest.mark.parametrize("mib", [300, 120])
@pytest.mark.parametrize("command", ["check", "modinfo"])
def test_little_address_space(tmp_path, mib, command):
    """Where there is too little even to read a module, a sentence says so: no traceback, no exit of a library."""
    path = tmp_path / "large.ko"
    with path.open("wb") as file:
        file.write(ELF)
        file.truncate(400 << 20)
    script = (
        "import resource, sys; from kodojo.image.payload import read_module; from kodojo.errors import KodojoError\n"
        "from kodojo.check.examine import examine; from kodojo.check.sources import Spool, find_modules\n"
        f"limit = {mib} << 20; resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    given = find_modules(sys.argv[1:2], Spool())\n"
        "    if sys.argv[2] == 'check': print(examine(given, Spool())[0].module.problem)\n"
        "    else: read_module(sys.argv[1])\n"
        "except KodojoError as error: print(error.message)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(path), command], capture_output=True, text=True, check=True
    )
    assert answer.stderr == ""
    assert answer.stdout == f"{path}: not enough memory to read it\n"
