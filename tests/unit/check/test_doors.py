"""A module's file is the same file by whatever door it comes: one answer for each state that it may be in."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from kodojo.check.examine import examine
from kodojo.check.matrix import Kernel, check_matrix
from kodojo.check.sources import Spool, find_modules
from kodojo.check.work import run_here
from kodojo.errors import LoadError, ModuleFileError
from kodojo.image.config import Config
from kodojo.image.payload import SUFFIXES, read_module, unpacked
from kodojo.image.tree import ModuleTree, modname
from kodojo.kmod.depmod.scan import scan
from kodojo.kmod.elf_parts import NotElfError, module_parts
from kodojo.kmod.modinfo import read_modinfo
from kodojo.loader.decompress import module_decompress
from kodojo.loader.dry import DryTarget
from kodojo.loader.target import Errno, KernelErrno
from kodojo.loader.verdict import Verdict, check
from tests.support.archives import cpio, deb, files, regular, rpm
from tests.support.checking import paper_kernel, simple_module
from tests.support.payloads import files_of

FILES = files_of(simple_module("paper", description="a module that is long enough " * 40))
SEARCHED = {name: data for name, data in FILES.items() if name.endswith(SUFFIXES)}
"""Those that kmod would look at by their names."""

KERNELS = ("none", "xz", "zstd", "gzip")
"""What compression kernels decompress themselves."""


@lru_cache
def kernel(own: str, tree: Path | None = None):
    image = paper_kernel(tree=ModuleTree(tree))
    if own != "none":
        options = {"CONFIG_MODULE_DECOMPRESS": "y", f"CONFIG_MODULE_COMPRESS_{own.upper()}": "y"}
        image.config = Config({**{f"CONFIG_{name}": value for name, value in image.config.items()}, **options})
    return image


@lru_cache
def answers(own: str) -> dict[str, Verdict]:
    """By the shortest way: the bytes of each file."""
    return {name: without_steps(check(kernel(own), data)) for name, data in FILES.items()}


def without_steps(verdict: Verdict) -> Verdict:
    return replace(verdict, steps=())


# -- doors of check: each gives label -> verdict --------------------------------------------------------------
def in_a_matrix(words: list[str], own: str) -> dict[str, Verdict]:
    with Spool() as spool:
        given = examine(find_modules(words, spool), spool)
        matrix = check_matrix([Kernel("k", kernel(own))], given, run_here)
    return {Path(result.module.rpartition(":")[2]).name: result.verdict for result in matrix}


def by_path(directory: Path, own: str) -> dict[str, Verdict]:
    return {name: without_steps(check(kernel(own), directory / name)) for name in FILES}


def as_files(directory: Path, own: str) -> dict[str, Verdict]:
    return in_a_matrix([str(directory / name) for name in FILES], own)


def in_a_directory(directory: Path, own: str) -> dict[str, Verdict]:
    return in_a_matrix([str(directory)], own)


def in_a_deb(directory: Path, own: str) -> dict[str, Verdict]:
    package = directory.parent / f"{own}.deb"
    package.write_bytes(deb(files({f"./lib/{name}": data for name, data in FILES.items()})))
    return in_a_matrix([str(package)], own)


def in_an_rpm(directory: Path, own: str) -> dict[str, Verdict]:
    package = directory.parent / f"{own}.rpm"
    package.write_bytes(rpm(cpio(regular({f"./lib/{name}": data for name, data in FILES.items()}))))
    return in_a_matrix([str(package)], own)


def in_an_initramfs(directory: Path, own: str) -> dict[str, Verdict]:
    image = directory.parent / f"{own}.img"
    image.write_bytes(cpio(regular({f"lib/{name}": data for name, data in FILES.items()})))
    return in_a_matrix([str(image)], own)


def in_the_kernels_tree(directory: Path, own: str) -> dict[str, Verdict]:
    image = kernel(own, directory)
    matrix = check_matrix([Kernel("k", image)], [], run_here, own=True)
    passed_over = {Path(result.module).name: result.failure for result in matrix if result.verdict is None}
    assert all("not looked at" in failure for failure in passed_over.values())
    assert passed_over.keys() <= FILES.keys() - SEARCHED.keys()
    return {Path(result.module).name: result.verdict for result in matrix if result.verdict is not None}


def as_dependencies(directory: Path, own: str) -> dict[str, Verdict]:
    tree = ModuleTree(directory)
    found = ((file.path.name, check(kernel(own), file.payload())) for file in tree.values())
    return {name: without_steps(verdict) for name, verdict in found}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("doors") / "tree"
    found.mkdir()
    for name, data in FILES.items():
        (found / name).write_bytes(data)
    return found


@pytest.mark.parametrize(("door", "all_names"), [(by_path, True), (as_files, True), (in_a_directory, False)])
def test_doors_of_files(directory, door, all_names):
    """A file has one verdict: as bytes, by its path, in a matrix, in a directory."""
    expected = {name: verdict for name, verdict in answers("xz").items() if all_names or name in SEARCHED}
    assert door(directory, "xz") == expected


@pytest.mark.parametrize("door", [in_a_deb, in_an_rpm, in_an_initramfs, in_the_kernels_tree, as_dependencies])
def test_doors_that_search(directory, door):
    """So it has in a package, an initramfs, and the kernel's own tree; files with other names are not looked at."""
    found = door(directory, "xz")
    unique = {modname(name): name for name in SEARCHED}
    assert len(unique) == len(SEARCHED)
    assert found == {name: answers("xz")[name] for name in SEARCHED}


