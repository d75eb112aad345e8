"""Archives that mean harm: one refusal, in one sentence that names the file, with a next step; nothing is left."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from collections import deque

import pytest
import zstandard

from kodojo.check.sources import find_modules
from kodojo.errors import ImageError, PackageError
from kodojo.image import bounds
from kodojo.image.bounds import Account
from kodojo.image.package import unpack
from kodojo.image.tar import tar_members
from tests.support.archives import ar, cpio, deb, entry, files, header, regular, rpm, tar

MODULE = b"\x7fELF" + bytes(100)
TRAILER = cpio([])


def raw_header(name=b"usr/share/doc/x", kind=b"0", size=b"%011o\0" % 0):
    """One block of tar: what no writer would write."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = size.ljust(12, b"\0"), b"00000000000\0"
    block[148:156], block[156:157], block[257:265] = b" " * 8, kind, b"ustar  \0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(kind, data):
    return raw_header(b"longer", kind, b"%011o\0" % len(data)) + data + bytes(-len(data) % 512)


def record(keyword, value):
    """A record of pax, whose length counts itself."""
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(f"{length}") + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def deb_of(data):
    return ar({"debian-binary": b"2.0\n", "data.tar.gz": gzip.compress(data, 1)})


def refused(tmp_path, spool, data, name="x.deb"):
    """The one answer of ``check``, which is no module; of ``kernel add``, the same."""
    path = tmp_path / name
    path.write_bytes(data)
    *modules, answer = find_modules([str(path)], spool)
    assert not modules or "truncated" in answer.problem
    assert answer.problem.startswith(str(path))
    assert "\n" not in answer.problem
    assert answer.hint
    if name.endswith((".deb", ".rpm")):
        with pytest.raises(PackageError) as caught:
            unpack(path, tmp_path / "out")
        assert str(path) in caught.value.message
        assert caught.value.hint
        assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, "spool"])
    return answer.problem


BASE_256 = b"\x80" + b"\x7f" * 11
SIZES = {
    "base 256, 2**87": raw_header(size=BASE_256) + b"x" * 512,
    "base 256, 2**63": raw_header(size=b"\x80\0\0\0" + (1 << 63).to_bytes(8)) + b"x" * 512,
    "base 256, negative": raw_header(size=b"\xff" * 12) + b"x" * 512,
    "octal, the largest": raw_header(size=b"7" * 11) + b"x" * 512,
    "pax, 2**87": extension(b"x", record("size", 1 << 87)) + raw_header() + b"x" * 512,
    "pax, 10**18": extension(b"x", record("size", 10**18)) + raw_header() + b"x" * 512,
    "pax, negative": extension(b"x", record("size", -512)) + raw_header() + b"x" * 512,
    "pax, no number": extension(b"x", record("size", "1e9")) + raw_header() + b"x" * 512,
    "pax, for all members": extension(b"g", record("size", 1 << 87)) + raw_header() + b"x" * 512,
    "of a device": raw_header(kind=b"3", size=BASE_256) + bytes(1024),
    "of a long name": raw_header(kind=b"L", size=BASE_256) + bytes(1024),
    "of pax records": raw_header(kind=b"x", size=b"%011o\0" % (1 << 31)) + bytes(1024),
}


@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES)
def test_sizes_that_lie(tmp_path, spool, data):
    """No member is skipped for years: a size is judged, and what is not there ends the archive (S1)."""
    refused(tmp_path, spool, deb_of(data))


PAX = {
    "digits": b"1" * 1_000_000,
    "digits, then a record": b"1" * 1_000_000 + b" path=x\n",
    "digits and blanks": b"1 " * 500_000,
    "records without an end": b"30 path=" * 100_000,
    "no keyword": b"5 =\n\n" * 10,
    "length 0": b"0 path=x\n",
}


@pytest.mark.parametrize("data", PAX.values(), ids=PAX)
@pytest.mark.parametrize("kind", [b"x", b"g", b"X"])
def test_pax_records(tmp_path, spool, kind, data):
    """Pax headers of any content are read once, in linear time (S2: CVE-2024-6232)."""
    refused(tmp_path, spool, deb_of(extension(kind, data) + raw_header() + bytes(1024)))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"X"])
def test_extensions_in_a_row(tmp_path, spool, kind):
    """5,000 long names before one member are no recursion (S3)."""
    data = record("path", "a" * 400) if kind in b"xX" else b"a" * 512
    problem = refused(tmp_path, spool, deb_of(extension(kind, data) * 5000 + bytes(1024)))
    assert "too many headers" in problem


