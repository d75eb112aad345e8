"""Trees that somebody has laid out to do harm, and depmod.d likewise."""

from __future__ import annotations

import os

import pytest

from kodojo.errors import InputError
from kodojo.image import module_search
from kodojo.image.depmod_config import DepmodConfig, wrapped_lines
from kodojo.image.tree import ModuleTree


def test_links_that_multiply_end(tmp_path, monkeypatch):
    """Directories with two links to the next one have more paths than could ever be walked."""
    monkeypatch.setattr(module_search, "_MOST_ENTRIES", 2000)
    for number in range(30):
        directory = tmp_path / f"d{number}"
        directory.mkdir()
        for name in "ab":
            (directory / name).symlink_to(f"../d{number + 1}")
    (tmp_path / "d30").mkdir()
    with pytest.raises(InputError, match="more than 2000 entries"):
        len(ModuleTree(tmp_path))


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/a.ko").write_bytes(b"")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("kernel"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert dict(ModuleTree(tmp_path).contents().passed_over) == {"kernel": "cannot be read: Permission denied"}


def test_a_tree_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        len(ModuleTree(tmp_path / "nowhere"))


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "(6|6.1)*z", ".*.*.*.*.*.*z", "[", "((", "x" * 10_000, r"(6)\1"])
def test_patterns_that_would_take_for_ever_match_nothing(tmp_path, pattern):
    (tmp_path / "x.conf").write_text(f"override dummy {pattern} extra\n")
    assert DepmodConfig.read([tmp_path], "6" * 64).overrides == []


def test_lists_without_end_are_cut(tmp_path):
    (tmp_path / "x.conf").write_text(f"search {' '.join(map(str, range(100_000)))}\n")
    config = DepmodConfig.read([tmp_path], "6.1")
    assert len(config.search) == 1000
    assert len(config.problems) == 1


def test_a_pipe_in_depmod_d_is_not_waited_for(tmp_path):
    """Only what a person names may be one, such as /dev/null."""
    (tmp_path / "lib/modules/6.1").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/depmod.d")
    (tmp_path / "run/depmod.d").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/depmod.d/x.conf")
    assert ModuleTree(tmp_path / "lib/modules/6.1").config == DepmodConfig()


def test_the_first_directorys_file_of_a_name_counts(tmp_path):
    for place, word in (("etc", "first"), ("lib", "second"), ("usr/lib", "third")):
        directory = tmp_path / place / "depmod.d"
        directory.mkdir(parents=True)
        (directory / "same.conf").write_text(f"search {word}\n")
        (directory / f"{word}.conf").write_text(f"search {word}-own\n")
    config = DepmodConfig.beside(tmp_path / "usr/lib/modules/6.1")
    assert config.search == ["first-own", "first", "second-own", "third-own"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb", [(1, "a"), (2, "b")]),
        ("a\\\nb\nc\n", [(2, "ab"), (3, "c")]),
        ("a\\.b\\\\c\n", [(1, "a.b\\c")]),
        ("a\\", [(1, "a")]),
        ("\\", []),
    ],
)
def test_backslashes_in_lines(text, lines):
    """One takes the end of its line away, and vanishes before anything else (``freadline_wrapped``)."""
    assert list(wrapped_lines(text)) == lines
