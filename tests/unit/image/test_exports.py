import pytest

from kodojo.errors import ImageError
from kodojo.image.elf import ElfFile
from kodojo.image.exports import Export, Exports
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
    exports = Exports.decode(elf)
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
    exports = Exports.decode(elf)
    assert exports.find("both").address == text + 1
    assert exports.find("sym_2", gplok=False) is None
    assert exports.find("sym_2").gpl
    assert exports.find("sym_3", gplok=False) == exports.find("sym_3")


def test_many_searches(monkeypatch):
    """From some number of searches on, all names have been read, and the answers are what they were."""
    elf, _ = tables()
    few, many = Exports.decode(elf), Exports.decode(elf)
    asked = [
        (name, gplok) for name in ("both", "sym_2", "sym_3", "in_space", "", "sym_", "zz") for gplok in (True, False)
    ]
    before = [few.find(name, gplok) for name, gplok in asked]
    monkeypatch.setattr("kodojo.image.exports._FEW_SEARCHES", 0)
    assert [many.find(name, gplok) for name, gplok in asked] == before


def test_namespaces():
    """No pointer and an empty string both mean the common namespace."""
    elf, _ = tables()
    assert [e.name for e in Exports.decode(elf) if e.namespace is not None] == ["in_space"]


def test_no_crcs():
    """Without CRC tables (CONFIG_MODVERSIONS) exports have no CRC."""
    elf, _ = tables(crc_bytes=0)
    assert Exports.decode(elf).find("both").crc is None


def test_disagreement():
    """CRC tables of another length than the export tables are refused."""
    elf, _ = tables(crc_bytes=2)
    with pytest.raises(ImageError, match="format that kodojo does not know"):
        Exports.decode(elf)


def test_without_section_headers():
    """Tables without section headers are found through kallsyms."""
    stripped = ElfFile(small_kernel(headers=False), "vmlinux")
    whole = ElfFile(small_kernel(), "vmlinux")
    assert list(Exports.decode(stripped, Kallsyms.decode(stripped))) == list(Exports.decode(whole))
    assert len(Exports.decode(whole)) == 3
    assert len(Exports.decode(stripped)) == 0


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
