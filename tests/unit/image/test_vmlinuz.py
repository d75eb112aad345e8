import bz2
import gzip
import lzma
import struct

import pytest
import zstandard

from kodojo.errors import ImageError
from kodojo.image import vmlinuz as vmlinuz_module
from kodojo.image.compression import compression_of, decompress
from kodojo.image.elf import ElfFile
from kodojo.image.vmlinuz import extract
from tests.support.kernel_file import KernelWriter, bzimage, small_kernel


def lz4_length(value):
    return b"" if value < 15 else b"\xff" * ((value - 15) // 255) + bytes(((value - 15) % 255,))


def lz4_block(data):
    """Greedy: the last four bytes seen before are a match."""
    out, seen, literals, at = bytearray(), {}, 0, 0
    while at < len(data):
        word = data[at : at + 4]
        before = seen.get(word)
        seen[word] = at
        if before is None or at - before > 0xFFFF or len(word) < 4 or at + 12 > len(data):
            at += 1
            continue
        length = 4
        while at + length < len(data) - 5 and data[before + length] == data[at + length]:
            length += 1
        run = at - literals
        out.append(min(run, 15) << 4 | min(length - 4, 15))
        out += lz4_length(run) + data[literals:at] + struct.pack("<H", at - before) + lz4_length(length - 4)
        at += length
        literals = at
    run = len(data) - literals
    return bytes(out) + bytes((min(run, 15) << 4,)) + lz4_length(run) + data[literals:]


def lz4(data, block=8 << 20):
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), block):
        packed = lz4_block(data[start : start + block])
        out += struct.pack("<I", len(packed)) + packed
    return out


COMPRESSORS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lz4": lz4,
    "zstd": zstandard.compress,
}
compressions = pytest.mark.parametrize("kind", COMPRESSORS)


@compressions
def test_bzimage(kind):
    """A bzImage of every compression gives its vmlinux and its setup header; a length stands behind the data."""
    elf = small_kernel()
    payload = COMPRESSORS[kind](elf)
    if kind != "gzip":
        payload += struct.pack("<I", len(elf))
    assert compression_of(payload) == kind
    found = extract(bzimage(payload), "vmlinuz")
    assert found.elf == elf
    assert found.setup_header == bzimage(payload)[0x1F1 : 0x202 + 0x6A]


def test_plain():
    """A vmlinux is taken as it is, also as the payload of a bzImage, and has no setup header."""
    elf = small_kernel()
    assert extract(elf, "vmlinux").elf == elf
    assert extract(elf, "vmlinux").setup_header == b""
    assert extract(bzimage(elf), "vmlinuz").elf == elf


@compressions
def test_compressed_by_itself(kind):
    """A compressed vmlinux is decompressed."""
    assert extract(COMPRESSORS[kind](small_kernel()), "vmlinux.x").elf == small_kernel()