def test_travelling(directory):
    """A verdict that is found on another computer is the same."""
    with Spool() as spool:
        given = examine(find_modules([str(directory)], spool), spool)
        for examined in given:
            name = Path(examined.module.label).name
            assert without_steps(check(kernel("xz"), examined.module.travelling().read())) == answers("xz")[name]


def test_modinfo_and_depmod_read_the_same(directory):
    """What modinfo cannot read is damaged for depmod, and is what no kernel could load; and the other way round."""
    errors = {name: why_unreadable(directory / name) for name in SEARCHED}
    unreadable = {name for name, errno in errors.items() if errno}
    assert all(not answers("none")[name].ok for name in unreadable)
    gone = ("damaged-compression", "file-too-short")
    assert all(errors[name] == Errno.EINVAL for name in SEARCHED if answers("none")[name].slug in gone)
    damaged = {name for name in SEARCHED if errors[name] or not has_parts(unpacked(SEARCHED[name], name).content)}
    assert {module.file.name for module in scan(ModuleTree(directory)) if module.problem} == damaged


def has_parts(content: bytes) -> bool:
    """Whether the symbols of an ELF file can be read, of which modinfo knows nothing."""
    try:
        module_parts(content)
    except NotElfError:
        return False
    return True


def why_unreadable(path: Path) -> int:
    """The errno of modinfo, 0 if it reads the file."""
    try:
        read_modinfo(path)
    except ModuleFileError as error:
        return error.errno
    return 0


# -- what the answers are -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FILES)
def test_the_answer_is_that_of_the_content(name):
    """A compressed file has the answer that its content has by init_module, another one its own by finit_module."""
    payload, verdict = unpacked(FILES[name], "module"), answers("none")[name]
    if payload.problem:
        slug = "damaged-compression" if payload.compression else "file-too-short"
        assert (verdict.errno, verdict.slug, verdict.log) == (Errno.EINVAL, slug, ())
        assert [problem.step for problem in verdict.problems] == ["insmod"]
    elif payload.compression and len(payload.content) < 64:  # bytes of an ELF header
        assert (verdict.errno, verdict.slug, verdict.log) == (Errno.ENOEXEC, "image-too-short", ())
    else:
        plain = check(kernel("none"), payload.content) if len(payload.content) > 5 else None
        assert plain is not None
        assert replace(verdict, warnings=()) == without_steps(plain)


