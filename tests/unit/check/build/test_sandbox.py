"""What a build may not do, tried by shell scripts that do it."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from kodojo.check.build.sandbox import CancelledError, Limits, Sandbox
from kodojo.errors import InputError

QUICK = Limits(time=20.0)
MARK = "98765.4321"  # seconds that nobody sleeps otherwise


@pytest.fixture
def place(tmp_path) -> Path:
    """An empty directory for a sandbox."""
    (tmp_path / "place").mkdir()
    return (tmp_path / "place").resolve()


def run(place: Path, script: str, *words: str, limits: Limits = QUICK, **others):
    sandbox = Sandbox(place, limits=limits, **others)
    return sandbox.run(["bash", "-c", script, "bash", *words], {"PATH": os.environ["PATH"]})


def left_behind() -> list[str]:
    """Processes of the tests that are still there."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if MARK.encode() in words:
            found.append(directory.name)
    return found


def test_output_and_status(place):
    """What a command prints and how it ends comes back; standard error is a part of it."""
    done = run(place, "echo one; echo two >&2; exit 7")
    assert (done.status, done.stopped, done.output) == (7, "", "one\ntwo\n")


def test_a_signal_is_told_from_a_status(place):
    """A command that dies of a signal has its number, negative."""
    assert run(place, "kill -SEGV $$").status == -11


def test_what_may_be_written(place, tmp_path):
    """The directory of the build and temporary ones can be written to; the system and the user's files cannot."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    done = run(
        place,
        """
        for path in work/x "$HOME/x" "$TMPDIR/x" /tmp/x; do echo y > "${path#work/}" && echo "wrote"; done
        cat "$1" 2> /dev/null
        for path in /usr/x /etc/passwd /x /dev/x /proc/sys/kernel/core_pattern; do
            ( echo y > "$path" ) 2> /dev/null && echo "wrote $path"
        done
        for path in "$1" "${1%/*}/new"; do  # below /tmp, which is another one here
            ( echo y > "$path" ) 2> /dev/null
        done
        exit 0
        """,
        str(secret),
    )
    assert done.output == "wrote\n" * 4
    assert secret.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_no_network(place):
    """A port that listens here cannot be reached from inside."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        script = '( exec 3<> "/dev/tcp/127.0.0.1/$1" ) 2> /dev/null && echo reached'
        assert run(place, f"{script}; exit 0", port).output == ""
        assert run(_again(place), f"{script}; exit 0", port, namespaces=False).output == "reached\n"


def _again(place: Path) -> Path:
    other = place.with_name("other")
    other.mkdir()
    return other


def test_no_privileges(place):
    """It runs as no one, whoever started it, and no program gives it more rights."""
    script = "grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs)' /proc/self/status; [ $(id -u) = 0 ] && echo root; exit 0"
    lines = run(place, script).output.split("\n")
    assert [line.split()[-1].strip("0") for line in lines if line] == ["", "", "", "1"]


def test_other_processes_are_not_there(place):
    """No process of this computer can be seen or hit; its own number means nothing inside."""
    script = 'kill -0 "$1" 2> /dev/null && echo seen; ls /proc | grep -c "^[0-9]"'
    shown = run(place, script, str(os.getpid() + 100_000)).output.split()
    assert int(shown[-1]) < 10


@pytest.mark.parametrize("namespaces", [True, False])
def test_an_endless_loop_ends(place, namespaces):
    """What never ends is stopped at the limit of time, with everything that it started, detached or not."""
    script = f"setsid sleep {MARK} & (sleep {MARK} &) ; while :; do :; done"
    done = run(place, script, limits=QUICK._replace(time=1.0), namespaces=namespaces)
    assert done.stopped == "it was not done after 1 s"
    assert left_behind() == []


@pytest.mark.parametrize("namespaces", [True, False])
def test_what_is_left_behind_ends(place, namespaces):
    """Processes that outlive their command do not outlive its sandbox."""
    done = run(place, f"setsid sleep {MARK} & disown; echo done", namespaces=namespaces)
    assert (done.status, done.output) == (0, "done\n")
    assert left_behind() == []


def test_a_bomb_of_processes_is_bounded(place):
    """Processes that make more of themselves reach a limit and are gone at the end."""
    script = f"more() {{ sleep {MARK} & more & more; }}; more"
    done = run(place, script, limits=QUICK._replace(time=3.0, processes=60))
    assert done.stopped or done.status != 0
    assert "Resource temporarily unavailable" in done.output
    assert left_behind() == []


def test_memory_is_bounded(place):
    """The processes of a build share a limit: two that keep to their own one exceed it together."""
    script = """
    eat() { local text=$(head -c 40000000 /dev/zero | tr '\\0' a); read -t 15 <> <(:); }
    eat & eat & wait
    """
    done = run(place, script, limits=QUICK._replace(memory=100 << 20))
    assert done.stopped == "it took more than 100 MiB of memory"


def test_the_disk_is_bounded(place):
    """Neither one file nor all of them together grow without limit."""
    limits = QUICK._replace(disk=8 << 20, file_size=1 << 20)
    done = run(place, "while :; do n=$((n + 1)); head -c 4000000 /dev/zero > file$n; done", limits=limits)
    assert done.stopped == "it wrote more than 8 MiB"
    assert max(path.stat().st_size for path in (place / "work").glob("file*")) == 1 << 20


def test_a_long_log_loses_its_middle(place):
    """Of what is printed without end the beginning and the end are kept."""
    done = run(place, "echo first; seq 100000; echo last", limits=QUICK._replace(log=1000))
    assert done.output.startswith("first\n1\n2\n")
    assert done.output.endswith("100000\nlast\n")
    assert len(done.output) < 3000
    assert "kodojo left out the rest" in done.output


def test_cancelled(place):
    """A command is ended as soon as nobody waits for it."""
    end = threading.Event()
    end.set()
    with pytest.raises(CancelledError):
        run(place, f"sleep {MARK}", cancelled=end.is_set)
    assert left_behind() == []


def test_links_and_shown_directories(place, tmp_path):
    """What a build has to see is at its own path, read-only; names that it expects lead there."""
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "file").write_text("content")
    script = 'cat "$1" /lib/modules/9.9/build/file; touch "$1" 2> /dev/null && echo written; exit 0'
    links = {"/lib/modules/9.9/build": str(headers)}
    done = run(place, script, str(headers / "file"), shown=[headers], links=links)
    assert done.output == "contentcontent"


def test_what_is_left_is_opened_with_care(place, tmp_path):
    """Files are read, links that lead out and what is no file are not."""
    secret = tmp_path / "secret"
    secret.write_text("mine")
    sandbox = Sandbox(place, limits=QUICK)
    sandbox.run(
        [
            "bash",
            "-c",
            'echo good > good; ln -s good near; ln -s "$1" far; ln -s "${1%/*}" up; mkfifo pipe',
            "b",
            str(secret),
        ],
        {"PATH": os.environ["PATH"]},
    )
    for name in ("good", "near"):
        with sandbox.open(sandbox.work / name) as file:
            assert file.read() == b"good\n"
    for name in ("far", "up/secret", "pipe", "nothing"):
        with pytest.raises(InputError):
            sandbox.open(sandbox.work / name)


def test_where_no_sandbox_can_be_made(place, monkeypatch, tmp_path):
    """The refusal says what failed and what can be done."""
    sandbox = Sandbox(place, limits=QUICK)
    (place / "root").rmdir()
    with pytest.raises(InputError, match="no sandbox can be made here") as caught:
        sandbox.run(["true"], {"PATH": os.environ["PATH"]})
    assert "--no-sandbox" in caught.value.hint
