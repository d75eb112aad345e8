"""What the commands have in common with the tools whose names they bear."""

from __future__ import annotations

import pytest

from kodojo.cli.habits import KMOD_TOOLS
from tests.support.elf_writer import module_writer

AMBIGUOUS = "'--remove' '--remove-holders' '--remove-dependencies' '--resolve-alias'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rmmod", "-Q"], "rmmod: invalid option -- 'Q'"),
        (["lsmod", "--nonsense"], "lsmod: unrecognized option '--nonsense'"),
        (["modprobe", "-C"], "modprobe: option requires an argument -- 'C'"),
        (["modprobe", "--config"], "modprobe: option '--config' requires an argument"),
        (["modprobe", "--all=3", "x"], "modprobe: option '--all' doesn't allow an argument"),
        (
            ["modprobe", "--first", "--re", "x"],
            f"modprobe: option '--re' is ambiguous; possibilities: {AMBIGUOUS}",
        ),
        (["insmod"], "insmod: ERROR: missing filename."),
        (["insmod", "-"], "insmod: ERROR: this tool does not support loading from stdin!"),
        (["rmmod"], "rmmod: ERROR: missing module name."),
    ],
)
def test_wrong_usage_of_kmods_tools(run, arguments, said):
    """The words are getopt's and kmod's, on standard error, and the status is 1."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"{said}\n")


@pytest.mark.parametrize(("tool", "status"), [("mkdir", 1), ("rm", 1), ("dmesg", 1), ("mount", 1), ("ls", 2)])
def test_wrong_usage_of_other_tools(run, tool, status):
    """The status is that of the tool of this name, and the help that is named exists."""
    result = run(tool, "--nonsense")
    assert result.exit_code == status
    assert result.stderr.splitlines() == [
        f"{tool}: unrecognized option '--nonsense'",
        f"Try 'kodojo {tool} --help' for more information.",
    ]
    assert run(tool, "--help").exit_code == 0


def test_long_options_may_be_abbreviated(run, kernel, module):
    """As getopt_long allows it: a beginning that stands for one option only; not behind --."""
    kernel.modules = [module("m", refcount=1)]
    assert run("rmmod", "--forc", "m").exit_code == 0
    assert kernel.removed == ["m"]
    assert "Module __forc is not currently loaded" in run("rmmod", "--", "--forc").stderr


@pytest.mark.parametrize("tool", [tool for tool in KMOD_TOOLS if tool != "depmod"])
def test_version(run, tool):
    """-V prints a version and does nothing else."""
    result = run(tool, "-V", "nosuch")
    assert (result.exit_code, result.stdout.startswith("kodojo version ")) == (0, True)


def test_messages_go_to_the_system_log(run, monkeypatch):
    """-s: nothing on standard error, the tool's name in the log."""
    logged = []
    monkeypatch.setattr("syslog.openlog", lambda name, *_: logged.append(name))
    monkeypatch.setattr("syslog.syslog", lambda _priority, text: logged.append(text))
    result = run("rmmod", "-s", "nosuch")
    assert (result.exit_code, result.stderr) == (1, "")
    assert logged == ["rmmod", "rmmod: ERROR: Module nosuch is not currently loaded"]


def test_rmmod_forces(run, kernel, module):
    """-f asks the kernel whatever the module is, with force."""
    kernel.modules = [module("m", refcount=1, users=("n",))]
    assert run("rmmod", "m").exit_code == 1
    assert run("rmmod", "-f", "m", "nosuch").exit_code == 0
    assert kernel.removed == ["m", "nosuch"]
    assert kernel.forced == [{"force": True}, {"force": True}]


def test_insmod_forces(run, kernel, ko):
    """-f ignores version magic and symbol versions, both."""
    assert run("insmod", "-f", ko, "a=1").exit_code == 0
    assert kernel.forced == [{"force_modversion": True, "force_vermagic": True}]


def test_modinfo_null_and_modname(run, tmp_path):
    """-0 ends values with NULs and has tags as the file has them; -m takes names, and neither files nor aliases."""
    path = tmp_path / "m.ko"
    path.write_bytes(module_writer(name="m", info={"license": "GPL", "parm": "p:a\tp"}).build())
    data = run("modinfo", "-0", str(path)).stdout_bytes
    assert data.startswith(f"filename:       {path}\0".encode())
    assert b"\0license=GPL\0" in data
    assert data.endswith(b"\0parm:           p:a\tp\0")
    assert run("modinfo", "-0", "-F", "license", str(path)).stdout == "GPL\0"
    root = tmp_path / "r/lib/modules/1.2"
    root.mkdir(parents=True)
    path.rename(root / "m.ko")
    tree = ["-b", str(tmp_path / "r"), "-k", "1.2"]
    assert run("modinfo", "-m", *tree, "-n", "m").stdout == f"{root}/m.ko\n"
    result = run("modinfo", "-m", *tree, str(root / "m.ko"))
    assert (result.exit_code, result.stderr) == (1, f"modinfo: ERROR: Module name {root}/m.ko not found.\n")
