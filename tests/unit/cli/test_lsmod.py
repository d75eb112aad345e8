from __future__ import annotations

import json


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
