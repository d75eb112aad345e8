from __future__ import annotations

import json

from kodojo.errors import DamagedMemoryError


def test_format(run, kernel, session, module):
    """The output is kmod's, to the blank; what is not a module yet is left out; nothing is saved."""
    kernel.modules = [
        module("jbd2", size=167936, refcount=2, users=("ext4", "ocfs2")),
        module("a_name_longer_than_nineteen", size=1, refcount=1),
        module("baby", state="Unformed"),
    ]
    result = run("lsmod")
    assert result.stdout.splitlines() == [
        "Module                  Size  Used by",
        "jbd2                  167936  2 ext4,ocfs2",
        "a_name_longer_than_nineteen        1  1",
    ]
    assert session.asked_to_save is False


def test_json(run, kernel, module):
    """--json has the same modules with their states."""
    kernel.modules = [module("jbd2", users=("ext4",), refcount=1), module("baby", state="Unformed")]
    (only,) = json.loads(run("lsmod", "--json").stdout)
    assert (only["name"], only["users"], only["refcount"], only["state"]) == ("jbd2", ["ext4"], 1, "Live")


def damaged(found):
    """A list of modules that leads nowhere behind these."""

    def look(_kernel):
        raise DamagedMemoryError("the kernel's memory is damaged: a list", hint="start over", found=tuple(found))

    return property(look)


def test_damaged_list(run, kernel, module, monkeypatch):
    """What can be found is listed, then what is wrong and what to do; status 1."""
    monkeypatch.setattr(type(kernel), "modules", damaged([module("first", size=1)]), raising=False)
    result = run("lsmod")
    assert result.stdout.splitlines() == ["Module                  Size  Used by", f"{'first':<19} {1:8d}  0"]
    assert result.stderr.splitlines() == ["kodojo: the kernel's memory is damaged: a list", "hint: start over"]
    assert result.exit_code == 1
    shown = run("lsmod", "--json")
    assert [each["name"] for each in json.loads(shown.stdout)] == ["first"]
    assert shown.exit_code == 1


def test_damaged_module(run, kernel, module):
    """One module of which something cannot be read does not hide the others."""

    class Damaged(type(module("x"))):
        @property
        def users(self):
            raise DamagedMemoryError("the kernel's memory is damaged: users")

        @users.setter
        def users(self, value):
            pass

    kernel.modules = [Damaged("broken"), module("whole")]
    result = run("lsmod")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["Module", "whole"]
    assert (result.exit_code, result.stderr) == (1, "kodojo: the kernel's memory is damaged: users\n")
