"""``kodojo check`` on paper kernels."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from kodojo.image.config import Config
from kodojo.image.exports import Export
from tests.support.checking import paper_kernel, simple_module
from tests.support.kbuild import build
from tests.support.loading import finish, loadable, parameters

NEW = Export("only_in_new", 0xFFFFFFFF82001000, None, False, None)


@pytest.fixture
def kernels(cards):
    cards.images["1.0"] = paper_kernel(release="1.0")
    cards.images["2.0"] = paper_kernel(NEW, release="2.0")
    cards.chosen = "1.0"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """any.ko loads into both kernels, new.ko into 2.0 only, bad.ko.xz is damaged, gone.ko is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "any.ko").write_bytes(simple_module("any"))
    (tmp_path / "new.ko").write_bytes(simple_module("new", needs=("only_in_new",)))
    (tmp_path / "bad.ko.xz").write_bytes(b"\xfd7zXZ\x00damaged")
    return tmp_path


@pytest.mark.usefixtures("kernels", "files")
def test_one_module(run):
    """The current kernel is asked; the answer is the exit status."""
    result = run("check", "any.ko")
    assert (result.exit_code, result.stdout) == (0, "✓ any.ko loads into 1.0\n")
    result = run("check", "new.ko")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "✗ new.ko would not load into 1.0: ENOENT from simplify_symbols"
    assert "new: Unknown symbol only_in_new (err -2)" in lines[1]
    assert run("check", "new.ko", "--kernel", "2.0").exit_code == 0


@pytest.mark.usefixtures("kernels", "files")
def test_the_common_option(run):
    """``--kernel`` in front of the command's name means the same."""
    assert run("--kernel", "2.0", "check", "new.ko").exit_code == 0


@pytest.mark.usefixtures("kernels", "files")
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["any.ko", "new.ko", "--kernel", "2.0"], 0),
        (["any.ko", "new.ko", "--kernel", "1.0"], 1),
        (["new.ko", "bad.ko.xz"], 1),
        (["any.ko", "bad.ko.xz"], 1),
        (["any.ko", "gone.ko"], 2),
        (["any.ko", "--kernel", "2.0", "--kernel", "3.0"], 2),
        (["any.ko", "--kernel", "3.0"], 2),
        ([], 2),
        (["any.ko", "new.ko", "x=1"], 2),
        (["--all"], 2),
    ],
)
def test_exit_status(run, words, status):
    """0 all load, 1 some would not, 2 something could not be checked, or wrong usage."""
    assert run("check", "-j", "1", *words).exit_code == status


@pytest.fixture
def crc64(kernels, files, cards):
    """any.ko, packed with plain xz, for a kernel that unpacks xz itself; twice."""
    options = {"CONFIG_MODULE_DECOMPRESS": "y", "CONFIG_MODULE_COMPRESS_XZ": "y"}
    cards.images["1.0"].config = Config({**cards.images["1.0"].config, **options})
    for name in ("a", "b"):
        (files / f"{name}.ko.xz").write_bytes(lzma.compress((files / "any.ko").read_bytes()))


@pytest.mark.usefixtures("crc64")
@pytest.mark.parametrize(
    "words",
    [
        ["check", "a.ko.xz"],
        ["check", "a.ko.xz", "b.ko.xz"],
        ["check", "a.ko.xz", "--json"],
        ["check", "a.ko.xz", "--format", "junit"],
        ["explain", "a.ko.xz"],
        ["explain", "--json", "a.ko.xz"],
    ],
)
def test_a_warning_about_the_file_is_shown_once(run, words):
    """Whatever is printed, it has the warning about how a file is packed; the file loads all the same."""
    result = run(*words)
    assert result.exit_code == 0
    assert result.stdout.count("xz --check=crc32 --lzma2=dict=1MiB") == 1
    assert "kmod 30 and older" in result.stdout


@pytest.mark.usefixtures("crc64")
def test_a_warning_about_the_file_is_on_the_page(run, files):
    """The page for browsers has it, too."""
    assert run("check", "a.ko.xz", "--html", "page.html").exit_code == 0
    assert "xz --check=crc32" in (files / "page.html").read_text()


