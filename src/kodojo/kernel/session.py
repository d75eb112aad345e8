"""The machine that lasts from one command to the next.

Its state is one checked file beside a lock: which boot it started from, and the difference since. A
command holds the lock while it runs and writes the file anew at its end, whole or not at all; a command that is
interrupted, or whose guest crashes, leaves the file as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kodojo.durable import lock, read_checked, sweep, write_checked
from kodojo.errors import (
    CorruptError,
    GuestOSError,
    InputError,
    KodojoError,
    LoadError,
    MachineHang,
    StoreError,
    UnloadError,
)
from kodojo.image.image import Image
from kodojo.image.store import Store
from kodojo.kernel.boot import DEFAULT_MEMORY
from kodojo.kernel.kernel import Kernel
from kodojo.kernel.snapshots import SnapshotKey, snapshot_for
from kodojo.machine.machine import Machine

__all__ = ["MachineDescription", "Session"]

_KIND = "machine"
_FORMAT = 3
# The kernel said no, and the machine goes on from there: taints and log lines stay.
_ANSWERS = (LoadError, UnloadError, GuestOSError)

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class MachineDescription:
    """Which boot the machine started from.

    :param image: the image's identity; ``release`` is its name for people.
    :param memory: bytes.
    :param bare: without what an init does (:mod:`kodojo.kernel.booted_state`).
    :param boot: names the boot and how this version of kodojo does it (``SnapshotKey.name``).
    :param files: kernel, configuration and module tree ("" for what there is not) of a kernel that was given by path;
        empty for one of the store.
    """

    image: str
    release: str
    cmdline: str
    memory: int
    bare: bool
    boot: str
    files: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, image: Image, cmdline: str, memory: int, *, bare: bool, stored: bool) -> MachineDescription:
        words = " ".join(cmdline.split())
        key = SnapshotKey(image.identity, words, memory, bare)
        files = () if stored else tuple("" if part is None else str(part) for part in image.files)
        return cls(image.identity, image.release, words, memory, bare, key.name, files)


class Session:
    """The current machine of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._file = store.machine_directory / "state"
        self._lock = store.machine_directory / "lock"

    def describe(self) -> MachineDescription | None:
        """The saved machine, None if there is none."""
        if not self._file.exists():
            return None
        return self._read()[0]

    def boot(
        self,
        image: Image,
        cmdline: str = "",
        memory: int = DEFAULT_MEMORY,
        progress: Progress | None = None,
        *,
        bare: bool = False,
    ) -> Kernel:
        """Start over with a freshly booted machine, whatever state the old one was in. See :meth:`Kernel.boot`."""
        with lock(self._lock):
            kernel = Kernel.boot(image, cmdline, memory, store=self._store, progress=progress, bare=bare)
            self._write(kernel, self._description(image, cmdline, memory, bare=bare))
        return kernel

    @contextmanager
    def machine(
        self,
        *,
        image: Image | None = None,
        fresh: bool = False,
        save: bool = True,
        leave: bool = False,
        progress: Progress | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> Iterator[Kernel]:
        """The machine, for the ``with`` block; others wait.

        It is saved at the block's end, also when the kernel refused something (LoadError, UnloadError,
        GuestOSError); after any other exception (an oops, or what waits too long) the state before the block stays.

        :param image: boot this one where no machine is saved; InputError if another kernel's is.
        :param fresh: work on a copy that nobody sees.
        :param save: False for blocks that only look.
        :param leave: save it, too, when something has waited too long and is left where it is.
        :param on_wait: told whom we wait for, if it takes more than a moment.
        :raises CorruptError: the saved state is damaged.
        """
        with lock(self._lock, timeout=None, on_wait=on_wait):
            sweep(self._file)
            kernel, description = self._resume(image, progress)
            try:
                yield kernel
            except _ANSWERS:
                self._save(kernel, description, save=save and not fresh)
                raise
            except MachineHang as hang:
                self._save(kernel, description, save=leave and hang.survived and not fresh)
                raise
            self._save(kernel, description, save=save and not fresh)

    def _save(self, kernel: Kernel, description: MachineDescription, *, save: bool) -> None:
        if save and kernel.calls.stopped is None:
            self._write(kernel, description)

    def _resume(self, image: Image | None, progress: Progress | None) -> tuple[Kernel, MachineDescription]:
        if not self._file.exists():
            image = image or self._store.current()
            kernel = Kernel.boot(image, store=self._store, progress=progress)
            return kernel, self._description(image)
        description, saved, delta = self._read()
        known = self._image(description)
        if image is not None and image.identity != known.identity:
            raise InputError(
                f"the machine runs {description.release}, not {image.release}",
                hint=f"start it over with that kernel: kodojo boot {self._name(image)}",
            )
        boot = description.cmdline, description.memory
        if description != self._description(known, *boot, bare=description.bare):
            raise CorruptError(
                f"{self._file}: of another version of kodojo, which boots differently",
                hint="start over: kodojo boot",
            )
        snapshot, facts = snapshot_for(self._store, known, *boot, progress, bare=description.bare)
        if not delta:
            return Kernel.resume(known, snapshot.start(), facts, saved), description
        try:
            return Kernel.resume(known, Machine.apply(snapshot, delta), facts, saved), description
        except CorruptError as error:
            raise CorruptError(f"{self._file}: {error.message}", hint="start over: kodojo boot") from error

    def running_image(self) -> Image | None:
        """The kernel that the saved machine runs, None if there is no machine. Raises as :meth:`machine`."""
        description = self.describe()
        return None if description is None else self._image(description)

    def _description(
        self, image: Image, cmdline: str = "", memory: int = DEFAULT_MEMORY, *, bare: bool = False
    ) -> MachineDescription:
        return MachineDescription.of(image, cmdline, memory, bare=bare, stored=self._is_stored(image))

    def _is_stored(self, image: Image) -> bool:
        """Whether it is one of the store's, and not one that was given by path."""
        if image.path.is_relative_to(self._store.root):
            return True
        with suppress(KodojoError):  # another kernel of the store may be damaged
            return any(each.files == image.files for each in self._store.images())
        return False

    def _name(self, image: Image) -> str:
        """What commands call a kernel."""
        return image.release if self._is_stored(image) else str(image.path)

    def _image(self, description: MachineDescription) -> Image:
        if description.files:
            return _given_image(description)
        for image in self._store.images():
            if image.identity == description.image:
                return image
        raise StoreError(
            f"the kernel that the machine runs ({description.release}) is not in the store any more",
            hint="add it again (kodojo kernel add), or start over with another one (kodojo boot)",
        )

    def _write(self, kernel: Kernel, description: MachineDescription) -> None:
        delta, saved = kernel.save()
        head = {
            "format": _FORMAT,
            "machine": {name: getattr(description, name) for name in MachineDescription.__slots__},
            "saved": saved,
        }
        write_checked(self._file, json.dumps(head).encode() + b"\n" + delta, _KIND)

    def _read(self) -> tuple[MachineDescription, dict[str, Any], bytes]:
        try:
            line, _, delta = read_checked(self._file, _KIND).partition(b"\n")
            head = json.loads(line)
            known = head["format"] == _FORMAT
            description = MachineDescription(**head["machine"] | {"files": tuple(head["machine"].get("files", ()))})
            saved = {name: list(head["saved"][name]) for name in ("once", "place", "left")}
        except CorruptError as error:
            raise CorruptError(error.message, hint="start over: kodojo boot") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{self._file}: damaged: {error}", hint="start over: kodojo boot") from error
        if not known:
            raise CorruptError(f"{self._file}: of another version of kodojo", hint="start over: kodojo boot")
        return description, saved, delta


def _given_image(description: MachineDescription) -> Image:
    """A kernel that was given by path, from where it was then."""
    start_over = "start over, with the path of a kernel that is there (kodojo boot PATH), or with one of the store"
    vmlinuz, config, modules = (Path(part) if part else None for part in description.files)
    if vmlinuz is None or not vmlinuz.is_file():
        raise StoreError(
            f"the kernel that the machine runs ({description.release}) is not there any more: {vmlinuz}",
            hint=start_over,
        )
    image = Image.from_files(
        vmlinuz,
        modules if modules is not None and modules.is_dir() else None,
        config if config is not None and config.is_file() else None,
    )
    if image.identity != description.image:
        raise StoreError(f"{vmlinuz}: another kernel than the machine runs", hint=start_over)
    return image
