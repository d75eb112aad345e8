from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kodojo.errors import CorruptError, InputError, PackageError
from kodojo.image.additions import Additions
from kodojo.image.config import Config
from kodojo.image.image import FACTS
from kodojo.image.tree import TreeContents
from kodojo.kernel import snapshots


class _Modules(dict):
    """A tree in which nothing is odd."""

    root = None

    def contents(self):
        return TreeContents(dict(self), {}, [])


def _image(store, release, modules=3, kind="kernel"):
    return SimpleNamespace(
        release=release,
        architecture="x86_64",
        kind=kind,
        kallsyms=dict.fromkeys(("panic", "start_thread", "syscall_exit_to_user_mode"), 1),
        describes=FACTS if kind == "kernel" else FACTS - {"kernel", "keys"},
        warnings=("Module.symvers: no checksums",) if kind == "headers" else (),
        vermagic=f"{release} SMP mod_unload ",
        build_id="ab" * 20,
        exports=[None] * 5,
        config_path=Path("config"),
        config=Config({"CONFIG_MODVERSIONS": "y", "CONFIG_PREEMPT_DYNAMIC": "y", "CONFIG_EXT4_FS": "m"}),
        modules=_Modules({f"m{i}": None for i in range(modules)}),
        builtin=frozenset({"loop"}),
        path=store.root / "images" / release / "boot" / f"vmlinuz-{release}",
        additions=Additions(store.root / "images" / release, None),
    )


@pytest.fixture
def two(cards):
    for release in ("6.1.0-a", "6.12.0-b"):
        cards.images[release] = _image(cards, release)
    directory = cards.root / "images" / "6.12.0-b"
    directory.mkdir(parents=True)
    (directory / "vmlinuz").write_bytes(bytes(3 << 20))
    return cards


def test_list(run, two):
    """The list has one line a kernel, and a star at the one that is used when none is named."""
    (two.snapshots_directory(two.images["6.1.0-a"]) / "0123").mkdir(parents=True)
    (two.snapshots_directory(two.images["6.1.0-a"]) / ".0123.lock").touch()
    lines = [line.split() for line in run("kernel", "list").stdout.splitlines()]
    assert lines == [
        ["kernel", "what", "architecture", "modules", "snapshots"],
        ["6.1.0-a", "kernel", "x86_64", "3", "1"],
        ["*", "6.12.0-b", "kernel", "x86_64", "3", "0"],
    ]


def test_list_of_headers(run, two):
    """A kernel that is only described is marked, and has no snapshots."""
    two.images["6.1.0-a"] = _image(two, "6.1.0-a", 0, kind="headers")
    lines = [line.split() for line in run("kernel", "list").stdout.splitlines()]
    assert lines[1] == ["6.1.0-a", "headers", "only", "x86_64", "0"]


def test_show_headers(run, two):
    """What is not known of a kernel that is only described is listed, and so are contradictions."""
    two.images["6.12.0-b"] = _image(two, "6.12.0-b", 0, kind="headers")
    rows = dict(line.split(maxsplit=1) for line in run("kernel", "show").stdout.splitlines())
    assert rows["what"] == "headers only"
    assert rows["not"] == "known                   kernel, keys"
    assert rows["warning"] == "Module.symvers: no checksums"
    assert "snapshot" not in rows


def test_add_headers(run, two):
    """Who adds headers is told that they cannot be booted, and what contradicts itself in them."""

    def add():
        two.images["7.0"] = _image(two, "7.0", 0, kind="headers")
        return two.images["7.0"]

    two.on_add = add
    result = run("kernel", "add", "linux-headers.deb")
    assert "cannot be booted" in result.stdout
    assert "no checksums" in result.stderr


def test_list_with_a_damaged_one(run, two):
    """A damaged kernel does not hide the others."""
    two.images["6.1.0-a"] = CorruptError("description: damaged")
    result = run("kernel", "list")
    assert result.exit_code == 0
    assert "description: damaged" in result.stdout
    assert "6.12.0-b" in result.stdout


