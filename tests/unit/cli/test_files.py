from __future__ import annotations

import base64
import json
from types import SimpleNamespace

import pytest

from kodojo.errors import GuestOSError


@pytest.fixture
def tree(kernel):
    kernel.files = {"/a": b"one\n", "/b": b"\xff\x00\r\n", "/sys/x": b"0\n"}
    kernel.directories = {"/": [("proc", "directory"), ("dev0", "character device"), ("lnk", "link"), ("f", "file")]}
    return kernel


def test_cat_bytes(run, session, tree):
    """Files are printed byte for byte, one after the other; reading may change a machine, so it is saved."""
    result = run("cat", "/a", "/b")
    assert (result.exit_code, result.stdout_bytes) == (0, b"one\n\xff\x00\r\n")
    assert session.saved


def test_cat_goes_on(run, tree):
    """A file that is not there is named on standard error; the others are printed all the same."""
    result = run("cat", "/nope", "/a")
    assert (result.exit_code, result.stdout_bytes) == (1, b"one\n")
    assert result.stderr == "kodojo: /nope: No such file or directory\n"


def test_cat_json(run, tree):
    """--json has text as text, other bytes in base64, and failures in their place."""
    text, binary, absent = json.loads(run("cat", "/a", "/b", "/nope", "--json").stdout)
    assert (text["encoding"], text["content"]) == ("utf-8", "one\n")
    assert (binary["encoding"], base64.b64decode(binary["content"])) == ("base64", b"\xff\x00\r\n")
    assert (absent["ok"], absent["errno"], absent["errno_name"]) == (False, 2, "ENOENT")


def test_cat_reads_a_part_and_does_not_wait(run, tree):
    """--bytes and --nonblock are handed to the kernel: so many bytes at most, O_NONBLOCK when it is opened."""
    assert run("cat", "--bytes", "2", "--nonblock", "/a").stdout_bytes == b"on"
    assert tree.opened == [("/a", 0o4000)]


def test_cat_and_write_take_a_limit(run, tree):
    """What a blocked read is advised to use exists."""
    assert run("cat", "--limit", "5", "/a").exit_code == 0
    assert run("write", "--limit", "6", "/a", "x").exit_code == 0
    assert tree.limits == [5, 6]


def test_ls(run, tree):
    """One name a line."""
    assert run("ls").stdout.splitlines() == ["proc", "dev0", "lnk", "f"]


def test_ls_l(run, tree):
    """-l prints what GNU ls prints: sizes of files, numbers of devices, targets of links; columns are aligned."""
    assert run("ls", "-l", "/").stdout.splitlines() == [
        "total 16",
        "drw-r--r-- 1 root 1000      0 Jan  1 00:15 proc",
        "crw-r--r-- 1 root 1000 5,   1 Jan  1 00:15 dev0",
        "lrw-r--r-- 1 root 1000      0 Jan  1 00:15 lnk -> ../lnk",
        "-rw-r--r-- 1 root 1000      0 Jan  1 00:15 f",
    ]
    assert run("ls", "-l", "/a").stdout.splitlines() == ["-rw-r--r-- 1 root 1000 4 Jan  1 00:15 /a"]


def test_ls_d(run, tree):
    """-d lists the name itself."""
    assert run("ls", "-d", "/proc").stdout == "/proc\n"


def test_ls_of_a_file(run, tree):
    """A file is listed by the name that was given."""
    result = run("ls", "/a")
    assert (result.exit_code, result.stdout) == (0, "/a\n")


def test_ls_of_nothing(run, tree):
    """What is not there is an error with status 1."""
    result = run("ls", "/nope")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "kodojo: /nope: No such file or directory\n")


def test_ls_json(run, tree):
    """--json has names and kinds."""
    shape = json.loads(run("ls", "/", "--json").stdout)
    assert shape["entries"][0] == {"name": "proc", "kind": "directory"}
    assert json.loads(run("ls", "/nope", "--json").stdout)["errno"] == 2
    entry = json.loads(run("ls", "-l", "/", "--json").stdout)["entries"][1]
    assert (entry["mode"], entry["major"], entry["minor"], entry["target"]) == (0o644, 5, 1, None)


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["1"], b"1"),
        (["1", "--newline"], b"1\n"),
        (["-1"], b"-1"),
        ([""], b""),
        (["--", "--newline"], b"--newline"),
        (["a b\udcff"], b"a b\xff"),
    ],
)
def test_write(run, session, tree, arguments, data):
    """Exactly the text is written, whatever it looks like; --newline appends one."""
    result = run("write", "/sys/x", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert tree.written == [("/sys/x", data)]
    assert session.saved


def test_write_from_standard_input(run, tree):
    """Without TEXT, or with -, standard input is written byte for byte; --append is the shell's >>."""
    assert run("write", "/sys/x", stdin=b"a\xff\n").exit_code == 0
    assert run("write", "/sys/x", "-", "--append", stdin=b"more").exit_code == 0
    assert tree.written == [("/sys/x", b"a\xff\n")]
    assert tree.appended == [("/sys/x", b"more")]


def test_write_fails(run, tree):
    """A refused write is an error with status 1, in JSON too."""
    assert run("write", "/nope", "1").exit_code == 1
    result = run("write", "/nope", "1", "--json")
    assert (result.exit_code, json.loads(result.stdout)["errno_name"]) == (1, "ENOENT")


def test_damaged_directory(run, kernel, monkeypatch):
    """What a directory has told until it went wrong is listed."""
    found = (SimpleNamespace(name="good", kind="file"),)

    def wrong(path):
        raise GuestOSError(f"{path}: the kernel's memory is damaged: an entry", 5, hint="start over", found=found)

    monkeypatch.setattr(kernel, "list_directory", wrong)
    for options in ([], ["-l"]):
        result = run("ls", *options, "/proc")
        assert (result.exit_code, result.stdout) == (1, "good\n")
        assert result.stderr.splitlines() == [
            "kodojo: /proc: the kernel's memory is damaged: an entry",
            "hint: start over",
        ]