@pytest.mark.usefixtures("kernels", "files")
def test_a_signature_behind_the_compressed_data(run, files):
    """A file that was signed after it had been compressed is refused, by check as by modinfo, with what to do."""
    packed = lzma.compress((files / "any.ko").read_bytes(), check=lzma.CHECK_CRC32)
    (files / "signed.ko.xz").write_bytes(packed + bytes(600) + b"~Module signature appended~\n")
    result = run("check", "signed.ko.xz")
    assert result.exit_code == 1
    assert result.stdout.startswith("✗ signed.ko.xz would not load into 1.0: EINVAL from insmod\n")
    assert "sign-file" in result.stdout
    result = run("modinfo", "signed.ko.xz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "could not get modinfo from 'signed': Invalid argument" in result.stderr


@pytest.mark.usefixtures("kernels", "files")
def test_table_for_programs(run):
    """Where no terminal is, there is an aligned row for each module, then the reasons, and the sum of it."""
    result = run("check", "*.ko", "--kernel", "1.0", "--kernel", "2.0")
    lines = result.stdout.splitlines()
    rows = lines[: lines.index("")]
    assert [line.split() for line in rows] == [
        ["module", "1.0", "2.0"],
        ["any.ko", "ok", "ok"],
        ["new.ko", "ENOENT", "unknown-symbol", "ok"],
    ]
    assert lines[len(rows) + 1].startswith("unknown-symbol, as in new.ko: ")
    assert lines[-1] == "2 modules, 2 kernels: 3 load, 1 would not"


@pytest.mark.usefixtures("kernels", "files")
def test_json(run):
    """One value, whose rows are in the order in which the modules were given."""
    result = run("check", "new.ko", "any.ko", "--json")
    value = json.loads(result.stdout)
    assert [(row["module"], row["ok"]) for row in value["results"]] == [("new.ko", False), ("any.ko", True)]
    assert value["exit_status"] == result.exit_code == 1
    assert json.loads(run("check", "new.ko", "any.ko", "--format", "json").stdout) == value


@pytest.mark.usefixtures("kernels")
def test_files_that_are_written(run, files):
    """``--output`` takes the place of standard output, ``--html`` comes on top of it."""
    result = run("check", "new.ko", "--format", "junit", "--output", "out.xml", "--html", "page.html")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1 would not" in result.stderr
    assert ET.parse(files / "out.xml").getroot().get("failures") == "1"
    assert "unknown-symbol" in (files / "page.html").read_text()
    result = run("check", "any.ko", "--html", "none/page.html")
    assert result.exit_code == 2
    assert "none/page.html: cannot be written" in result.stderr


@pytest.mark.usefixtures("kernels")
def test_parameters(run, files):
    """Parameters are tried; a file of that name is a file."""
    writer = loadable()
    parameters(writer, {"number": ("int", 0)})
    (files / "p.ko").write_bytes(finish(writer).build())
    assert run("check", "p.ko", "number=1").exit_code == 0
    assert "parameter-invalid" in run("check", "p.ko", "number=x").stdout
    (files / "number=x").write_bytes(simple_module())
    assert "2 modules" in run("check", "p.ko", "number=x").stdout


@pytest.mark.usefixtures("kernels", "files")
def test_kernels_of_the_same_release(run, cards):
    """Two kernels of one release are two columns."""
    cards.images["other"] = paper_kernel(NEW, release="1.0")
    value = json.loads(run("check", "new.ko", "--kernel", "1.0", "--kernel", "other", "--json").stdout)
    assert [(row["kernel"], row["ok"]) for row in value["results"]] == [("1.0", False), ("1.0 (other)", True)]


@pytest.mark.usefixtures("kernels", "files")
def test_no_scheduler(run):
    """A cluster that is not there is an error of the command, not of the modules."""
    result = run("check", "any.ko", "--scheduler", "nonsense://")
    assert result.exit_code == 2
    assert "Dask" in result.stderr


def test_nothing_heavy_is_imported():
    """Neither the emulator nor what draws tables is imported to check a module."""
    program = "import sys, kodojo.cli.check, kodojo.check.matrix, kodojo.check.pool; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"unicorn", "rich", "distributed"} == set()


@pytest.mark.kernel
def test_real_modules(run, cards, image, series, tmp_path):
    """Built modules against the distribution's kernel, from a directory, by several processes."""
    cards.images[series] = image
    for name in ("kd_export", "kd_import", "kd_unknown"):
        (tmp_path / f"{name}.ko").write_bytes(build(series)[name].read_bytes())
    (tmp_path / "cut.ko").write_bytes(build(series)["kd_hello"].read_bytes()[:9000])
    result = run("check", str(tmp_path), "--json", "--jobs", "2")
    found = {row["module"].rpartition("/")[2]: row["slug"] for row in json.loads(result.stdout)["results"]}
    assert found == {
        "kd_export.ko": "ok", "kd_import.ko": "ok", "kd_unknown.ko": "unknown-symbol", "cut.ko": "elf-section-table",
    }  # fmt: skip


@pytest.mark.usefixtures("kernels")
def test_suitable_kernels(run, files, cards):
    """Which kernel of the store a module was built for is in the hint, and in JSON; all that load are left alone."""
    content = simple_module("new", vermagic="2.0 SMP ")
    (files / "new.ko").write_bytes(content)
    (files / "any.ko").write_bytes(simple_module("any"))
    result = run("check", "new.ko", "any.ko", "--json")
    refused, loads = json.loads(result.stdout)["results"]
    assert (refused["suitable_kernels"], loads["suitable_kernels"]) == (["2.0"], [])
    sentence = "The store has the kernel that it was built for: 2.0."
    assert sentence in run("check", "new.ko").stdout
    assert sentence in run("explain", "new.ko").stdout
    assert json.loads(run("explain", "new.ko", "--json").stdout)["suitable_kernels"] == ["2.0"]


@pytest.mark.usefixtures("kernels")
def test_explained_with_the_kernel_it_was_built_for(run, files, monkeypatch):
    """Explanations of a matrix draw on the kernel that a module was built for, of the store or another column."""
    seen = []
    monkeypatch.setattr("kodojo.check.explain.explain", lambda case, verdict: seen.append(case) or verdict)
    content = simple_module("new", vermagic="2.0 SMP ")
    (files / "new.ko").write_bytes(content)
    for kernels, expected in (([], {"1.0": "2.0"}), (["1.0", "2.0"], {"1.0": "2.0", "2.0": None})):
        seen.clear()
        run("check", "new.ko", "--explain", "-j", "1", *(f"--kernel={kernel}" for kernel in kernels))
        assert {case.image.release: case.built_for and case.built_for.release for case in seen} == expected
