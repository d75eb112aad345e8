"""From what a distribution calls a kernel (``vmlinuz``) to the ELF file inside it.

The formats: the bzImage of Documentation/arch/x86/boot.rst, whose payload is a compressed vmlinux; a
vmlinux; a vmlinux that is compressed by itself. Those of other architectures are recognised and named.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from kodojo.errors import ImageError
from kodojo.image.compression import compression_of, decompress
from kodojo.image.elf import EM_X86_64, MACHINES

__all__ = ["SIZE_LIMIT", "Vmlinuz", "extract"]

SIZE_LIMIT = 512 << 20
"""No kernel is larger when decompressed; what claims to be, is damaged or hostile."""

_SETUP_HEADER = 0x1F1
_FIRST_WITH_PAYLOAD = 0x208  # boot protocol that introduced payload_offset
_PE_MACHINES = {
    0x14C: "i386",
    0x1C0: "arm",
    0x1C2: "arm",
    0x1C4: "arm",
    0x5032: "riscv32",
    0x5064: "riscv64",
    0x6232: "loongarch32",
    0x6264: "loongarch64",
    0x8664: "x86_64",
    0xAA64: "arm64",
}
_IMAGE_MAGICS = {b"ARM\x64": "arm64", b"RSC\x05": "riscv64"}
_HINT = "give the vmlinuz or vmlinux of an x86_64 kernel"

Data = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Vmlinuz:
    """A kernel, unpacked.

    :param elf: the vmlinux.
    :param setup_header: of the bzImage, from byte 0x1f1 on; empty if there was none.
    """

    elf: bytes
    setup_header: bytes
    architecture: str = "x86_64"


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
    return Vmlinuz(_checked_elf(view, name), b"")


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
        architecture = _foreign(view)
        if architecture:
            raise _other(name, architecture)
        if bytes(view[:2]) == b"MZ":
            raise ImageError(
                f"{name}: an EFI program, not a kernel",
                hint="if it is a unified kernel image, extract its kernel: objcopy -O binary "
                f"--only-section=.linux {name} vmlinuz",
            )
        raise ImageError(f"{name}: not a kernel: neither a bzImage nor an ELF file", hint=_HINT)
    if len(view) < 64:
        raise _truncated(name, 64, len(view))
    little = view[5] == 1
    machine = int.from_bytes(view[18:20], "little" if little else "big")
    if machine != EM_X86_64:
        raise _other(name, MACHINES.get(machine, f"ELF machine {machine}"))
    if view[4] != 2 or not little:
        raise _other(name, "x32")
    return bytes(view)


def _foreign(view: memoryview) -> str | None:
    """Name the architecture of a kernel that is no ELF file."""
    magic = bytes(view[0x38:0x3C])
    if magic in _IMAGE_MAGICS:
        return _IMAGE_MAGICS[magic]
    if len(view) >= 0x28 and _u32(view, 0x24) == 0x016F2818:
        return "arm"
    if bytes(view[:2]) == b"MZ" and len(view) >= 0x40:
        pe = _u32(view, 0x3C)
        if bytes(view[pe : pe + 4]) == b"PE\0\0" and pe + 6 <= len(view):
            machine = _u16(view, pe + 4)
            compressed = " (EFI zboot)" if bytes(view[4:8]) == b"zimg" else ""
            if compressed or machine != 0x8664:
                return _PE_MACHINES.get(machine, f"PE machine {machine:#x}") + compressed
    return None


def _other(name: str, architecture: str) -> ImageError:
    return ImageError(f"{name}: a kernel for {architecture}; kodojo runs x86_64 kernels", hint=_HINT)


def _truncated(name: str, expected: int, found: int) -> ImageError:
    return ImageError(
        f"{name}: truncated: it should have {expected} bytes or more and has {found}",
        hint="get the file again",
    )


def _u16(view: memoryview, offset: int) -> int:
    return int(struct.unpack_from("<H", view, offset)[0])


def _u32(view: memoryview, offset: int) -> int:
    return int(struct.unpack_from("<I", view, offset)[0])
