"""kmod 30's own programs and ours, typed the same: exit status, output, messages. The inputs are made here."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from kodojo.cli.app import App
from kodojo.cli.group import cli
from kodojo.cli.habits import KMOD_TOOLS
from kodojo.image.tree import ModuleTree
from tests.kmod_suite.cases import BUILTIN, CASES, CONFIGURATION, MODULES
from tests.kmod_suite.trees import RELEASE, Real, make_root

# Options that ours lacks, by tool, and why.
LACKING: dict[tuple[str, str], str] = {}
# libkmod's messages begin with a place in its source
_PLACE = re.compile(r"^(?:\w+: (\w+):? )?\.\./\S+:\d+ \w+(?:\(\)|:) ")


class NoModules:
    """A machine in which nothing is loaded: as this computer, for names that do not exist."""

    def __init__(self) -> None:
        self.image = SimpleNamespace(builtin=frozenset(), release=RELEASE, modules=ModuleTree(None))
        self.modules: list[object] = []
        self.printk = SimpleNamespace(next_sequence=lambda: 0, records=lambda _since=0: ())

    def read_file(self, _path: str) -> bytes:
        return Path("/proc/cmdline").read_bytes()

    @contextmanager
    def beside(self, *_files: Path):
        yield

    @contextmanager
    def operation(self, _program: str):
        yield


class Machine:
    """A session that was never started; a command that needs a machine gets one without modules."""

    def running_image(self) -> None:
        return None

    def describe(self) -> None:
        return None

    @contextmanager
    def machine(self, **_how: object):
        yield NoModules()


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Real:
    return Real(tmp_path_factory.mktemp("kmod") / "bin")


@pytest.fixture(scope="module")
def root(tmp_path_factory, real) -> Path:
    path = tmp_path_factory.mktemp("root")
    make_root(path, real, MODULES, CONFIGURATION, BUILTIN)
    return path


@pytest.fixture
def ours(monkeypatch) -> Callable[..., tuple[int, bytes, str]]:
    """Our command line, with a machine without modules and this computer's kernel command line, which kmod reads."""
    monkeypatch.setattr(App, "session", Machine())
    command_line = Path("/proc/cmdline").read_text(encoding="utf-8")
    monkeypatch.setattr("kodojo.cli.modprobe._saved_command_line", lambda _app: command_line)
    mixed = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(**({"mix_stderr": False} if mixed else {}))

    def run(*arguments: str) -> tuple[int, bytes, str]:
        result = runner.invoke(cli, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout_bytes, result.stderr

    return run


def said(text: str) -> list[str]:
    """Messages without libkmod's places, and without what we add to a message."""
    lines = []
    for line in text.splitlines():
        match = _PLACE.match(line)
        rest = (
            line[match.end() :]
            if match
            else re.sub(r"^\w+: ERROR: (?=\S+ line \d+: |\S+: command |Ignoring bad )", "", line)
        )
        if not rest.startswith(("hint: ", "why: ")):
            lines.append(rest)
    return lines


def typed(words: tuple[str, ...], root: Path) -> list[str]:
    places = {"TREE": f"{root}/lib/modules/{RELEASE}", "CONF": f"{root}/etc/modprobe.d", "ROOT": str(root)}
    for name, path in places.items():
        words = tuple(re.sub(rf"^{name}(?=/|$)", path, word) for word in words)
    return list(words)


@pytest.mark.parametrize("name", list(CASES))
def test_as_kmod(real, root, ours, name):
    """Status, output and messages are kmod's."""
    arguments = typed(CASES[name], root)
    status, output, errors = real.run(*arguments)
    theirs = status, output, said(errors)
    status, output, errors = ours(*arguments)
    assert (status, output, said(errors)) == theirs


@pytest.mark.parametrize("tool", [tool for tool in KMOD_TOOLS if tool in cli.list_commands(click.Context(cli))])
def test_every_option_of_the_real_tool_is_there(real, tool):
    """What the real program's --help lists exists in ours, with as many arguments."""
    _, output, errors = real.run(tool, "--help")
    listed = re.findall(
        r"^\s+(?:(-\w), |\s+)(--[\w-]+)(?:[= ]<?[A-Z]+>?(?=\s|,))?", os.fsdecode(output), re.MULTILINE
    )
    assert listed or errors.startswith("Usage: "), errors
    command = cli.get_command(click.Context(cli), tool)
    context = click.Context(command, info_name=tool, parent=click.Context(cli))
    context.help_option_names = ["-h", "--help"]
    known = {name for each in command.get_params(context) for name in each.opts}
    wanted = {name for pair in listed for name in pair if name}
    missing = {name for name in wanted - known if (tool, name) not in LACKING}
    assert missing == set()
    assert {name for name in wanted & known if (tool, name) in LACKING} == set()
