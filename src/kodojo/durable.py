"""Files that are whole or absent: locks, atomic writes, checksummed state files.

What the store and the machine's saved state share. A file written here is either the old one
or the new one after a crash, a full disk or an interrupted command, never half of each; a
checked file that is not what was written is refused, never used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kodojo.errors import CorruptError, StoreError

__all__ = [
    "Progress",
    "disk_error",
    "lock",
    "part_directory",
    "read_checked",
    "sweep",
    "temporary_directory",
    "write_atomically",
    "write_checked",
]

Progress = Callable[[int, int, str], None]
"""``progress(done, total, what)``: bytes (or items) done of a total (0: unknown), and the words for it."""

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_POLL = 0.02  # seconds between two attempts at a lock: shorter than a person notices
_MOMENT = 0.5  # seconds after which a waiting person wants to know whom they wait for


def disk_error(path: Path, error: OSError, doing: str = "write") -> StoreError:
    """Say what a failed system call on ``path`` means to the person who sees it."""
    cause = error.strerror or str(error)
    message = f"{path}: cannot {doing}: {cause}"
    if error.errno in _NO_SPACE:
        import shutil  # noqa: PLC0415  (what only writing needs takes long to import)

        with contextlib.suppress(OSError):
            free = shutil.disk_usage(_existing(path)).free
            message += f" ({free / 1e6:.0f} MB free)"
        hint = "make room, or put the store on another disk: set KODOJO_STORE to a directory there"
    elif error.errno in _DENIED:
        hint = "use a directory that you may write to: set KODOJO_STORE"
    else:
        hint = ""
    return StoreError(message, hint=hint)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@contextlib.contextmanager
def lock(
    path: Path,
    *,
    shared: bool = False,
    timeout: float | None = 60.0,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the advisory lock ``path`` (``flock``; created if need be, never removed) in the ``with`` block.

    The lock ends with the process, however that ends.

    :param shared: several holders at once, none of them exclusive.
    :param timeout: seconds to wait; None waits for ever.
    :param on_wait: called once, with a sentence that names the holder, if it takes more than a moment.
    :raises StoreError: the time is over (the message names the holder), or the file cannot be created.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error(path, error, "create") from None
    try:
        _acquire(descriptor, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout, on_wait)
        if not shared:
            _sign(descriptor)
        try:
            yield
        finally:
            if not shared:
                os.ftruncate(descriptor, 0)  # to free space is always possible, on a full disk too
    finally:
        os.close(descriptor)


def _acquire(
    descriptor: int, path: Path, how: int, timeout: float | None, on_wait: Callable[[str], None] | None
) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:  # a file system without locks
            raise disk_error(path, error, "lock") from None
        else:
            return
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            message = f"{path}: still in use by {_holder(descriptor)} after {waited:.0f} s"
            raise StoreError(message, hint="wait until it has finished, or end it, and try again")
        if on_wait is not None and waited >= _MOMENT:
            on_wait(f"waiting for {_holder(descriptor)}")
            on_wait = None
        time.sleep(_POLL)


def _sign(descriptor: int) -> None:
    """Leave the holder's name, for the messages of those who wait; a full disk is no reason not to lock."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {command}\n".encode("utf-8", "replace"), 0)


def _holder(descriptor: int) -> str:
    pid, _, command = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip().partition(" ")
    return f"process {pid} ({command})" if pid.isdigit() else "another process"


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``path`` so that it holds the old content or all of the new one, whatever happens.

    :param content: the bytes, or a function that writes them to the binary file it is given.
    :raises StoreError: disk full, no permission, ...; nothing half-written is left.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(path)
        descriptor, temporary = _claimed(path.parent, f".{path.name}.", _PART, _new_file)
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # before it is closed, and the lock with it
        _sync_directory(path.parent)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(path, error) from error
        raise


# What is being made has an unmistakable name, and is locked by who makes it: what has such a name and is not locked
# was left by a process that was killed.
_PART = ".part"
_TOKEN = re.compile("[0-9a-f]{16}")


@contextlib.contextmanager
def part_directory(place: Path) -> Iterator[Path]:
    """A new directory beside ``place``, to be filled and renamed to it; what is left of it after the block goes.

    What killed processes left of theirs goes, too.

    :raises OSError: it cannot be made.
    """
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _own_directory(place.parent, f".{place.name}.", _PART) as path:
        yield path


