"""Modules by the ELF writer that a kernel takes for its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kodojo.image.image import Image
from tests.support.elf_writer import ALLOC, EXEC, ElfWriter, module_writer

__all__ = ["MACHINES", "distance", "module_for", "pointer"]

MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
# Relocations: a 64-bit address; 32 bits relative to the place
_POINTERS, _DISTANCES = {62: 1, 183: 257}, {62: 2, 183: 261}
_RETURN = {"aarch64": bytes.fromhex("c0035fd6")}
# What kbuild's linker script adds for arm64 (arch/arm64/include/asm/module.lds.h), of one byte each.
_ADDED = {"aarch64": (".plt", ".init.plt", ".text.ftrace_trampoline", ".init.text.ftrace_trampoline")}


def module_for(
    image: Image,
    *,
    name: str = "paper",
    info: Mapping[str, str | Iterable[str] | None] | None = None,
    crcs: Iterable[str] = ("module_layout",),
) -> ElfWriter:
    """:func:`tests.support.elf_writer.module_writer` for a kernel.

    :param crcs: the kernel's symbols whose checksums are in ``__versions``.
    """
    writer = module_writer(
        name=name,
        struct_size=image.btf.struct("module").size,
        info={"vermagic": image.vermagic} | dict(info or {}),
        crcs={symbol: image.exports.get(symbol).crc for symbol in crcs},
    )
    writer.header["e_machine"] = MACHINES[image.architecture]
    back = _RETURN.get(image.architecture)
    if back:
        for section in map(writer.section, (".text", ".init.text")):
            section.data = back * (len(section.data) // len(back))
    for added in _ADDED.get(image.architecture, ()):
        writer.add(added, b"\0", ALLOC | EXEC)
    return writer


def pointer(writer: ElfWriter) -> int:
    """The type of relocation that enters an address."""
    return _POINTERS[writer.header["e_machine"]]


def distance(writer: ElfWriter) -> int:
    """The type of relocation that enters how far it is from there, in 32 bits."""
    return _DISTANCES[writer.header["e_machine"]]
