"""The kernel's own symbols, from System.map or Module.symvers: what ``depmod -e`` holds against the modules."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.errors import InputError, decode

__all__ = ["KernelSymbols"]

_LARGEST = 64 << 20  # bytes; a System.map has some 10 MiB
_MOST_PROBLEMS = 1000
_FAKE = (b"__this_module", b"_GLOBAL_OFFSET_TABLE_", b"TOC.")  # made by loaders, or by the linker
_NUMBER = re.compile(rb"[+-]?(0[xX])?[0-9a-fA-F]*")


@dataclass
class KernelSymbols:
    """Symbols that no module has to export.

    :param crcs: by name; 0 where it is not known. :param problems: lines that were not understood, in kmod's words.
    """

    crcs: dict[bytes, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def from_symvers(cls, path: Path, prefix: bytes = b"") -> KernelSymbols:
        """The kernel's lines of a ``Module.symvers`` (``depmod_load_symvers``).

        :param prefix: a character that symbols begin with on some architectures (``-P``).
        :raises InputError: it cannot be read.
        """
        found = cls()
        for number, line in enumerate(_lines(path), 1):
            words = [word for word in re.split(rb"[ \t]+", line) if word]
            if len(words) < 3 or words[2] != b"vmlinux":
                continue
            if _NUMBER.fullmatch(words[0]) is None:
                found._complain(f"{path}:{number} Invalid symbol version {decode(words[0])}: Success")
                continue
            found.crcs[_unprefixed(words[1], prefix)] = int(words[0].removeprefix(b"0x") or b"0", 16)
        return found._with_fakes()

    @classmethod
    def from_system_map(cls, path: Path, prefix: bytes = b"") -> KernelSymbols:
        """What a ``System.map`` shows to be exported (``depmod_load_system_map``).

        :raises InputError: it cannot be read.
        """
        found = cls()
        for number, line in enumerate(_lines(path), 1):
            words = line.split(b" ", 2)
            if len(words) < 3:
                found._complain(f"{path}:{number}: invalid line: {decode(line)}")
                continue
            name = _unprefixed(words[2], prefix)
            if name.startswith(b"__ksymtab_"):
                found.crcs[name.removeprefix(b"__ksymtab_")] = 0
        return found._with_fakes()

    def _complain(self, problem: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)

    def _with_fakes(self) -> KernelSymbols:
        self.crcs |= dict.fromkeys(_FAKE, 0)
        return self


def _unprefixed(name: bytes, prefix: bytes) -> bytes:
    return name[1:] if prefix and name.startswith(prefix) else name


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"could not load {path}: {error.strerror or error}") from error
    if len(data) > _LARGEST:
        hint = "give the System.map or Module.symvers of a kernel"
        raise InputError(f"could not load {path}: larger than {_LARGEST >> 20} MiB", hint=hint)
    return (line.removesuffix(b"\n") for line in io.BytesIO(data))
