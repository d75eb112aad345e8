import gzip

import pytest

from kodojo.errors import ImageError, InputError
from kodojo.image import symvers
from kodojo.image.exports import Export
from kodojo.image.symvers import parse_symvers, read_symvers


def test_columns():
    """CRC, owner, licence and namespace are read in all three orders that kernels have written."""
    text = (
        b"0xd272d446\t__fentry__\tvmlinux\tEXPORT_SYMBOL\t\n"
        b"0x0000002a\tusb_stor\tdrivers/usb/storage\tEXPORT_SYMBOL_GPL\tUSB_STORAGE\n"
        b"0x0000002b\tmiddle\tUSB_STORAGE\tdrivers/usb/storage\tEXPORT_SYMBOL_GPL\n"
        b"\n"
        b"0x00000001\told\tvmlinux\tEXPORT_SYMBOL_GPL\n"
        b"0x00000002\tnew\tvmlinux\tEXPORT_SYMBOL\r\n"
    )
    assert list(parse_symvers(text)) == [
        Export("__fentry__", 0, 0xD272D446, gpl=False, namespace=None),
        Export("usb_stor", 0, 42, gpl=True, namespace="USB_STORAGE", owner="drivers/usb/storage"),
        Export("middle", 0, 43, gpl=True, namespace="USB_STORAGE", owner="drivers/usb/storage"),
        Export("old", 0, 1, gpl=True, namespace=None),
        Export("new", 0, 2, gpl=False, namespace=None),
    ]


def test_no_crc():
    """A CRC of zero, as builds without CONFIG_MODVERSIONS write it, is none."""
    (export,) = parse_symvers(b"0x00000000\ta\tvmlinux\tEXPORT_SYMBOL\t\n")
    assert export.crc is None


def test_repeated():
    """Of two lines about a symbol of the same owner the first counts; of other owners both do."""
    text = b"".join(b"0x%x\ta\t%s\tEXPORT_SYMBOL\t\n" % line for line in ((1, b"m"), (2, b"m"), (3, b"n")))
    assert [(export.crc, export.owner) for export in parse_symvers(text)] == [(1, "m"), (3, "n")]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense", b"0xzz\ta\tb\tEXPORT_SYMBOL", b"0x1\ta\tb", b"0x1\t\tb\tEXPORT_SYMBOL", b"0x1\ta\tb\tEXPORT",
        b"0x100000000\ta\tb\tEXPORT_SYMBOL", b"-1\ta\tb\tEXPORT_SYMBOL",
        b"0x1\t" + b"a" * 600 + b"\tb\tEXPORT_SYMBOL", b"\0" * 80,
        b"0x1\ta\t" + b"b" * 5000 + b"\tEXPORT_SYMBOL", b"0x1\ta\tb\tEXPORT_SYMBOL\t" + b"n" * 600,
    ],
)  # fmt: skip
def test_bad_line(line):
    """A line of another form is refused by its number, with what to do."""
    with pytest.raises(ImageError, match=r"my\.symvers:2: not a line") as caught:
        list(parse_symvers(b"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n" + line + b"\n", "my.symvers"))
    assert "again" in caught.value.hint


def test_cut_off():
    """A file that ends in the middle of a line is said to be cut off."""
    with pytest.raises(ImageError, match="2: cut off"):
        list(parse_symvers(b"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n0x2\tb\tvml"))


def test_too_many_lines(monkeypatch):
    """More lines than any kernel has exports are refused before they are looked at."""
    monkeypatch.setattr(symvers, "_MOST_LINES", 10)
    with pytest.raises(ImageError, match="more than 10 lines"):
        list(parse_symvers(b"\n" * 11))


def test_too_large(tmp_path, monkeypatch):
    """Neither a giant file nor what a small one would be decompressed to is read as a whole."""
    monkeypatch.setattr(symvers, "_LARGEST", 1 << 16)
    for content in (bytes(1 << 17), gzip.compress(bytes(1 << 20))):
        path = tmp_path / "Module.symvers"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"Module\.symvers"):
            read_symvers(path)


def test_compressed(tmp_path):
    """Distributions compress it; it is the same then."""
    path = tmp_path / "symvers.gz"
    path.write_bytes(gzip.compress(b"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n"))
    assert read_symvers(path) == b"0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n"


def test_absent(tmp_path):
    """A file that cannot be read is an error of input."""
    with pytest.raises(InputError, match="cannot be read"):
        read_symvers(tmp_path / "Module.symvers")
