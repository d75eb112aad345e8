"""The architectures of kernels that modules are loaded into, and what has to be known of each.

Each has one name everywhere, the one that ``uname -m`` says on a running kernel of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodojo.errors import UnmodelledError
from kodojo.image.elf import ELF64_LE, FORMATS, MACHINES, Format

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kodojo.image.config import Config

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture_named",
    "architecture_of_config",
    "architecture_of_module",
    "describe_elf",
]


@dataclass(frozen=True)
class Architecture:
    """What is the same for all kernels of an architecture.

    :param name: as ``uname -m`` says.
    :param aliases: other names of it: the directory of the kernel's sources, what the build says (``UTS_MACHINE``),
        what distributions call it.
    :param options: all of them are set in the configuration of such a kernel, and of no other.
    :param machines: the ``e_machine`` that its ``elf_check_arch`` accepts.
    :param format: class and byte order of its kernels and modules.
    :param rela: do its modules have relocations with addends (``CONFIG_MODULES_USE_ELF_RELA``)?
    :param prel32: are its export tables self-relative in every configuration
        (``CONFIG_HAVE_ARCH_PREL32_RELOCATIONS``)? The configuration tells for the others.
    :param class_checked: does its ``elf_check_arch`` look at the class of a file, too?
    :param page_size: of kernels that do not say otherwise in their configuration.
    :param text: where the kernel's code begins, about.
    :param modules: where module memory is: first address, and the one behind the last.
    :param vmalloc: the first address of ordinary kernel memory.
    :param exception_entry: ``sizeof(struct exception_table_entry)``.
    """

    name: str
    aliases: tuple[str, ...]
    options: tuple[str, ...]
    machines: tuple[int, ...]
    format: Format
    text: int
    modules: tuple[int, int]
    vmalloc: int
    rela: bool = True
    prel32: bool = False
    class_checked: bool = False
    page_size: int = 4096
    exception_entry: int = 12

    @property
    def module_name_len(self) -> int:
        """``MODULE_NAME_LEN``: of the name in ``struct module``, its NUL included."""
        return 64 - self.format.word

    def __repr__(self) -> str:
        return f"<Architecture {self.name}>"


_ELF32_LE = FORMATS[1, 1]
_ELF64_BE = FORMATS[2, 2]

_ALL = (
    Architecture(
        "x86_64", ("amd64",), ("X86_64",), (62,), ELF64_LE, prel32=True,
        text=0xFFFFFFFF81000000, modules=(0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000), vmalloc=0xFFFFC90000000000,
    ),
    Architecture(
        "aarch64", ("arm64",), ("ARM64",), (183,), ELF64_LE, prel32=True,
        text=0xFFFF800008000000, modules=(0xFFFF800000000000, 0xFFFF800008000000), vmalloc=0xFFFF800010000000,
    ),
    Architecture(
        "i686", ("i386",), ("X86_32",), (3, 6), _ELF32_LE, rela=False, prel32=True,
        text=0xC1000000, modules=(0xF8000000, 0xFF000000), vmalloc=0xF0000000,
    ),
    Architecture(
        "armv7l", ("arm", "armhf"), ("ARM",), (40,), _ELF32_LE, rela=False, exception_entry=8,
        text=0xC0300000, modules=(0xBF000000, 0xBFE00000), vmalloc=0xF0800000,
    ),
    Architecture(
        "riscv64", ("riscv",), ("RISCV", "64BIT"), (243,), ELF64_LE, class_checked=True,
        text=0xFFFFFFFF80000000, modules=(0xFFFFFFFF02000000, 0xFFFFFFFF80000000), vmalloc=0xFFFFFFC800000000,
    ),
    Architecture(
        "ppc64le", ("powerpc64le", "ppc64el"), ("PPC64", "CPU_LITTLE_ENDIAN"), (21,), ELF64_LE,
        page_size=65536, exception_entry=8,
        text=0xC000000000000000, modules=(0xC008000000000000, 0xC009000000000000), vmalloc=0xC00A000000000000,
    ),
    Architecture(
        "s390x", ("s390",), ("S390",), (22, 0xA390), _ELF64_BE, class_checked=True,
        text=0x100000, modules=(0x3FF80000000, 0x40000000000), vmalloc=0x37F00000000,
    ),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {arch.name: arch for arch in _ALL}
"""By the name that ``uname -m`` says."""

_BY_ANY_NAME = {**{alias: arch for arch in _ALL for alias in arch.aliases}, **ARCHITECTURES}


def architecture_named(name: str) -> Architecture:
    """The architecture with that name, or one of its aliases.

    :raises UnmodelledError: kodojo does not know its modules.
    """
    try:
        return _BY_ANY_NAME[name]
    except KeyError:
        raise UnmodelledError(f"modules for {name} are not modelled yet") from None


def architecture_of_config(config: Config) -> Architecture | None:
    """The architecture that a configuration is for; None if it is none of those that kodojo knows."""
    return next((arch for arch in _ALL if all(map(config.enabled, arch.options))), None)


def architecture_of_module(data: bytes) -> Architecture | None:
    """The architecture that an ELF file is for; None if it is none of those that kodojo knows."""
    found = FORMATS.get((data[4], data[5])) if len(data) >= 20 and data[:4] == b"\x7fELF" else None
    if found is None:
        return None
    machine = int.from_bytes(data[18:20], found.byteorder)
    return next((arch for arch in _ALL if machine in arch.machines and arch.format == found), None)


def describe_elf(data: bytes) -> str:
    """What an ELF file is for, in words, whether kodojo knows it or not."""
    known = architecture_of_module(data)
    if known is not None:
        return known.name
    found = FORMATS.get((data[4], data[5]), ELF64_LE)
    machine = int.from_bytes(data[18:20], found.byteorder)
    name = MACHINES.get(machine, f"machine {machine}")
    return f"{name} ({found.bits} bits, {found.byteorder}-endian)"