def test_list_of_none(run):
    """An empty store is no failure, and the way out of it is named."""
    result = run("kernel", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "kodojo kernel add" in result.stderr


def test_list_json(run, two):
    """--json has the same facts."""
    first, second = json.loads(run("kernel", "list", "--json").stdout)
    assert (first["name"], first["modules"], first["current"]) == ("6.1.0-a", 3, False)
    assert second["current"] is True


def test_show(run, two, monkeypatch):
    """All facts are there: the options that matter to loading, and each snapshot's command line and memory."""
    keys = [snapshots.SnapshotKey("identity", "slub_debug=FZPU", 256 << 20, bare) for bare in (True, False)]
    monkeypatch.setattr(snapshots, "existing", lambda _store, _image: [(key, None) for key in keys])
    found = run("kernel", "show").stdout
    assert [line.split(maxsplit=1)[1] for line in found.splitlines() if line.startswith("snapshot")] == [
        'command line "slub_debug=FZPU", 256 MiB, bare',
        'command line "slub_debug=FZPU", 256 MiB',
    ]
    rows = dict(line.split(maxsplit=1) for line in run("kernel", "show").stdout.splitlines())
    assert rows["name"] == "6.12.0-b (the current one)"
    assert rows["vermagic"] == "6.12.0-b SMP mod_unload"
    assert rows["exports"] == "5"
    assert rows["modules"] == "3, and 1 built in"
    assert rows["size"] == "3 MiB"
    assert rows["CONFIG_MODVERSIONS"] == "y"
    assert rows["CONFIG_MODULE_SIG_FORCE"] == "not set"
    assert rows["CONFIG_PREEMPT_DYNAMIC"] == "y"
    assert "CONFIG_PREEMPT_NONE" not in rows


def test_show_json(run, two, monkeypatch):
    """--json keeps vermagic to the blank, and sizes as bytes."""
    monkeypatch.setattr(snapshots, "existing", lambda _store, _image: [])
    shape = json.loads(run("kernel", "show", "6.12.0-b", "--json").stdout)
    assert (shape["vermagic"], shape["size"], shape["snapshots"]) == ("6.12.0-b SMP mod_unload ", 3 << 20, [])
    assert shape["config"]["MODULE_SIG"] == ""


def test_add(run, two, tmp_path):
    """SOURCE, --modules and --config reach the store, and the new kernel is named."""

    def add():
        two.images["7.0"] = _image(two, "7.0")
        return two.images["7.0"]

    two.on_add = add
    result = run("kernel", "add", "vmlinuz", "--modules", str(tmp_path), "--config", "config")
    assert (result.exit_code, result.stdout.startswith("7.0 added")) == (0, True)
    (source, modules, config) = two.added[0]
    assert (source, modules, str(config)) == ("vmlinuz", tmp_path, "config")
    assert run("kernel", "add").stdout == "7.0 was there already\n"


def test_add_fails(run, cards):
    """A damaged package ends in its message and status 1."""

    def fail():
        raise PackageError("x.deb: truncated", hint="download it again")

    cards.on_add = fail
    result = run("kernel", "add", "x.deb")
    assert (result.exit_code, result.stderr) == (1, "kodojo: x.deb: truncated\nhint: download it again\n")
    shape = json.loads(run("kernel", "add", "x.deb", "--json").stdout)
    assert shape == {
        "ok": False,
        "error": {"kind": "PackageError", "message": "x.deb: truncated", "hint": "download it again"},
    }


def test_use_and_remove(run, two):
    """use chooses, remove removes; both say so."""
    assert run("kernel", "use", "6.1.0-a").stdout.startswith("6.1.0-a is the current kernel")
    assert two.chosen == "6.1.0-a"
    assert json.loads(run("kernel", "remove", "6.12.0-b", "--json").stdout) == {"removed": "6.12.0-b"}
    assert two.names() == ["6.1.0-a"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "kodojo boot 6.1.0-a starts it"),
        ({"architecture": "s390x"}, "checked against it; kodojo does not boot s390x kernels"),
        ({"describes": frozenset()}, "checked against it\n"),
        (
            {"kallsyms": {"panic": 1, "start_thread": 1}},
            "no function syscall_exit_to_user_mode. A kernel that",
        ),
    ],
)
def test_what_it_is_for(run, two, changes, words):
    """Only a kernel that can be booted is said to be."""
    for name, value in changes.items():
        setattr(two.images["6.1.0-a"], name, value)
    result = run("kernel", "use", "6.1.0-a")
    assert result.exit_code == 0
    assert words in result.stdout


def test_boot(run, two, session):
    """boot starts the named kernel with the command line and memory that are given."""
    result = run("boot", "6.1.0-a", "--cmdline", " a  b ", "--memory", "512")
    assert result.stdout == "6.1.0-a is up, with 512 MiB of memory\n"
    (image, _, memory, bare) = session.booted[0]
    assert (image.release, memory, bare) == ("6.1.0-a", 512 << 20, False)
    assert json.loads(run("boot", "--cmdline", " a  b ", "--json").stdout)["cmdline"] == "a b"
    assert session.booted[1][0].release == "6.12.0-b"


def test_boot_bare(run, two, session):
    """A bare machine is asked for, and said to be one."""
    assert run("boot", "--bare").stdout == "6.12.0-b is up, bare, with 256 MiB of memory\n"
    assert session.booted[0][-1] is True
    assert [json.loads(run("boot", *words, "--json").stdout)["bare"] for words in ((), ("--bare",))] == [False, True]


def test_boot_of_two(run, two, session):
    """Two different names are a contradiction, and nothing is booted."""
    assert run("boot", "6.1.0-a", "--kernel", "6.12.0-b").exit_code == 1
    assert session.booted == []


def test_boot_without_kernels(run, session):
    """Without any kernel the hint says how to get one."""
    result = run("boot")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "hint: kodojo kernel add")


def test_error_of_the_machine(run, two, session, monkeypatch):
    """An InputError of the session comes out as message and hint."""

    def refuse(*_arguments, **_options):
        raise InputError("1 MiB of memory are too small", hint="more")

    monkeypatch.setattr(session, "boot", refuse)
    assert run("boot").stderr == "kodojo: 1 MiB of memory are too small\nhint: more\n"