@compressions
def test_truncated(kind):
    """Compressed data without its end is refused with the name of the file, wherever it ends."""
    payload = COMPRESSORS[kind](small_kernel())
    for size in (len(payload) - 20, len(payload) // 2, 30):
        with pytest.raises(ImageError, match=r"kernel\.img: the .* data is damaged or truncated"):
            decompress(payload[:size], kind, 1 << 20, "kernel.img")


@compressions
def test_damaged(kind):
    """Damaged compressed data is refused, or gives bytes where the format has no checksum."""
    payload = bytearray(COMPRESSORS[kind](small_kernel()))
    payload[len(payload) // 2 : len(payload) // 2 + 40] = b"\xa5" * 40
    try:
        decompress(bytes(payload), kind, 1 << 20, "kernel.img")
    except ImageError as error:
        assert error.message.startswith("kernel.img: ")  # noqa: PT017 - it may also succeed
    else:
        assert kind in ("lz4", "lzma", "zstd")


@compressions
def test_size_limit(kind):
    """Decompression stops at the limit: what is exactly as large passes, a byte more is refused."""
    data = bytes(1 << 20)
    assert decompress(COMPRESSORS[kind](data), kind, len(data), "zeros") == data
    with pytest.raises(ImageError, match="more than 0 MiB"):
        decompress(COMPRESSORS[kind](data), kind, len(data) - 1, "zeros")


def test_lz4_blocks():
    """Blocks of the legacy frame are independent, and matches may overlap themselves."""
    data = b"abcabcabcabcabcabcabcabc" * 40 + bytes(1000) + b"the end"
    assert decompress(lz4(data, 700), "lz4", 1 << 20, "x") == data
    # Two literals "ab", then six bytes from two bytes back, then the literal "c".
    by_hand = bytes((0x22,)) + b"ab" + b"\x02\x00" + bytes((0x10,)) + b"c"
    frame = b"\x02\x21\x4c\x18" + struct.pack("<I", len(by_hand)) + by_hand
    assert decompress(frame, "lz4", 100, "x") == b"ababababc"


def test_lzo():
    """For lzo there is no decoder, and the message says what to do."""
    with pytest.raises(ImageError, match="compressed with lzo") as caught:
        extract(bzimage(b"\x89LZO\x00\r\n\x1a\n" + bytes(100)), "vmlinuz")
    assert "extract-vmlinux" in caught.value.hint


def pe(machine, magic=b""):
    image = bytearray(4096)
    image[:2] = b"MZ"
    image[4 : 4 + len(magic)] = magic
    struct.pack_into("<I", image, 0x3C, 0x80)
    image[0x80:0x86] = b"PE\0\0" + struct.pack("<H", machine)
    return bytes(image)


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        (pe(0x6264), "loongarch64"),
        (pe(0x4711), "PE machine 0x4711"),
        (KernelWriter(machine=4711).elf(), "ELF machine 4711"),
        (bzimage(gzip.compress(KernelWriter(machine=3).elf(), mtime=0)), "i686"),
    ],
)
def test_other_architectures(file, architecture):
    """A kernel of another architecture is refused by the name of that architecture."""
    with pytest.raises(ImageError, match=rf"^vmlinuz: a kernel for {architecture}, whose") as caught:
        extract(file, "vmlinuz")
    assert "riscv64" in caught.value.hint  # one of those that are known


@pytest.mark.parametrize("machine", [62, 183, 243])
def test_plain_kernels(machine):
    """The vmlinux of an architecture whose modules are known is taken as it is, compressed or not."""
    elf = KernelWriter(machine=machine).elf()
    assert extract(elf, "vmlinux").elf == elf
    assert extract(gzip.compress(elf, mtime=0), "vmlinux.gz").elf == elf


def test_pointers_in_a_table():
    """A PowerPC kernel has its pointers in a table of relocations only: they are stored where they belong."""
    writer = KernelWriter(machine=21)
    place = writer.add(".data", b"\xff" * 24, align=8) + 8
    outside, other = 0x1234, 10
    rows = [(place, 22, -16), (outside, 22, 1), (place + 8, other, 1)]
    writer.add(".rela.dyn", b"".join(struct.pack("<QQq", *row) for row in rows), align=8)
    elf = ElfFile(extract(writer.elf(), "vmlinux").elf, "vmlinux")
    assert elf.read(place - 8, 24) == b"\xff" * 8 + struct.pack("<q", -16) + b"\xff" * 8


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "not a kernel"),
        (b"#!/bin/sh\n" * 100, "not a kernel"),
        (b"\x7fELF", "truncated"),
        (bzimage(gzip.compress(b"no kernel at all")), "not a kernel"),
        (bzimage(b"????" + bytes(60)), "in an unknown way"),
        (bzimage(gzip.compress(small_kernel()))[:-200], "truncated"),
        (bzimage(b"")[:0x210], "truncated"),
        (bzimage(b"", protocol=0x207), "boot protocol 2.07"),
        (pe(0x8664), "EFI program"),
        (pe(0xAA64), "EFI program"),
    ],
)
def test_no_kernel(file, message):
    """What is no kernel, or half of one, is refused with the name of the file and a next step."""
    with pytest.raises(ImageError, match=message) as caught:
        extract(file, "some/file")
    assert caught.value.message.startswith("some/file: ")


def test_bomb(monkeypatch):
    """A payload that would be larger than any kernel is refused."""
    monkeypatch.setattr(vmlinuz_module, "SIZE_LIMIT", 1 << 20)
    with pytest.raises(ImageError, match="refused: more than 1 MiB"):
        extract(bzimage(gzip.compress(bytes(1 << 21))), "vmlinuz")
