"""What boot loaders of other processors than x86 start: headers before a kernel, or around a compressed one.

The ``Image`` of Documentation/arch/arm64/booting.rst and Documentation/arch/riscv/boot-image-header.rst, the
``zImage`` of arch/arm/boot/compressed, the ``bzImage`` of arch/s390/boot. In all of them is a flat kernel.
"""

from __future__ import annotations

import struct

import numpy as np

from kodojo.errors import ImageError
from kodojo.image.architecture import ARCHITECTURES
from kodojo.image.compression import decompress, find_compressed
from kodojo.image.flat_kernel import FlatKernel, Pointers, elf_of_flat_kernel

__all__ = ["elf_of_boot_image"]

_LARGEST = 512 << 20
_BANNER = b"Linux version "
_LONG_MAGICS = ("xz", "lzo", "lz4", "zstd")  # seldom there by chance
_MAGIC_AT = 0x38
_ARM64, _RISCV, _RISCV_OLD = b"ARM\x64", b"RSC\x05", b"RISCV\0\0\0"
_IMAGE = struct.Struct("<8xQQQ")  # text_offset, image_size, flags
_IMAGE_SIZE = 64
_BIG_ENDIAN = 1
_PE_BASE_OF_CODE = 0x2C
_SEGMENT_ALIGN = 0x10000  # of arm64

_ZIMAGE_MAGIC, _ZIMAGE_TABLE_MAGIC, _ZIMAGE_TAG = 0x016F2818, 0x45454545, 0x5A534C4B
_ZIMAGE = struct.Struct("<IIIIII")  # magic, start, end, byte order, magic of the table, where the table is
_ZIMAGE_AT = 0x24
_ZIMAGE_ORDER = 0x04030201

_S390_AT, _S390_MAGIC = 0x10008, b"S390EP"

_S390_PAGE = 4096
_R_390_WITH_SYMBOL = (10, 11, 22)  # GLOB_DAT, JMP_SLOT, 64

_R_AARCH64_RELATIVE, _R_RISCV_RELATIVE, _R_390_RELATIVE, _R_ARM_RELATIVE = 0x403, 3, 12, 23


def elf_of_boot_image(view: memoryview, name: str) -> bytes | None:
    """Return the kernel in a boot image as an ELF file; None if it is none of those that are known.

    :param view: not compressed as a whole.
    :param name: what messages call the file.
    :raises ImageError: truncated, damaged, or of an unknown form.
    """
    magic = bytes(view[_MAGIC_AT : _MAGIC_AT + 4])
    if magic in (_ARM64, _RISCV):
        return _from_image(view, name, riscv=magic == _RISCV)
    if len(view) >= _ZIMAGE_AT + 4 and struct.unpack_from("<I", view, _ZIMAGE_AT)[0] == _ZIMAGE_MAGIC:
        return _from_zimage(view, name)
    if bytes(view[_S390_AT : _S390_AT + len(_S390_MAGIC)]) == _S390_MAGIC:
        return _from_s390(view, name)
    return None


def _from_image(view: memoryview, name: str, *, riscv: bool) -> bytes:
    if len(view) < _IMAGE_SIZE:
        raise ImageError(f"{name}: truncated: it should have {_IMAGE_SIZE} bytes or more and has {len(view)}")
    architecture = ARCHITECTURES["riscv64" if riscv else "aarch64"]
    text_offset, size, flags = _IMAGE.unpack_from(view)
    if flags & _BIG_ENDIAN:
        raise ImageError(f"{name}: a big-endian {architecture.name} kernel", hint="give a little-endian one")
    if text_offset + size > _LARGEST:
        raise ImageError(f"{name}: damaged: it says that it takes {text_offset + size} bytes of memory")
    if riscv:
        kernel = FlatKernel(architecture, _R_RISCV_RELATIVE, ((b"_start", 0),), 0x1000, None, text_offset, size)
    else:
        landmarks = ((b"_stext", _start_of_code(view)),)
        kernel = FlatKernel(architecture, _R_AARCH64_RELATIVE, landmarks, _SEGMENT_ALIGN, None, text_offset, size)
    return elf_of_flat_kernel(view, kernel, name)


def _start_of_code(image: memoryview) -> int:
    """How far ``_stext`` is behind the first byte: what the PE header says, if there is one."""
    pe = int.from_bytes(image[0x3C:0x40], "little")
    if bytes(image[pe : pe + 4]) == b"PE\0\0" and pe + _PE_BASE_OF_CODE + 4 <= len(image):
        return int.from_bytes(image[pe + _PE_BASE_OF_CODE : pe + _PE_BASE_OF_CODE + 4], "little")
    return _SEGMENT_ALIGN


