"""From what a distribution calls a kernel (``vmlinuz``) to the ELF file inside it.

The formats: the bzImage of Documentation/arch/x86/boot.rst, whose payload is a compressed vmlinux; the boot images of
other architectures (``boot_images.py``), as they are, compressed (``Image.gz``), or as the payload of an EFI program
that unpacks them (``vmlinuz.efi``); a vmlinux, compressed or not. Those of further architectures are named.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

import numpy as np

from kodojo.errors import ImageError, decode
from kodojo.image.architecture import ARCHITECTURES, architecture_of_module
from kodojo.image.boot_images import elf_of_boot_image
from kodojo.image.compression import compression_of, decompress
from kodojo.image.elf import ELF64_LE, EM_X86_64, MACHINES, ElfFile

__all__ = ["SIZE_LIMIT", "Vmlinuz", "extract"]

SIZE_LIMIT = 512 << 20
"""No kernel is larger when decompressed; what claims to be, is damaged or hostile."""

_SETUP_HEADER = 0x1F1
_FIRST_WITH_PAYLOAD = 0x208  # boot protocol that introduced payload_offset
_PE_MACHINES = {
    0x14C: "i686",
    0x1C0: "armv7l",
    0x1C2: "armv7l",
    0x1C4: "armv7l",
    0x5032: "riscv32",
    0x5064: "riscv64",
    0x6232: "loongarch32",
    0x6264: "loongarch64",
    0x8664: "x86_64",
    0xAA64: "aarch64",
}
_R_PPC64_RELATIVE = 22
_ZBOOT = struct.Struct("<4s4sII8x32s")  # include/linux/pe.h: the MS-DOS stub of a zboot image
_HINT = f"give the vmlinuz or vmlinux of a kernel ({', '.join(ARCHITECTURES)}), or its package"

Data = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Vmlinuz:
    """A kernel, unpacked.

    :param elf: the vmlinux.
    :param setup_header: of the bzImage, from byte 0x1f1 on; empty if there was none.
    """

    elf: bytes
    setup_header: bytes


def extract(data: Data, name: str) -> Vmlinuz:
    """Return the kernel that is in a file.

    :param name: what messages call the file.
    :raises ImageError: no kernel, one of another architecture, truncated, or badly compressed.
    """
    view = memoryview(data)
    if bytes(view[0x202:0x206]) == b"HdrS":
        return _from_bzimage(view, name)
    kind = compression_of(view)
    if kind:
        view = memoryview(decompress(view, kind, SIZE_LIMIT, name))
    view = _without_zboot(view, name)
    if _pe_architecture(view) == "riscv32":  # its Image has the same header as that of riscv64
        raise _other(name, "riscv32")
    return Vmlinuz(elf_of_boot_image(view, name) or _checked_elf(view, name), b"")


def _without_zboot(view: memoryview, name: str) -> memoryview:
    """The payload of an EFI zboot image (drivers/firmware/efi/libstub/zboot-header.S); what is none, as it is."""
    if len(view) < _ZBOOT.size or bytes(view[:2]) != b"MZ" or bytes(view[4:8]) != b"zimg":
        return view
    _, _, start, size, kind = _ZBOOT.unpack_from(view)
    if start + size > len(view):
        raise _truncated(name, start + size, len(view))
    unpacked = decompress(view[start : start + size], decode(kind.rstrip(b"\0")), SIZE_LIMIT, name)
    return memoryview(unpacked)


def _from_bzimage(view: memoryview, name: str) -> Vmlinuz:
    if len(view) < 0x250:
        raise _truncated(name, 0x250, len(view))
    version = _u16(view, 0x206)
    if version < _FIRST_WITH_PAYLOAD:
        raise ImageError(
            f"{name}: a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}, which does not say "
            "where its kernel is (2.08 is the oldest that does)",
            hint=_HINT,
        )
    start = ((view[0x1F1] or 4) + 1) * 512 + _u32(view, 0x248)
    length = _u32(view, 0x24C)
    if start + length > len(view):
        raise _truncated(name, start + length, len(view))
    payload = view[start : start + length]
    kind = compression_of(payload)
    elf = memoryview(decompress(payload, kind, SIZE_LIMIT, name)) if kind else payload
    if not kind and bytes(payload[:4]) != b"\x7fELF":
        raise ImageError(f"{name}: its payload is compressed in an unknown way ({bytes(payload[:4]).hex(' ')})")
    header_end = min(0x202 + view[0x201], 0x290)
    return Vmlinuz(_checked_elf(elf, name), bytes(view[_SETUP_HEADER:header_end]))


def _checked_elf(view: memoryview, name: str) -> bytes:
    if bytes(view[:4]) != b"\x7fELF":
        architecture = _pe_architecture(view)
        if architecture is not None and architecture not in ARCHITECTURES:
            raise _other(name, architecture)
        if architecture is not None or bytes(view[:2]) == b"MZ":
            raise ImageError(
                f"{name}: an EFI program, not a kernel",
                hint="if it is a unified kernel image, extract its kernel: objcopy -O binary "
                f"--only-section=.linux {name} vmlinuz",
            )
        raise ImageError(f"{name}: not a kernel: neither a boot image nor an ELF file", hint=_HINT)
    if len(view) < 64:
        raise _truncated(name, 64, len(view))
    little = view[5] == 1
    machine = int.from_bytes(view[18:20], "little" if little else "big")
    known = architecture_of_module(bytes(view[:64]))
    if known is None:
        raise _other(name, "x32" if machine == EM_X86_64 else MACHINES.get(machine, f"ELF machine {machine}"))
    return _at_link_address(view, name) if known.name == "ppc64le" else bytes(view)


def _at_link_address(view: memoryview, name: str) -> bytes:
    """Store the pointers that a relocatable kernel has in a table only, as if it ran where it was linked."""
    elf = ElfFile(view, name)
    if ".rela.dyn" not in elf.sections:
        return bytes(view)
    entries = np.frombuffer(elf.section_data(".rela.dyn"), ELF64_LE.rela)
    entries = entries[entries["r_info"] == _R_PPC64_RELATIVE]
    kernel = bytearray(view)
    for segment in elf.segments:
        places = (entries["r_offset"] - np.uint64(segment.vaddr)).view(np.int64)
        inside = (places >= 0) & (places <= segment.filesz - 8)
        where = places[inside] + segment.offset
        octets = entries["r_addend"][inside].astype("<i8").view(np.uint8).reshape(-1, 8)
        np.frombuffer(kernel, np.uint8)[where[:, np.newaxis] + np.arange(8)] = octets
    return bytes(kernel)


def _pe_architecture(view: memoryview) -> str | None:
    """The architecture that an EFI program is for; None if it is none."""
    if bytes(view[:2]) != b"MZ" or len(view) < 0x40:
        return None
    pe = _u32(view, 0x3C)
    if bytes(view[pe : pe + 4]) != b"PE\0\0" or pe + 6 > len(view):
        return None
    machine = _u16(view, pe + 4)
    return _PE_MACHINES.get(machine, f"PE machine {machine:#x}")


def _other(name: str, architecture: str) -> ImageError:
    return ImageError(f"{name}: a kernel for {architecture}, whose modules kodojo does not know", hint=_HINT)


def _truncated(name: str, expected: int, found: int) -> ImageError:
    return ImageError(
        f"{name}: truncated: it should have {expected} bytes or more and has {found}",
        hint="get the file again",
    )


def _u16(view: memoryview, offset: int) -> int:
    return int(struct.unpack_from("<H", view, offset)[0])


def _u32(view: memoryview, offset: int) -> int:
    return int(struct.unpack_from("<I", view, offset)[0])
