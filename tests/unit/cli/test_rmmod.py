from __future__ import annotations

import json

import pytest

from kodojo.errors import UnloadError


def test_removal_is_silent(run, kernel, session, module):
    """A removal prints nothing; a name is taken with dashes too."""
    kernel.modules = [module("snd_pcm")]
    result = run("rmmod", "snd-pcm")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert kernel.removed == ["snd_pcm"]
    assert session.saved


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nix", "Module nix is not currently loaded"),
        ("loop", "Module loop is builtin."),
        ("base", "Module base is in use by: one two"),
        ("busy", "Module busy is in use"),
        ("baby", "Module baby is not currently loaded"),
    ],
)
def test_checks_before_asking(run, kernel, module, name, line):
    """What rmmod itself checks is told in its words, and the kernel is not asked."""
    kernel.modules = [
        module("base", refcount=2, users=("one", "two")),
        module("busy", refcount=1),
        module("baby", state="Unformed"),
    ]
    result = run("rmmod", name)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, f"rmmod: ERROR: {line}")
    assert kernel.removed == []


def test_refusal_of_the_kernel(run, kernel, session, module):
    """The kernel's own refusal has rmmod's words and the errno's text; the state is saved."""
    kernel.modules = [module("once")]

    def refuse():
        raise UnloadError("once has no exit function and is permanent", 16, hint="Give it a module_exit().")

    kernel.on_rmmod = refuse
    result = run("rmmod", "once")
    assert result.stderr.splitlines() == [
        "rmmod: ERROR: could not remove module once: Device or resource busy",
        "hint: Give it a module_exit().",
    ]
    assert (result.exit_code, session.saved) == (1, True)


def test_goes_on_after_a_refusal(run, kernel, module):
    """The other modules are removed all the same, and the exit status is 1."""
    kernel.modules = [module("a"), module("b")]
    assert run("rmmod", "a", "nix", "b").exit_code == 1
    assert kernel.removed == ["a", "b"]


def test_order_frees_users_first(run, kernel, module):
    """Each module is looked at when its turn comes: one that the first removal freed can go."""
    user, base = module("user"), module("base", refcount=1, users=("user",))
    kernel.modules = [user, base]

    def release():
        base.refcount, base.users = 0, ()

    kernel.on_rmmod = release
    assert run("rmmod", "user", "base").exit_code == 0
    assert kernel.removed == ["user", "base"]


def test_path_of_a_module(run, kernel, module, ko):
    """The path of a module's file stands for its name, as for rmmod."""
    kernel.modules = [module("hello")]
    assert run("rmmod", ko).exit_code == 0
    assert kernel.removed == ["hello"]


def test_json(run, kernel, module):
    """--json has one answer for each name, in order."""
    kernel.modules = [module("a")]
    shape = json.loads(run("rmmod", "a", "nix", "--json").stdout)
    assert shape["ok"] is False
    answers = [(each["name"], each["ok"], each["errno_name"], each["message"]) for each in shape["modules"]]
    assert answers == [("a", True, "", ""), ("nix", False, "ENOENT", "Module nix is not currently loaded")]