def _from_zimage(view: memoryview, name: str) -> bytes:
    """The decompressor says where the compressed kernel ends (the tag ``KLSZ``): with its size."""
    if len(view) < _ZIMAGE_AT + _ZIMAGE.size:
        raise ImageError(f"{name}: truncated: an ARM zImage without its header", hint="get the file again")
    _, start, end, order, table_magic, table = _ZIMAGE.unpack_from(view, _ZIMAGE_AT)
    if order != _ZIMAGE_ORDER:
        raise ImageError(f"{name}: a big-endian ARM kernel", hint="give a little-endian one")
    if end - start > len(view):
        raise ImageError(
            f"{name}: truncated: it should have {end - start} bytes or more and has {len(view)}",
            hint="get the file again",
        )
    end, size, bss, text_offset = len(view), None, 0, 0
    if table_magic == _ZIMAGE_TABLE_MAGIC and table + 24 <= len(view):
        count, tag, size_at, bss, text_offset, _ = struct.unpack_from("<6I", view, table)
        if tag == _ZIMAGE_TAG and count >= 4 and size_at + 4 <= len(view):  # since Linux 4.15
            end, size = size_at + 4, struct.unpack_from("<I", view, size_at)[0]
    content = _payload(view[:end], size, name)
    kernel = FlatKernel(ARCHITECTURES["armv7l"], _R_ARM_RELATIVE, (), 0x1000, None, text_offset, len(content) + bss)
    return elf_of_flat_kernel(content, kernel, name)


def _from_s390(view: memoryview, name: str) -> bytes:
    """The decompressor has no table of its parts; one of the last ones is the compressed kernel."""
    content = _payload(view, None, name)
    architecture, landmarks = ARCHITECTURES["s390x"], ((b"_stext", 0),)
    info = _vmlinux_info(view, len(content))
    if info is None:  # since Linux 6.10 its pointers are in place
        return elf_of_flat_kernel(content, FlatKernel(architecture, _R_390_RELATIVE, landmarks, _S390_PAGE), name)
    link, bss = info[0], info[3]
    kernel = FlatKernel(architecture, _R_390_RELATIVE, landmarks, _S390_PAGE, link, link, len(content) + bss)
    return elf_of_flat_kernel(content, kernel, name, _s390_pointers(content, link, *info[8:11]))


def _vmlinux_info(view: memoryview, size: int) -> tuple[int, ...] | None:
    """The decompressor's ``struct vmlinux_info``, if it is one that tells where the kernel's relocations are.

    :param size: of the kernel, which is in the structure, rounded to a whole page.
    """
    words = np.frombuffer(view[: len(view) // 8 * 8], ">u8")
    for at in np.flatnonzero(words == -(-size // _S390_PAGE) * _S390_PAGE).tolist():
        if at < 2 or at + 9 > len(words):
            continue
        info = tuple(words[at - 2 : at + 9].tolist())
        link, entry, dynsym, start, end = info[0], info[1], *info[8:11]
        if link <= entry < link + size and link < dynsym < start < end <= link + size and (end - start) % 24 == 0:
            return info
    return None


def _s390_pointers(content: memoryview, link: int, dynsym: int, start: int, end: int) -> Pointers:
    """As ``arch/s390/boot/startup.c: handle_relocs`` has it: some are relative, the others refer to symbols."""
    layout = ARCHITECTURES["s390x"].format
    relocations = np.frombuffer(content[start - link : end - link], layout.rela)
    count = (start - dynsym) // layout.sym.itemsize
    symbols = np.frombuffer(content, layout.sym, count, dynsym - link)
    kinds = relocations["r_info"] & np.uint64(0xFFFFFFFF)
    numbers = (relocations["r_info"] >> np.uint64(32)).astype(np.int64)
    absolute = np.isin(kinds, (_R_390_RELATIVE, *_R_390_WITH_SYMBOL)) & (numbers < len(symbols))
    numbers = numbers[absolute]
    values = np.where(numbers > 0, symbols["st_value"][numbers].astype(np.int64), 0)
    values += relocations["r_addend"][absolute].astype(np.int64)
    return Pointers(relocations["r_offset"][absolute].astype(np.uint64), values)


def _payload(view: memoryview, size: int | None, name: str) -> memoryview:
    """The compressed kernel that is somewhere in a decompressor.

    :param size: what it has when decompressed, if that is known.
    """
    problem: ImageError | None = None
    for at, kind in find_compressed(view):
        try:
            content = decompress(view[at:], kind, min(size or _LARGEST, _LARGEST), name)
        except ImageError as error:  # bytes that only look like the beginning of something compressed
            if problem is None or kind in _LONG_MAGICS:
                problem = error
            continue
        if len(content) == size or (size is None and _BANNER in content):
            return memoryview(content)
    if problem is not None:
        raise problem
    raise ImageError(
        f"{name}: no kernel that kodojo can decompress is in it",
        hint="give its vmlinux, or its headers package (linux-headers-..., kernel-devel-...)",
    )
