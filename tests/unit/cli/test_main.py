from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kodojo.cli import group, main


def _kodojo(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kodojo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", [name for section in group._COMMANDS.values() for name in section])
def test_every_command_has_help(run, name):
    """Every command of the table can be imported, and explains itself."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: cli {name}" in result.stdout


def test_help_names_all_commands(run):
    """The help has every command in its section."""
    text = run("--help").stdout
    for title, section in group._COMMANDS.items():
        assert title in text
        for name, (_, words) in section.items():
            assert f"{name} " in text
            assert words in text


def test_usage_errors(run):
    """Wrong usage ends with status 2."""
    assert run("frobnicate").exit_code == 2
    assert run("kernel", "list", "extra").exit_code == 2


def test_help_is_light():
    """The help needs none of the libraries that take long to import."""
    code = (
        "import sys; sys.argv = ['kodojo', '--help']\n"
        "import kodojo.cli.main\n"
        "try: kodojo.cli.main.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'unicorn', 'rich', 'cryptography', 'zstandard', 'kodojo.kernel', 'kodojo.image'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_insmod_needs_no_rich(tmp_path: Path):
    """A command that fails, and is not on a terminal, imports neither rich nor cryptography."""
    code = (
        f"import sys; sys.argv = ['kodojo', 'insmod', {str(tmp_path / 'no.ko')!r}]\n"
        "import kodojo.cli.main\n"
        "try: kodojo.cli.main.main()\n"
        "except SystemExit as end: assert end.code == 1\n"
        "sys.exit(', '.join(sorted({'rich', 'cryptography', 'zstandard'} & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "KODOJO_STORE": str(tmp_path / "store")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_module_runs_as_a_program(tmp_path: Path):
    """python -m kodojo is the command."""
    done = _kodojo("kernel", "list", "--json", env={**os.environ, "KODOJO_STORE": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_version():
    """--version names the program."""
    done = _kodojo("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "kodojo")


def test_closed_pipe(tmp_path: Path):
    """A reader that goes away early is no reason for a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kodojo", "kernel", "list", "--json"]
    environment = {**os.environ, "KODOJO_STORE": str(tmp_path)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk(tmp_path: Path, unbuffered: str):
    """Output that cannot be written is a failure with a message, whether that is seen at once or at the end."""
    command = [sys.executable, "-m", "kodojo", "kernel", "list", "--json"]
    environment = {**os.environ, "KODOJO_STORE": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, env=environment)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_interrupted_before_the_command(monkeypatch):
    """Ctrl-C while things are still being imported ends with status 130 too."""

    def interrupt(**_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(group, "cli", interrupt)
    with pytest.raises(SystemExit) as ending:
        main.main()
    assert ending.value.code == 130
