"""What ``modinfo`` shows: a module's ``.modinfo``, and who signed it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import ModuleFileError, decode
from kodojo.image.payload import SUFFIXES, read_module
from kodojo.image.tree import modname
from kodojo.kmod.elf_parts import NotElfError, modinfo_section, modinfo_strings
from kodojo.kmod.signature import signature_rows

if TYPE_CHECKING:
    from kodojo.kmod.index import ModuleIndex

__all__ = ["Modinfo", "Parameter", "builtin_modinfo", "is_module_filename", "read_modinfo"]

_ENOENT, _ENOEXEC, _EINVAL = 2, 8, 22
_EI_NIDENT = 16
_BUILTIN = "(builtin)"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: what ``parm`` and ``parmtype`` say of it, None where there is no such entry."""

    name: str
    description: str | None = None
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Modinfo:
    """Facts about a module.

    :param filename: absolute; ``(builtin)`` for what is in the kernel.
    :param rows: (key, value) in the order of the file, duplicates included; then ``sig_id``, ``signer``, ``sig_key``,
        ``sig_hashalgo`` and ``signature`` of a signed one.
    """

    name: str
    filename: str
    rows: tuple[tuple[str, str], ...]

    @property
    def builtin(self) -> bool:
        return self.filename == _BUILTIN

    def values(self, key: str) -> list[str]:
        """All values of a tag; ``filename`` is one."""
        if key == "filename":
            return [self.filename]
        found = [value for name, value in self.rows if name == key]
        return [self.name, *found] if key == "name" and self.builtin else found

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters as modinfo orders them: the last that is mentioned comes first."""
        found: dict[str, Parameter] = {}
        for key, value in self.rows:
            name, colon, text = value.partition(":")
            if key not in ("parm", "parmtype") or not colon:
                continue
            known = found.get(name, Parameter(name))
            found[name] = (
                Parameter(name, text, known.type) if key == "parm" else Parameter(name, known.description, text)
            )
        return list(found.values())[::-1]

    @property
    def bad_parameters(self) -> list[tuple[str, str]]:
        """The ``parm`` and ``parmtype`` entries that lack their colon."""
        return [(key, value) for key, value in self.rows if key in ("parm", "parmtype") and ":" not in value]


def is_module_filename(name: str) -> bool:
    """Whether modinfo takes its argument for a file (``tools/modinfo.c: is_module_filename``)."""
    try:
        return name.endswith(SUFFIXES) and Path(name).is_file()
    except ValueError:  # a NUL in it
        return False


def read_modinfo(path: str | os.PathLike[str]) -> Modinfo:
    """Read the facts in a module's file, compressed or not.

    :raises InputError: it cannot be read.
    :raises ImageError: it is larger than any module; ModuleFileError: it is no module, or damaged.
    """
    name = os.fspath(path)
    data = read_module(name).module()
    try:
        section = modinfo_section(data)
    except NotElfError:
        raise _no_module(name, data) from None
    if section is None:
        what = f"{name}: not a kernel module: no section .modinfo"
        raise ModuleFileError(what, _ENOENT, hint="give the .ko file that kbuild makes, not a .o file")
    rows = [_row(entry) for entry in modinfo_strings(section)] + signature_rows(data)
    absolute = name if name.startswith("/") else f"{Path.cwd()}/{name}"  # with its dots, as modinfo has it
    return Modinfo(modname(name), absolute, tuple(rows))


def _no_module(name: str, data: bytes) -> ModuleFileError:
    """The error for what is no ELF file, or a damaged one (``libkmod/libkmod-elf.c: elf_identify, kmod_elf_new``)."""
    if len(data) <= _EI_NIDENT or not data.startswith(b"\x7fELF"):
        hint = "give the .ko file that kbuild makes"
        return ModuleFileError(f"{name}: not a kernel module: no ELF file", _ENOEXEC, hint=hint)
    return ModuleFileError(f"{name}: the ELF file is damaged", _EINVAL, hint="build it or fetch it again")


def builtin_modinfo(index: ModuleIndex, name: str) -> Modinfo:
    """The facts about a module that is built into the kernel (``modules.builtin.modinfo``)."""
    rows = tuple(_row(entry) for entry in index.builtin_modinfo(name))
    return Modinfo(name, _BUILTIN, rows)


def _row(entry: bytes) -> tuple[str, str]:
    key, _, value = decode(entry).partition("=")
    return key, value
