import struct

import pytest

from kodojo.errors import ImageError
from kodojo.image.elf import EHDR, RELA, SHDR, SYM, ElfFile
from tests.support.kernel_file import ALLOC, BASE, EXEC, OFFSET, KernelWriter


def writer():
    kernel = KernelWriter()
    kernel.add(".text", b"code" + b"\0" * 60, 64, ALLOC | EXEC)
    kernel.add(".rodata", b"hello\0world\0", 64)
    kernel.add(".bss", b"\0" * 8, 64, kind=8)
    kernel.add(".rodata", b"second", 64)
    return kernel


def test_structures():
    """The structures have the sizes and member offsets of elf.h."""
    assert [d.itemsize for d in (EHDR, SHDR, SYM, RELA)] == [64, 64, 24, 24]
    assert EHDR.fields["e_shstrndx"][1] == 62
    assert SHDR.fields["sh_size"][1] == 32
    assert SYM.fields["st_value"][1] == 8
    assert RELA.fields["r_addend"][1] == 16


def test_sections():
    """Sections are found by name, the first of two; one without bytes in the file gives none."""
    elf = ElfFile(writer().elf(), "vmlinux")
    assert list(elf.sections) == ["", ".text", ".rodata", ".bss", ".shstrtab"]
    text = elf.sections[".text"]
    assert (text.index, text.address, text.offset, text.size) == (1, BASE, OFFSET, 64)
    assert bytes(elf.section_data(".rodata")) == b"hello\0world\0"
    assert bytes(elf.section_data(".bss")) == b""
    with pytest.raises(ImageError, match=r"vmlinux: no section \.data"):
        elf.section_data(".data")


def test_no_section_headers():
    """Without section headers there are no sections, and segments are all there is."""
    kernel = writer()
    kernel.headers = False
    elf = ElfFile(kernel.elf(), "vmlinux")
    assert elf.sections == {}
    assert elf.read(BASE, 4) == b"code"


def test_read():
    """Bytes are read by virtual address, zeros behind the file's part of a segment, nothing outside."""
    kernel = writer()
    elf = ElfFile(kernel.elf(), "vmlinux")
    (segment,) = elf.segments
    assert (segment.vaddr, segment.paddr, segment.flags) == (BASE, 0x1000000, 5)
    assert segment.filesz == kernel.end - BASE == len(elf.segment_data(segment))
    assert elf.read(BASE + 64, 5) == b"hello"
    assert elf.read(kernel.end - 6, 10) == b"second\0\0\0\0"
    assert elf.read(kernel.end + 0x1FF0, 16) == bytes(16)
    for address, size in ((BASE - 1, 2), (BASE + segment.memsz - 1, 2), (0, 1), (BASE, -1)):
        with pytest.raises(ImageError, match="not in the kernel"):
            elf.read(address, size)


def test_string():
    """A string ends at its NUL; without one, or outside the file, it is refused."""
    elf = ElfFile(writer().elf(), "vmlinux")
    assert elf.string(BASE + 64) == b"hello"
    assert elf.string(BASE + 67) == b"lo"
    for address in (0, BASE - 1, BASE + 0x1000):
        with pytest.raises(ImageError, match="no string"):
            elf.string(address)
    with pytest.raises(ImageError, match="no string"):
        elf.string(BASE + 64, limit=3)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"MZ" + bytes(100), b"\x7fELF\x03\x01" + bytes(100)])
def test_no_elf(data):
    """What is no ELF file of a known class is refused by name."""
    with pytest.raises(ImageError, match=r"some\.file: (not )?an ELF file"):
        ElfFile(data, "some.file")


def both_tables(elf):
    return elf.segments, elf.sections


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8, 0.99])
def test_truncated(share):
    """A file that is cut off is refused when the part that is missing is asked for, with the size expected."""
    whole = writer().elf()
    with pytest.raises(ImageError, match="truncated"):
        both_tables(ElfFile(whole[: int(len(whole) * share)], "vmlinux"))


def test_absurd_numbers():
    """Offsets near the end of the number range and tables of another entry size are refused."""
    data = bytearray(writer().elf())
    struct.pack_into("<Q", data, 40, (1 << 64) - 64)
    with pytest.raises(ImageError, match="truncated"):
        _ = ElfFile(bytes(data), "vmlinux").sections
    data = bytearray(writer().elf())
    struct.pack_into("<H", data, 58, 40)
    with pytest.raises(ImageError, match="unknown size"):
        _ = ElfFile(bytes(data), "vmlinux").sections
