"""Kernels of arm, riscv64 and s390x as their boot loaders get them."""

from __future__ import annotations

import gzip
import re

import pytest

from kodojo.errors import ImageError
from kodojo.image.elf import ElfFile
from kodojo.image.exports import Exports
from kodojo.image.image import Image
from kodojo.image.kallsyms import Kallsyms
from kodojo.image.vmlinuz import extract
from tests.support.flat_kernel_file import (
    BSS,
    TEXT,
    FlatWriter,
    arm_zimage,
    exports_at,
    riscv_image,
    s390_bzimage,
)
from tests.support.kernel_file import BUILD_ID, RELEASE, VERMAGIC


def riscv() -> bytes:
    return riscv_image(FlatWriter("riscv64").write())


def arm(**options) -> bytes:
    return arm_zimage(FlatWriter("armv7l").write(), **options)


def s390(relocatable: bool = True) -> bytes:
    writer = FlatWriter("s390x", relocatable)
    return s390_bzimage(writer, writer.write())


IMAGES = {
    "riscv64": riscv, "riscv64-compressed": lambda: gzip.compress(riscv()),
    "armv7l": arm, "armv7l-old": lambda: arm(tagged=False),
    "s390x": s390, "s390x-new": lambda: s390(relocatable=False),
}  # fmt: skip
images = pytest.mark.parametrize("kind", IMAGES)


@images
def test_tables(kind):
    """The kernel is found in its boot image, and its address, symbols and exports in the kernel."""
    elf = ElfFile(extract(IMAGES[kind](), "vmlinuz").elf, "vmlinux")
    link = FlatWriter(kind.partition("-")[0]).link
    (segment,) = elf.segments
    assert segment.vaddr == link
    assert Kallsyms.decode(elf).address("sym_7") == link + TEXT + 16 * 7
    exports = Exports.decode(elf, None)
    assert {(e.name, e.address, e.crc, e.gpl) for e in exports} == set(exports_at(link))


@images
def test_image(kind, tmp_path):
    """An image says what kernel it is, and that modules can be checked with all but types and keys."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(IMAGES[kind]())
    image = Image.from_files(path, index_directory=tmp_path / "index")
    assert (image.release, image.architecture, image.vermagic) == (RELEASE, kind.partition("-")[0], VERMAGIC)
    assert image.build_id == BUILD_ID.hex()
    assert {"exports", "symbols", "messages"} <= image.describes
    assert not {"types", "keys"} & image.describes


@pytest.mark.parametrize("kind", ["riscv64", "armv7l", "s390x"])
def test_memory(kind):
    """The kernel takes the memory behind its file that the boot image says, for zeros."""
    elf = ElfFile(extract(IMAGES[kind](), "vmlinuz").elf, "vmlinux")
    (segment,) = elf.segments
    assert segment.memsz == segment.filesz + BSS


def test_without_crcs():
    """A kernel without checksums has none, whatever stands behind its export tables."""
    writer = FlatWriter("armv7l")
    kernel = writer.write().replace(b" modversions ", b" no_versions ")
    exports = Exports.decode(ElfFile(extract(arm_zimage(kernel), "vmlinuz").elf, "vmlinux"), None)
    assert len(exports) == len(exports_at(writer.link))
    assert {export.crc for export in exports} == {None}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (riscv()[:0x3D], "truncated"),
        (riscv()[:0x4000], "no symbol table"),
        (riscv_image(FlatWriter("riscv64").write(), flags=1), "big-endian"),
        (riscv_image(FlatWriter("riscv64").write(), machine=0x5032), "a kernel for riscv32,"),
        (arm()[:0x30], "truncated"),
        (arm()[:-0x80], "truncated"),
        (arm(order=0x01020304), "big-endian"),
        (arm_zimage(b"no kernel" * 1000, tagged=False), "no kernel that kodojo can decompress|damaged"),
        (arm_zimage(b"no kernel" * 1000), "no symbol table"),
        (s390()[:0x11000], "damaged or truncated"),
        (arm(compress=lambda kernel: b"\x89LZO\x00\r\n\x1a\n" + kernel), "compressed with lzo"),
        (s390()[:0x10400], "no kernel that kodojo can decompress"),
    ],
)
def test_bad_images(file, message):
    """What is no usable boot image is refused with the reason and the name of the file."""
    with pytest.raises(ImageError, match=message) as caught:
        extract(file, "some/file")
    assert caught.value.message.startswith("some/file: ")


def test_no_address():
    """A kernel whose address nothing tells is refused, with what to give instead."""
    writer = FlatWriter("armv7l")
    kernel = re.sub(rb"sym_(\d+)\0", rb"mys_\1\0", writer.write())  # the strings of exports
    with pytest.raises(ImageError, match="address") as caught:
        extract(arm_zimage(kernel), "vmlinuz")
    assert "headers" in caught.value.hint
