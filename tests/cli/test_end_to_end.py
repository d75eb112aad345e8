"""The command as people run it: a process for each line, a machine that lasts from one to the next."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shell import Shell, one_machine

pytestmark = pytest.mark.kernel


@pytest.fixture
def shell(series: str) -> Iterator[Shell]:
    """One machine for all tests of this file, whichever processes they run in: one after the other."""
    with one_machine(series) as shell:
        yield shell


def test_state_lasts(shell: Shell, built: dict[str, Path]) -> None:
    """What one command loads, the next lists; what one writes, the next reads; rmmod ends it."""
    assert shell.ok("insmod", str(built["kd_proc"])) == ""
    assert [line.split()[0] for line in shell.ok("lsmod").splitlines()] == ["Module", "kd_proc"]
    assert shell.ok("cat", "/proc/modules").startswith("kd_proc ")
    shell.ok("write", "/proc/kd_proc", "from the shell\n")
    assert shell.ok("cat", "/proc/kd_proc") == "from the shell\n"
    assert "kd_proc" in shell.ok("ls", "/sys/module").split()
    shell.ok("rmmod", "kd_proc")
    assert len(shell.ok("lsmod").splitlines()) == 1
    assert "kd_proc: loading out-of-tree module taints kernel." in shell.ok("dmesg")


def test_parameters(shell: Shell, built: dict[str, Path]) -> None:
    """Arguments reach the module, and their files in sysfs show them."""
    shell.ok("insmod", str(built["kd_hello"]), "int=7", "whom=everybody")
    assert shell.ok("cat", "/sys/module/kd_hello/parameters/int") == "7\n"
    assert "kd_hello: whom=everybody" in shell.ok("dmesg")


def test_fresh_leaves_no_trace(shell: Shell, built: dict[str, Path]) -> None:
    """--fresh works on a copy."""
    shell.ok("insmod", "--fresh", str(built["kd_proc"]))
    assert len(shell.ok("lsmod").splitlines()) == 1


def test_refusal(shell: Shell, built: dict[str, Path]) -> None:
    """A refusal has insmod's line, the kernel's, the reason and a hint; exit 1; its log lines stay in the machine."""
    done = shell("insmod", str(built["kd_unknown"]))
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == f"insmod: ERROR: could not insert module {built['kd_unknown']}: Unknown symbol in module"
    assert any(line.endswith("kd_unknown: Unknown symbol kd_exists_nowhere (err -2)") for line in lines)
    assert any(line.startswith("why: ") for line in lines)
    assert any(line.startswith("hint: ") for line in lines)
    assert "Unknown symbol kd_exists_nowhere" in shell.ok("dmesg")


def test_json_has_every_step(shell: Shell, built: dict[str, Path]) -> None:
    """--json tells the steps of a load in their order, and of a refusal up to the one that refused."""
    loaded = json.loads(shell.ok("insmod", "--json", str(built["kd_hello"])))
    names = [step["name"] for step in loaded["steps"]]
    order = [
        "insmod", "may_init_module", "kernel_read_file", "module_sig_check", "elf_validity_check", "setup_load_info",
        "check_modinfo", "layout_and_allocate", "add_unformed_module", "simplify_symbols", "apply_relocations",
        "post_relocation", "strndup_user", "complete_formation", "parse_args", "mod_sysfs_setup", "do_init_module",
        "live",
    ]  # fmt: skip
    assert [name for name in names if name in order] == order
    assert loaded["ok"] is True
    done = shell("insmod", "--json", str(built["kd_unknown"]))
    refused = json.loads(done.stdout)
    assert (done.returncode, refused["ok"], refused["errno"]) == (1, False, 2)
    assert refused["steps"][-1]["name"] == refused["step"] == "simplify_symbols"


def test_crash_leaves_the_state_before(shell: Shell, built: dict[str, Path]) -> None:
    """An oops is reported as one, with registers and backtrace, and the machine is as it was."""
    shell.ok("insmod", str(built["kd_proc"]))
    done = shell("insmod", str(built["kd_oops"]), "how=0")
    assert done.returncode == 1
    assert "NULL pointer dereference" in done.stderr
    assert "kd_oops_inner" in done.stderr
    assert [line.split()[0] for line in shell.ok("lsmod").splitlines()] == ["Module", "kd_proc"]


def test_interruption_leaves_the_state_before(shell: Shell, built: dict[str, Path]) -> None:
    """Ctrl-C ends a command whose module never returns with status 130, and nothing has happened."""
    process = shell.start("insmod", str(built["kd_spin"]), "how=0", "--limit", "3000")
    lock = Path(shell.environment["KODOJO_STORE"]) / "machine" / "lock"
    try:
        deadline = time.monotonic() + 60
        while str(process.pid) not in lock.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)  # until it holds the machine
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(shell.ok("lsmod").splitlines()) == 1


def test_two_at_once(shell: Shell, built: dict[str, Path]) -> None:
    """Two commands at the same time both take effect."""
    processes = [shell.start("insmod", str(built[name])) for name in ("kd_proc", "kd_noinit")]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]
    assert {line.split()[0] for line in shell.ok("lsmod").splitlines()[1:]} == {"kd_proc", "kd_noinit"}


def test_damaged_state(shell: Shell) -> None:
    """A damaged state file is refused with the way out, which works."""
    state = Path(shell.environment["KODOJO_STORE"]) / "machine" / "state"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    done = shell("lsmod")
    assert done.returncode == 1
    assert "kodojo boot" in done.stderr
    shell.ok("boot")
    shell.ok("lsmod")


def test_rmmod_refusals(shell: Shell, built: dict[str, Path]) -> None:
    """What cannot be removed is refused in rmmod's words."""
    shell.ok("insmod", str(built["kd_export"]))
    shell.ok("insmod", str(built["kd_import"]))
    used = shell("rmmod", "kd_export")
    assert (used.returncode, used.stderr.splitlines()[0]) == (
        1,
        "rmmod: ERROR: Module kd_export is in use by: kd_import",
    )
    absent = shell("rmmod", "kd_absent")
    assert (absent.returncode, absent.stderr.splitlines()[0]) == (
        1,
        "rmmod: ERROR: Module kd_absent is not currently loaded",
    )


