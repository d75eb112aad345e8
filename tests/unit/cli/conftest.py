"""A command line with a machine of cardboard behind it: what the commands ask of it, and what they print."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kodojo.cli.app import App
from kodojo.cli.group import cli
from kodojo.errors import GuestOSError, InputError, LogRecord, MachineHang, UnloadError
from kodojo.image.additions import Additions
from kodojo.kernel.files import FileStatus
from kodojo.kernel.probing import known_modules
from kodojo.kmod.known import KnownModules


@dataclass
class CardModule:
    name: str
    size: int = 16384
    refcount: int = 0
    users: tuple[str, ...] = ()
    state: str = "Live"
    address: int = 0xFFFFFFFFC0201000
    taints: int = 0
    steps: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()


class CardPrintk:
    def __init__(self) -> None:
        self.lines: list[LogRecord] = []

    def next_sequence(self) -> int:
        return len(self.lines)

    def records(self, since: int = 0) -> tuple[LogRecord, ...]:
        return tuple(self.lines[since:])


class CardKernel:
    """Does what the test says; keeps what it was asked."""

    def __init__(self) -> None:
        self.printk = CardPrintk()
        self.modules: list[CardModule] = []
        self.image = SimpleNamespace(
            builtin=frozenset({"loop"}),
            release="6.1.0-test",
            modules={},
            architecture="x86_64",
            additions=Additions(None, None),
        )
        self.time = 3.0
        self.loaded: list[tuple[str, ...]] = []
        self.forced: list[dict[str, bool]] = []
        self.slept: list[float] = []
        self.cleared = 0
        self.limits: list[float] = []
        self.left = False
        self.removed: list[str] = []
        self.written: list[tuple[str, bytes]] = []
        self.appended: list[tuple[str, bytes]] = []
        self.opened: list[tuple[str, int]] = []
        self.files: dict[str, bytes] = {}
        self.directories: dict[str, list[tuple[str, str]]] = {}
        self.on_insmod: Callable[[], CardModule] = lambda: CardModule("m")
        self.on_rmmod: Callable[[], None] = lambda: None

    @property
    def log(self) -> tuple[LogRecord, ...]:
        return self.printk.records(self.cleared)

    def clear_log(self) -> None:
        self.cleared = self.printk.next_sequence()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def clock(self, *, boot: bool = False) -> float:
        return 20.0 if boot else 1000.0

    @contextmanager
    def operation(self) -> Iterator[None]:
        yield

    def limit(self, seconds: float, *, leave: bool = False) -> None:
        self.limits.append(seconds)
        self.left = leave

    def insmod(self, file: str, *parameters: str, with_dependencies: bool = False, **forcing: bool) -> CardModule:
        self.loaded.append((file, *parameters, *(["with dependencies"] if with_dependencies else [])))
        self.forced.append(forcing)
        return self.on_insmod()

    @contextmanager
    def beside(self, *files: Path) -> Iterator[KnownModules]:
        yield known_modules(self.image, files)

    def rmmod(self, name: str, *, force: bool = False) -> None:
        self.forced.append({"force": force})
        self.on_rmmod()
        self.removed.append(name)
        self.modules = [module for module in self.modules if module.name != name]

    def read_file(self, path: str) -> bytes:
        if path not in self.files:
            raise GuestOSError(f"{path}: No such file or directory", 2)
        return self.files[path]

    @contextmanager
    def open(self, path: str, flags: int = 0) -> Iterator[Any]:
        self.opened.append((path, flags))
        data = self.read_file(path)
        yield SimpleNamespace(pieces=lambda size: [data[:size]])

    def write_file(self, path: str, data: bytes, *, append: bool = False) -> None:
        if path not in self.files:
            raise GuestOSError(f"{path}: No such file or directory", 2)
        (self.appended if append else self.written).append((path, data))

    def stat(self, path: str, *, follow: bool = True) -> FileStatus:
        directory, _, name = path.rpartition("/")
        kinds = dict(self.directories.get(directory or "/", ()))
        if path not in self.files and name not in kinds:
            raise GuestOSError(f"{path}: No such file or directory", 2)
        kind = kinds.get(name, "file")
        device = kind.endswith("device")
        size = len(self.files.get(path, b""))
        return FileStatus(kind, 0o644, 1, 0, 1000, size, 8, 5 * device, 1 * device, 900.0)

    def readlink(self, path: str) -> str:
        return f"../{path.strip('/')}"

    def list_directory(self, path: str) -> tuple[Any, ...]:
        if path in self.files:
            raise GuestOSError(f"{path}: Not a directory", 20)
        if path not in self.directories:
            raise GuestOSError(f"{path}: No such file or directory", 2)
        return tuple(SimpleNamespace(name=name, kind=kind) for name, kind in self.directories[path])


@dataclass
class CardSession:
    """Keeps how the machine was asked for, and whether its state would have been saved."""

    kernel: CardKernel
    image: Any = None
    fresh: bool | None = None
    asked_to_save: bool | None = None
    saved: bool = False
    booted: list[tuple[Any, str, int]] = field(default_factory=list)

    @contextmanager
    def machine(
        self,
        *,
        image: Any = None,
        fresh: bool = False,
        save: bool = True,
        leave: bool = False,
        progress: Any = None,
        on_wait: Any = None,
    ) -> Iterator[CardKernel]:
        self.image, self.fresh, self.asked_to_save = image, fresh, save
        try:
            yield self.kernel
        except UnloadError:
            self.saved = True
            raise
        except MachineHang as hang:
            self.saved = leave and hang.survived
            raise
        self.saved = save and not fresh

    def boot(self, image: Any, cmdline: str, memory: int, progress: Any = None) -> CardKernel:
        self.booted.append((image, cmdline, memory))
        return self.kernel

    def running_image(self) -> None:
        """There is no saved machine."""

    def describe(self) -> None:
        return None


class CardStore:
    """Images by name; each is whatever the test puts there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, Any] = {}
        self.chosen: str | None = None
        self.added: list[tuple[Any, ...]] = []
        self.on_add: Callable[[], Any] = lambda: None

    def names(self) -> list[str]:
        return list(self.images)

    def resolve(self, name: str | None = None) -> str:
        if not self.images:
            raise InputError("there is no kernel in the store yet", hint="kodojo kernel add")
        name = name or self.chosen or list(self.images)[-1]
        if name not in self.images:
            raise InputError(f"{name}: no such kernel")
        return name

    def current_name(self) -> str:
        return self.resolve()

    def set_current(self, name: str) -> None:
        self.chosen = self.resolve(name)

    def open(self, name: str | None = None) -> Any:
        image = self.images[self.resolve(name)]
        if isinstance(image, Exception):
            raise image
        return image

    def add(self, source: Any, *, modules: Any, config: Any, progress: Any) -> Any:
        self.added.append((source, modules, config))
        return self.on_add()

    def remove(self, name: str) -> str:
        del self.images[self.resolve(name)]
        return name

    @property
    def headers_directory(self) -> Path:
        return self.root / "headers"

    def snapshots_directory(self, image: Any) -> Path:
        return self.root / "snapshots" / image.release


@pytest.fixture
def kernel() -> CardKernel:
    return CardKernel()


@pytest.fixture
def session(kernel: CardKernel) -> CardSession:
    return CardSession(kernel)


@pytest.fixture
def cards(tmp_path: Path) -> CardStore:
    return CardStore(tmp_path)


@pytest.fixture
def module() -> type[CardModule]:
    return CardModule


@pytest.fixture
def ko(tmp_path: Path) -> str:
    """A file that is there; nobody looks into it."""
    path = tmp_path / "hello.ko"
    path.write_bytes(b"\x7fELF")
    return str(path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, session: CardSession, cards: CardStore) -> Callable[..., Result]:
    """Run a command line; gives exit_code, stdout and stderr."""
    monkeypatch.setattr(App, "session", session)
    monkeypatch.setattr(App, "store", cards)
    # click 8.2 keeps the streams apart by itself
    mixed = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(**({"mix_stderr": False} if mixed else {}))

    def invoke(*arguments: str, stdin: bytes = b"") -> Result:
        return runner.invoke(cli, list(arguments), input=stdin)

    return invoke
