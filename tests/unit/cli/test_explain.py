"""``kodojo explain``: what it prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from kodojo.check import reasons
from kodojo.cli.app import App
from kodojo.report.paint import Paint
from tests.support.loading import SpyTarget, finish, loadable


@pytest.fixture
def paper(cards):
    """A kernel on paper in the store."""
    image = SpyTarget().image
    image.keyring = ()
    cards.images["9.9-paper"] = image
    return image


def written(path, **info):
    writer = loadable(info=info)
    if info.pop("needs", None):
        writer.symbol("gone")
    path.write_bytes(finish(writer).build())
    return str(path)


def test_page(run):
    """The page about a reason, as it is, when it is not for a terminal."""
    result = run("explain", "vermagic-mismatch")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.rstrip() == reasons.page("vermagic-mismatch").rstrip()


def test_page_on_a_terminal(run, monkeypatch):
    """On a terminal the page is set: no marks of Markdown are left."""
    monkeypatch.setattr(App, "paint", Paint(enabled=True))
    monkeypatch.setenv("TERM", "xterm")
    result = run("explain", "vermagic-mismatch")
    assert "\x1b[" in result.stdout
    assert "## " not in result.stdout
    assert "CONFIG_PREEMPT" in result.stdout


def test_page_as_json(run):
    """The page in JSON."""
    shape = json.loads(run("explain", "--json", "elf-magic").stdout)
    assert shape == {"slug": "elf-magic", "page": reasons.page("elf-magic")}


def test_unknown_reason(run):
    """What is neither a file nor a reason could not be checked; the reason that was meant is named."""
    result = run("explain", "elf-magick")
    assert result.exit_code == 2
    assert "is elf-magic meant?" in result.stderr


def test_module_that_loads(run, paper, tmp_path):
    """A module that would load: status 0."""
    file = written(tmp_path / "good.ko")
    result = run("explain", file)
    assert (result.exit_code, result.stdout) == (0, f"{file}: loads into 9.9-paper\n")


def test_module_that_does_not(run, paper, tmp_path):
    """A module that would not: status 1, the kernel's answer and lines, every problem with its reason and advice."""
    file = written(tmp_path / "bad.ko", vermagic="5.0 SMP ", needs="")
    result = run("explain", file)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{file}: does not load into 9.9-paper: ENOEXEC"
    assert lines[3].startswith("   paper: version magic '5.0 SMP ' should be")
    assert any(line.startswith("1. ") and line.endswith("(vermagic-mismatch)") for line in lines)
    assert any(line.startswith("   release: 5.0 in the module") for line in lines)
    assert "   What to do: Build the module against the headers of 9.9-paper, or load it into 5.0." in lines


def test_arguments(run, paper, tmp_path):
    """Arguments are tried, and those that are no parameters remarked on."""
    file = written(tmp_path / "good.ko", parmtype="count:int")
    result = run("explain", file, "coumt=3")
    assert result.exit_code == 0
    assert "is count meant?" in result.stdout


def test_json(run, paper, tmp_path):
    """The verdict in JSON has everything."""
    shape = json.loads(run("explain", "--json", written(tmp_path / "bad.ko", vermagic="5.0 ")).stdout)
    assert (shape["ok"], shape["errno_name"], shape["kernel"]) == (False, "ENOEXEC", "9.9-paper")
    (problem,) = shape["problems"]
    assert problem["slug"] == shape["slug"] == "vermagic-mismatch"
    assert {detail["subject"] for detail in problem["details"]} >= {"release"}
    assert shape["log"] == problem["log"]


@pytest.mark.parametrize("name", ["gone.ko", "./gone"])
def test_file_that_is_not_there(run, paper, name):
    """A file that is not there could not be checked."""
    result = run("explain", name)
    assert result.exit_code == 2
    assert "gone" in result.stderr


def test_no_kernel(run, tmp_path):
    """Without a kernel nothing can be checked."""
    result = run("explain", written(tmp_path / "good.ko"))
    assert result.exit_code == 2
    assert "no kernel in the store" in result.stderr


def test_kernel_that_it_was_built_for(run, paper, cards, tmp_path):
    """The kernel that the module was built for is looked at, if the store has it."""
    opened = []
    cards.images["5.0"] = SpyTarget().image
    original = cards.open

    def spied(name=None):
        opened.append(name)
        return original(name)

    cards.open = spied
    run("explain", "--kernel", "9.9-paper", written(tmp_path / "bad.ko", vermagic="5.0 SMP "))
    assert opened[:2] == ["9.9-paper", "5.0"]


def test_hostile_text(run, paper, tmp_path):
    """Control characters of a module do not reach the terminal."""
    result = run("explain", written(tmp_path / "bad.ko", vermagic="5.0\x1b[2J "))
    assert "\x1b" not in result.stdout
