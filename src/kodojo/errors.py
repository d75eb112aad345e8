"""Every exception that kodojo raises on purpose, and the records they carry.

::

    KodojoError
    ├── InputError                 what the user gave cannot be used (a path, a name, an option)
    ├── ImageError                 a kernel image or package is broken, foreign or incomplete
    │   ├── ModuleFileError        kmod gives up on a module's file: errno
    │   ├── PackageError           an archive is truncated, hostile or of an unknown kind
    │   └── MissingInformationError  the image lacks what the request needs (BTF, kallsyms, ...)
    ├── StoreError                 the store or the machine's saved state on disk
    │   └── CorruptError           a file in it is not what was written
    ├── LoadError                  the kernel refuses a module: errno, log, step, why, hint, slug
    │   └── DamageError            the file would have damaged the kernel (read outside it, oops)
    ├── UnloadError                the kernel refuses to remove a module: errno
    ├── GuestOSError               a system call made on the user's behalf failed: errno
    ├── MachineError               the emulated machine cannot go on
    │   ├── UnmappedError          there is nothing at a virtual address
    │   ├── DamagedMemoryError     the kernel's data cannot be what it says: what could be read all the same
    │   └── MachineFault           oops or panic in guest code: registers, backtrace, log
    │       └── MachineHang        guest code did not come back within the limit: backtrace
    └── UnmodelledError            a situation that kodojo does not model yet; a gap of ours

Errno numbers are the guest's. Exceptions never format themselves for a screen beyond one plain
sentence (``str()``); :mod:`kodojo.report` does that. All of them survive pickling and copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CorruptError",
    "DamageError",
    "DamagedMemoryError",
    "Detail",
    "FaultReport",
    "Frame",
    "GuestOSError",
    "ImageError",
    "InputError",
    "KodojoError",
    "LoadError",
    "LogRecord",
    "MachineError",
    "MachineFault",
    "MachineHang",
    "MissingInformationError",
    "ModuleFileError",
    "PackageError",
    "Refusal",
    "StoreError",
    "UnloadError",
    "UnmappedError",
    "UnmodelledError",
    "decode",
    "encode",
]


def decode(raw: bytes) -> str:
    """Text from a kernel or a file; :func:`encode` gives the same bytes back, whatever they were."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of :func:`decode`."""
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of the kernel's log.

    :param level: 0 (emergency) to 7 (debug), as in ``KERN_*``.
    :param text: one line, without timestamp and without newline.
    :param time: seconds since boot; 0.0 where no kernel runs (a dry load).
    """

    level: int
    text: str
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Detail:
    """One of the things that a refusal is about: a symbol, a word of the version magic, a section, a parameter.

    :param subject: its name, as the file or the kernel has it.
    :param text: what is the matter with it, in plain words; one line, empty if the refusal says it all.
    :param facts: the same for programs: name -> number or text, such as ``crc`` and ``kernel crc`` of a symbol.
    :param more: lines that tell more, such as what has changed in a structure; ready to be printed, indentation
        included.
    """

    subject: str
    text: str = ""
    facts: dict[str, int | str] = field(default_factory=dict, hash=False)
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a kernel says no: the kernel's answer, and ours.

    :param errno: positive errno of the guest; 0 only for :class:`DamageError`.
    :param step: the name of the loader's step that refused (see ``loader/load_module.py``).
    :param slug: kebab-case name of the reason; each has a page in the docs.
    :param log: the lines that the kernel prints, in order.
    :param why: plain words: what is wrong with this file on this kernel.
    :param hint: what to do about it.
    :param details: the specifics: which symbols, words, sections, parameters.
    """

    errno: int
    step: str
    slug: str
    log: tuple[LogRecord, ...] = ()
    why: str = ""
    hint: str = ""
    details: tuple[Detail, ...] = ()


