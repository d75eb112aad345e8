"""mkdir, mknod, chmod, rm, mount and umount: their words and statuses, and what they ask of the machine."""

from __future__ import annotations

import json
import subprocess

import pytest

from kodojo.cli.modes import changed_mode
from kodojo.errors import GuestOSError
from kodojo.kernel.files import FileStatus

ENOENT, EBUSY, EEXIST, ENODEV, ENOTDIR, EINVAL, EROFS, ENOTEMPTY, ENOTBLK = 2, 16, 17, 19, 20, 22, 30, 39, 15


class Tree:
    """Files by path: directories are None. Keeps what was asked for; fails where the test says so."""

    def __init__(self) -> None:
        self.kinds = {"/": "directory", "/d": "directory", "/d/e": "directory", "/d/f": "file", "/d/e/g": "link"}
        self.modes: dict[str, int] = {}
        self.asked: list[tuple[object, ...]] = []
        self.errno = 0

    def note(self, *what: object) -> None:
        if self.errno:
            raise GuestOSError(f"{what[1]}: no", self.errno)
        self.asked.append(what)


@pytest.fixture
def tree(kernel, monkeypatch):
    tree = Tree()

    def stat(path, *, follow=True):
        if path not in tree.kinds:
            raise GuestOSError(f"{path}: No such file or directory", ENOENT)
        return FileStatus(tree.kinds[path], tree.modes.get(path, 0o644), 1, 0, 0, 0, 0, 0, 0, 0.0)

    def directory(path):
        below = [name for name in tree.kinds if name.rpartition("/")[0] == path.rstrip("/") and name != "/"]
        return tuple(type("Entry", (), {"name": name.rpartition("/")[2]}) for name in sorted(below))

    def chmod(path, mode):
        tree.note("chmod", path, oct(mode))

    calls = {
        "stat": stat,
        "exists": lambda path: path in tree.kinds,
        "list_directory": directory,
        "chmod": chmod,
        "mkdir": lambda path, parents=False: tree.note("mkdir", path, parents),
        "mknod": lambda path, kind, major, minor: tree.note("mknod", path, kind, major, minor),
        "unlink": lambda path: tree.note("unlink", path),
        "rmdir": lambda path: tree.note("rmdir", path),
        "mount": lambda source, target, kind, options: tree.note("mount", source, target, kind, options),
        "umount": lambda target, lazy, force: tree.note("umount", target, lazy, force),
        "read_file": lambda _path: b"proc /proc proc rw 0 0\n/dev/ram0 /mnt ext4 ro,noexec 0 0\n",
    }
    for name, function in calls.items():
        monkeypatch.setattr(kernel, name, function, raising=False)
    return tree


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["mkdir", "/a", "/b"], [("mkdir", "/a", False), ("mkdir", "/b", False)]),
        (["mkdir", "-p", "/d"], [("mkdir", "/d", True)]),
        (["mkdir", "-m", "u=rwx,go=", "/a"], [("mkdir", "/a", False), ("chmod", "/a", "0o700")]),
        (["mknod", "/n", "c", "1", "0x3"], [("mknod", "/n", "c", 1, 3)]),
        (["mknod", "/n", "b", "010", "0"], [("mknod", "/n", "b", 8, 0)]),
        (["mknod", "-m", "600", "/n", "p"], [("mknod", "/n", "p", 0, 0), ("chmod", "/n", "0o600")]),
        (["chmod", "-x", "/d/f"], [("chmod", "/d/f", "0o644")]),
        (["chmod", "4755", "/d/f"], [("chmod", "/d/f", "0o4755")]),
        (
            ["chmod", "-R", "u+X", "/d"],
            [("chmod", "/d", "0o744"), ("chmod", "/d/e", "0o744"), ("chmod", "/d/f", "0o644")],
        ),
        (["rm", "/d/f"], [("unlink", "/d/f")]),
        (["rm", "-d", "/d/e"], [("rmdir", "/d/e")]),
        (["rm", "-r", "/d"], [("unlink", "/d/f"), ("unlink", "/d/e/g"), ("rmdir", "/d/e"), ("rmdir", "/d")]),
        (["rm", "-f", "/nope"], []),
        (["rm", "-f"], []),
        (["mount", "-t", "ext4", "/dev/ram0", "/d"], [("mount", "/dev/ram0", "/d", "ext4", "")]),
        (["mount", "-r", "-o", "noexec", "-o", "x=1", "/dev/ram0", "/d"],
         [("mount", "/dev/ram0", "/d", None, "ro,noexec,x=1")]),
        (["mount", "--bind", "/d", "/d/e"], [("mount", "/d", "/d/e", None, "bind")]),
        (["mount", "-o", "remount,ro", "/d"], [("mount", "none", "/d", None, "remount,ro")]),
        (["umount", "-l", "/mnt"], [("umount", "/mnt", True, False)]),
        (["umount", "-f", "/dev/ram0"], [("umount", "/mnt", False, True)]),
    ],
)  # fmt: skip
def test_what_is_asked_for(run, session, tree, arguments, asked):
    """Each command asks for what the tool of its name does, prints nothing, and the state is saved."""
    result = run(*arguments)
    assert (result.exit_code, result.output) == (0, "")
    assert tree.asked == asked
    assert session.saved


