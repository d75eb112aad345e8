"""tar archives: the members that tarfile and GNU tar see, and no archive that is not whole."""

import contextlib
import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodojo.errors import PackageError
from kodojo.image.bounds import Account
from kodojo.image.tar import tar_members
from tests.support.archives import entry, tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "boot/" + "directory/" * 13 + "a-file"
ENTRIES = [
    entry("boot", tarfile.DIRTYPE),
    entry("boot/vmlinuz", data=b"kernel" * 1000),
    entry("boot/empty"),
    entry("boot/link", tarfile.SYMTYPE, "vmlinuz"),
    entry("boot/hard", tarfile.LNKTYPE, "boot/vmlinuz"),
    entry("boot/fifo", tarfile.FIFOTYPE),
    entry(LONG, data=b"x" * 512),
    entry("boot/after", data=b"y" * 513),
]
LONGER = [
    entry("boot/n\u00e4me" + "e" * 200, data=b"z"),
    entry("boot/far", tarfile.SYMTYPE, "target/" * 40),
    entry("boot/last", data=b"!"),
]


def members(data):
    found = tar_members(io.BytesIO(data), Account("an archive"))
    return [(each.name, each.kind, each.target, b"".join(each.chunks)) for each in found]


def as_tarfile_sees_it(data):
    kinds = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "directory",
             tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            (each.name, kinds.get(each.type, "special"), each.linkname,
             archive.extractfile(each).read() if each.isreg() else b"")
            for each in archive
        ]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_members(form):
    """Names, kinds, targets and contents are those that tarfile reads, in every format."""
    data = tar(ENTRIES if form == "ustar" else ENTRIES + LONGER, FORMATS[form])
    assert members(data) == as_tarfile_sees_it(data)
    assert len(members(data)) >= len(ENTRIES)


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_archives_of_gnu_tar(tmp_path, form):
    """Archives that GNU tar writes are read as tarfile reads them."""
    for name, data, _ in [("boot/vmlinuz", b"kernel", 0), ("boot/" + "long/" * 10 + "file", b"x" * 1025, 0)]:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "in/boot/link").symlink_to("vmlinuz")
    command = ["tar", f"--format={form}", "-C", tmp_path / "in", "-c", "boot"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    assert members(data) == as_tarfile_sees_it(data)
    assert ("boot/link", "symlink", "vmlinuz", b"") in members(data)


@pytest.mark.parametrize("form", FORMATS)
def test_cut_anywhere(form):
    """An archive that ends before the block of zeroes that ends an archive is refused, wherever it is cut."""
    data = tar(ENTRIES, FORMATS[form])
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    assert not any(data[end : end + 512])
    assert members(data[: end + 512]) == members(data)
    for cut in [*range(0, end, 256), *range(1, end, 509), end, end + 511]:
        with pytest.raises(PackageError, match="truncated"):
            members(data[:cut])


def test_the_end_is_a_block_of_zeroes():
    """What stands in the place of a header and is none is damage, and not the end of the archive."""
    data = bytearray(tar(ENTRIES))
    for place in (0, data.index(b"boot/after")):
        damaged = bytearray(data)
        damaged[place : place + 512] = b"\1" * 512
        with pytest.raises(PackageError, match="damaged"):
            members(bytes(damaged))


def pax(records):
    info = tarfile.TarInfo("extended")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    whole = entry("boot/x", data=b"abc")
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + tar([whole])


@pytest.mark.parametrize(
    "records",
    [b"x", b"9999 path=a\n", b"0 path=a\n", b"11 path=ab", b"10 path=ab\n", b"6 path", b"-7 path=a\n", b"9 size=1-\n",
     b"32 size=999999999999999999999999\n"],
)  # fmt: skip
def test_damaged_pax_records(records):
    """A pax record that is not as POSIX has it, or an impossible size, is damage."""
    with pytest.raises(PackageError, match="damaged"):
        members(pax(records))


def test_pax_records():
    """A pax record takes the place of a header's field: for the next member, or for all that follow."""
    assert members(pax(b"11 path=ab\n")) == [("ab", "file", "", b"abc")]
    shared = bytearray(pax(b"11 path=ab\n"))
    info = tarfile.TarInfo("shared")
    info.type, info.size = tarfile.XGLTYPE, 11
    shared[:512] = info.tobuf(tarfile.USTAR_FORMAT)
    assert members(bytes(shared)) == [("ab", "file", "", b"abc")]


def test_sparse_files_are_special():
    """A sparse file, whose content is not what it looks like, is nothing that a package may have."""
    assert members(pax(b"22 GNU.sparse.major=1\n"))[0][1] == "special"


def test_headers_without_end():
    """Extension headers that no member follows are refused before there are many."""
    info = tarfile.TarInfo("long")
    info.type = tarfile.GNUTYPE_LONGNAME
    with pytest.raises(PackageError, match="headers"):
        members(info.tobuf(tarfile.GNU_FORMAT) * 100_000)
    with pytest.raises(PackageError, match="damaged"):
        members(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@given(st.data())
@settings(max_examples=200)
def test_mutated(data):
    """Whatever a byte is changed to, the archive is read or refused; nothing else is raised."""
    archive = bytearray(tar(ENTRIES + LONGER, data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PackageError):
        members(bytes(archive))