class KodojoError(Exception):
    """Base of all errors.

    :param message: one sentence that names the file or object and the cause.
    :param hint: the next step for the person who sees it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(cls: type[KodojoError], args: tuple[Any, ...], state: dict[str, Any]) -> KodojoError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class InputError(KodojoError):
    """What the user gave cannot be used."""


class ImageError(KodojoError):
    """A kernel image or package is broken, foreign or incomplete."""


class ModuleFileError(ImageError):
    """kmod cannot read a module's file, or finds no module in it."""

    def __init__(self, message: str, errno: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class PackageError(ImageError):
    """An archive is truncated, hostile or of an unknown kind."""


class MissingInformationError(ImageError):
    """The image lacks what the request needs."""


class StoreError(KodojoError):
    """The store or the machine's saved state on disk cannot be used."""


class CorruptError(StoreError):
    """A file in the store is not what was written there."""


class LoadError(KodojoError):
    """The kernel refuses a module.

    :param steps: what the loader did until then (:class:`kodojo.loader.steps.Step`), if somebody kept it.
    :param warnings: what to know about its file (``kodojo.Verdict.warnings``).
    :param file: of the module, if it came from one: where several are loaded, one that was needed may be refused.
    """

    def __init__(
        self,
        message: str,
        refusal: Refusal,
        steps: tuple[Any, ...] = (),
        warnings: tuple[str, ...] = (),
        *,
        file: str = "",
    ) -> None:
        super().__init__(message, hint=refusal.hint)
        self.refusal = refusal
        self.steps = steps
        self.warnings = warnings
        self.file = file

    @property
    def errno(self) -> int:
        return self.refusal.errno

    @property
    def log(self) -> tuple[LogRecord, ...]:
        return self.refusal.log

    @property
    def step(self) -> str:
        return self.refusal.step

    @property
    def slug(self) -> str:
        return self.refusal.slug

    @property
    def why(self) -> str:
        return self.refusal.why


class DamageError(LoadError):
    """The file would have damaged the kernel: it makes it read or write outside the image, or oops."""


class UnloadError(KodojoError):
    """The kernel refuses to remove a module."""

    def __init__(self, message: str, errno: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class GuestOSError(KodojoError):
    """A system call made on the user's behalf failed in the guest.

    :param found: what it had given until then.
    """

    def __init__(self, message: str, errno: int, *, hint: str = "", found: tuple[Any, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.found = found


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a backtrace: ``name+offset/size [module]`` at ``address``.

    :param reliable: found by unwinding; False for an address merely seen on the stack.
    """

    address: int
    symbol: str
    reliable: bool = True


@dataclass(frozen=True, slots=True)
class FaultReport:
    """What a fault or a hang looked like."""

    cause: str
    registers: dict[str, int] = field(default_factory=dict)
    backtrace: tuple[Frame, ...] = ()
    log: tuple[LogRecord, ...] = ()


class MachineError(KodojoError):
    """The emulated machine cannot go on."""


class UnmappedError(MachineError):
    """There is nothing at a virtual address of the guest."""


class DamagedMemoryError(MachineError):
    """What the kernel's memory says cannot be: a list that ends nowhere, a number that is too large.

    :param found: what could be read all the same.
    """

    def __init__(self, message: str, *, hint: str = "", found: tuple[Any, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.found = found


class MachineFault(MachineError):  # noqa: N818  a fault is what it is
    """Oops or panic in guest code.

    :param survived: only the task that did it died, as after most oopses; the machine goes on.
    """

    def __init__(self, message: str, report: FaultReport, *, hint: str = "", survived: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.report = report
        self.survived = survived

    @property
    def registers(self) -> dict[str, int]:
        return self.report.registers

    @property
    def backtrace(self) -> tuple[Frame, ...]:
        return self.report.backtrace

    @property
    def log(self) -> tuple[LogRecord, ...]:
        return self.report.log


class MachineHang(MachineFault):
    """Guest code did not come back within the limit."""


class UnmodelledError(KodojoError):
    """A situation that kodojo does not model yet."""