@pytest.mark.parametrize(
    ("errno", "arguments", "status", "line"),
    [
        (EEXIST, ["mkdir", "/d"], 1, "mkdir: cannot create directory '/d': File exists"),
        (EEXIST, ["mknod", "/d/f", "p"], 1, "mknod: /d/f: File exists"),
        (0, ["chmod", "0644", "/nope"], 1, "chmod: cannot access '/nope': No such file or directory"),
        (EROFS, ["chmod", "0644", "/d/f"], 1, "chmod: changing permissions of '/d/f': Read-only file system"),
        (0, ["chmod", "u+q", "/d/f"], 1, "chmod: invalid mode: 'u+q'"),
        (0, ["rm", "/nope"], 1, "rm: cannot remove '/nope': No such file or directory"),
        (0, ["rm", "/d"], 1, "rm: cannot remove '/d': Is a directory"),
        (ENOTEMPTY, ["rm", "-d", "/d"], 1, "rm: cannot remove '/d': Directory not empty"),
        (0, ["rm", "-rf", "/"], 1, "rm: it is dangerous to operate recursively on '/'"),
        (0, ["rm"], 1, "rm: missing operand"),
        (0, ["chmod", "0644"], 1, "chmod: missing operand after '0644'"),
        (0, ["mkdir", "-m", "9", "/a"], 1, "mkdir: invalid mode '9'"),
        (0, ["mknod", "/n"], 1, "mknod: missing operand after '/n'"),
        (0, ["mknod", "/n", "c"], 1, "mknod: missing operand after 'c'"),
        (0, ["mknod", "/n", "p", "1", "2"], 1, "mknod: extra operand '1'"),
        (0, ["mknod", "/n", "z", "1", "2"], 1, "mknod: invalid device type 'z'"),
        (0, ["mknod", "/n", "c", "x", "2"], 1, "mknod: invalid major device number 'x'"),
        (0, ["mknod", "/n", "c", "08", "2"], 1, "mknod: invalid major device number '08'"),
        (0, ["mknod", "/n", "c", "1", "1048576"], 1, "mknod: invalid minor device number '1048576'"),
        (ENOENT, ["mount", "-t", "x", "none", "/nope"], 32, "mount: /nope: mount point does not exist."),
        (ENOTDIR, ["mount", "-t", "x", "none", "/d/f"], 32, "mount: /d/f: mount point is not a directory."),
        (EINVAL, ["mount", "/dev/x", "/d"], 32, "mount: /d: special device /dev/x does not exist."),
        (ENODEV, ["mount", "-t", "x", "none", "/d"], 32, "mount: /d: unknown filesystem type 'x'."),
        (EBUSY, ["mount", "-t", "x", "/d/f", "/d"], 32, "mount: /d: /d/f already mounted or mount point busy."),
        (ENOTBLK, ["mount", "-t", "x", "/d/f", "/d"], 32, "mount: /d: /d/f is not a block device."),
        (EROFS, ["mount", "-r", "-t", "x", "/d/f", "/d"], 32, "mount: /d: cannot mount /d/f read-only."),
        (EINVAL, ["mount", "-o", "remount", "/d"], 32, "mount: /d: mount point not mounted or bad option."),
        (0, ["mount", "/d"], 1, "mount: /d: can't find in /etc/fstab."),
        (EINVAL, ["umount", "/d"], 32, "umount: /d: not mounted."),
        (EBUSY, ["umount", "/mnt"], 32, "umount: /mnt: target is busy."),
        (0, ["umount"], 1, "umount: bad usage"),
    ],
)
def test_what_goes_wrong(run, tree, errno, arguments, status, line):
    """The words and statuses are those of coreutils and util-linux."""
    tree.errno = errno
    result = run(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.splitlines()[0]) == (status, "", line)


