"""Files, directories, patterns, packages and initramfs images that modules are found in."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from kodojo.check.examine import examine
from kodojo.check.sources import GivenModule, Spool, find_modules, own_modules
from kodojo.errors import ImageError, InputError, KodojoError
from kodojo.image import bounds
from kodojo.image.tree import ModuleTree
from tests.support.archives import COMPRESSIONS, cpio, deb, files, regular, rpm
from tests.support.checking import paper_kernel

MODULE = b"\x7fELF" + b"module" * 500
OTHER = b"\x7fELF" + b"other" * 700


@pytest.fixture
def spool(tmp_path) -> Spool:
    (tmp_path / "spool").mkdir()
    return Spool(tmp_path / "spool")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The directory in which the test's files are, and in which it works."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def contents(modules: list[GivenModule]) -> dict[str, bytes]:
    return {module.label: module.read().module() for module in modules}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstandard.compress])
def test_files(here, spool, pack):
    """A file is a module whatever its name says; it is decompressed by what is in it."""
    (here / "a.bin").write_bytes(pack(MODULE))
    assert contents(find_modules(["a.bin"], spool)) == {"a.bin": MODULE}


def test_directories(here, spool):
    """All modules below a directory, by path; other files, and what is given twice, are left alone."""
    for name in ("d/b.ko", "d/a.ko.xz", "d/e/c.ko", "d/Module.symvers", "d/f.ko.cmd"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(MODULE)
    found = find_modules(["d/b.ko", "d"], spool)
    assert [module.label for module in found] == ["d/b.ko", "d/a.ko.xz", "d/e/c.ko"]


def test_linked_directories(here, spool):
    """Links to directories are followed, unless they lead back up, or to what modules are built with."""
    for name in ("elsewhere/deep/a.ko", "headers/b.ko", "tree/c.ko"):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x7fELF")
    (here / "tree/linked").symlink_to("../elsewhere")
    (here / "tree/up").symlink_to("..")
    (here / "elsewhere/deep/again").symlink_to("..")
    (here / "tree/build").symlink_to("../headers")
    (here / "tree/nowhere").symlink_to("gone")
    found = find_modules(["tree"], spool)
    assert [module.label for module in found] == ["tree/c.ko", "tree/linked/deep/a.ko"]


def test_patterns(here, spool):
    """A pattern that no shell has expanded; a file of that very name comes first."""
    for name in ("a1.ko", "a2.ko", "b[1].ko"):
        (here / name).write_bytes(MODULE)
    assert [module.label for module in find_modules(["a?.ko"], spool)] == ["a1.ko", "a2.ko"]
    assert [module.label for module in find_modules(["b[1].ko"], spool)] == ["b[1].ko"]


@pytest.mark.parametrize("build", [lambda c: deb(files(c)), lambda c: rpm(cpio(regular(c)))], ids=["deb", "rpm"])
def test_packages(here, spool, build):
    """Modules in a package, wherever in it; compressed ones, too."""
    inside = {"./opt/x/a.ko": MODULE, "./lib/modules/6.1/b.ko.xz": lzma.compress(OTHER), "./etc/c": b"c"}
    (here / "p.pkg").write_bytes(build(inside))
    expected = {"p.pkg:opt/x/a.ko": MODULE, "p.pkg:lib/modules/6.1/b.ko.xz": OTHER}
    assert contents(find_modules(["p.pkg"], spool)) == expected


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_initramfs(here, spool, suffix):
    """Archives one after the other, zeroes between them, the last ones compressed together."""
    early = cpio(regular({"kernel/x86/microcode/GenuineIntel.bin": b"m", "early/a.ko": MODULE}))
    main = cpio(regular({"usr/lib/modules/6.1/b.ko": OTHER})) + bytes(512) + cpio(regular({"c.ko": MODULE}))
    (here / "initrd.img").write_bytes(early + bytes(1024) + COMPRESSIONS[suffix](main))
    assert contents(find_modules(["initrd.img"], spool)) == {
        "initrd.img:early/a.ko": MODULE,
        "initrd.img:usr/lib/modules/6.1/b.ko": OTHER,
        "initrd.img:c.ko": MODULE,
    }


def lz4_legacy(data: bytes) -> bytes:
    """One block without any match, which is short for a real one but follows the same rules."""
    length = len(data) - 15
    block = b"\xf0" + b"\xff" * (length // 255) + bytes([length % 255]) + data
    return b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block


@pytest.mark.parametrize("pack", [lz4_legacy, COMPRESSIONS[".gz"], COMPRESSIONS[".zst"]])
def test_compressed_initramfs(here, spool, pack):
    """A compressed archive is told from a compressed module."""
    (here / "initrd.img").write_bytes(pack(cpio(regular({"a.ko": MODULE}))))
    assert contents(find_modules(["initrd.img"], spool)) == {"initrd.img:a.ko": MODULE}


def test_initramfs_of_all_kinds(here, spool):
    """Archives that are compressed in different ways follow each other; the last file of a name is the one there."""
    kinds = [*COMPRESSIONS.values(), lz4_legacy, bytes, lz4_legacy, *COMPRESSIONS.values()]
    parts = [
        pack(cpio(regular({f"m{number}.ko": MODULE, "same.ko": OTHER if pack is kinds[-1] else MODULE})))
        for number, pack in enumerate(kinds)
    ]
    (here / "initrd.img").write_bytes(b"".join(part + bytes(-len(part) % 4 + 8) for part in parts))
    expected = {f"initrd.img:m{number}.ko": MODULE for number in range(len(kinds))}
    assert contents(find_modules(["initrd.img"], spool)) == expected | {"initrd.img:same.ko": OTHER}
    (here / "initrd.img").write_bytes(b"".join(parts) + b"junk")
    *found, problem = find_modules(["initrd.img"], spool)
    assert len(found) == len(kinds) + 1
    assert "no archive at byte" in problem.problem


def test_hard_links_in_an_archive(here, spool):
    """Two names of one file are two modules with the same content."""
    mode = stat.S_IFREG | 0o644
    (here / "i").write_bytes(cpio([("a.ko", mode, b"", 7, 2), ("b.ko", mode, MODULE, 7, 2)]))
    assert contents(find_modules(["i"], spool)) == {"i:a.ko": MODULE, "i:b.ko": MODULE}


def test_hostile_names_stay_names(here, spool, tmp_path):
    """Whatever a member calls itself, it is written under a number, in the spool."""
    (here / "i").write_bytes(cpio(regular({"../../../evil.ko": MODULE, "/abs.ko": OTHER})))
    found = find_modules(["i"], spool)
    assert contents(found) == {"i:../../../evil.ko": MODULE, "i:/abs.ko": OTHER}
    assert {module.path.parent for module in found} == {tmp_path / "spool"}


def test_what_cannot_be_read_is_reported(here, spool):
    """Each of them becomes a module with a problem that names it; the good one among them is found."""
    os.mkfifo(here / "pipe.ko")
    (here / "empty").mkdir()
    (here / "a.ko").write_bytes(MODULE)
    (here / "cut.deb").write_bytes(deb(files({"./a.ko": MODULE}))[:200])
    (here / "none.rpm").write_bytes(rpm(cpio(regular({"etc/c": b"c"}))))
    names = ["gone.ko", "*.none", "pipe.ko", "empty", "cut.deb", "none.rpm", "nul\0.ko"]
    found = find_modules([*names, "a.ko"], spool)
    assert [module.label for module in found] == [*names, "a.ko"]
    assert all(name in module.problem for name, module in zip(names, found, strict=False))
    assert [each.module.problem for each in examine(found, spool)] == [module.problem for module in found]
    for module in found[:-1]:
        with pytest.raises(InputError):
            module.read()


def test_a_damaged_archive_gives_what_comes_before_the_damage(here, spool):
    """Modules in front of the damage are checked, and the damage is reported."""
    data = cpio(regular({"a.ko": MODULE, "b.ko": OTHER}))
    (here / "initrd").write_bytes(data[: data.index(b"other") + 9])
    first, second = find_modules(["initrd"], spool)
    assert (first.label, first.read().module()) == ("initrd:a.ko", MODULE)
    assert "truncated" in second.problem


def test_bombs(here, spool, monkeypatch):
    """An archive that unpacks to much more than there can be is stopped; so is a module that is too large."""
    monkeypatch.setattr(bounds, "LIMITS", replace(bounds.LIMITS, size=100_000))
    (here / "initrd").write_bytes(gzip.compress(cpio(regular({"a.ko": bytes(1_000_000)}))))
    (module,) = find_modules(["initrd"], spool)
    assert "unpacked" in module.problem
    monkeypatch.setattr("kodojo.image.payload.MODULE_SIZE_LIMIT", 1000)
    (here / "a.ko").write_bytes(gzip.compress(bytes(100_000)))
    (module,) = find_modules(["a.ko"], spool)
    with pytest.raises(ImageError, match=r"a\.ko: refused"):
        module.read()


def test_own_spool(monkeypatch, tmp_path):
    """A spool without a directory makes one for its first file, and takes it away in the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spool() as spool:
        assert not list(tmp_path.iterdir())
        paths = [spool.write([MODULE]), spool.write([OTHER])]
        assert [path.read_bytes() for path in paths] == [MODULE, OTHER]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with Spool() as spool, pytest.raises(KodojoError, match="cannot be written"):
        spool.write([MODULE])


def test_own_modules(here):
    """A kernel's own modules are called by their place in its tree; a kernel without a tree says so."""
    (here / "6.1/kernel").mkdir(parents=True)
    (here / "6.1/kernel/b.ko").write_bytes(MODULE)
    (here / "6.1/a.ko").write_bytes(OTHER)
    found = own_modules(paper_kernel(tree=ModuleTree(here / "6.1")))
    assert contents(found) == {"a.ko": OTHER, "kernel/b.ko": MODULE}
    (none,) = own_modules(paper_kernel())
    assert "without a tree" in none.problem


def test_travelling(here):
    """A module that travels has its content with it, or the reason why it has none."""
    (here / "a.ko").write_bytes(gzip.compress(MODULE))
    traveller = GivenModule("a.ko", here / "a.ko").travelling()
    (here / "a.ko").unlink()
    assert traveller.read().module() == MODULE
    assert "cannot be read" in GivenModule("a.ko", here / "a.ko").travelling().problem