def test_some_answers_in_full():
    """Some of the states of a file, and the answers by name."""
    found = {name: verdict.slug for name, verdict in answers("none").items()}
    for name, slug in {
        "plain-whole.ko": "ok",
        "gzip-whole.ko.gz": "ok",
        "xz-crc64-whole.ko.xz": "ok",
        "zstd-whole.ko.zst": "ok",
        "gzip-named-plain.ko": "ok",
        "plain-named-xz-crc64.ko.xz": "ok",
        "xz-crc64-two.ko.xz": "ok",
        "xz-crc64-apart.ko.xz": "ok",
        "zstd-two.ko.zst": "ok",
        "gzip-two.ko.gz": "ok",
        "gzip-signature.ko.gz": "ok",
        "xz-crc64-zeros-4.ko.xz": "ok",
        "xz-crc64-zeros-7.ko.xz": "damaged-compression",
        "xz-crc64-cut.ko.xz": "damaged-compression",
        "xz-crc64-signature.ko.xz": "damaged-compression",
        "xz-crc64-mixed.ko.xz": "damaged-compression",
        "zstd-signature.ko.zst": "damaged-compression",
        "zstd-zeros-512.ko.zst": "damaged-compression",
        "bzip2-whole.ko.bz2": "elf-magic",
        "lzma-whole.ko.lzma": "elf-magic",
        "bytes-0.ko": "file-too-short",
        "bytes-5.ko": "file-too-short",
        "bytes-63.ko": "elf-too-short",
        "xz-crc64-short.ko.xz": "image-too-short",
        "empty-xz.ko.xz": "file-too-short",
    }.items():
        assert (name, found[name]) == (name, slug)


# -- warnings -------------------------------------------------------------------------------------------------
def of_the_kernel(own: str, data: bytes) -> bytes | int:
    """What a kernel makes of a file that it is given packed: content, or errno."""
    try:
        return module_decompress(DryTarget(kernel(own)), data)
    except LoadError as error:
        return error.errno
    except KernelErrno as answer:
        return answer.errno


@pytest.mark.parametrize("own", ["xz", "zstd", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_a_warning_where_the_kernel_would_answer_otherwise(name, own):
    """Where a kernel gets the packed file, a warning says so exactly if its decoder makes something else of it."""
    payload, warnings = unpacked(FILES[name], "file"), answers(own)[name].warnings
    told = [sentence for sentence in warnings if sentence.startswith("kmod 31 and newer")]
    if payload.compression != own:
        assert not told
        return
    there = of_the_kernel(own, FILES[name])
    here = Errno.EINVAL if payload.problem else payload.content
    assert bool(told) == (there != here)
    assert all("kmod 30 and older" in sentence for sentence in told)


def test_the_warning_about_crc64():
    """The commonest one names the errno, the line, both versions of kmod, and the command."""
    (sentence,) = answers("xz")["xz-crc64-whole.ko.xz"].warnings
    for words in (
        "kmod 31 and newer", "EINVAL", "decompression failed with status 6", "CRC64", "kmod 30 and older",
        "xz --check=crc32 --lzma2=dict=1MiB",
    ):  # fmt: skip
        assert words in sentence
    assert answers("none")["xz-crc64-whole.ko.xz"].warnings == ()
    assert answers("xz")["xz-kbuild-whole.ko.xz"].warnings == ()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("zstd") and name.endswith(".zst")])
def test_a_warning_where_newer_kmods_refuse_zstd(name):
    """kmod 34 hands libzstd the whole file and room for what the first header says; libzstd itself is asked."""
    import zstandard

    verdict, payload = answers("none")[name], unpacked(FILES[name], "file")
    if payload.problem:
        assert verdict.warnings == ()
        return
    data = FILES[name]
    try:
        size = zstandard.get_frame_parameters(data).content_size
        known = 0 < size < zstandard.CONTENTSIZE_ERROR - 1
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False) if known else None
    except zstandard.ZstdError:
        content = None
    assert bool(verdict.warnings) == (content != payload.content)
    assert all("kmod 34" in sentence for sentence in verdict.warnings)


def test_a_warning_about_what_nobody_looks_at():
    """gzip data may be followed by anything, such as a signature that does not count."""
    for own in KERNELS:
        (sentence, *_) = answers(own)["gzip-signature.ko.gz"].warnings
        assert "bytes follow the gzip data" in sentence


def test_reading_twice_is_reading_once(directory):
    """read_module gives the same of a path as of its bytes, name and place apart."""
    for name, data in FILES.items():
        assert replace(read_module(directory / name), name="module", path="") == read_module(data)