def test_one_failure_does_not_keep_from_the_rest(run, tree):
    """As the tools do it; --json has them all."""
    result = run("rm", "--json", "/nope", "/d/f")
    assert result.exit_code == 1
    assert [(each["path"], each["errno_name"]) for each in json.loads(result.stdout)] == [
        ("/nope", "ENOENT"),
        ("/d/f", ""),
    ]
    assert tree.asked == [("unlink", "/d/f")]


def test_verbose(run, tree):
    """-v prints what is done, in the order in which it is done."""
    assert run("mkdir", "-v", "/a").stdout == "mkdir: created directory '/a'\n"
    assert run("rm", "-rv", "/d/e").stdout == "removed '/d/e/g'\nremoved directory '/d/e'\n"


def test_mount_lists(run, session, tree):
    """Without words mount prints what is mounted, of one type with -t; nothing is saved."""
    assert run("mount").stdout == "proc on /proc type proc (rw)\n/dev/ram0 on /mnt type ext4 (ro,noexec)\n"
    assert run("mount", "-t", "ext4").stdout == "/dev/ram0 on /mnt type ext4 (ro,noexec)\n"
    assert json.loads(run("mount", "--json").stdout)[1]["target"] == "/mnt"
    assert session.asked_to_save is False


MODES = (
    "0644", "7777", "755", "00755", "u+x", "+x", "+w", "-w", "a+w", "go-rwx", "u=rw,go=r", "a+X", "u+s,+t", "g=u",
    "u-x+w", "=r", "=", "u=", "o+t", "u+t", "+s", "u=rwx,g=r", "a=rX", "g=o,o=", "ug+s-x", "u+rwX,o=g", "=s",
)  # fmt: skip


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("text", MODES)
def test_modes(tmp_path, text, directory):
    """As this computer's chmod has it, with umask 022."""
    path = tmp_path / "it"
    path.mkdir() if directory else path.touch()
    for before in (0, 0o600, 0o644, 0o711, 0o741, 0o777, 0o4755, 0o6777, 0o7777):
        path.chmod(before)
        # It complains where the umask keeps bits from being changed, and changes the rest
        subprocess.run(["sh", "-c", 'umask 022; chmod -- "$0" "$1" 2>/dev/null; true', text, path], check=True)
        assert changed_mode(text, before, directory=directory) == path.stat().st_mode & 0o7777, oct(before)
    path.chmod(0o700)


@pytest.mark.parametrize("text", ["", "rwx", "u+q", "08", "u+r,", "77777", "+rg", "u"])
def test_what_is_no_mode(tmp_path, text):
    """This computer's chmod refuses it, too."""
    assert changed_mode(text, 0o644) is None
    assert subprocess.run(["chmod", "--", text, tmp_path], capture_output=True, check=False).returncode == 1
