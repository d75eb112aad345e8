"""A writer of small kernels as objcopy makes them for arm, riscv64 and s390x, and of the boot images around them."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from kodojo.image.architecture import ARCHITECTURES
from tests.support.kernel_file import BANNER, BUILD_ID, VERMAGIC, KallsymsWriter

LINKS = {"armv7l": 0xC020_8000, "riscv64": 0xFFFF_FFFF_8000_0000, "s390x": 0x10_0000}
TEXT = 0x1000  # behind the first byte
R_390_64, R_390_RELATIVE = 22, 12
BSS = 0x3000


def exports_at(link: int) -> list[tuple[str, int, int, bool]]:
    """Name, address, CRC, GPL-only."""
    return [(f"sym_{number}", link + TEXT + 16 * number, 1000 + number, number % 3 == 0) for number in range(1, 300)]


@dataclass
class FlatWriter:
    """The parts of the kernel; everything is in its place in the file, or (s390x) in relocations only.

    :param relocatable: pointers are zero and stand in a table behind the symbols that some of them are relative to.
    """

    architecture: str
    relocatable: bool = False
    data: bytearray = field(default_factory=lambda: bytearray(TEXT + 0x4000))
    pointers: dict[int, int] = field(default_factory=dict)
    dynsym: int = 0
    rela: int = 0

    def __post_init__(self) -> None:
        self.layout = ARCHITECTURES[self.architecture].format
        self.link = LINKS[self.architecture]

    def add(self, content: bytes, align: int = 8) -> int:
        """Append content; its offset."""
        self.data += bytes(-len(self.data) % align)
        at = len(self.data)
        self.data += content
        return at

    def write(self) -> bytes:
        self.add(b"Linux version %s # SMP\n\0" % VERMAGIC.split()[0].encode())
        self.add(BANNER.encode() + b"\n\0" + VERMAGIC.encode() + b"\0")
        self.add(struct.pack(self.layout.order + "III", 4, 20, 3) + b"GNU\0" + BUILD_ID, 4)
        self._add_kallsyms()
        self._add_exports()
        for at, value in self.pointers.items():
            word = 0 if self.relocatable else value
            self.data[at : at + self.layout.word] = word.to_bytes(self.layout.word, self.layout.byteorder)
        if self.relocatable:
            self._add_relocations()
        return bytes(self.data)

    def _add_kallsyms(self) -> None:
        text = self.link + TEXT
        first = {
            "armv7l": [("T", "_stext", text)],
            "riscv64": [("T", "_start", self.link), ("T", "_stext", text)],
            "s390x": [("T", "_stext", self.link)],
        }
        symbols = first[self.architecture]
        base = symbols[0][2]
        symbols += (("t", f"sym_{number}", text + 16 * number) for number in range(1, 600))
        order, word = self.layout.order, self.layout.word
        blob = KallsymsWriter(symbols, "addresses-first", "relative", False, base, order, word).write()
        at = self.add(blob, 64)
        self.pointers[at + blob.index(base.to_bytes(word, self.layout.byteorder))] = base

    def _add_exports(self) -> None:
        exports = exports_at(self.link)
        strings = {name: self.add(name.encode() + b"\0", 1) for name, *_ in exports}
        ordered = sorted(exports, key=lambda export: (export[3], export[0].encode()))
        word = self.layout.word
        for name, address, _, _ in ordered:
            at = self.add(bytes(3 * word), word)
            self.pointers |= {at: address, at + word: self.link + strings[name]}
        for _, _, crc, _ in ordered:
            self.add(struct.pack(self.layout.order + "I", crc), 4)

    def _add_relocations(self) -> None:
        """Those that are relative to the kernel, and every seventh to a symbol."""
        symbol = struct.pack(">IBBHQQ", 1, 0x11, 0, 1, self.link, 0)
        self.dynsym = self.link + self.add(bytes(24) + symbol)
        rows = [
            struct.pack(">QQq", self.link + at, 1 << 32 | R_390_64, value - self.link)
            if number % 7 == 0
            else struct.pack(">QQq", self.link + at, R_390_RELATIVE, value)
            for number, (at, value) in enumerate(sorted(self.pointers.items()))
        ]
        self.rela = self.link + self.add(b"".join(rows))


def riscv_image(kernel: bytes, magic: bytes = b"RSC\x05", flags: int = 0, machine: int = 0x5064) -> bytes:
    """Put the header of an Image over a kernel's first bytes."""
    data = bytearray(kernel)
    struct.pack_into("<2sxxIQQQI", data, 0, b"MZ", 0, 0x20_0000, len(data) + BSS, flags, 2)
    data[0x30:0x3C] = b"RISCV\0\0\0" + magic
    struct.pack_into("<I", data, 0x3C, 0x40)
    data[0x40:0x46] = b"PE\0\0" + struct.pack("<H", machine)
    return bytes(data)


def _xz(kernel: bytes) -> bytes:
    return lzma.compress(kernel, check=lzma.CHECK_CRC32)


def arm_zimage(
    kernel: bytes, *, tagged: bool = True, order: int = 0x04030201, compress: Callable[[bytes], bytes] = _xz
) -> bytes:
    """A zImage: a decompressor with something in it that looks compressed, the kernel, its size, and more."""
    payload = compress(kernel) + struct.pack("<I", len(kernel))
    data = bytearray(0x800)
    data[0x400:0x40A] = b"\x1f\x8b\x08 \xfd7zXZ\0"
    data += payload
    size_at = len(data) - 4
    data += bytes(0x100)
    table = (0x4545_4545, 0x200) if tagged else (0, 0)
    struct.pack_into("<6I", data, 0x24, 0x016F_2818, 0, len(data), order, *table)
    struct.pack_into("<7I", data, 0x200, 6, 0x5A53_4C4B, size_at, BSS, 0x20_8000, 0x10000, 0)
    return bytes(data)


def s390_bzimage(writer: FlatWriter, kernel: bytes) -> bytes:
    """A bzImage: a decompressor, what it knows of the kernel, the kernel, its size, and the end of a signature."""
    data = bytearray(0x10400)
    data[0x10008:0x1000E] = b"S390EP"
    size = -(-len(kernel) // 4096) * 4096
    info = (writer.link, writer.link, size, BSS, 1, 2, 3, 4, writer.dynsym, writer.rela, writer.link + len(kernel), 5)
    new = (writer.link, size, BSS, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # since Linux 6.10
    data += struct.pack(">12Q", *(info if writer.relocatable else new))
    data += lzma.compress(kernel, check=lzma.CHECK_CRC32) + struct.pack("<I", len(kernel))
    return bytes(data) + bytes(-len(data) % 4096) + bytes(4088) + b"\0\0\0\x20zIPL"
