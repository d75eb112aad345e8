"""Reading archives that nobody vouches for: members, and decompression with bounds.

The formats themselves are in :mod:`kodojo.image.package` (.deb) and :mod:`kodojo.image.rpm`.
Everything here raises :class:`~kodojo.errors.PackageError`, which names the file, for whatever the
bytes are.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

from kodojo.errors import PackageError
from kodojo.image.bounds import Account
from kodojo.image.compression import MAGICS, Lz4Blocks, compression_of, decoder

__all__ = [
    "CHUNK",
    "Decompressed",
    "Member",
    "Prefixed",
    "Readable",
    "Window",
    "damaged",
    "decompressed",
    "exactly",
    "honest_errors",
]

CHUNK = 1 << 18
_IN_STREAMS = ("gzip", "bzip2", "lzma", "xz", "zstd")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, in the order of the archive.

    :param name: as the archive has it; nothing is known to be good about it.
    :param target: of a ``symlink``, or the name of the member that a ``hardlink`` repeats.
    :param chunks: the content of a ``file``; to be consumed before the next member is asked for.
    :param executable: a ``file`` that its owner may run.
    """

    name: str
    kind: Literal["file", "directory", "symlink", "hardlink", "special"]
    target: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    executable: bool = False


class Readable(Protocol):
    """The little of a binary file that readers of archives need."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end."""
        ...


class Window(io.RawIOBase):
    """``size`` bytes of ``file`` from its present position, as a file of its own.

    :param account: of the input that the file is.
    """

    def __init__(self, file: BinaryIO, size: int, account: Account) -> None:
        self.name = account.name
        self.account = account
        self.taken = 0
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        if len(data) < size:
            raise PackageError(f"{self.name}: truncated", hint="fetch it again")
        self._left -= size
        self.taken += size
        self.account.read(size)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def honest_errors(name: str) -> Iterator[None]:
    """Turn what decompressors and :mod:`tarfile` raise for damaged input into a PackageError."""
    try:
        yield
    except EOFError:
        raise PackageError(f"{name}: truncated", hint="fetch it again") from None
    except MemoryError:
        raise PackageError(
            f"{name}: not enough memory to decompress it", hint="allow this process more memory (ulimit -v)"
        ) from None
    except (lzma.LZMAError, zlib.error, tarfile.TarError, ValueError) as error:
        raise damaged(name, error) from None
    except OSError as error:
        if error.errno is not None:  # a failure of the disk, not one of gzip's or bzip2's opinions
            raise
        raise damaged(name, error) from None
    except Exception as error:  # zstandard is imported only when it is needed, and so is its exception
        if type(error).__module__.partition(".")[0] != "zstandard":
            raise
        raise damaged(name, error) from None


def damaged(name: str, error: object) -> PackageError:
    """The error that says so of a file."""
    return PackageError(f"{name}: damaged: {error}", hint="fetch it again")


class _Pump:
    """A stream that is fed to decoders.

    :param kind: of compression. It ends where something does not begin as that does.
    """

    def __init__(self, source: Window, start: bytes, kind: str) -> None:
        self._source = source
        self._pending = start
        self._kind, self._magic = kind, MAGICS[kind]
        self._worker = decoder(kind)
        self._ended = False
        self._output, self._position = b"", 0

    @property
    def unread(self) -> int:
        """How many bytes it has taken that are not part of it, when it has ended."""
        return len(self._pending)

    def read(self, size: int, /) -> bytes:
        if self._position == len(self._output):
            self._output, self._position = self._produce(), 0
        start, self._position = self._position, min(self._position + size, len(self._output))
        return self._output[start : self._position]

    def _produce(self) -> bytes:
        while not self._ended:
            if self._worker.eof and not self._begin_next():
                self._ended = True
                break
            if self._worker.needs_input and not self._pending:
                self._pending = self._source.read(CHUNK)
                if not self._pending:
                    raise EOFError
            data, self._pending = self._pending, b""
            produced = self._worker.decompress(data, CHUNK)
            if produced:
                return produced
        return b""

    def _begin_next(self) -> bool:
        """Streams may follow each other (parallel compressors write such), padded with zeroes; whether one does."""
        self._pending = (self._pending + self._worker.unused_data).lstrip(b"\0")
        while len(self._pending) < len(self._magic) and (data := self._source.read(CHUNK)):
            self._pending = (self._pending + data).lstrip(b"\0")
        if not self._pending.startswith(self._magic):
            return False
        self._source.account.stream()
        self._worker = decoder(self._kind)
        return True


class Prefixed:
    """``start`` and then the rest of ``source``; what was read too far can be given back."""

    def __init__(self, source: Readable, start: bytes = b"") -> None:
        self._source = source
        self._start, self._position = start, 0

    def give_back(self, data: bytes) -> None:
        """To be read before all else."""
        self._start, self._position = data + self._start[self._position :], 0

    def read(self, size: int, /) -> bytes:
        if self._position == len(self._start):
            return self._source.read(size)
        start, self._position = self._position, min(self._position + size, len(self._start))
        return self._start[start : self._position]


class Decompressed:
    """What comes out of a decompressor, counted, so that a bomb is stopped."""

    def __init__(self, stream: _Pump | Lz4Blocks | Prefixed, window: Window) -> None:
        self._stream = stream
        self._window = window

    @property
    def end(self) -> int:
        """Where in the window the compressed data end, when all has been read: something else may follow."""
        unread = 0 if isinstance(self._stream, Prefixed) else self._stream.unread
        return self._window.taken - unread

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end. PackageError if they are damaged, or far too many."""
        with honest_errors(self._window.name):
            data = self._stream.read(size)
        self._window.account.unpacked(len(data))
        return data


def decompressed(window: Window) -> Decompressed:
    """The content of ``window``, which is gzip, xz, lzma, zstd, bzip2, lz4 or not compressed at all."""
    start = window.read(6)
    kind = compression_of(start)
    window.account.stream()
    if kind in _IN_STREAMS:
        return Decompressed(_Pump(window, start, kind), window)
    if kind == "lz4":
        return Decompressed(Lz4Blocks(window, start), window)
    return Decompressed(Prefixed(window, start), window)


def exactly(stream: Readable, size: int, name: str) -> bytes:
    """Read ``size`` bytes, which the caller knows to be few.

    :raises PackageError: there are fewer.
    """
    parts = []
    while size:
        data = stream.read(size)
        if not data:
            raise PackageError(f"{name}: truncated", hint="fetch it again")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
