"""Packages, good and bad."""

import errno
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kodojo.errors import InputError, KodojoError, PackageError, StoreError
from kodojo.image import bounds
from kodojo.image.package import packages_in, unpack
from tests.support.archives import COMPRESSIONS, ar, cpio, deb, entry, files, regular, rpm, tar

KERNEL = bytes(range(256)) * 100
MODULE = b"\x7fELF" + b"module" * 5000
GOOD = {
    "./boot/vmlinuz-6.1": KERNEL,
    "./boot/config-6.1": b"CONFIG_MODULES=y\n",
    "./lib/modules/6.1/kernel/net/dummy.ko": MODULE,
    "./usr/share/doc/kernel/README": b"not needed",
}


def write(directory, data, name="kernel.pkg"):
    path = directory / name
    path.write_bytes(data)
    return path


def content(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def wanted(contents=GOOD):
    return {name.removeprefix("./"): data for name, data in contents.items() if "/usr/" not in name}


def refused(tmp_path, data, error=PackageError):
    """Unpack to ``out``, which must fail with an error naming the file, and leave nothing."""
    source = write(tmp_path, data)
    before = set(tmp_path.iterdir())
    with pytest.raises(error) as caught:
        unpack(source, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
    assert str(source) in str(caught.value)
    return caught.value


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_deb(tmp_path, suffix):
    """The kernel's files of a .deb arrive unchanged, whatever its compression, and nothing else does."""
    unpack(write(tmp_path, deb(files(GOOD), suffix)), tmp_path / "out")
    assert content(tmp_path / "out") == wanted()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_rpm(tmp_path, suffix):
    """The kernel's files of an .rpm arrive unchanged, whatever its compression, and nothing else does."""
    unpack(write(tmp_path, rpm(cpio(regular(GOOD)), suffix=suffix)), tmp_path / "out")
    assert content(tmp_path / "out") == wanted()


def test_the_same_content_has_the_same_digest(tmp_path):
    """The digest depends on names and contents alone, not on the archive."""
    first = unpack(write(tmp_path, deb(files(GOOD))), tmp_path / "a")
    second = unpack(write(tmp_path, rpm(cpio(regular(GOOD)))), tmp_path / "b")
    other = unpack(write(tmp_path, deb(files(GOOD | {"./boot/config-6.1": b"x"}))), tmp_path / "c")
    assert first == second != other


def test_usr_lib_modules_is_lib_modules(tmp_path):
    """A package of a distribution with a merged /usr looks like any other when unpacked."""
    unpack(write(tmp_path, deb(files({"./usr/lib/modules/6.1/vmlinuz": KERNEL}))), tmp_path / "out")
    assert content(tmp_path / "out") == {"lib/modules/6.1/vmlinuz": KERNEL}


def test_everything_is_private(tmp_path):
    """Directories have mode 0700, files 0600, whatever the package says."""
    unpack(write(tmp_path, deb(files(GOOD))), tmp_path / "out")
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_progress_reaches_the_size_of_what_is_read(tmp_path):
    """Progress counts up to the end of the payload, in bytes of the package."""
    source = write(tmp_path, rpm(cpio(regular(GOOD))))
    calls = []
    unpack(source, tmp_path / "out", lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][:2] == (source.stat().st_size, source.stat().st_size)
    assert source.name in calls[-1][2]


def test_a_directory_of_packages_is_one_kernel(tmp_path):
    """Packages that a distribution split a kernel into are unpacked together."""
    both = tmp_path / "both"
    both.mkdir()
    write(both, deb(files({"./boot/vmlinuz-6.1": KERNEL})), "linux-image.deb")
    write(both, deb(files({"./lib/modules/6.1/a.ko": MODULE})), "linux-modules.deb")
    write(both, b"ignored", "README")
    assert [path.name for path in packages_in(both)] == ["linux-image.deb", "linux-modules.deb"]
    unpack(both, tmp_path / "out")
    assert content(tmp_path / "out") == {"boot/vmlinuz-6.1": KERNEL, "lib/modules/6.1/a.ko": MODULE}


def test_long_names(tmp_path):
    """Names beyond tar's 100 bytes are understood in both of tar's dialects."""
    name = "./lib/modules/6.1/" + "long" * 50 + ".ko"
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        unpack(write(tmp_path, deb(files({name: MODULE}), form=form)), tmp_path / f"out{number}")
        assert content(tmp_path / f"out{number}") == {name[2:]: MODULE}


def test_links_of_real_packages_are_left_out(tmp_path):
    """The links that distributions ship (build, source, below /usr) are no reason to refuse, and not made."""
    links = [
        entry("./lib/modules/6.1/build", tarfile.SYMTYPE, "/usr/src/linux-headers-6.1"),
        entry("./lib/modules/6.1/source", tarfile.SYMTYPE, "build"),
        entry("./usr/src/linux/scripts", tarfile.SYMTYPE, "../../lib/linux-kbuild-6.1/scripts"),
        entry("./usr/share/doc/linux", tarfile.SYMTYPE, "/usr/share/doc/other"),
    ]
    unpack(write(tmp_path, deb(files(GOOD) + links)), tmp_path / "out")
    assert content(tmp_path / "out") == wanted()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_links_inside_the_tree_become_hard_links(tmp_path):
    """A symbolic link to an unpacked file, before or after it, is the same file; no link is made."""
    links = [
        entry("./boot/vmlinuz", tarfile.SYMTYPE, "vmlinuz-6.1"),
        entry("./lib/modules/6.1/vmlinuz", tarfile.SYMTYPE, "../../../boot/vmlinuz-6.1"),
    ]
    hard = entry("./boot/copy", tarfile.LNKTYPE, "./boot/vmlinuz-6.1")
    unpack(write(tmp_path, deb([*links, *files(GOOD), hard])), tmp_path / "out")
    kernels = [tmp_path / "out" / name for name in ("boot/vmlinuz-6.1", "boot/vmlinuz", "boot/copy")]
    assert len({path.stat().st_ino for path in kernels}) == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_hard_links_in_cpio(tmp_path):
    """Of several names of one file in an .rpm only the last carries the data; all get it."""
    mode = stat.S_IFREG | 0o644
    entries = [("./boot/a", mode, b"", 7, 2), ("./boot/b", mode, KERNEL, 7, 2), ("./boot/c", mode, b"", 8, 2)]
    unpack(write(tmp_path, rpm(cpio(entries))), tmp_path / "out")
    assert content(tmp_path / "out") == {"boot/a": KERNEL, "boot/b": KERNEL, "boot/c": b""}


def test_rpm_for_large_files(tmp_path):
    """rpm's variant of cpio, whose entries are numbers into the header, gives the same files."""
    contents = {"vmlinuz-6.1": KERNEL, "config-6.1": b"odd"}
    tags = {
        1030: (3, [stat.S_IFREG | 0o644] * 2),
        1095: (4, [1, 1]),
        1096: (4, [11, 12]),
        1116: (4, [0, 0]),
        1117: (8, list(contents)),
        1118: (8, ["/boot/"]),
        5008: (5, [len(data) for data in contents.values()]),
    }
    payload = b""
    for number in (1, 0):  # the order of the payload is not that of the header
        data = list(contents.values())[number]
        payload += b"07070X%08x" % number + b"\0\0" + data + b"\0" * (-len(data) % 4)
    error = refused(tmp_path, rpm(b"07070X%08x" % 2 + b"\0\0" + cpio([]), tags))
    assert "file 2" in str(error)
    unpack(write(tmp_path, rpm(payload + cpio([]), tags)), tmp_path / "out")
    assert content(tmp_path / "out") == {f"boot/{name}": data for name, data in contents.items()}


HOSTILE = {
    "absolute": entry("/boot/evil", data=b"x"),
    "absolute outside": entry("/etc/passwd", data=b"x"),
    "climbing": entry("./boot/../../evil", data=b"x"),
    "climbing outside": entry("./usr/../../evil", data=b"x"),
    "link to an absolute path": entry("./boot/evil", tarfile.SYMTYPE, "/etc/passwd"),
    "link at the top": entry("./evil", tarfile.SYMTYPE, "/etc"),
    "link instead of a directory": entry("./lib", tarfile.SYMTYPE, "/etc"),
    "link that climbs": entry("./lib/modules/6.1/evil.ko", tarfile.SYMTYPE, "../../../../etc/passwd"),
    "build that climbs": entry("./lib/modules/6.1/build", tarfile.SYMTYPE, "../../../../etc"),
    "hard link to an absolute path": entry("./boot/evil", tarfile.LNKTYPE, "/etc/passwd"),
    "hard link that climbs": entry("./boot/evil", tarfile.LNKTYPE, "../../etc/passwd"),
    "hard link to nothing": entry("./boot/evil", tarfile.LNKTYPE, "./boot/absent"),
    "character device": entry("./boot/evil", tarfile.CHRTYPE),
    "block device": entry("./usr/evil", tarfile.BLKTYPE),
    "fifo": entry("./boot/evil", tarfile.FIFOTYPE),
    "file twice": entry("./boot/vmlinuz-6.1", data=b"x"),
    "file below a file": entry("./boot/vmlinuz-6.1/evil", data=b"x"),
    "directory instead of a file": entry("./boot/vmlinuz-6.1", tarfile.DIRTYPE),
    "file instead of a directory": entry("./lib/modules/6.1", data=b"x"),
    "component too long": entry("./boot/" + "e" * 300, data=b"x"),
    "path too long": entry("./boot/" + "e/" * 1000, data=b"x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_member(tmp_path, name):
    """A member that no kernel package has is refused by name, and nothing of the package stays."""
    info, data = HOSTILE[name]
    error = refused(tmp_path, deb([*files(GOOD), (info, data)]))
    assert Path(info.name).name[:40] in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("name", "mode", "data"),
    [
        ("/boot/evil", stat.S_IFREG, b"x"),
        ("./boot/../../evil", stat.S_IFREG, b"x"),
        ("./boot/evil", stat.S_IFLNK, b"/etc/passwd"),
        ("./boot/evil", stat.S_IFLNK, b"../../etc/passwd"),
        ("./boot/evil", stat.S_IFCHR, b""),
        ("./boot/evil", stat.S_IFLNK, b"a" * 5000),
    ],
)
def test_hostile_member_of_an_rpm(tmp_path, name, mode, data):
    """The rules hold for .rpm too."""
    error = refused(tmp_path, rpm(cpio([*regular(GOOD), (name, mode, data, 1, 1)])))
    assert "evil" in str(error)


def test_nothing_is_written_through_a_link(tmp_path):
    """A link inside the tree is not followed by later members, so that two links cannot lead out together."""
    entries = [
        entry("./boot/a/b/c", tarfile.DIRTYPE),
        entry("./boot/top", tarfile.SYMTYPE, ".."),
        entry("./boot/a/b/c/up", tarfile.SYMTYPE, "../../../top"),
        entry("./boot/top/evil", data=b"x"),
        *files(GOOD),
    ]
    unpack(write(tmp_path, deb(entries)), tmp_path / "out")
    assert content(tmp_path / "out") == wanted() | {"boot/top/evil": b"x"}


@pytest.mark.parametrize("build", [lambda: deb(files(GOOD)), lambda: rpm(cpio(regular(GOOD)))], ids=["deb", "rpm"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst", ".bz2"])
def test_truncated(tmp_path, build, suffix):
    """A package cut anywhere is refused as truncated or damaged; nothing stays."""
    whole = deb(files(GOOD), suffix) if build().startswith(b"!") else rpm(cpio(regular(GOOD)), suffix=suffix)
    # The last bytes of an uncompressed archive are padding, and those of an ar archive may be.
    for cut in [8, 30, 90, 100, len(whole) // 4, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 300]:
        if cut < len(whole) - 200 or suffix:
            refused(tmp_path, whole[: max(cut, 8)])


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst", ".bz2"])
def test_truncated_inside(tmp_path, suffix):
    """A compressed payload that ends too early is refused although the ar archive around it is whole."""
    archived = tar(files(GOOD))
    header_of_second = archived.index(b"./boot/config-6.1")
    for cut in (0, 100, 512, 600, header_of_second, header_of_second + 10, header_of_second + 512):
        data = COMPRESSIONS[suffix](archived[:cut])
        refused(tmp_path, ar({"debian-binary": b"2.0\n", f"data.tar{suffix}": data}))
        packed = COMPRESSIONS[suffix](archived)
        data = packed[: len(packed) * cut // len(archived)]
        refused(tmp_path, ar({"debian-binary": b"2.0\n", f"data.tar{suffix}": data}))


def test_damaged_tar_header(tmp_path):
    """A damaged header in the middle is not taken for the end of the archive."""
    data = bytearray(tar(files(GOOD)))
    data[data.index(b"./boot/config-6.1") + 2] ^= 1
    error = refused(tmp_path, ar({"debian-binary": b"2.0\n", "data.tar": bytes(data)}))
    assert "damaged" in str(error)


def test_bomb(tmp_path):
    """A small package that would fill the disk is stopped long before it does, wherever the zeroes are."""
    zeroes = bytes(bounds.LIMITS.ratio_from * 2)
    for name in ("./boot/vmlinuz-6.1", "./usr/share/zeroes"):
        error = refused(tmp_path, deb(files({name: zeroes}), ".zst"))
        assert "times its size" in str(error)


def test_too_large(tmp_path, monkeypatch):
    """There is a bound for the size of what is unpacked, and one for the number of members."""
    monkeypatch.setattr(bounds, "LIMITS", replace(bounds.LIMITS, size=len(KERNEL)))
    assert "unpacked" in str(refused(tmp_path, deb(files(GOOD), ".xz")))
    assert "it has more than" in str(refused(tmp_path, deb(files(GOOD), "")))
    monkeypatch.setattr(bounds, "LIMITS", replace(bounds.Limits(), members=3))
    assert "members" in str(refused(tmp_path, deb(files(GOOD))))


@pytest.mark.parametrize("kind", [b"L", b"x", b"K"])
def test_enormous_tar_header(tmp_path, kind):
    """Extension headers of tar, which must be held in memory, are bounded."""
    info = tarfile.TarInfo("./boot/x")
    info.type, info.size = kind, 1 << 30
    error = refused(tmp_path, ar({"debian-binary": b"2.0\n", "data.tar": info.tobuf() + bytes(1 << 20)}))
    assert "damaged" in str(error)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither"),
        (b"!<ar", "neither"),
        (b"PK\x03\x04" + bytes(100), "neither"),
        (b"!<arch>\n", "truncated"),
        (ar({"kernel.o": b"x"}), "no Debian package"),
        (ar({"debian-binary": b"2.0\n", "control.tar.xz": b""}), "no data.tar"),
        (deb(files(GOOD)).replace(b"`\n", b"``", 1), "no ar header"),
        (rpm(cpio(regular(GOOD)), kind=1), "source package"),
        (rpm(b"", {1124: (6, ["drpm"])}), "drpm"),
        (rpm(b"abcdef" * 20), "no cpio header"),
        (rpm(b"070701" + b"zz" * 52), "cpio header"),
        (rpm(cpio([]))[:96] + b"X" * 16, "no RPM header"),
        (deb(files({"./usr/share/doc/x": b"x"})), "holds no kernel"),
        (rpm(cpio([])), "holds no kernel"),
    ],
)
def test_not_a_kernel_package(tmp_path, data, says):
    """What is no kernel package is refused with the reason and a next step."""
    source = write(tmp_path, data, "some.deb")
    with pytest.raises(PackageError, match=says) as caught:
        unpack(source, tmp_path / "out")
    assert str(source) in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_recognised_by_content(tmp_path):
    """The name of a package says nothing about what it is."""
    unpack(write(tmp_path, rpm(cpio(regular(GOOD))), "kernel.deb"), tmp_path / "out")
    assert content(tmp_path / "out") == wanted()


def test_source_that_is_not_there(tmp_path):
    """An absent source, or a file that is no package, is the user's mistake."""
    for source in (tmp_path / "absent.deb", write(tmp_path, b"text", "README")):
        with pytest.raises(InputError, match=source.name):
            unpack(source, tmp_path / "out")


def test_existing_destination_is_left_alone(tmp_path):
    """Nothing is unpacked over what is there."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="exists"):
        unpack(write(tmp_path, deb(files(GOOD))), out)
    assert list(out.iterdir()) == []


def test_full_disk(tmp_path, monkeypatch):
    """A full disk is a StoreError that names the place and what to do, and leaves nothing."""
    real_write = os.write
    written = []

    def full(descriptor, data):
        if len(data) > 1000:
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(data)
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    source = write(tmp_path, deb(files(GOOD)))
    with pytest.raises(StoreError, match="No space left") as caught:
        unpack(source, tmp_path / "out")
    assert written
    assert "KODOJO_STORE" in caught.value.hint
    assert list(tmp_path.iterdir()) == [source]


def test_interrupted(tmp_path):
    """An interrupt in the middle leaves nothing."""

    def interrupt(done, total, what):
        raise KeyboardInterrupt

    source = write(tmp_path, deb(files(GOOD)))
    with pytest.raises(KeyboardInterrupt):
        unpack(source, tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == [source]


PACKAGES = [
    deb(files(GOOD), ""),
    deb(files(GOOD)),
    rpm(cpio(regular(GOOD)), suffix=""),
    rpm(cpio(regular(GOOD))),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_package(tmp_path, data):
    """A package with any damage is unpacked or refused with an error of ours; a refusal leaves nothing."""
    mutated = bytearray(data.draw(st.sampled_from(PACKAGES)))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    source = write(tmp_path, bytes(mutated))
    try:
        unpack(source, tmp_path / "out")
    except KodojoError:
        assert list(tmp_path.iterdir()) == [source]
    else:
        (tmp_path / "out").rename(tmp_path / "gone")
        for path in sorted((tmp_path / "gone").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "gone").rmdir()
