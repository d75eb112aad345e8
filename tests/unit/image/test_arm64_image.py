from __future__ import annotations

import gzip
import struct

import pytest
import zstandard

from kodojo.errors import ImageError
from kodojo.image.elf import ElfFile
from kodojo.image.exports import Exports
from kodojo.image.image import Image
from kodojo.image.kallsyms import Kallsyms
from kodojo.image.vmlinuz import extract
from tests.support.arm64_image_file import LINK, TEXT, VERMAGIC_ARM64, ImageWriter
from tests.support.kernel_file import BUILD_ID, RELEASE

EXPORTS = [(f"sym_{number}", LINK + TEXT + 16 * number, 1000 + number, number % 3 == 0) for number in range(1, 300)]


def vmlinux(image: bytes) -> ElfFile:
    return ElfFile(extract(image, "vmlinuz").elf, "vmlinux")


@pytest.mark.parametrize("order", ["addresses-first", "addresses-last"])
@pytest.mark.parametrize("relocatable", [True, False])
def test_link_address(order, relocatable):
    """The address that the kernel was linked for is found, whether its pointers are in the file or in a table."""
    writer = ImageWriter(relocatable, order)
    pointers = [writer.add(bytes(8)) for _ in range(20)]
    for number, at in enumerate(pointers):
        writer.pointer(at, LINK + TEXT + number)
    elf = vmlinux(writer.write())
    (segment,) = elf.segments
    assert (segment.vaddr, segment.paddr, elf.entry) == (LINK, 0, 0)
    assert Kallsyms.decode(elf).address("sym_7") == LINK + TEXT + 16 * 7
    assert [struct.unpack("<Q", elf.read(LINK + at, 8))[0] for at in pointers] == [
        LINK + TEXT + number for number in range(20)
    ]


def test_memory():
    """The segment takes the memory that the header says, zeros behind the file included."""
    image = ImageWriter(image_size=0x200000).write()
    (segment,) = vmlinux(image).segments
    assert (segment.filesz, segment.memsz) == (len(image), 0x200000)
    assert vmlinux(image).read(LINK + 0x1FFFF8, 8) == bytes(8)


def test_exports():
    """The export tables are recognised: names, addresses, CRCs, and which are for GPL modules only."""
    writer = ImageWriter(exports=EXPORTS)
    exports = Exports.decode(vmlinux(writer.write()), None)
    assert {(e.name, e.address, e.crc, e.gpl) for e in exports} == set(EXPORTS)


@pytest.mark.parametrize("gpl", [True, False], ids=["GPL-only", "plain"])
def test_one_export_table(gpl):
    """A kernel all of whose exports are of one kind has one table of them."""
    writer = ImageWriter(exports=[(name, address, crc, gpl) for name, address, crc, _ in EXPORTS])
    exports = Exports.decode(vmlinux(writer.write()), None)
    assert len(exports) == len(EXPORTS)
    # The tables look alike: a single one is taken for that of the plain exports.
    assert not any(export.gpl for export in exports)


def test_types():
    """The types are recognised by the header of BTF; what only begins like one is none."""
    writer = ImageWriter()
    writer.add(b"\x9f\xeb\x01\x00" + bytes(60))
    header = struct.pack("<4sIIIII", b"\x9f\xeb\x01\x00", 24, 0, 16, 16, 8)
    at = writer.add(header + bytes(range(24)))
    elf = vmlinux(writer.write())
    assert elf.sections[".BTF"].address == LINK + at
    assert bytes(elf.section_data(".BTF")) == header + bytes(range(24))


def zboot(payload: bytes, kind: bytes) -> bytes:
    head = struct.pack("<4s4sII8x32s", b"MZ\0\0", b"zimg", 0x200, len(payload), kind)
    return head.ljust(0x200, b"\0") + payload + bytes(100)


def test_compressed():
    """An Image that is compressed, or in an EFI program that unpacks it, gives the same kernel."""
    image = ImageWriter().write()
    expected = extract(image, "vmlinuz").elf
    assert extract(gzip.compress(image), "vmlinuz").elf == expected
    assert extract(zboot(gzip.compress(image), b"gzip"), "vmlinuz").elf == expected
    assert extract(zboot(zstandard.compress(image), b"zstd"), "vmlinuz").elf == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ImageWriter().write()[:0x40], "no symbol table"),
        (ImageWriter().write()[:0x3D], "truncated"),
        (ImageWriter(flags=1).write(), "big-endian"),
        (ImageWriter(image_size=1 << 40).write(), "damaged"),
        (zboot(gzip.compress(ImageWriter().write()), b"gzip")[:0x600], "truncated"),
        (zboot(b"xxxx", b"rot13"), "rot13, for which kodojo has no decoder"),
    ],
    ids=["header", "less", "big-endian", "huge", "zboot", "zboot-kind"],
)
def test_bad_images(image, message):
    """What is no usable Image is refused with the reason."""
    with pytest.raises(ImageError, match=message):
        extract(image, "vmlinuz")


def test_image(tmp_path):
    """An Image of arm64 says what it is: release, architecture, version magic, build id."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(ImageWriter().write())
    image = Image.from_files(path, index_directory=tmp_path / "index")
    assert (image.release, image.architecture) == (RELEASE, "aarch64")
    assert image.vermagic == VERMAGIC_ARM64
    assert image.build_id == BUILD_ID.hex()
