"""The measurements on one kernel."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kodojo.image.store import Store
from kodojo.kernel.kernel import Kernel
from kodojo.kernel.session import Session
from kodojo.kernel.snapshots import boot_machine, snapshot_for
from tests.bench.inside import INSMOD, watch_everything
from tests.bench.results import Results, Row
from tests.bench.stopwatch import Stopwatch
from tests.support import distribution
from tests.support.distribution import KernelFiles

__all__ = ["Bench"]

RESTORE_AIM, WARM_AIM, COMMAND_AIM = 0.015, 0.030, 0.350
CHECK_AIM = 0.200
MEMORY = 256 << 20
DEPMOD = ("depmod", "-n")
ROOT = Path(__file__).resolve().parents[2]
SMALL = "dummy"
_ASKED_FOR = ("crc32c_generic",)  # what libraries such as libcrc32c ask modprobe for, not the symbol table
_LOOPS = 400_000
_IMPORTS = "import numpy, unicorn"
_TREE = "the whole tree"
_TREE_RUNS = 2
_START = "starting and ending Python, and what is outside kodojo"


def loop() -> None:
    """The yardstick of everything that happens inside a process: about 10 to 30 ms."""
    total = 0
    for number in range(_LOOPS):
        total += number & 7


class Clock(NamedTuple):
    """Seconds on the wall, and of processor time: this process's, or that of its children."""

    wall: float
    processor: float

    @classmethod
    def now(cls, *, children: bool = False) -> Clock:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
        return cls(time.perf_counter(), usage.ru_utime + usage.ru_stime)

    def since(self, earlier: Clock) -> Clock:
        return Clock(self.wall - earlier.wall, self.processor - earlier.processor)


def measured(function: Callable[[], object], *, children: bool = False) -> Clock:
    began = Clock.now(children=children)
    function()
    return Clock.now(children=children).since(began)


def say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


