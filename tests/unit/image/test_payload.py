"""Module files as kmod reads them; kmod itself, and the library that it reads gzip with, are asked."""

from __future__ import annotations

import ctypes
import ctypes.util
import gzip
import lzma
import os
import subprocess
from functools import lru_cache

import pytest
import zstandard

from kodojo.errors import ImageError, InputError, ModuleFileError
from kodojo.image import payload
from kodojo.image.payload import SUFFIXES, read_module, unpacked
from kodojo.image.tree import modname
from kodojo.kmod.modinfo import read_modinfo
from kodojo.report.modinfo import modinfo_lines
from tests.support import distribution
from tests.support.checking import simple_module
from tests.support.payloads import FORMATS, files_of, xz_as_kbuild

MODULE = simple_module("paper", description="a module that is long enough " * 40, author="nobody")
FILES = files_of(MODULE)
ENOENT, ENOEXEC, EINVAL = 2, 8, 22
TEXTS = {ENOENT: "No such file or directory", ENOEXEC: "Exec format error", EINVAL: "Invalid argument"}


def reading(data: bytes) -> tuple[str, bytes]:
    """``EINVAL`` where kmod gives up, and the content."""
    found = unpacked(data, "file")
    return "EINVAL" if found.problem else "", found.content


# -- the rules ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pack", [gzip.compress, xz_as_kbuild, lzma.compress, zstandard.compress])
def test_all_streams_of_a_file_are_read(pack):
    """Members, streams and frames that follow each other are one module."""
    found = unpacked(pack(MODULE[:1000]) + pack(b"") + pack(MODULE[1000:]), "file")
    assert (found.content, found.streams, found.problem) == (MODULE, 3, "")


@pytest.mark.parametrize("size", [0, 4, 8, 1 << 20])
def test_xz_may_be_padded_by_fours(size):
    """Zeros behind an xz stream are padding if their number is a multiple of four, at the end and in between."""
    packed = lzma.compress(MODULE)
    assert reading(packed + bytes(size)) == ("", MODULE)
    assert reading(packed + bytes(size) + packed) == ("", MODULE * 2)
    for odd in (1, 2, 3):
        assert reading(packed + bytes(size + odd)) == ("EINVAL", b"")
        assert reading(packed + bytes(size + odd) + packed) == ("EINVAL", b"")


@pytest.mark.parametrize(
    ("pack", "answer"),
    [(lzma.compress, ("EINVAL", b"")), (zstandard.compress, ("EINVAL", b"")), (gzip.compress, ("", MODULE))],
)
def test_something_else_behind_the_end(pack, answer):
    """What follows xz and zstd data has to be more of it; what follows gzip data is not looked at."""
    assert reading(pack(MODULE) + b"and something else") == answer


def test_a_signature_in_the_wrong_place():
    """A signature behind the compressed data is recognised, and the order of the steps is the advice."""
    for pack in (lzma.compress, zstandard.compress):
        found = unpacked(pack(MODULE) + bytes(300) + b"~Module signature appended~\n", "file")
        assert found.problem.endswith("xz stream") or "no zstd frame" in found.problem
        assert "sign-file" in found.hint
    assert "sign-file" not in unpacked(lzma.compress(MODULE)[:-4], "file").hint


def test_other_formats_are_no_formats():
    """What kmod does not know is the module itself, whatever the file's name is."""
    for form in ("bzip2", "lzma", "zlib", "plain"):
        packed = FORMATS[form][1](MODULE)
        found = unpacked(packed, "file")
        assert (found.content, found.compression, found.packed) == (packed, "", b"")


@pytest.mark.parametrize("size", range(8))
def test_short_files(size):
    """kmod wants to see six bytes."""
    assert reading(bytes(size)) == (("EINVAL", b"") if size < 6 else ("", bytes(size)))


def test_forms(tmp_path):
    """A path as text, as an object, and the bytes are the same file; only a path has a place."""
    path = tmp_path / "a.ko.xz"
    path.write_bytes(lzma.compress(MODULE))
    assert read_module(path) == read_module(str(path))
    assert read_module(path).path == str(path)
    assert read_module(path.read_bytes()).content == read_module(path).content == MODULE
    assert read_module(path.read_bytes()).path == ""


def test_what_cannot_be_read(tmp_path):
    """A pipe, a directory, a name that is not there or cannot be one: the user's mistake, and nobody waits."""
    os.mkfifo(tmp_path / "pipe.ko")
    for name in ("pipe.ko", ".", "gone.ko", "nul\0.ko"):
        with pytest.raises(InputError, match="cannot be read"):
            read_module(f"{tmp_path}/{name}")