def test_the_log_is_followed_until_ctrl_c(shell: Shell) -> None:
    """dmesg -w prints what is there, goes on, and ends well at Ctrl-C; its state is the machine's then."""
    shell.ok("dmesg", "-C")
    shell.ok("write", "/dev/kmsg", "<4>something to see")
    process = shell.start("dmesg", "--follow")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("] something to see\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    assert shell.ok("dmesg").splitlines()[0].endswith("] something to see")


def test_standard_input_and_files(shell: Shell) -> None:
    """Bytes come in by standard input, unaltered; directories and device files are made and removed."""
    shell.ok("mkdir", "-p", "/a/b")
    data = bytes(range(256)) * 2000
    command = [sys.executable, "-m", "kodojo", "write", "/a/b/file"]
    subprocess.run(command, input=data, env=shell.environment, check=True)
    line = shell.ok("ls", "-l", "/a/b").splitlines()[1].split()
    assert (line[0], line[4], line[-1]) == ("-rw-r--r--", str(len(data)), "file")
    done = subprocess.run([*command[:3], "cat", "/a/b/file"], env=shell.environment, check=True, capture_output=True)
    assert done.stdout == data
    shell.ok("mknod", "/a/zero", "c", "1", "5")
    assert shell.ok("cat", "--bytes", "2", "/a/zero") == "\0\0"
    shell.ok("rm", "-r", "/a")
    assert shell("ls", "/a").returncode == 1


def test_time_passes_when_it_is_wanted(shell: Shell, built: dict[str, Path]) -> None:
    """Between two commands no time passes; in a sleep a module's timers and threads run."""
    shell.ok("insmod", str(built["kd_timer"]))
    where = "/sys/module/kd_timer/parameters/timer"
    before = [shell.ok("cat", where) for _ in range(2)]
    assert before[0] == before[1]
    shell.ok("sleep", "1")
    assert shell.ok("cat", where) == "3\n"
    assert json.loads(shell.ok("sleep", "0.5", "--json"))["time"] > 1.5
    assert shell("sleep", "x").returncode == 2
