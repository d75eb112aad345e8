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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

from kodojo.errors import PackageError
from kodojo.image.compression import MAGICS, compression_of, decoder, decompress, end_of_lz4

__all__ = [
    "CHUNK",
    "Decompressed",
    "Member",
    "Prefixed",
    "Readable",
    "Window",
    "decompressed",
    "exactly",
    "honest_errors",
]

CHUNK = 1 << 18
MAXIMUM_SIZE = 4 << 30  # bytes in a package, unpacked; distribution kernels have 0.1 to 1 GiB
MAXIMUM_RATIO = 200  # of unpacked to packed size; kernels reach about 6
_RATIO_COUNTS_FROM = 64 << 20
_LZ4_MOST = 1 << 30  # bytes, in memory
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

    :param name: the file's name in messages.
    :param on_read: called with the number of bytes of each read.
    """

    def __init__(self, file: BinaryIO, size: int, name: str, on_read: Callable[[int], None]) -> None:
        self.name = name
        self.taken = 0
        self._file = file
        self._left = size
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        if len(data) < size:
            raise PackageError(f"{self.name}: truncated", hint="fetch it again")
        self._left -= size
        self.taken += size
        self._on_read(size)
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
    except (lzma.LZMAError, zlib.error, tarfile.TarError, ValueError) as error:
        raise _damaged(name, error) from None
    except OSError as error:
        if error.errno is not None:  # a failure of the disk, not one of gzip's or bzip2's opinions
            raise
        raise _damaged(name, error) from None
    except Exception as error:  # zstandard is imported only when it is needed, and so is its exception
        if type(error).__module__.partition(".")[0] != "zstandard":
            raise
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> PackageError:
    return PackageError(f"{name}: damaged: {error}", hint="fetch it again")


class _Pump:
    """A stream that is fed to decoders.

    :param kind: of compression. It ends where something does not begin as that does.
    """

    def __init__(self, source: Readable, start: bytes, kind: str) -> None:
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
        self._worker = decoder(self._kind)
        return True


class Prefixed:
    """``start`` and then the rest of ``source``."""

    def __init__(self, source: Readable, start: bytes) -> None:
        self._source = source
        self._start = start

    def read(self, size: int = -1, /) -> bytes:
        if not self._start:
            return self._source.read(size)
        data, self._start = (self._start, b"") if size < 0 else (self._start[:size], self._start[size:])
        return data


class Decompressed:
    """What comes out of a decompressor, counted, so that a bomb is stopped."""

    def __init__(self, stream: Readable, window: Window, unread: int = 0) -> None:
        self._stream = stream
        self._window = window
        self._unread = unread
        self._total = 0

    @property
    def end(self) -> int:
        """Where in the window the compressed data end, when all has been read: something else may follow."""
        unread = self._stream.unread if isinstance(self._stream, _Pump) else self._unread
        return self._window.taken - unread

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end. PackageError if they are damaged, or far too many."""
        with honest_errors(self._window.name):
            data = self._stream.read(size)
        self._total += len(data)
        if self._total > MAXIMUM_SIZE:
            raise self._bomb(f"more than {MAXIMUM_SIZE >> 30} GiB unpacked")
        if self._total > _RATIO_COUNTS_FROM and self._total > MAXIMUM_RATIO * self._window.taken:
            raise self._bomb(f"more than {MAXIMUM_RATIO} times its size unpacked")
        return data

    def _bomb(self, what: str) -> PackageError:
        return PackageError(
            f"{self._window.name}: {what}; no kernel package is like that",
            hint="if you trust it, unpack it yourself and add the directory",
        )


def decompressed(window: Window) -> Decompressed:
    """The content of ``window``, which is gzip, xz, lzma, zstd, bzip2, lz4 or not compressed at all."""
    start = window.read(6)
    kind = compression_of(start)
    if kind in _IN_STREAMS:
        return Decompressed(_Pump(window, start, kind), window)
    if kind == "lz4":
        data = start + window.read()
        end = end_of_lz4(data)
        return Decompressed(
            io.BytesIO(decompress(data[:end], "lz4", _LZ4_MOST, window.name)), window, len(data) - end
        )
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
