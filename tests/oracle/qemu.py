"""The booted machine under QEMU, saved once and started again for each case.

Guest time is counted in instructions (``-icount``) and jumps when the guest waits. Which machine it is, and what
differs from ours: :mod:`tests.oracle.machines`.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodojo.errors import decode
from kodojo.image.image import Image
from kodojo.kernel import boot
from tests.oracle import machines
from tests.oracle.answers import HANG, KILLED, PANIC, Answer, file_text
from tests.oracle.cases import Case, encode
from tests.support import distribution

__all__ = ["Booted", "Qemu", "QemuError"]

MEGABYTES = boot.DEFAULT_MEMORY >> 20
# Seconds of the processor's time, which others may take as well as QEMU, and so many times that by the clock.
BOOT_LIMIT, CASE_LIMIT = 120.0, 60.0
PATIENCE = 20
GUEST = Path(__file__).with_name("guest.c")
FLAGS = (
    "-static", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-fno-pie", "-no-pie",
    "-fno-tree-loop-distribute-patterns", "-O1", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
_SKIPPED = "/uevent"
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class QemuError(Exception):
    """QEMU did not do what it should."""


@dataclass(frozen=True)
class Booted:
    """A machine that waits for a case.

    :param state: what QEMU has saved of it.
    :param processor: its /proc/cpuinfo.
    """

    state: Path
    processor: str
    version: str


class Qemu:
    """QEMU for one kernel.

    :param directory: for everything that is made; emptied by nobody.
    """

    def __init__(self, image: Image, directory: Path) -> None:
        machine = machines.MACHINES[image.architecture]
        files = distribution.qemu(machine.debian)
        self._environment = files.environment
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        initramfs = directory / "initramfs"
        initramfs.write_bytes(boot.make_initramfs(_guest(machine, directory)))
        firmware = [part for path in files.firmware for part in ("-L", str(path))]
        self._command = [
            str(files.program), "-accel", "tcg", "-icount", "shift=1,sleep=off", "-m", str(MEGABYTES), "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", *firmware, *machine.options(image, directory),
            "-initrd", str(initramfs), "-append", boot.command_line(image.architecture),
        ]  # fmt: skip

    def version(self) -> str:
        done = subprocess.run([self._command[0], "--version"], env=self._environment, capture_output=True, check=True)
        return done.stdout.decode().splitlines()[0]

    @contextmanager
    def _running(self, case: bytes, scratch: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """QEMU, in a directory with the case that leaves its report there."""
        (scratch / machines.CASE).write_bytes(case or b"-")
        (scratch / machines.REPORT).write_bytes(b"")
        process = subprocess.Popen(
            [*self._command, *more],
            env=self._environment, cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def boot(self) -> Booted:
        """Boot, and save the machine as it waits for a case."""
        scratch, state = self._directory / "booting", self._directory / "state"
        scratch.mkdir(exist_ok=True)
        with self._running(b"", scratch, "-qmp", "stdio") as process:
            is_over = _limit(process, BOOT_LIMIT)
            while not (records := _records((scratch / machines.REPORT).read_bytes())) or records[-1][0] != "R":
                if process.poll() is not None or is_over():
                    raise QemuError(f"the kernel does not come up: {_last_words(process)}")
                time.sleep(0.05)
            _save(process, state)
        files = dict(_file(content) for kind, content in records if kind == "F")
        return Booted(state, files["/proc/cpuinfo"].decode(), files["/proc/version"].decode().strip())

    def run(self, booted: Booted, case: Case) -> list[Answer]:
        """The kernel's answers to a case; the last one tells of an end, if the machine did not survive it."""
        with tempfile.TemporaryDirectory(dir=self._directory) as name:
            scratch = Path(name)
            with self._running(encode(case), scratch, "-incoming", f"exec:cat {booted.state}") as process:
                is_over, hung = _limit(process, CASE_LIMIT), False
                while process.poll() is None and not (hung := is_over()):
                    time.sleep(0.05)
                records = _records((scratch / machines.REPORT).read_bytes())
                # 1 is its exit device's, which is used at the end, and an error's.
                if not hung and (process.returncode not in (0, 1) or (process.returncode == 1 and not records)):
                    raise QemuError(f"{case.name}: QEMU ended with {process.returncode}: {_last_words(process)}")
            return _answers(records, len(case.calls), HANG if hung else PANIC)


