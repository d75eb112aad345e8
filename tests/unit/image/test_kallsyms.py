import pytest

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.elf import ElfFile
from kodojo.image.kallsyms import Kallsyms, Located
from tests.support.kernel_file import ALLOC, BASE, EXEC, KallsymsWriter, KernelWriter, small_kernel

LONG = "x" * 300 + "_lock"


def symbols():
    table = [("A", "percpu_zero", 0), ("A", "percpu_one", 0x40), ("T", "_text", BASE), ("T", "_stext", BASE)]
    table += [("tTdDrRbB"[i % 8], f"sym_{i}_irq_{i * 7}", BASE + 16 * i) for i in range(1, 700)]
    table += [
        ("t", LONG, BASE + 0x2BC8),
        ("W", "weak_0123456789", BASE + 0x2BD0),
        ("t", "sym_1_irq_7", BASE + 0x2BE0),
    ]
    return [*table, ("B", "_end", BASE + 0x3000)]


def kernel(table, **layout):
    writer = KernelWriter()
    writer.add(".text", bytes(0x3000), 4096, ALLOC | EXEC)
    writer.add(".rodata", KallsymsWriter(table, **layout).write() + b"what follows", 64)
    return ElfFile(writer.elf(), "vmlinux")


@pytest.mark.parametrize("order", ["addresses-first", "addresses-last"])
@pytest.mark.parametrize("seqs", [False, True])
@pytest.mark.parametrize("encoding", ["percpu", "relative", "absolute"])
def test_layouts(order, seqs, encoding):
    """Every order of the tables and every encoding of the addresses gives the symbols that were written."""
    table = symbols() if encoding != "relative" else [s for s in symbols() if s[2] >= BASE]
    decoded = Kallsyms.decode(kernel(table, order=order, seqs=seqs, encoding=encoding))
    assert list(decoded.names_and_addresses()) == [(name, address) for _, name, address in table]
    for kind, name, address in table:
        assert address in decoded.get_all(name)
        if name != "sym_1_irq_7":
            assert decoded.type_of(name) == kind


@pytest.mark.parametrize("count", [257, 512, 513, 600])
def test_number_of_symbols(count):
    """The last stretch between markers may be full, nearly empty or anything between."""
    table = symbols()[:count]
    assert len(Kallsyms.decode(kernel(table))) == count


def test_lookups():
    """A name that occurs twice gives the first in table order; unknown names give None or the error."""
    decoded = Kallsyms.decode(kernel(symbols()))
    assert decoded.address("sym_1_irq_7") == decoded.get("sym_1_irq_7") == BASE + 16
    assert decoded.get_all("sym_1_irq_7") == (BASE + 16, BASE + 0x2BE0)
    assert decoded.address(LONG) == BASE + 0x2BC8
    assert decoded.get("sym_1_irq") is None
    assert decoded.get("") is None
    assert decoded.get("\udcff") is None
    assert decoded.get_all("zzz") == ()
    assert "_stext" in decoded
    assert "stext" not in decoded
    with pytest.raises(MissingInformationError, match="no symbol 'zzz'"):
        decoded.address("zzz")


def test_symbol_at():
    """An address belongs to the largest symbol that is not above it, the first of several aliases."""
    decoded = Kallsyms.decode(kernel(symbols()))
    assert decoded.symbol_at(BASE) == decoded.symbol_at(BASE + 15) == Located("_text", BASE, 16)
    assert decoded.symbol_at(BASE + 33) == Located("sym_2_irq_14", BASE + 32, 16)
    assert decoded.symbol_at(BASE + 0x2FFF) == Located("sym_1_irq_7", BASE + 0x2BE0, 0x420)
    for outside in (-1, 0, 0x40, BASE - 1, BASE + 0x3000, 1 << 64):
        assert decoded.symbol_at(outside) is None


def test_arrays_round_trip():
    """What index_arrays returns makes an equal table; arrays that do not fit together are refused."""
    decoded = Kallsyms.decode(kernel(symbols()))
    arrays = decoded.index_arrays()
    assert list(Kallsyms(arrays).names_and_addresses()) == list(decoded.names_and_addresses())
    order = arrays["order"].copy()
    order[3] = len(order)
    for wrong in ({"order": order}, {"types": arrays["types"][1:]}, {"starts": arrays["starts"][::-1]}):
        with pytest.raises(ImageError, match="damaged"):
            Kallsyms(arrays | wrong)
    with pytest.raises(ImageError, match="damaged: names"):
        Kallsyms({})


def test_without():
    """A kernel without the tables says so, and what to use instead."""
    with pytest.raises(MissingInformationError) as caught:
        Kallsyms.decode(ElfFile(small_kernel(kallsyms=False), "vmlinux"))
    assert "CONFIG_KALLSYMS" in caught.value.hint


@pytest.mark.parametrize("position", range(40))
def test_damage(position):
    """A table with a damaged spot is refused or decoded to names, never anything else."""
    writer = KernelWriter()
    writer.add(".text", bytes(0x3000), 4096, ALLOC | EXEC)
    blob = bytearray(KallsymsWriter(symbols()).write())
    start = position * len(blob) // 40
    blob[start : start + 16] = b"\xff" * 16
    writer.add(".rodata", bytes(blob), 64)
    try:
        decoded = Kallsyms.decode(ElfFile(writer.elf(), "vmlinux"))
    except ImageError:
        return
    assert len(decoded) == len(symbols())


def test_addresses_must_agree_with_the_text():
    """Addresses that put _stext outside every executable segment are refused."""
    moved = [(kind, name, address + (1 << 24)) for kind, name, address in symbols() if address >= BASE]
    with pytest.raises(ImageError, match="no addresses"):
        Kallsyms.decode(kernel(moved, base=BASE + (1 << 24)))


@pytest.mark.kernel
@pytest.mark.x86_64("elsewhere kallsyms lists no data")
def test_real_kernel(image):
    """Every symbol that a real kernel exports is in its kallsyms, at the exported address."""
    exports = list(image.exports)
    assert len(exports) > 5000
    assert [e.name for e in exports if e.address not in image.kallsyms.get_all(e.name)] == []


@pytest.mark.kernel
@pytest.mark.x86_64("elsewhere kallsyms lists no data")
def test_real_banner(image):
    """The banner that a real kernel's kallsyms point to is the one that its log begins with."""
    text = image.elf.string(image.kallsyms.address("linux_banner")).decode()
    assert text == image.banner + "\n"
    assert image.release in text