class Bench:
    """Measures one kernel in a store of its own.

    :param directory: for the store, and for what Python makes of its sources.
    """

    def __init__(self, files: KernelFiles, directory: Path, results: Results, runs: int, large: str) -> None:
        self._kernel = files.series
        self._files = files
        self._results = results
        self._runs = runs
        self._large = large
        self._store = Store(directory / files.series)
        self._state = self._store.machine_directory / "state"
        self._environment = self._child_environment(directory)

    def _child_environment(self, directory: Path) -> dict[str, str]:
        """As a user has it: compiled files are there, and are used."""
        kept = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "NO_COLOR")
        }
        paths = [str(ROOT), kept["PYTHONPATH"]] if "PYTHONPATH" in kept else [str(ROOT)]
        own = {"KODOJO_STORE": str(self._store.root), "PYTHONPYCACHEPREFIX": str(directory / "compiled")}
        return {**kept, **own, "PYTHONPATH": os.pathsep.join(paths)}

    def measure(self, boots: int) -> None:
        for _ in range(boots):
            self._boot_from_nothing()
        self._prepare()
        self._in_this_process()
        self._in_new_processes()
        self._whole_commands()
        self._dry_loads()

    # -- rows -----------------------------------------------------------------------------------------
    def _row(self, what: str, aim: float | None = None) -> Row:
        return self._results.row(self._kernel, what, aim)

    @contextmanager
    def _timed(self, what: str, aim: float | None = None) -> Iterator[None]:
        """One value of a row, and its yardstick."""
        yardstick = measured(loop)
        began = Clock.now()
        yield
        self._note(self._row(what, aim), Clock.now().since(began), yardstick)

    # -- booting --------------------------------------------------------------------------------------
    def _add(self) -> None:
        root, release = self._files.image_root, self._files.release
        self._store.add(
            root / f"boot/vmlinuz-{release}",
            config=root / f"boot/config-{release}",
            modules=root / f"lib/modules/{release}",
        )

    def _boot_from_nothing(self) -> None:
        say(f"{self._kernel}: boot from nothing")
        if self._store.names():
            self._store.remove(self._files.release)
        with self._timed("add a kernel (unpack, index)"):
            self._add()
        image = self._store.current()
        with self._timed("decode symbols and types, once"):
            _ = image.kallsyms, image.btf
        with self._timed("boot from nothing"):
            boot_machine(image, "", MEMORY)

    def _prepare(self) -> None:
        """A snapshot, and two saved machines: a fresh one, and one with what the large module depends on."""
        say(f"{self._kernel}: prepare")
        session = Session(self._store)
        session.boot(self._store.current())
        self._fresh = self._state.read_bytes()
        with session.machine() as kernel:
            for name in (*_ASKED_FOR, *kernel.image.modules[self._large].depends):
                kernel.insmod(kernel.image.modules[name].path)
        self._ready = self._state.read_bytes()
        self._paths = {name: str(kernel.image.modules[name].path) for name in (SMALL, self._large)}

    # -- in one process -------------------------------------------------------------------------------
    def _in_this_process(self) -> None:
        say(f"{self._kernel}: restore, fork, load, save")
        image = self._store.current()
        for _ in range(self._runs):
            with self._timed("restore: the machine", RESTORE_AIM):
                snapshot_for(self._store, image, "", MEMORY)[0].start()
            with self._timed("restore: open the image, Kernel ready to use"):
                kernel = Kernel.boot(self._store.current(), store=self._store)
            with self._timed("fork"):
                fork = kernel.fork()
            with self._timed(f"insmod {SMALL}: in a fork"):
                fork.insmod(self._paths[SMALL])
            del kernel, fork
        self._saved_sessions()
        self._warm(SMALL, self._fresh, WARM_AIM)
        self._warm(self._large, self._ready, None)

    def _saved_sessions(self) -> None:
        session = Session(self._store)
        self._state.write_bytes(self._fresh)
        with session.machine() as kernel:
            kernel.insmod(self._paths[SMALL])
        for _ in range(self._runs):
            with self._timed(f"session: resume and end, {SMALL} loaded"), session.machine(save=False):
                pass
            with self._timed(f"session: resume, save and end, {SMALL} loaded"), session.machine():
                pass

    def _warm(self, name: str, state: bytes, aim: float | None) -> None:
        """Load and remove again and again in one machine."""
        self._state.write_bytes(state)
        watch = Stopwatch()
        with Session(self._store).machine(save=False) as kernel, _watching(watch):
            for run in range(self._runs + 1):  # the first one warms up
                yardstick = measured(loop)
                watch.forget()
                inserting = measured(lambda: kernel.insmod(self._paths[name]))
                spent = dict(watch.own)
                removing = measured(lambda: kernel.rmmod(name))
                if run:
                    self._note(self._row(f"insmod {name}: warm", aim), inserting, yardstick, spent)
                    self._note(self._row(f"rmmod {name}: warm"), removing, yardstick)

    @staticmethod
    def _note(row: Row, value: Clock, yardstick: Clock, spent: Mapping[str, float] | None = None) -> None:
        row.values.append(value.wall)
        row.processor.append(value.processor)
        row.yardsticks.append(yardstick.wall)
        if spent:
            row.spent.append(dict(spent))

    # -- processes ------------------------------------------------------------------------------------
    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, env=self._environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {shlex.join(command)} failed:\n{done.stderr}")
        return done

    def _time(self, command: list[str]) -> Clock:
        return measured(lambda: self._run(command), children=True)

    def _in_new_processes(self) -> None:
        """The load alone, in a process that has never run this kernel."""
        say(f"{self._kernel}: load in new processes")
        for name, state in ((SMALL, self._fresh), (self._large, self._ready)):
            row = self._row(f"insmod {name}: in a new process, without start-up")
            for _ in range(self._runs):
                yardstick = measured(loop)
                report = self._inside(state, "insmod", self._paths[name])
                self._note(row, Clock(report["whole"][INSMOD], report["processor"][INSMOD]), yardstick)

    def _inside(self, state: bytes, *words: str) -> dict[str, dict[str, float]]:
        self._state.write_bytes(state)
        command = [sys.executable, "-m", "tests.bench.inside", *words]
        began = time.perf_counter()
        done = self._run(command)
        whole = time.perf_counter() - began
        report: dict[str, dict[str, float]] = json.loads(done.stderr)
        report["own"][_START] = whole - sum(report["own"].values())
        return report

    def _whole_commands(self) -> None:
        say(f"{self._kernel}: whole commands")
        python = self._row(f'python -c "{_IMPORTS}"')
        commands = (
            (f"kodojo insmod {SMALL}", self._fresh, ("insmod", self._paths[SMALL]), COMMAND_AIM),
            (f"kodojo insmod {self._large}", self._ready, ("insmod", self._paths[self._large]), None),
            ("kodojo lsmod", self._ready, ("lsmod",), None),
        )
        for run in range(self._runs + 1):  # the first one has Python compile
            yardstick = self._time([sys.executable, "-c", _IMPORTS])
            taken = []
            for _, state, words, _ in commands:
                self._state.write_bytes(state)
                taken.append(self._time([*entry_point(), *words]))
            spent = self._inside(self._fresh, "insmod", self._paths[SMALL])["own"]
            if not run:
                continue
            self._note(python, yardstick, yardstick)
            for (what, _, words, aim), value in zip(commands, taken, strict=True):
                self._note(self._row(what, aim), value, yardstick, spent if words[-1] == self._paths[SMALL] else None)

    # -- dry loads ------------------------------------------------------------------------------------
    def _dry_loads(self) -> None:
        """``kodojo check`` on the whole tree against depmod, which looks at symbols only; and on one module."""
        say(f"{self._kernel}: dry loads")
        release, tree = self._files.release, str(self._files.image_root)
        symvers = str(self._files.build_directory / "Module.symvers")
        whole = (
            (f"depmod -n -e -E: {_TREE}", [*DEPMOD, "-e", "-E", symvers, "-b", tree, release]),
            (f"kodojo check --all --jobs 1: {_TREE}", [*entry_point(), "check", "--all", "--jobs", "1"]),
            (f"kodojo check --all: {_TREE}", [*entry_point(), "check", "--all"]),
        )
        for run in range(_TREE_RUNS + 1):  # the first one fills the page cache
            yardstick = self._depmod([*DEPMOD, "-b", tree, release])
            taken = [
                self._depmod(command) if command[0] == DEPMOD[0] else self._time(command) for _, command in whole
            ]
            if run:
                self._note(self._row(f"depmod -n: {_TREE}"), yardstick, yardstick)
                for (what, _), value in zip(whole, taken, strict=True):
                    self._note(self._row(what), value, yardstick)
        row = self._row(f"kodojo check {SMALL}.ko", CHECK_AIM)
        for _ in range(self._runs):
            yardstick = self._time([sys.executable, "-c", _IMPORTS])
            self._note(row, self._time([*entry_point(), "check", self._paths[SMALL]]), yardstick)

    def _depmod(self, command: list[str]) -> Clock:
        program, environment = distribution.kmod()

        def run() -> None:
            subprocess.run(command, executable=program, env=environment, check=True, capture_output=True)

        return measured(run, children=True)


@contextmanager
def _watching(watch: Stopwatch) -> Iterator[None]:
    """Watch this process's work for a while."""
    watch_everything(watch)
    try:
        yield
    finally:
        watch.unwatch()


def entry_point() -> list[str]:
    """The command as it was installed beside this Python; what it consists of, if it was not."""
    script = Path(sysconfig.get_path("scripts"), "kodojo")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "import sys; from kodojo.cli.main import main; sys.exit(main())"]