def test_a_problem_is_an_error_where_the_module_is_wanted():
    """The module of a damaged file cannot be had: errno, and the file's name in the message."""
    found = unpacked(lzma.compress(MODULE)[:-4], "x.ko.xz")
    with pytest.raises(ModuleFileError, match=r"x\.ko\.xz: the xz data is cut off") as caught:
        found.module()
    assert caught.value.errno == EINVAL


# -- bounds ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["gzip", "xz-kbuild", "zstd", "zstd-stream"])
def test_bombs(monkeypatch, form):
    """A file that unpacks to more than any module has is refused, in one stream or in many."""
    monkeypatch.setattr(payload, "MODULE_SIZE_LIMIT", 1 << 20)
    pack = FORMATS[form][1]
    assert len(unpacked(pack(bytes(1 << 20)), "file").content) == 1 << 20
    for data in (pack(bytes((1 << 20) + 1)), pack(bytes(1 << 26)), pack(bytes(1 << 16)) * 17):
        with pytest.raises(ImageError, match="file: refused: more than 1 MiB when decompressed"):
            unpacked(data, "file")


def test_a_large_file(tmp_path, monkeypatch):
    """A file that is larger than any module is not even read."""
    monkeypatch.setattr(payload, "MODULE_SIZE_LIMIT", 1 << 20)
    path = tmp_path / "large.ko"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"large\.ko: refused"):
        read_module(path)


def test_a_dictionary_that_takes_too_much_memory():
    """That is a bound of ours, and so it is no answer of kmod's."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(MODULE, check=lzma.CHECK_CRC32, filters=filters))
    packed[16] = 39  # 3 GiB
    packed[20:24] = ctypes.c_uint32(__import__("zlib").crc32(packed[12:20])).value.to_bytes(4, "little")
    with pytest.raises(ImageError, match="memory") as caught:
        unpacked(bytes(packed), "file")
    assert not isinstance(caught.value, ModuleFileError)


def test_many_streams(monkeypatch):
    """The number of streams is bounded, too."""
    monkeypatch.setattr(payload, "_MOST_STREAMS", 10)
    assert unpacked(gzip.compress(b"x") * 10, "file").content == b"x" * 10
    with pytest.raises(ImageError, match="more than 10 streams"):
        unpacked(gzip.compress(b"x") * 11, "file")


# -- the real thing -------------------------------------------------------------------------------------------
@lru_cache
def kmod(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program, environment = distribution.kmod()
    return subprocess.run(
        [tool, *arguments],
        executable=program,
        env=environment | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    found = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (found / name).write_bytes(data)
    return found


def ours(path: str) -> tuple[int, str, str]:
    """What ``modinfo`` prints."""
    try:
        return 0, "\n".join(modinfo_lines(read_modinfo(path))) + "\n", ""
    except ModuleFileError as error:
        name = modname(path)
        return 1, "", f"modinfo: ERROR: could not get modinfo from '{name}': {TEXTS[error.errno]}\n"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(SUFFIXES)])
def test_modinfo_reads_what_kmod_reads(directory, name):
    """kmod's modinfo prints the same of a file, or gives up with the same error."""
    if not kmod_knows(name, FILES[name]):
        return  # this kmod was built without gzip: libz itself is asked below
    path = f"{directory}/{name}"
    real = kmod("modinfo", path)
    status, output, error = ours(path)
    assert (status, error) == (real.returncode, real.stderr)
    assert not output or output == real.stdout


def kmod_knows(name: str, data: bytes) -> bool:
    """Distributions leave out what they do not use: Debian's kmod 30 has no zlib."""
    return (data[:2] != b"\x1f\x8b" and not name.endswith(".gz")) or "+ZLIB" in kmod("kmod", "--version").stdout


@pytest.mark.parametrize("name", [name for name, data in FILES.items() if data[:2] == b"\x1f\x8b" and len(data) > 5])
def test_gzip_is_read_as_libz_reads_it(directory, name):
    """``gzread``, with which kmod reads gzip, gives the same bytes, or an error where we have one."""
    libz = ctypes.CDLL(ctypes.util.find_library("z"))
    libz.gzopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libz.gzopen(f"{directory}/{name}".encode(), b"rb"))
    content, buffer = b"", ctypes.create_string_buffer(1 << 16)
    while (count := libz.gzread(file, buffer, len(buffer))) > 0:
        content += buffer.raw[:count]
    libz.gzclose(file)
    assert reading(FILES[name]) == (("EINVAL", b"") if count < 0 else ("", content))
