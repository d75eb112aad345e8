"""A whole computer: processor, memory and board, and how it is carried from one place to another.

Three ways lead from one machine to another one that goes on where it stands:

- :meth:`Machine.fork`: in this process; only the pages that were written since the start are copied.
- :class:`Snapshot`: a directory. Its memory file is mapped copy-on-write, so starting from it takes
  milliseconds, however much memory there is.
- :meth:`Machine.delta` and :meth:`Machine.apply`: the difference from the snapshot that a machine started
  from, as bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kodojo.durable import disk_error, part_directory, read_checked, sweep, write_checked
from kodojo.errors import CorruptError, MachineError
from kodojo.machine.arm64 import Arm64
from kodojo.machine.board import PcBoard
from kodojo.machine.board_arm64 import VirtBoard
from kodojo.machine.cpu import Cpu, ProcessorState
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.x86_64 import X86_64

__all__ = ["Machine", "Snapshot"]

_FORMAT = 5
_RAM, _STATE = "ram", "state"


@dataclass(frozen=True, slots=True)
class _Kind:
    """The processor and the board of an architecture, and where its memory begins."""

    cpu: type[X86_64 | Arm64]
    board: type[PcBoard | VirtBoard]
    ram: int

    def make(self, ram: Ram, board: Board, places: tuple[int, ...] | None = None) -> Cpu:
        make: Any = self.cpu  # each takes its own board
        cpu: Cpu = make(ram, board, places)
        return cpu


_KINDS = {"x86_64": _Kind(X86_64, PcBoard, 0), "aarch64": _Kind(Arm64, VirtBoard, 0x4000_0000)}
Board = PcBoard | VirtBoard


class Machine:
    """One computer.

    :param snapshot: what its memory started from; None for one that was powered on here.
    """

    def __init__(self, ram: Ram, board: Board, cpu: Cpu, snapshot: Snapshot | None = None) -> None:
        self.ram = ram
        self.board = board
        self.cpu = cpu
        self.snapshot = snapshot

    @classmethod
    def new(cls, memory: int, architecture: str = "x86_64") -> Machine:
        """Power on a machine with ``memory`` bytes of RAM; the processor is at rest."""
        kind = _KINDS[architecture]
        ram, board = Ram(memory, base=kind.ram), kind.board()
        return cls(ram, board, kind.make(ram, board))

    def state(self) -> dict[str, Any]:
        """Everything but the memory, for :meth:`_with_state`; fit for JSON."""
        cpu = self.cpu.save_state()
        return {
            "architecture": self.cpu.architecture,
            "identity": self.cpu.identity(),
            "places": list(self.cpu.places),
            "engine": base64.b64encode(cpu.engine).decode(),
            "processor": cpu.facts,
            "board": self.board.state(),
        }

    @classmethod
    def _with_state(cls, ram: Ram, state: dict[str, Any], snapshot: Snapshot | None) -> Machine:
        kind = _KINDS[state["architecture"]]
        board = kind.board()
        board.restore(state["board"])
        cpu = kind.make(ram, board, tuple(int(place) for place in state["places"]))
        if state["identity"] != cpu.identity():
            raise MachineError(f"saved by another emulator ({state['identity']}; this is {cpu.identity()})")
        cpu.restore_state(ProcessorState(base64.b64decode(state["engine"]), state["processor"]))
        return cls(ram, board, cpu, snapshot)

    def fork(self) -> Machine:
        """An independent machine in the same state."""
        ram = Ram(self.ram.size, self.ram.file, self.ram.base)
        dirty = self.ram.dirty_pages()
        ram.pages[dirty] = self.ram.pages[dirty]
        return self._with_state(ram, self.state(), self.snapshot)

    def delta(self) -> bytes:
        """The difference from the snapshot that this machine started from."""
        if self.snapshot is None:
            raise MachineError("this machine did not start from a snapshot")
        dirty = self.ram.dirty_pages().astype("<u4")
        head = {
            "format": _FORMAT,
            "snapshot": self.snapshot.digest,
            "pages": len(dirty),
            "state": self.state(),
        }
        return b"".join((json.dumps(head).encode(), b"\n", dirty.tobytes(), self.ram.pages[dirty].tobytes()))

    @classmethod
    def apply(cls, snapshot: Snapshot, delta: bytes) -> Machine:
        """The machine that gave this delta.

        :raises CorruptError: the delta is of another snapshot, or no delta.
        """
        try:
            line, _, rest = delta.partition(b"\n")
            head = json.loads(line)
            if head["format"] != _FORMAT or head["snapshot"] != snapshot.digest:
                raise CorruptError("the machine's saved state belongs to another snapshot")
            count = int(head["pages"])
            pages = np.frombuffer(rest, dtype="<u4", count=count)
            content = np.frombuffer(rest, dtype=np.uint8, offset=4 * count).reshape(count, PAGE_SIZE)
            ram = snapshot.map()
            ram.pages[pages] = content
            return cls._with_state(ram, head["state"], snapshot)
        except (ValueError, KeyError, TypeError, IndexError, MachineError) as error:
            raise CorruptError(f"the machine's saved state cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class _FileMark:
    """What changes about a file when anybody writes to it; cheap to look at."""

    size: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _FileMark:
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class Snapshot:
    """A machine on disk: ``ram``, a sparse file as large as its memory, and ``state``.

    The memory's checksum is computed when the file's times or its number are not those of the file that
    was written; otherwise nobody wrote to it, and starting does not have to read all of it.

    :param digest: identifies the content; deltas name it.
    :param facts: what the layer above wants to remember with it (fit for JSON).
    """

    directory: Path
    digest: str
    memory: int
    machine_state: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def write(cls, directory: Path, machine: Machine, facts: dict[str, Any]) -> Snapshot:
        """Make the directory, whole or not at all.

        :raises StoreError: disk full, no permission.
        """
        try:
            with part_directory(directory) as part:
                digest = _write_ram(part / _RAM, machine.ram)
                payload = {
                    "format": _FORMAT,
                    "digest": digest,
                    "memory": machine.ram.size,
                    "machine": machine.state(),
                    "facts": facts,
                }
                _write_state(part / _STATE, payload, _FileMark.of(part / _RAM))
                shutil.rmtree(directory, ignore_errors=True)
                part.rename(directory)
        except OSError as error:
            raise disk_error(directory, error, "write the snapshot") from error
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Snapshot:
        """Raises CorruptError if it is damaged, StoreError if it cannot be read."""
        state, ram = directory / _STATE, directory / _RAM
        sweep(directory)
        try:
            payload = json.loads(read_checked(state, "snapshot"))
            if payload["format"] != _FORMAT:
                raise CorruptError(f"{directory}: written by another version of kodojo")
            kind = _KINDS[payload["machine"]["architecture"]]
            if payload["machine"]["identity"] != kind.cpu.identity():
                raise CorruptError(f"{directory}: written with another emulator")
            mark = _FileMark.of(ram)
            if payload["mark"] != [mark.size, mark.modified, mark.changed, mark.inode]:
                if mark.size != payload["memory"] or _digest(ram) != payload["digest"]:
                    raise CorruptError(
                        f"{ram}: damaged: its content does not match its checksum",
                        hint="the snapshot is made again at the next boot (kodojo boot)",
                    )
                _write_state(state, payload, mark)
            return cls(directory, payload["digest"], payload["memory"], payload["machine"], payload["facts"])
        except OSError as error:
            raise disk_error(ram, error, "read") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{state}: damaged: {error}") from error

    def map(self) -> Ram:
        """Memory with the snapshot's content, of which this process has a private copy page by page."""
        return Ram(self.memory, self.directory / _RAM, _KINDS[self.machine_state["architecture"]].ram)

    def start(self) -> Machine:
        """A machine that stands where the snapshot was taken."""
        return Machine._with_state(self.map(), self.machine_state, self)