def test_records_for_all_members():
    """What a global header says is not copied for each member."""
    records = b"".join(record(f"k{number}", "v") for number in range(10_000))
    data = extension(b"g", records) + raw_header() * 500 + bytes(1024)
    assert sum(1 for _ in tar_members(io.BytesIO(data), Account("x"))) == 500


def test_long_names(tmp_path, spool):
    """A name is no longer than a path can be."""
    for kind in (b"L", b"K"):
        problem = refused(tmp_path, spool, deb_of(extension(kind, b"a/" * 100_000) + raw_header() + bytes(1024)))
        assert "a name of 200000 characters" in problem


def many(number, name="{}.ko"):
    return [(name.format(each), 0o100644, b"", each, 1) for each in range(number)]


MANY = {
    "tar": ("x.deb", deb(files({f"doc/{each}": b"" for each in range(40)}))),
    "tar, modules": ("x.deb", deb(files({f"{each}.ko": b"" for each in range(40)}))),
    "ar": ("x.deb", ar({"debian-binary": b"2.0\n"} | {f"m{each}": b"" for each in range(40)})),
    "cpio": ("x.img", cpio(many(40))),
    "cpio, compressed": ("x.img", gzip.compress(cpio(many(40, "d{}")))),
    "rpm": ("x.rpm", rpm(cpio(many(40)))),
    "archives of an initramfs": ("x.img", TRAILER * 40),
    "archives in a stream": ("x.img", gzip.compress(TRAILER * 40)),
}


@pytest.mark.parametrize(("name", "data"), MANY.values(), ids=MANY)
def test_members_without_end(tmp_path, spool, limits, name, data, written):
    """The number of members is bounded, in sum over all that is in the input; none is looked at then (S5)."""
    limits(members=30)
    assert "more than 30 members" in refused(tmp_path, spool, data, name)
    assert list(spool._directory.iterdir()) == []


def test_a_million_members(limits):
    """An archive that never ends is read up to the limit, and no further."""
    limits(members=5_000)
    block = raw_header() * 1000

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            start = self.position % 512
            self.position += size
            return block[start : start + size]

        position = 0

    with pytest.raises(PackageError, match="more than 5000 members"):
        deque(tar_members(Endless(), Account("x")), maxlen=0)


def test_modules_without_end(tmp_path, spool, limits):
    """An archive with more modules than any kernel is refused as a whole."""
    limits(modules=30)
    for name, data in (MANY["tar, modules"], MANY["cpio"], MANY["rpm"]):
        path = tmp_path / name
        path.write_bytes(data)
        (answer,) = find_modules([str(path)], spool)
        assert "more than 30 modules" in answer.problem
    assert list(spool._directory.iterdir()) == []


def test_archives_in_one_stream(tmp_path, spool):
    """2,000 archives one behind the other are no recursion."""
    (tmp_path / "x.img").write_bytes(gzip.compress(TRAILER * 2000 + cpio(regular({"a.ko": MODULE}))))
    (module,) = find_modules([str(tmp_path / "x.img")], spool)
    assert module.read().module() == MODULE


# -- bombs ----------------------------------------------------------------------------------------------------


