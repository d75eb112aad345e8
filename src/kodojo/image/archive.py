"""Reading archives that nobody vouches for: members, and decompression with bounds.

The formats themselves are in :mod:`kodojo.image.package` (.deb) and :mod:`kodojo.image.rpm`.
Everything here raises :class:`~kodojo.errors.PackageError`, which names the file, for whatever the
bytes are.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol, cast

from kodojo.errors import PackageError
from kodojo.image.compression import compression_of, decompress

__all__ = ["CHUNK", "Member", "Prefixed", "Readable", "Window", "decompressed", "exactly", "honest_errors"]

CHUNK = 1 << 18
MAXIMUM_SIZE = 4 << 30  # bytes in a package, unpacked; distribution kernels have 0.1 to 1 GiB
MAXIMUM_RATIO = 200  # of unpacked to packed size; kernels reach about 6
_RATIO_COUNTS_FROM = 64 << 20
_LZ4_MOST = 1 << 30  # bytes, in memory
_XZ_MEMORY = 256 << 20  # bytes for a dictionary; `xz -9` asks for 65 MiB


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive, in the order of the archive.

    :param name: as the archive has it; nothing is known to be good about it.
    :param target: of a ``symlink``, or the name of the member that a ``hardlink`` repeats.
    :param chunks: the content of a ``file``; to be consumed before the next member is asked for.
    """

    name: str
    kind: Literal["file", "directory", "symlink", "hardlink", "special"]
    target: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))


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
    """A stream that is fed to decompressors with the interface of :class:`lzma.LZMADecompressor`."""

    def __init__(self, source: Readable, start: bytes, create: Callable[[], Any]) -> None:
        self._source = source
        self._pending = start
        self._create = create
        self._worker = create()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._worker.eof:
                # Streams may follow each other (parallel compressors write such), padded with zeroes.
                self._pending = (self._worker.unused_data or self._source.read(CHUNK)).lstrip(b"\0")
                if not self._pending:
                    return b""
                self._worker = self._create()
            if self._worker.needs_input and not self._pending:
                self._pending = self._source.read(CHUNK)
                if not self._pending:
                    raise EOFError
            data, self._pending = self._pending, b""
            produced = cast("bytes", self._worker.decompress(data, max_length=size))
            if produced:
                return produced


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


class _Bounded:
    """Counts what comes out of a decompressor and stops a bomb."""

    def __init__(self, stream: Readable, window: Window) -> None:
        self._stream = stream
        self._window = window
        self._total = 0

    def read(self, size: int, /) -> bytes:
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


def decompressed(window: Window) -> Readable:
    """The content of ``window``, which is gzip, xz, lzma, zstd, bzip2, lz4 or not compressed at all."""
    start = window.read(6)
    plain = Prefixed(window, start)
    stream: Readable = plain
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=cast("BinaryIO", plain), mode="rb")
    elif start.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard  # noqa: PLC0415  (slow to import, and most packages are xz)

        worker = zstandard.ZstdDecompressor()
        stream = worker.stream_reader(cast("BinaryIO", plain), read_size=CHUNK, read_across_frames=True)
    elif start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        stream = _Pump(window, start, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
    elif start.startswith(b"BZh"):
        stream = _Pump(window, start, bz2.BZ2Decompressor)
    elif compression_of(start) == "lz4":
        stream = io.BytesIO(decompress(start + window.read(), "lz4", _LZ4_MOST, window.name))
    return _Bounded(stream, window)


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
