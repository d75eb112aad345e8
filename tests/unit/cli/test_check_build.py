"""``kodojo check --build``: what is printed, and the exit status."""

from __future__ import annotations

import hashlib
import json

import pytest

from kodojo.errors import InputError
from tests.support.checking import paper_kernel, simple_module
from tests.support.distribution import kernel_of, tools
from tests.support.sources import CONF, MISTAKEN, write_dkms_package, write_source


@pytest.fixture(autouse=True)
def _paper(cards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cards.images["1.0"] = paper_kernel(release="1.0")


@pytest.mark.parametrize(
    "words", [("--headers", "x"), ("--build-log", "x"), ("--keep-modules", "x"), ("--no-sandbox",)]
)
def test_options_without_build(run, words):
    """Options about building are an error without --build, not ignored."""
    result = run("check", "any.ko", *words)
    assert result.exit_code == 2
    assert "are for --build" in result.stderr


def test_nothing_to_build(run, tmp_path):
    """Where nothing is source, --build says what would be."""
    (tmp_path / "any.ko").write_bytes(simple_module("any"))
    result = run("check", "--build", "any.ko")
    assert result.exit_code == 2
    assert "any.ko: there is nothing to build in it" in result.stderr
    assert "dkms.conf" in result.stderr


def test_a_source_without_build(run, tmp_path):
    """A package of sources is recognised, with the command that builds it."""
    write_dkms_package(tmp_path / "hello.deb")
    result = run("check", "hello.deb")
    assert result.exit_code == 2
    assert "source for DKMS (hello 1.0)" in result.stdout
    assert "kodojo check --build hello.deb" in result.stdout


def test_no_headers(run, tmp_path, monkeypatch):
    """Where no headers can be had, nothing was tried: that is no failure of the source; the rest is checked."""

    def fetch(release, *_):
        raise InputError(
            f"apt knows no linux-headers-{release}", hint="give the headers: --headers PACKAGE or DIRECTORY"
        )

    monkeypatch.setattr("kodojo.check.build.headers.fetch_headers", fetch)
    write_dkms_package(tmp_path / "hello.deb")
    (tmp_path / "any.ko").write_bytes(simple_module("any"))
    result = run("check", "--build", "hello.deb", "any.ko", "--json")
    assert result.exit_code == 2
    answers = {each["module"]: each for each in json.loads(result.stdout)["results"]}
    assert answers["any.ko"]["status"] == "ok"
    assert answers["hello.deb"]["status"] == "unchecked"
    assert answers["hello.deb"]["why"] == "apt knows no linux-headers-1.0"
    assert "--headers" in answers["hello.deb"]["hint"]


@pytest.mark.kernel
def test_builds(run, tmp_path, monkeypatch):
    """One package builds and loads, a directory does not build: a table, the first error, the log, exit status 1."""
    for name, value in tools().items():
        monkeypatch.setenv(name, value)
    kernel = kernel_of("6.1")
    write_dkms_package(tmp_path / "hello.deb")
    write_source(tmp_path / "bad", MISTAKEN, CONF)
    headers = ("--kernel", str(kernel.build_directory), "--headers", str(kernel.headers_root))
    result = run("check", "--build", "hello.deb", "bad", *headers, "--build-log", "logs", "-j", "2")
    assert result.exit_code == 1, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [
        ["hello.deb:hello.ko", "ok"],
        ["bad/hello.ko", "does not build"],
    ]
    assert any(line.startswith("  bad for ") and "hello.c:3:" in line for line in lines)
    assert lines[-1].endswith(": 1 loads, 1 does not build")
    assert "nowhere_to_be_found" in (tmp_path / "logs" / f"bad-{kernel.release}.log").read_text()


@pytest.mark.kernel
def test_keeps_modules(run, tmp_path, monkeypatch):
    """--keep-modules leaves the module that was checked, of a package and of a directory; of what fails nothing."""
    for name, value in tools().items():
        monkeypatch.setenv(name, value)
    kernel = kernel_of("6.1")
    write_dkms_package(tmp_path / "hello.deb")
    write_source(tmp_path / "drv")
    write_source(tmp_path / "bad", MISTAKEN, CONF)
    options = (
        "--kernel",
        str(kernel.build_directory),
        "--headers",
        str(kernel.headers_root),
        "--keep-modules",
        "kept",
    )
    result = run("check", "--build", "hello.deb", "drv", "bad", *options, "--json")
    kept = {
        path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()
    }
    assert {str(path) for path in kept} == {
        f"kept/{kernel.release}/hello-1.0/hello.ko",
        f"kept/{kernel.release}/drv/hello.ko",
    }
    checked = {each["sha256"] for each in json.loads(result.stdout)["results"] if each["status"] == "ok"}
    assert {hashlib.sha256(content).hexdigest() for content in kept.values()} == checked
