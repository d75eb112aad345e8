"""A module's file, read as kmod reads it: the one place that does.

kmod (``libkmod/libkmod-file.c: kmod_file_open`` and ``load_*``) looks at the first six bytes. It knows gzip, xz and
zstd by their magic and unpacks them; everything else it takes for the module itself, whatever its name says. What it
makes of a compressed file that is damaged, or goes on behind its end, differs from format to format:

======  ===================================  ======================================  =============================
        the end is missing                   another stream follows                  something else follows
======  ===================================  ======================================  =============================
xz      EINVAL                               taken, too                              EINVAL, but for zeros whose
                                                                                     number is a multiple of four
zstd    what there is counts (until          taken, too (until version 33)           EINVAL
        version 33)
gzip    what there is counts                 taken, too                              nobody looks at it
======  ===================================  ======================================  =============================

From version 34 on a zstd file must be one whole frame that says how much is in it (:mod:`kodojo.loader.enter`).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, InputError, ModuleFileError
from kodojo.image import bounds
from kodojo.image.compression import MAGICS, compression_of, decoder

if TYPE_CHECKING:
    from kodojo.image.compression import Decoder

__all__ = [
    "KMOD_KNOWS",
    "MODULE_SIZE_LIMIT",
    "SUFFIXES",
    "Payload",
    "read_module",
    "read_stored",
    "unpacked",
    "without_waiting",
]

MODULE_SIZE_LIMIT = 512 << 20
"""Bytes that a module may have, stored and unpacked. The largest of distributions have some 30 MiB."""

KMOD_KNOWS = ("gzip", "xz", "zstd")
"""Compressions that kmod unpacks."""

SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
"""Of the files that kmod takes for modules where it searches (``shared/util.c: kmod_exts``)."""

_LOOKED_AT = 6  # bytes that kmod wants of any file: the length of the longest magic
_BITE = 1 << 16
_MOUTHFUL = 4 << 20  # bytes that come out of it at once
_MOST_STREAMS = 1 << 16  # of one file; bgzip makes one of each 64 KiB
_EINVAL = 22
_SIGNATURE_MARK = b"~Module signature appended~\n"
_MISPLACED = (
    "The signature belongs to the module, not to the compressed file: decompress the file, cut off what follows the "
    "compressed data, sign the module (scripts/sign-file), and compress it after that."
)


@dataclass(frozen=True, slots=True)
class Payload:
    """What kmod gets out of a module's file.

    :param name: what messages call the file.
    :param content: the module, unpacked; empty where kmod gives up.
    :param compression: ``gzip``, ``xz`` or ``zstd``; empty for a file that goes to the kernel as it is.
    :param packed: the file as it is stored, if it is compressed. Empty where that is known not to matter any more.
    :param streams: how many streams of compressed data it has.
    :param ignored: bytes behind them that nobody looks at. :param cut: the end of the last one is missing, and what
        there is counts.
    :param problem: why kmod gives up (EINVAL) before the kernel is asked; empty if it does not. ``hint``: what to do.
    :param path: where the file is; empty if its bytes were given.
    """

    name: str
    content: bytes
    compression: str = ""
    packed: bytes = b""
    streams: int = 1
    ignored: int = 0
    cut: bool = False
    problem: str = ""
    hint: str = ""
    path: str = ""

    def module(self) -> bytes:
        """The module.

        :raises ModuleFileError: kmod gives up.
        """
        if self.problem:
            raise ModuleFileError(f"{self.name}: {self.problem}", _EINVAL, hint=self.hint)
        return self.content


def read_module(file: str | os.PathLike[str] | bytes) -> Payload:
    """Read a module's file, given by its path, or the bytes of one.

    :raises InputError: it cannot be read.
    :raises ImageError: it is larger than any module, stored or unpacked; or its decompression takes too much memory.
    """
    if isinstance(file, bytes):
        return unpacked(file, "module")
    name = os.fspath(file)
    return replace(unpacked(read_stored(name, name), name), path=name)


def read_stored(path: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a regular file that may be a module; see :func:`read_module`.

    :param name: what messages call it.
    """
    hint = "give the path of a .ko file"
    try:
        with open(path, "rb", buffering=0, opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                if status.st_size > MODULE_SIZE_LIMIT:
                    raise _too_large(name)
                return file.read(status.st_size)
    except MemoryError:
        raise _no_memory(name, "read") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read: {reason}", hint=hint) from error
    raise InputError(f"{name}: cannot be read: not a regular file", hint=hint)


def without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for somebody to write to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def unpacked(data: bytes, name: str) -> Payload:
    """What kmod gets out of the bytes of a file; the errors are :func:`read_module`'s.

    :param name: what messages call the file.
    """
    if len(data) > MODULE_SIZE_LIMIT:
        raise _too_large(name)
    if len(data) < _LOOKED_AT:
        what = f"the file has {len(data)} bytes only" if data else "the file is empty"
        why = f"{what}: kmod looks at the first {_LOOKED_AT} before all else"
        return Payload(name, b"", problem=why, hint="Build it or fetch it again: it was not written to its end.")
    kind = compression_of(data)
    if kind not in KMOD_KNOWS:
        return Payload(name, data)
    reading = _Reading(data, kind, name)
    why = reading.why()
    if not why:
        try:
            content = b"".join(reading.parts)
        except MemoryError:
            raise _no_memory(name) from None
        return Payload(name, content, kind, data, reading.streams, reading.ignored, reading.cut)
    return Payload(name, b"", kind, data, reading.streams, problem=why, hint=_advice(data, reading))


class _Reading:
    """The streams of a compressed file, one after the other.

    :attr parts: the content. :attr ignored: bytes behind the last stream that do not matter. :attr cut: it has no
        end.
    """

    def __init__(self, data: bytes, kind: str, name: str) -> None:
        self.parts: list[bytes] = []
        self.streams = 0
        self.ignored = 0
        self.cut = False
        self._data, self._kind, self._name = memoryview(data), kind, name
        self._size = 0
        self.position = 0  # where the last stream ends that was read

    def why(self) -> str:
        """Read all of them; why kmod gives up, empty if it does not."""
        try:
            while self._one(decoder(self._kind)):
                if not self._another():
                    return self._rest()
        except ImageError:
            raise
        except MemoryError:
            raise _no_memory(self._name) from None
        except Exception as error:  # each library has exceptions of its own
            if "Memory usage limit" in str(error):  # ours, not kmod's
                raise ImageError(f"{self._name}: refused: more memory than any module takes to decompress") from error
            if self.streams > 1 and self._kind == "zstd":
                return f"{self._behind()} what follows is no zstd frame ({error})"
            return f"the {self._kind} data is damaged: {error}"
        self.cut = True
        return f"the {self._kind} data is cut off: its end is missing" if self._kind == "xz" else ""

    def _one(self, worker: Decoder) -> bool:
        """Read a stream; whether it has come to its end before the file has."""
        self.streams += 1
        if self.streams > _MOST_STREAMS:
            raise ImageError(f"{self._name}: refused: more than {_MOST_STREAMS} streams of {self._kind}")
        position = self.position
        while not worker.eof:
            piece = self._data[position : position + _BITE] if worker.needs_input else b""
            if worker.needs_input and not piece:
                return False
            position += len(piece)
            self.parts.append(worker.decompress(piece, _MOUTHFUL))
            self._size += len(self.parts[-1])
            if self._size > MODULE_SIZE_LIMIT:
                raise _too_large(self._name, " when decompressed")
            if bounds.LIMITS.is_bomb(self._size, len(self._data)):
                what = f"more than {bounds.LIMITS.ratio} times its size when decompressed; no module is like that"
                raise ImageError(f"{self._name}: refused: {what}", hint="if you trust it, decompress it yourself")
        self.position = position - len(worker.unused_data)
        return True

    def _another(self) -> bool:
        """Whether another stream has to follow here."""
        data, magic = self._data, MAGICS[self._kind]
        if self._kind == "zstd":
            return self.position < len(data)
        start = self.position
        if self._kind == "xz":
            start = self._behind_zeros()
            if (start - self.position) % 4:
                return False
        if data[start : start + len(magic)] != magic:
            return False
        self.position = start
        return True

    def _behind_zeros(self) -> int:
        position = self.position
        while piece := bytes(self._data[position : position + _BITE]):
            rest = piece.lstrip(b"\0")
            position += len(piece) - len(rest)
            if rest:
                break
        return position

    def _rest(self) -> str:
        """Why what follows the last stream is wrong; empty if it is not."""
        left = len(self._data) - self.position
        if self._kind != "xz":
            self.ignored = left
            return ""
        zeros = self._behind_zeros() - self.position
        if zeros < left:
            return f"{self._behind()} {left} bytes follow, which are no xz stream"
        return f"{self._behind()} {zeros} zeros follow: padding is a multiple of four" if zeros % 4 else ""

    def _behind(self) -> str:
        return f"the {self._kind} data ends at byte {self.position}, and"


def _advice(data: bytes, reading: _Reading) -> str:
    if data.endswith(_SIGNATURE_MARK) and reading.position:
        return _MISPLACED
    return "Build it or fetch it again, or compress the module again."


def _no_memory(name: str, what: str = "decompress") -> ImageError:
    return ImageError(f"{name}: not enough memory to {what} it", hint="allow this process more (ulimit -v)")


def _too_large(name: str, when: str = "") -> ImageError:
    what = f"{name}: refused: more than {MODULE_SIZE_LIMIT >> 20} MiB{when}"
    return ImageError(what, hint="no module is so large: give the file of a module")
