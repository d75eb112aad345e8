"""A writer of small arm64 ``Image`` files, as a linker and objcopy make them: flat, and with their pointers in
``.rela.dyn`` only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.support.kernel_file import BANNER, BUILD_ID, VERMAGIC, KallsymsWriter

LINK = 0xFFFF_8000_0800_0000
TEXT = 0x10000  # _stext, behind _text
VERMAGIC_ARM64 = VERMAGIC + "aarch64"
RELATIVE = 0x403
_MORE_POINTERS = 20


@dataclass
class ImageWriter:
    """The parts of the file.

    :param relocatable: pointers are zero and stand in the relocation table.
    :param exports: name, address, CRC, GPL-only.
    """

    relocatable: bool = True
    order: str = "addresses-first"
    flags: int = 0xA
    image_size: int = 0
    exports: list[tuple[str, int, int, bool]] = field(default_factory=list)
    pointers: dict[int, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=lambda: bytearray(TEXT + 0x4000))

    def add(self, content: bytes, align: int = 8) -> int:
        """Append content; its offset."""
        self.data += bytes(-len(self.data) % align)
        at = len(self.data)
        self.data += content
        return at

    def pointer(self, at: int, value: int) -> None:
        """A pointer in the file."""
        self.pointers[at] = value

    def write(self) -> bytes:
        self.add(BANNER.encode() + b"\n\0" + VERMAGIC_ARM64.encode() + b"\0")
        self.add(struct.pack("<III", 4, 20, 3) + b"GNU\0" + BUILD_ID, 4)
        self._add_kallsyms()
        self._add_exports()
        for number in range(_MORE_POINTERS):
            self.pointer(self.add(bytes(8)), LINK + TEXT + number)
        table = b""
        for at, value in sorted(self.pointers.items()):
            if self.relocatable:
                table += struct.pack("<QQQ", LINK + at, RELATIVE, value)
            else:
                struct.pack_into("<Q", self.data, at, value)
        self.add(table)
        self._put_header()
        return bytes(self.data)

    def _add_kallsyms(self) -> None:
        symbols = [("T", "_stext", LINK + TEXT)]
        symbols += [("t", f"sym_{number}", LINK + TEXT + 16 * number) for number in range(1, 600)]
        base = LINK + TEXT
        blob = KallsymsWriter(symbols, self.order, "relative", base=base).write()
        at = self.add(blob, 64)
        where = at + blob.index(struct.pack("<Q", base))
        self.data[where : where + 8] = bytes(8)
        self.pointer(where, base)

    def _add_exports(self) -> None:
        if not self.exports:
            return
        strings, places = b"", {}
        for name, *_ in self.exports:
            places[name] = len(strings)
            strings += name.encode() + b"\0"
        strings_at = self.add(strings, 4)
        ordered = sorted(self.exports, key=lambda export: (export[3], export[0].encode()))
        start = self.add(b"", 4)
        for number, (name, address, _, _) in enumerate(ordered):
            here = start + 12 * number
            self.data += struct.pack("<iii", address - LINK - here, strings_at + places[name] - here - 4, 0)
        self.data += b"".join(struct.pack("<I", crc) for _, _, crc, _ in ordered)

    def _put_header(self) -> None:
        size = self.image_size or len(self.data) + 0x10000
        struct.pack_into("<2sxxIQQQ", self.data, 0, b"MZ", 0x14000000, 0, size, self.flags)
        self.data[0x38:0x3C] = b"ARM\x64"
        struct.pack_into("<I", self.data, 0x3C, 0x40)
        self.data[0x40:0x46] = b"PE\0\0\x64\xaa"
        struct.pack_into("<I", self.data, 0x40 + 0x2C, TEXT)
