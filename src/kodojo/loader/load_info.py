"""What is known so far about the image that is being loaded: ``struct load_info`` of the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import DamageError, decode
from kodojo.image.elf import EHDR, ELF64_LE, SHDR, Format
from kodojo.loader.refusal import BUILD_AGAIN, STRIPPED, refuse, would_damage
from kodojo.loader.steps import Steps
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from kodojo.image.image import Image
    from kodojo.loader.target import Region, Target

__all__ = [
    "MODULE_INIT_COMPRESSED_FILE",
    "MODULE_INIT_IGNORE_MODVERSIONS",
    "MODULE_INIT_IGNORE_VERMAGIC",
    "NAMELESS",
    "SHF_ALLOC",
    "SHT_NOBITS",
    "SHT_NULL",
    "SHT_SYMTAB",
    "Index",
    "LoadInfo",
    "rewrite_section_headers",
    "setup_load_info",
]

MODULE_INIT_IGNORE_MODVERSIONS = 1
MODULE_INIT_IGNORE_VERMAGIC = 2
MODULE_INIT_COMPRESSED_FILE = 4

SHT_NULL = 0
SHT_SYMTAB = 2
SHT_NOBITS = 8
SHF_ALLOC = 2

NAMELESS = "(missing .modinfo section or name field)"


@dataclass(slots=True)
class Index:
    """Indices of the sections that the loader needs; 0 where there is none."""

    sym: int = 0
    str: int = 0
    mod: int = 0
    vers: int = 0
    info: int = 0
    pcpu: int = 0


@dataclass(slots=True, eq=False)
class LoadInfo:
    """``struct load_info``: the temporary copy of the image, and what the stages learned about it.

    Whatever is read from the file is bounded by the file: the kernel would read what happens to lie behind
    its copy, and often oops; here that is a :class:`~kodojo.errors.DamageError`.

    :param data: the temporary copy: as it came, and after the layout with what the kernel has changed in it.
    :param address: of the temporary copy in the kernel.
    :param flags: of finit_module.
    :param format: of ELF files as the kernel reads them, whatever the file itself is.
    :param length: ``info->len``; less than ``len(data)`` once a signature has been cut off.
    :param header: the ELF header, a record of ``format.ehdr``.
    :param sechdrs: the section headers, an array of ``format.shdr``; the stages change them as the C code does.
    :param name_offset: of ``info->name`` in the file: in .modinfo, or else in struct module; None: not known (yet).
    :param module_name: the name in struct module, which is the module's real name.
    :param symoffs: with ``stroffs`` and ``core_typeoffs``: where the symbols that stay will be (CORE, DATA).
    :param mod_kallsyms_init_off: with ``init_typeoffs``: where all symbols are during init (INIT, INIT_DATA).
    :param placement: section index -> its region and its offset there, after the layout.
    :param sorted_from: relocation sections that the architecture has sorted: the numbers that the entries had before.
    :param symbols: the symbol table, an array of ``format.sym``; a part of its region after the layout.
    :param version_crcs: the contents of ``__versions``; kept by :mod:`kodojo.loader.version`.
    :param steps: the record of this load; it says what a refusal means for what comes after it.
    """

    data: bytes
    address: int = 0
    flags: int = 0
    length: int = -1
    sig_ok: bool = False
    format: Format = ELF64_LE
    header: np.void = field(default_factory=lambda: np.zeros(1, EHDR)[0])
    sechdrs: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, SHDR))
    secstrings: int = 0
    index: Index = field(default_factory=Index)
    name_offset: int | None = None
    module_name: bytes = b""
    symoffs: int = 0
    stroffs: int = 0
    init_typeoffs: int = 0
    core_typeoffs: int = 0
    mod_kallsyms_init_off: int = 0
    placement: dict[int, tuple[Region, int]] = field(default_factory=dict)
    sorted_from: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    version_crcs: dict[bytes, int] | None = None
    steps: Steps = field(default_factory=Steps)
    _symbols: NDArray[np.void] | None = None
    _by_name: dict[bytes, list[int]] = field(default_factory=dict)
    _outside: list[int] = field(default_factory=list)
    _section_names: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.length < 0:
            self.length = len(self.data)

    @property
    def name(self) -> bytes | None:
        """``info->name``, used in early messages only. DamageError if its end is not in the file.

        Like the kernel, nobody looks at it before there is something to be said.
        """
        return None if self.name_offset is None else self.string(self.name_offset, "the name")

    @property
    def label(self) -> str:
        """A name for messages, as long as there may be none. DamageError if its end is not in the file."""
        name = self.name
        return NAMELESS if name is None else decode(name)

    @property
    def name_in_file(self) -> str:
        """The name as far as it is in the file, for what is not the kernel's own text."""
        if self.name_offset is None:
            return NAMELESS
        return decode(self.data[self.name_offset :].partition(b"\0")[0])

    # -- sections -----------------------------------------------------------------------------------
    def section_name(self, index: int) -> bytes:
        """The name of a section. DamageError if it is outside the file."""
        name = self.section_names()[index]
        if name is None:
            raise self.damage(f"the name of section {index} is outside the file")
        return name

    def section_names(self) -> list[bytes | None]:
        """All names; None for those that are outside the file."""
        if not self._section_names:
            self._section_names = [self._name_at(offset) for offset in self.sechdrs["sh_name"].tolist()]
            for index, name in enumerate(self._section_names[1:], 1):
                if name is None:
                    self._outside.append(index)
                else:
                    self._by_name.setdefault(name, []).append(index)
        return self._section_names

    def section_file_data(self, index: int) -> memoryview:
        """The bytes of a section in the file. DamageError if they are not all in the file."""
        section = self.sechdrs[index]
        start, size = int(section["sh_offset"]), int(section["sh_size"])
        if start + size > len(self.data):
            raise self.damage(f"the contents of section {index} are not in the file")
        return memoryview(self.data)[start : start + size]

    def find_sec(self, name: bytes) -> int:
        """The first section of that name that has SHF_ALLOC now; 0 if there is none.

        Source: ``kernel/module/main.c: find_sec``.
        """
        if not self._section_names:
            self.section_names()
        named = self._by_name.get(name)
        if not named:  # most that are looked for are not there
            if not self._outside:
                return 0
            named = []
        flags = self.sechdrs["sh_flags"]
        found = next((i for i in named if int(flags[i]) & SHF_ALLOC), 0)
        self._check_compared(i for i in self._outside if int(flags[i]) & SHF_ALLOC and not 0 < found < i)
        return found

    def find_any_sec(self, name: bytes) -> int:
        """The first section of that name, loaded or not; 0 if there is none (``find_any_sec``)."""
        self.section_names()
        found = self._by_name.get(name, [0])[0]
        self._check_compared(i for i in self._outside if not 0 < found < i)
        return found

    def find_any_unique_sec(self, name: bytes) -> int:
        """The section of that name, 0 if there is none, minus their number if there are several."""
        self.section_names()
        self._check_compared(self._outside)
        found = self._by_name.get(name, [])
        return -len(found) if len(found) > 1 else sum(found)

    def _check_compared(self, indices: Iterable[int]) -> None:
        """A name that is outside the file and that the kernel compares with another."""
        for index in indices:
            self.section_name(index)

    def section_objs(self, name: bytes, object_size: int) -> tuple[int, int]:
        """Address and number of the objects in a loaded section; (0, 0) without it (``section_objs``)."""
        section = self.sechdrs[self.find_sec(name)]
        return int(section["sh_addr"]), int(section["sh_size"]) // object_size

    def _name_at(self, offset: int) -> bytes | None:
        start = self.secstrings + offset
        end = self.data.find(b"\0", start)
        return None if end < 0 else self.data[start:end]

    def struct_member(self, image: Image, path: str) -> int:
        """A member of struct module as the file has it; 0 in all but damaged files."""
        struct = struct_module(image)
        if not self.index.mod or not struct.has(path.partition(".")[0].partition("[")[0]):
            return 0
        member = struct.field(path)
        start = int(self.sechdrs["sh_offset"][self.index.mod]) + member.offset
        return int.from_bytes(self.data[start : start + member.size], self.format.byteorder)

    # -- .modinfo -----------------------------------------------------------------------------------
    def get_modinfo(self, tag: bytes) -> bytes | None:
        """The value of the first ``tag=value``, None if there is none (``main.c: get_modinfo``)."""
        start = self.get_next_modinfo(tag, None)
        return None if start is None else self.string(start, "a .modinfo value")

    def has_modinfo(self, tag: bytes) -> bool:
        """Whether there is a ``tag=value``; the value is not looked at, wherever it ends."""
        return self.get_next_modinfo(tag, None) is not None

    def modinfo_values(self, tag: bytes) -> list[bytes]:
        """The values of all ``tag=value``, in order."""
        values = []
        start = self.get_next_modinfo(tag, None)
        while start is not None:
            values.append(self.string(start, "a .modinfo value"))
            start = self.get_next_modinfo(tag, start)
        return values

    def get_next_modinfo(self, tag: bytes, prev: int | None) -> int | None:
        """The offset in the file of the value of the next ``tag=value``; None if there is none.

        The section need not end with a NUL: what begins in it counts, wherever it ends. Without the section
        the kernel looks where section 0 is said to be, and so does this.

        :param prev: what this returned before.
        """
        section = self.sechdrs[self.index.info]
        start = int(section["sh_offset"])
        end = start + max(int(section["sh_size"]), 1)  # the first byte is looked at in any case
        pattern = tag + b"="
        if prev is None:
            if self.data.startswith(pattern, start):
                return start + len(pattern)
            prev = last = start
        else:
            last = end  # the entry that prev is in has been seen
            if prev > end:
                end = len(self.data) + 1  # the kernel's counter of what is left has wrapped around
        found = self.data.find(b"\0" + pattern, prev, end - 2 + len(pattern) + 1)
        if found >= 0:
            return found + 1 + len(pattern)
        last = self.data.rfind(b"\0", prev, end) + 1 or last
        if end > len(self.data) or (last < end and self._leaves_file(pattern, last)):
            raise self.damage(".modinfo has no end in the file")
        return None

    def _leaves_file(self, pattern: bytes, start: int) -> bool:
        """Whether comparing the last entry with the pattern goes on behind the end of the file."""
        rest = self.data[start : start + len(pattern)]
        return len(rest) < len(pattern) and pattern.startswith(rest)

    # -- symbols ------------------------------------------------------------------------------------
    @property
    def symbols(self) -> NDArray[np.void]:
        """The symbol table. As long as it has no place in the module: a copy of its own."""
        if self._symbols is None:
            content = self.section_file_data(self.index.sym)
            kind = self.format.sym
            self._symbols = np.frombuffer(bytes(content), kind, len(content) // kind.itemsize).copy()
        return self._symbols

    @symbols.setter
    def symbols(self, table: NDArray[np.void]) -> None:
        self._symbols = table

    def store_symbols(self) -> None:
        """Write a changed symbol table back into the temporary copy, as long as that is where it is."""
        self.overwrite(int(self.sechdrs["sh_offset"][self.index.sym]), self.symbols.tobytes())

    @property
    def strtab(self) -> int:
        """The offset of the symbols' names in the file (``info->strtab``)."""
        return int(self.sechdrs["sh_offset"][self.index.str])

    def symbol_name(self, index: int) -> bytes:
        """The name of a symbol, from the temporary copy. DamageError if it is outside the file."""
        return self.string(self.strtab + int(self.symbols["st_name"][index]), f"the name of symbol {index}")

    def symbol_names(self, indices: NDArray[np.intp]) -> Iterator[bytes]:
        """:meth:`symbol_name` of each, in turn."""
        start, data = self.strtab, self.data
        for index, offset in zip(indices.tolist(), self.symbols["st_name"][indices].tolist(), strict=True):
            end = data.find(b"\0", start + offset)
            yield data[start + offset : end] if end >= 0 else self.symbol_name(index)

    # -- bytes --------------------------------------------------------------------------------------
    def overwrite(self, start: int, content: bytes) -> None:
        """Change the temporary copy."""
        end = start + len(content)
        if self.data[start:end] != content:
            self.data = self.data[:start] + content + self.data[end:]

    def string(self, start: int, what: str) -> bytes:
        """A C string in the file. DamageError if it is not in the file, or has no end there."""
        end = self.data.find(b"\0", start)
        if start > len(self.data) or end < 0:
            raise self.damage(f"{what} is outside the file")
        return self.data[start:end]

    def damage(self, why: str) -> DamageError:
        """The error for a file that makes the kernel read outside it."""
        return would_damage(self.name_in_file, why)


def setup_load_info(target: Target, info: LoadInfo) -> None:
    """Find the sections that the loader needs, and the module's names.

    Where the ELF checks have found them already (6.12), only what is missing is looked for.
    Source: ``kernel/module/main.c: setup_load_info``, ``elf_validity_cache_copy``.
    """
    if not info.index.mod:
        _find_sections(target, info)
    # Of struct module only this is the same in all kernels: state, list, name.
    start = int(info.sechdrs["sh_offset"][info.index.mod]) + 3 * info.format.word
    info.module_name = info.string(start, "the name in struct module")
    if info.name_offset is None:
        info.name_offset = start
    ignored = info.flags & MODULE_INIT_IGNORE_MODVERSIONS
    info.index.vers = 0 if ignored else info.find_sec(b"__versions")
    info.index.pcpu = info.find_sec(b".data..percpu") if target.image.config.enabled("SMP") else 0


def _find_sections(target: Target, info: LoadInfo) -> None:
    info.index.info = info.find_sec(b".modinfo")
    if info.index.info:
        info.name_offset = info.get_next_modinfo(b"name", None)
    tables = np.flatnonzero(info.sechdrs["sh_type"][1:] == SHT_SYMTAB)
    if not len(tables):
        target.printk(4, f"{info.label}: module has no symbols (stripped?)")
        raise refuse(
            info.label,
            Errno.ENOEXEC,
            "no-symbols",
            "the file has no symbol table",
            STRIPPED,
        )
    info.index.sym = int(tables[0]) + 1
    info.index.str = int(info.sechdrs["sh_link"][info.index.sym])
    info.index.mod = info.find_sec(b".gnu.linkonce.this_module")
    if not info.index.mod:
        target.printk(4, f"{info.label}: No module found in object")
        raise refuse(
            info.label,
            Errno.ENOEXEC,
            "no-this-module",
            "the file has no section .gnu.linkonce.this_module to be loaded: it is an object file, no module",
            "Give the .ko file that kbuild links, not a .o file. " + BUILD_AGAIN,
        )


def rewrite_section_headers(info: LoadInfo) -> None:
    """Give every section the address of its copy, and drop what is not to be loaded.

    With MODULE_INIT_IGNORE_MODVERSIONS ``__versions`` is not known, and so it stays and is loaded.
    Source: ``kernel/module/main.c: rewrite_section_headers``.
    """
    sechdrs = info.sechdrs
    mask = info.format.mask
    sechdrs["sh_addr"] = (sechdrs["sh_offset"] + np.uint64(info.address & mask)) & np.uint64(mask)
    sechdrs["sh_addr"][0] = 0
    for index in (info.index.vers, info.index.info):
        sechdrs["sh_flags"][index] &= np.uint64(mask ^ SHF_ALLOC)