def _write_state(path: Path, payload: dict[str, Any], mark: _FileMark) -> None:
    marked = {**payload, "mark": [mark.size, mark.modified, mark.changed, mark.inode]}
    write_checked(path, json.dumps(marked).encode(), "snapshot")


def _used_runs(pages: npt.NDArray[np.uint8]) -> Iterator[tuple[int, bytes]]:
    """Number of the first page and content of each run of pages that are not zero."""
    used = np.flatnonzero(pages.any(axis=1))
    for run in np.split(used, np.flatnonzero(np.diff(used) != 1) + 1):
        if len(run):
            yield int(run[0]), pages[run[0] : run[-1] + 1].tobytes()


def _write_ram(path: Path, ram: Ram) -> str:
    """Write the pages that are not zero, leaving holes; the digest."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for first, content in _used_runs(ram.pages):
            file.seek(first * PAGE_SIZE)
            file.write(content)
            _update(digest, first, content)
        file.truncate(ram.size)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """The digest that :func:`_write_ram` gave, of what the file holds now."""
    pages = np.memmap(path, dtype=np.uint8, mode="r", shape=(path.stat().st_size,)).reshape(-1, PAGE_SIZE)
    digest = hashlib.sha256()
    for first, content in _used_runs(pages):
        _update(digest, first, content)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, first: int, content: bytes) -> None:
    digest.update(b"%d %d\n" % (first, len(content)))
    digest.update(content)