def lz4(blocks):
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def lz4_zeroes(size):
    """A block of the legacy frame: a zero, and a match of it that goes on."""
    more = size - 1 - 19 - 5
    return b"\x1f\0\1\0" + b"\xff" * (more // 255) + bytes((more % 255,)) + b"\x50\0\0\0\0\0"


PACKED = {
    "gz": lambda data: gzip.compress(data, 6),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zst": zstandard.ZstdCompressor().compress,
}
ZEROES = 1 << 20


@pytest.fixture
def small_bombs(limits):
    """The ratio counts from 128 KiB on, and everything is a sixty-fourth."""
    limits(ratio_from=1 << 17, size=1 << 22)


@pytest.mark.usefixtures("small_bombs")
@pytest.mark.parametrize("suffix", PACKED)
def test_bombs(tmp_path, spool, suffix, written):
    """What unpacks to far more than it is, is stopped, whatever it is packed with."""
    content = tar([entry("lib/modules/1/x.ko", data=bytes(ZEROES))])
    bomb = ar({"debian-binary": b"2.0\n", f"data.tar.{suffix}": PACKED[suffix](content)})
    assert "times its size" in refused(tmp_path, spool, bomb)
    bomb = PACKED[suffix](cpio(regular({"lib/x.ko": bytes(ZEROES)})))
    assert "times its size" in refused(tmp_path, spool, bomb, "x.img")
    assert written() <= 3 << 17


@pytest.mark.usefixtures("small_bombs")
@pytest.mark.parametrize("suffix", PACKED)
def test_many_small_bombs(tmp_path, spool, suffix, written):
    """The sum over all archives of an initramfs counts: below the limit each, together above it (S4)."""
    one = PACKED[suffix](cpio(regular({"lib/x.ko": bytes(100_000)})))
    data = (one + bytes(-len(one) % 4) + TRAILER) * 12
    assert "times its size" in refused(tmp_path, spool, data, "x.img")
    assert written() <= 3 << 17


@pytest.mark.usefixtures("small_bombs")
def test_lz4_bombs(tmp_path, spool, written):
    """lz4 is decoded block by block, and counted: a ratio of 255 at most, and the sum of all blocks."""
    member = cpio(regular({"lib/x.ko": bytes(1 << 21)}))
    head = member[:64].ljust(64)
    data = lz4([lz4_zeroes(1 << 17)])
    with pytest.raises(ImageError, match="no archive"):  # it is no bomb, and no archive
        _only(tmp_path, data + b"odd!", spool)
    literal = bytes(((15 << 4),)) + bytes((len(member[:112]) - 15,)) + member[:112]
    assert head
    assert "times its size" in refused(tmp_path, spool, lz4([literal, *[lz4_zeroes(1 << 18)] * 8]), "x.img")
    assert written() <= 3 << 18


def _only(tmp_path, data, spool):
    from kodojo.image.cpio import initramfs_members

    path = tmp_path / "only.img"
    path.write_bytes(data)
    with path.open("rb") as file:
        list(initramfs_members(file, Account(str(path))))


LZ4_DAMAGE = {
    "a block of 4 GiB": b"\x02\x21\x4c\x18" + b"\xff" * 4 + bytes(100),
    "no block": b"\x02\x21\x4c\x18",
    "half a size": b"\x02\x21\x4c\x18\0\0",
    "cut off": lz4([lz4_zeroes(1 << 17)])[:-9],
    "a match before the beginning": lz4([b"\x10a\xff\xff\x50abcde"]),
    "a match of distance 0": lz4([b"\x10a\0\0\x50abcde"]),
    "a length without an end": lz4([b"\xf0" + b"\xff" * 1000]),
    "ends in a distance": lz4([b"\x10a\x01"]),
}


@pytest.mark.parametrize("data", LZ4_DAMAGE.values(), ids=LZ4_DAMAGE)
def test_damaged_lz4(tmp_path, data):
    """Damage is damage, whatever the decoder stumbles over."""
    from kodojo.image.archive import Window, decompressed

    account = Account("x")
    stream = decompressed(Window(io.BytesIO(data), len(data), account))
    with pytest.raises(PackageError, match=r"x: (damaged|truncated)"):
        deque(iter(lambda: stream.read(1 << 18), b""), maxlen=0)


def test_zeroes_behind_lz4():
    """Zeroes behind the last block are no blocks."""
    from kodojo.image.archive import Window, decompressed

    data = lz4([lz4_zeroes(1 << 17)]) + bytes(1 << 20)
    stream = decompressed(Window(io.BytesIO(data), len(data), Account("x")))
    assert sum(len(piece) for piece in iter(lambda: stream.read(1 << 18), b"")) == 1 << 17


@pytest.mark.parametrize("suffix", PACKED)
def test_streams_without_end(tmp_path, spool, limits, suffix):
    """Empty streams, one behind the other, are counted."""
    limits(streams=30)
    problem = refused(
        tmp_path, spool, ar({"debian-binary": b"2.0\n", f"data.tar.{suffix}": PACKED[suffix](b"") * 40})
    )
    assert "more than 30 streams" in problem or suffix == "lzma"


def test_an_input_of_a_terabyte(tmp_path, spool):
    """A file with holes that is larger than any package is refused before it is read."""
    for name, start in (("x.img", TRAILER), ("x.deb", b"!<arch>\n"), ("x.rpm", b"\xed\xab\xee\xdb")):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(1 << 40)
        (answer,) = find_modules([str(tmp_path / name)], spool)
        assert "has more than 4096 MiB" in answer.problem
        (tmp_path / name).unlink()


def test_names_that_wait(tmp_path, spool, limits):
    """Names of hard links whose data never come take no more memory than they may."""
    limits(names=10_000)
    links = [(f"{'a' * 200}{each}", 0o100644, b"", 7, 2) for each in range(100)]
    assert "of names" in refused(tmp_path, spool, cpio(links), "x.img")


def test_of_a_name_that_is_there_twice_one_file_is_kept(tmp_path, spool):
    """Only the last file of a name lies on the disk (S4)."""
    data = b"".join(cpio(regular({"a.ko": MODULE + bytes((each,))})) for each in range(20))
    (tmp_path / "x.img").write_bytes(data)
    (module,) = find_modules([str(tmp_path / "x.img")], spool)
    assert module.read().module() == MODULE + b"\x13"
    assert len(list(spool._directory.iterdir())) == 1


# -- rpm ------------------------------------------------------------------------------------------------------

LARGE = b"07070X" + b"%08x" % 0 + bytes(2)


def rpm_with(index, store=b"cpio\0", payload=b"", count=None, size=None):
    """A package whose header says what it likes."""
    lead = (b"\xed\xab\xee\xdb\x03\0" + bytes(2)).ljust(96, b"\0")
    signature = header({1000: (4, [1])})
    entries = b"".join(struct.pack(">IIII", *each) for each in index)
    count = len(index) if count is None else count
    start = b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", count, len(store) if size is None else size)
    return lead + signature.ljust(-(-len(signature) // 8) * 8, b"\0") + start + entries + store + payload


ENTRY = (1124, 6, 0, 1)
RPMS = {
    "4,000,000 tags": rpm_with([], count=4_000_000, payload=bytes(1000)),
    "a store of 4 GiB": rpm_with([ENTRY], size=0xFFFFFFFF),
    "a store that is not there": rpm_with([ENTRY], size=1 << 20),
    "4 billion payload formats": rpm_with([(1124, 6, 0, 0xFFFFFFFF)], bytes(1 << 20)),
    "a tag outside": rpm_with([(1124, 6, 0xFFFFFFFF, 1)]),
    "4 billion names": rpm_with([ENTRY, (1117, 8, 0, 0xFFFFFFFF)], b"cpio\0" + bytes(1 << 20), LARGE),
    "4 billion sizes": rpm_with([ENTRY, (1028, 4, 0, 0xFFFFFFFF)], b"cpio\0" + bytes(1 << 10), LARGE),
    "lists of different length": rpm_with([ENTRY, (1117, 8, 5, 3), (1118, 8, 5, 1)], b"cpio\0a\0b\0c\0", LARGE),
    "numbers of no type": rpm_with([ENTRY, (1117, 8, 5, 1), (1116, 77, 0, 1)], b"cpio\0a\0", LARGE),
    "no payload": rpm_with([ENTRY]),
    "no file of that number": rpm_with([ENTRY], payload=b"07070X" + b"ffffffff" + bytes(2)),
    "half a lead": rpm_with([ENTRY])[:50],
    "half a header": rpm_with([ENTRY])[:120],
}


@pytest.mark.parametrize("data", RPMS.values(), ids=RPMS)
def test_rpm_headers(tmp_path, spool, data):
    """A header of rpm is an index with counts and offsets, none of which is trusted."""
    refused(tmp_path, spool, data, "x.rpm")


def test_long_names_of_rpm(tmp_path, spool):
    """A directory's name of a megabyte is not given to each of its files."""
    tags = {
        1116: (4, [0]), 1117: (8, ["x.ko"]), 1118: (8, ["/" + "d" * (1 << 20)]), 1030: (3, [0o100644]),
        1028: (4, [0]),
    }  # fmt: skip
    assert "a member's name of" in refused(tmp_path, spool, rpm(LARGE, tags), "x.rpm")


# -- everything in one ----------------------------------------------------------------------------------------


def test_limits_are_those_of_real_packages():
    """The limits that the tests lower stand far above what distributions ship, and below what fills a disk."""
    assert bounds.LIMITS.members >= 100_000 > 10 * 5_000
    assert bounds.LIMITS.size <= 8 << 30
    assert not bounds.LIMITS.is_bomb(1 << 30, 100 << 20)
    assert bounds.LIMITS.is_bomb(1 << 30, 1 << 20)


def test_what_is_left_out_of_a_sparse_archive():
    """GNU's sparse files in pax records are members of no content that anybody trusts."""
    data = extension(b"x", record("GNU.sparse.realsize", 1 << 60)) + raw_header(b"a.ko") + bytes(1024)
    (member,) = tar_members(io.BytesIO(data), Account("x"))
    assert member.kind == "special"
    assert tarfile.BLOCKSIZE == 512