def _limit(process: subprocess.Popen[bytes], seconds: float) -> Callable[[], bool]:
    """Whether the process has had its time."""
    deadline = time.monotonic() + seconds * PATIENCE
    stat = Path(f"/proc/{process.pid}/stat")

    def is_over() -> bool:
        used = sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
        return used > seconds or time.monotonic() > deadline

    return is_over


def _guest(machine: machines.Machine, directory: Path) -> bytes:
    """guest.c as a program that needs no library."""
    program = directory / "init"
    done = subprocess.run(
        [machine.compiler, *FLAGS, str(GUEST), "-o", str(program)],
        env=distribution.tools(machine.debian), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise QemuError(done.stderr.decode(errors="replace"))
    return program.read_bytes()


def _last_words(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    return process.communicate()[1].decode(errors="replace").strip() or "no message"


def _save(process: subprocess.Popen[bytes], state: Path) -> None:
    """Write the running machine to a file (QEMU's migration, by QMP)."""
    assert process.stdin is not None
    assert process.stdout is not None

    def command(name: str, **arguments: str) -> Any:
        process.stdin.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise QemuError(f"{name}: {answer['error']}")
            if "return" in answer:
                return answer["return"]
        raise QemuError(f"{name}: {_last_words(process)}")

    command("qmp_capabilities")
    unfinished = state.with_suffix(".new")
    command("migrate", uri=f"exec:cat > {unfinished}")
    while (status := command("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled"):
            raise QemuError(f"the machine cannot be saved: {status}")
        time.sleep(0.05)
    unfinished.replace(state)


# -- reports (see guest.c) ---------------------------------------------------------------------------------------


def _records(raw: bytes) -> list[tuple[str, bytes]]:
    """The whole records of a report."""
    found, position = [], 0
    while position + 5 <= len(raw):
        kind, size = struct.unpack_from("<cI", raw, position)
        if position + 5 + size > len(raw):
            break
        found.append((kind.decode("latin-1"), raw[position + 5 : position + 5 + size]))
        position += 5 + size
    return found


def _answers(records: Sequence[tuple[str, bytes]], calls: int, ending: str) -> list[Answer]:
    """One answer for each call that was begun.

    :param ending: how the machine ended, if not all calls have an answer.
    """
    found: list[Answer] = []
    current = Answer()
    for kind, content in records:
        if kind == "E":
            current.take_traces()
            found.append(current)
            current = Answer()
        else:
            _enter(current, kind, content)
    if len(found) < calls and not (found and found[-1].end):
        current.end = current.end or ending
        current.take_traces()
        found.append(current)
    return found


def _enter(answer: Answer, kind: str, content: bytes) -> None:
    if kind == "V":
        answer.value = struct.unpack("<q", content)[0]
    elif kind == "W":
        answer.earlier.append(struct.unpack("<q", content)[0])
    elif kind == "K":
        answer.end = KILLED
    elif kind == "H":
        answer.end = HANG
    elif kind == "L":
        answer.log += _log_lines(content)
    elif kind == "P":
        raise QemuError("the log was longer than the kernel's buffer")
    else:
        _enter_file(answer, kind, *_file(content))


def _enter_file(answer: Answer, kind: str, path: str, content: bytes) -> None:
    if path == "/proc/modules":
        answer.modules = decode(content)
    elif path == "/proc/sys/kernel/tainted":
        answer.tainted = int(content)
    elif kind == "D":
        answer.sysfs[path + "/"] = ""
    elif kind == "O":
        answer.sysfs[path] = f"kind {content[0]}"
    elif not path.endswith(_SKIPPED):
        answer.sysfs[path] = file_text(content) if kind == "F" else f"errno {-struct.unpack('<q', content)[0]}"


def _file(content: bytes) -> tuple[str, bytes]:
    path, _, rest = content.partition(b"\0")
    return path.decode(), rest


def _log_lines(record: bytes) -> list[tuple[int, str]]:
    """The lines of a record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg)."""
    head, _, body = record.partition(b";")
    message = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), body.partition(b"\n")[0])
    level = int(head.split(b",")[0]) & 7
    return [(level, line) for line in decode(message).rstrip("\n").split("\n")]