@contextlib.contextmanager
def temporary_directory(purpose: str) -> Iterator[Path]:
    """A new directory for temporary files, gone after the block; as :func:`part_directory`.

    :param purpose: a word for its name.
    """
    import tempfile  # noqa: PLC0415  (what only writing needs takes long to import)

    with _own_directory(Path(tempfile.gettempdir()), f"kodojo-{purpose}-", "") as path:
        yield path


@contextlib.contextmanager
def _own_directory(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    import shutil  # noqa: PLC0415

    _sweep(parent, prefix, suffix)
    descriptor, path = _claimed(parent, prefix, suffix, _new_directory)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _new_directory(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _claimed(parent: Path, prefix: str, suffix: str, make: Callable[[Path], int]) -> tuple[int, Path]:
    """Something new, locked: an open descriptor, and where it is."""
    while True:
        path = parent / f"{prefix}{os.urandom(8).hex()}{suffix}"
        try:
            descriptor = make(path)
        except FileNotFoundError:
            if parent.is_dir():  # swept before it could be opened
                continue
            raise
        if _locked(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # somebody sweeps, and was faster


def _locked(descriptor: int) -> bool | None:
    """Try to lock; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(path: Path) -> None:
    """Remove what killed processes that were writing ``path`` left beside it; writers do that, too."""
    _sweep(path.parent, f".{path.name}.", _PART)


def _sweep(parent: Path, prefix: str, suffix: str) -> None:
    """Remove what killed processes of this user left."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            name = entry.name
            if not (name.startswith(prefix) and name.endswith(suffix)):
                continue
            if _TOKEN.fullmatch(name[len(prefix) : len(name) - len(suffix)]):
                with contextlib.suppress(OSError):
                    _remove_left(entry)


def _remove_left(entry: os.DirEntry[str]) -> None:
    if entry.stat(follow_symlinks=False).st_uid != os.geteuid() or entry.is_symlink():
        return
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not _locked(descriptor):
            return
        if entry.is_dir(follow_symlinks=False):
            import shutil  # noqa: PLC0415

            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)  # noqa: PTH108  as it stands there
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot sync a directory say so
            raise
    finally:
        os.close(descriptor)


# A checked file is one line of ASCII and the payload, so that a person can read what is readable:
#     kodojo KIND 1 LENGTH SHA256
_FORMAT = "1"
_LONGEST_HEADER = 256


def write_checked(path: Path, payload: bytes, kind: str) -> None:
    """Write a state file that :func:`read_checked` can vouch for. ``kind`` is one word: what the file is.

    :raises StoreError: as :func:`write_atomically`.
    """
    digest = hashlib.sha256(payload).hexdigest()
    header = f"kodojo {kind} {_FORMAT} {len(payload)} {digest}\n".encode("ascii")

    def write(file: BinaryIO) -> None:
        file.write(header)
        file.write(payload)

    write_atomically(path, write)


def read_checked(path: Path, kind: str) -> bytes:
    """Read the payload of a file that :func:`write_checked` wrote.

    :raises CorruptError: the file is not what was written, of another kind, or from another version.
    :raises StoreError: it is absent or cannot be read.
    """
    try:
        with path.open("rb") as file:
            header = file.readline(_LONGEST_HEADER)
            payload = file.read()
    except OSError as error:
        raise disk_error(path, error, "read") from error
    words = header.decode("ascii", "replace").split()
    if len(words) != 5 or words[0] != "kodojo" or not header.endswith(b"\n"):
        raise _corrupt(path, "it is no file of kodojo's, or its beginning is damaged")
    if words[1] != kind:
        raise _corrupt(path, f"it is a {words[1]} file, not a {kind} file")
    if words[2] != _FORMAT:
        raise _corrupt(path, f"it has format {words[2]}; this version of kodojo reads format {_FORMAT}")
    if words[3] != str(len(payload)):
        raise _corrupt(path, f"it should hold {words[3]} bytes and holds {len(payload)}")
    if words[4] != hashlib.sha256(payload).hexdigest():
        raise _corrupt(path, "its content does not match its checksum")
    return payload


def _corrupt(path: Path, why: str) -> CorruptError:
    return CorruptError(f"{path}: damaged: {why}", hint=f"remove it (rm {path}) and repeat the command")
