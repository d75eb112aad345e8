import pytest

from kodojo.errors import ImageError
from kodojo.image.elf import ElfFile
from kodojo.image.exports import Export, Exports, Symver, parse_symvers
from kodojo.image.kallsyms import Kallsyms
from tests.support.kernel_file import ALLOC, EXEC, KernelWriter, export_tables, small_kernel


def tables(number=50, crc_bytes=4):
    writer = KernelWriter()
    text = writer.add(".text", bytes(4096), 4096, ALLOC | EXEC)
    export_tables(
        writer,
        [
            ("both", text + 1, 1, False, None),
            ("both", text + 2, 2, True, None),
            ("in_space", text + 3, 0xFFFFFFFF, False, "SPACE"),
            ("empty_space", text + 4, 4, True, ""),
            *((f"sym_{i}", text + 16 * i, i, i % 2 == 0, None) for i in range(number)),
        ],
    )
    for section in writer.sections:
        if section.name.startswith("__kcrctab"):
            section.data = section.data[: len(section.data) * crc_bytes // 4]
    return ElfFile(writer.elf(), "vmlinux"), text


def test_find():
    """Every export is found with its address, CRC, licence and namespace."""
    elf, text = tables()
    exports = Exports(elf)
    assert len(exports) == len(list(exports)) == 54
    for i in range(50):
        assert exports.find(f"sym_{i}") == Export(f"sym_{i}", text + 16 * i, i, i % 2 == 0, None)
    assert exports.get("in_space") == Export("in_space", text + 3, 0xFFFFFFFF, gpl=False, namespace="SPACE")
    assert "in_space" in exports
    for name in ("", "a", "sym_", "sym_500", "zzz"):
        assert exports.find(name) is None
        assert name not in exports


def test_gplok():
    """The plain table comes first; that of the GPL-only symbols is closed to others."""
    elf, text = tables()
    exports = Exports(elf)
    assert exports.find("both").address == text + 1
    assert exports.find("sym_2", gplok=False) is None
    assert exports.find("sym_2").gpl
    assert exports.find("sym_3", gplok=False) == exports.find("sym_3")


def test_namespaces():
    """No pointer and an empty string both mean the common namespace."""
    elf, _ = tables()
    assert [e.name for e in Exports(elf) if e.namespace is not None] == ["in_space"]


def test_no_crcs():
    """Without CRC tables (CONFIG_MODVERSIONS) exports have no CRC."""
    elf, _ = tables(crc_bytes=0)
    assert Exports(elf).find("both").crc is None


def test_disagreement():
    """CRC tables of another length than the export tables are refused."""
    elf, _ = tables(crc_bytes=2)
    with pytest.raises(ImageError, match="format that kodojo does not know"):
        Exports(elf)


def test_without_section_headers():
    """Tables without section headers are found through kallsyms."""
    stripped = ElfFile(small_kernel(headers=False), "vmlinux")
    whole = ElfFile(small_kernel(), "vmlinux")
    assert list(Exports(stripped, Kallsyms.decode(stripped))) == list(Exports(whole))
    assert len(Exports(whole)) == 3
    assert len(Exports(stripped)) == 0


def test_symvers():
    """Module.symvers gives CRC, module, licence and namespace, which old files leave out."""
    text = (
        "0xd272d446\t__fentry__\tvmlinux\tEXPORT_SYMBOL\t\n"
        "0x0000002a\tusb_stor\tdrivers/usb/storage\tEXPORT_SYMBOL_GPL\tUSB_STORAGE\n"
        "\n"
        "0x00000001\told\tvmlinux\tEXPORT_SYMBOL_GPL\n"
        "0x00000002\told\tother\tEXPORT_SYMBOL\t\n"
    )
    assert parse_symvers(text) == {
        "__fentry__": Symver("__fentry__", 0xD272D446, "vmlinux", gpl=False, namespace=None),
        "usb_stor": Symver("usb_stor", 42, "drivers/usb/storage", gpl=True, namespace="USB_STORAGE"),
        "old": Symver("old", 1, "vmlinux", gpl=True, namespace=None),
    }


@pytest.mark.parametrize("line", ["nonsense", "0xzz\ta\tb\tEXPORT_SYMBOL", "0x1\ta\tb"])
def test_bad_symvers(line):
    """A line of another form is refused by its number."""
    with pytest.raises(ImageError, match=r"my\.symvers:2: "):
        parse_symvers("0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n" + line, "my.symvers")


@pytest.mark.kernel
def test_real_kernel(image):
    """A real kernel's tables are in strcmp order, so each of its exports is found by the binary search."""
    exports = image.exports
    everything = list(exports)
    plain = {e.name for e in everything if not e.gpl}
    assert [e for e in everything if e.name not in plain and exports.find(e.name) != e] == []
    assert all(exports.find(name, gplok=False) is not None for name in plain)
    assert exports.find("module_layout").crc


@pytest.mark.kernel
def test_real_crcs(image):
    """The CRC of module_layout is the one that the kernel's own modules carry in __versions."""
    elf = ElfFile(image.modules["dummy"].read(), "dummy.ko")
    versions = bytes(elf.section_data("__versions"))
    found = {
        versions[i + 8 : i + 64].rstrip(b"\0").decode(): int.from_bytes(versions[i : i + 8], "little")
        for i in range(0, len(versions), 64)
    }
    assert "module_layout" in found
    assert {name: image.exports.find(name).crc for name in found} == found
