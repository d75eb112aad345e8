"""Fetching, with package managers that are small shell scripts."""

import os

import pytest

from kodojo.errors import InputError
from kodojo.image import fetch, suites
from kodojo.image.fetch import fetch_headers, fetch_newest, fetch_package

# What the fake apt knows. `lists` is empty while the machine's own lists are absent, as in a fresh container.
APT_CACHE = r"""#!/bin/sh
echo "apt-cache $*" >> "$FAKE/calls"
case "$*" in *Dir::State::Lists*) lists=updated ;; *) lists=lists ;; esac
[ -e "$FAKE/$lists" ] || { echo "E: No packages found" >&2; exit 100; }
for last; do :; done
case "$*" in
*search*) cat "$FAKE/names" ;;
*depends*) [ -e "$FAKE/depends/$last" ] || { echo "E: No packages found" >&2; exit 100; }
    echo "$last"; cat "$FAKE/depends/$last" ;;
esac
"""
APT_GET = r"""#!/bin/sh
echo "apt-get $*" >> "$FAKE/calls"
case "$*" in
*indextargets*) cat "$FAKE/targets"; exit 0 ;;
*"download debian-archive-keyring"*) : > debian-archive-keyring_1_all.deb; exit 0 ;;
*update*) for word; do case "$word" in Dir::Etc::SourceList=*) cat "${word#*=}" >> "$FAKE/calls" ;; esac; done
    case "$(cat "$FAKE/calls")" in *http://looks.like/debian*http://real*) ;; *http://looks.like/debian*)
        echo "E: not signed" >&2; exit 100 ;; esac
    [ -e "$FAKE/network" ] || { echo "E: Failed to fetch http://mirror/" >&2; exit 100; }
    : > "$FAKE/updated"; exit 0 ;;
esac
uris=; names=; seen=
for word; do
    case "$word" in
    download) seen=1 ;;
    --print-uris) uris=1 ;;
    *) [ -n "$seen" ] && names="$names $word" ;;
    esac
done
for name in $names; do
    if [ -n "$uris" ]; then echo "'http://mirror/$name.deb' ${name}_1_amd64.deb 7 SHA256:0"; continue; fi
    printf half > "${name}_1_amd64.deb"
    [ -e "$FAKE/network" ] || { echo "E: Could not resolve 'mirror'" >&2; exit 100; }
    case "$*" in
    *Dir::State::Lists*) ;;
    *) [ -e "$FAKE/stale" ] && { echo "E: 404 Not Found" >&2; exit 100; } ;;
    esac
    printf "package" > "${name}_1_amd64.deb"
done
"""
DNF = r"""#!/bin/sh
echo "dnf $*" >> "$FAKE/calls"
case "$*" in
*repoquery*) echo kernel-core-0:6.9-1; echo kernel-modules-0:6.9-1 ;;
*download*)
    for word; do case "$word" in --destdir=*) cd "${word#--destdir=}";; esac; done
    printf "package" > kernel-core-6.9-1.x86_64.rpm; printf "package" > kernel-modules-6.9-1.x86_64.rpm ;;
esac
"""
NAMES = """\
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-56-rt-amd64 - Linux 6.1 for 64-bit PCs (signed), PREEMPT_RT
linux-image-6.1.0-57-amd64-dbg - Debug symbols for linux-image-6.1.0-57-amd64
linux-image-amd64 - Linux for 64-bit PCs (meta-package)
"""
DEBIAN = {
    "linux-image-amd64": "  Depends: linux-image-6.1.0-56-amd64\n",
    "linux-image-6.1.0-56-amd64": "  Depends: kmod\n |Depends: initramfs-tools\n  Depends: <linux-initramfs-tool>\n",
}
SPLIT = {
    "linux-image-amd64": "  Depends: linux-base-amd64\n  Depends: linux-image-7.2.12+deb14-amd64\n",
    "linux-image-7.2.12+deb14-amd64": " |Depends: dracut\n  PreDepends: linux-base\n"
    "  Depends: linux-base-7.2.12+deb14-amd64\n  Depends: linux-binary-7.2.12+deb14-amd64\n"
    "  Depends: linux-modules-7.2.12+deb14-amd64\n",
    **dict.fromkeys([f"linux-{part}-7.2.12+deb14-amd64" for part in ("base", "binary", "modules")], ""),
}
UBUNTU = {
    "linux-image-generic": "  Depends: linux-image-6.8.0-45-generic\n  Depends: linux-firmware\n"
    "  Depends: linux-modules-extra-6.8.0-45-generic\n",
    "linux-image-6.8.0-45-generic": "  Depends: linux-modules-6.8.0-45-generic\n  Depends: kmod\n",
    "linux-modules-6.8.0-45-generic": "",
    "linux-modules-extra-6.8.0-45-generic": "  Depends: linux-modules-6.8.0-45-generic\n",
}


class Machine:
    """A machine with only the programs that a test gives it."""

    def __init__(self, root):
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        for program in ("sh", "cat"):
            (self.bin / program).symlink_to(f"/bin/{program}")

    def install(self, **programs):
        for name, text in programs.items():
            path = self.bin / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o755)

    def know(self, depends, *facts):
        self.install(apt_cache=APT_CACHE, apt_get=APT_GET)
        (self.root / "names").write_text(NAMES)
        (self.root / "depends").mkdir()
        for name, text in depends.items():
            (self.root / "depends" / name).write_text(text)
        for fact in facts:
            (self.root / fact).touch()

    @property
    def calls(self):
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path / "machine")
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.setenv("FAKE", str(machine.root))
    monkeypatch.setattr(fetch.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(fetch.platform, "release", lambda: "0.0-no-such-kernel")
    return machine


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_debian(machine, tmp_path):
    """The package that Debian's metapackage stands for is fetched, and nothing but it."""
    machine.know(DEBIAN, "lists", "network")
    path = fetch_newest(tmp_path / "out")
    assert path == tmp_path / "out/linux-image-6.1.0-56-amd64_1_amd64.deb"
    assert path.read_bytes() == b"package"
    assert names(tmp_path / "out") == [path.name]
    assert not [call for call in machine.calls if "update" in call]


def test_ubuntu(machine, tmp_path):
    """Where a kernel is in several packages, all of them are fetched, and their directory is the answer."""
    machine.know(UBUNTU, "lists", "network")
    assert fetch_newest(tmp_path / "out") == tmp_path / "out"
    assert [name.partition("_")[0] for name in names(tmp_path / "out")] == [
        "linux-image-6.8.0-45-generic",
        "linux-modules-6.8.0-45-generic",
        "linux-modules-extra-6.8.0-45-generic",
    ]


def test_split_kernel(machine, tmp_path):
    """Debian 14's kernels are fetched in their four parts: the image package itself has no kernel in it."""
    machine.know(SPLIT, "lists", "network")
    assert fetch_newest(tmp_path / "out") == tmp_path / "out"
    assert [name.partition("-7")[0] for name in names(tmp_path / "out")] == [
        "linux-base",
        "linux-binary",
        "linux-image",
        "linux-modules",
    ]


KNOWN = dict.fromkeys([line.partition(" ")[0] for line in NAMES.splitlines()], "")


def test_another_suite(machine, tmp_path, monkeypatch):
    """A kernel of another suite comes from the machine's mirror, by sources of that suite only, with their keys."""
    machine.know(KNOWN, "lists", "network")
    (machine.root / "targets").write_text(
        "cdrom://[Debian]/ main\nhttp://other/thing main\nhttp://mine/debian/ contrib\n"
        "http://near/debian/ main\nhttp://safe/debian-security/ main\n"
    )
    keys = tmp_path / "keys.gpg"
    keys.touch()
    monkeypatch.setattr(suites, "_KEYRINGS", (tmp_path / "none.pgp", keys))
    path = fetch_package("linux-image-6.1/bookworm", tmp_path / "out")
    assert path.name == "linux-image-6.1.0-56-amd64_1_amd64.deb"
    assert [call for call in machine.calls if call.startswith("deb ")] == [
        f"deb [signed-by={keys}] http://near/debian bookworm main",
        f"deb [signed-by={keys}] http://near/debian bookworm-updates main",
        f"deb [signed-by={keys}] http://safe/debian-security bookworm-security main",
    ]
    asked = [call for call in machine.calls if call.startswith("apt-get") and "indextargets" not in call]
    assert all("Dir::Etc::SourceParts=-" in call for call in asked)
    assert names(tmp_path / "out") == [path.name]


def test_another_suite_without_a_mirror(machine, tmp_path, monkeypatch):
    """What looks like a mirror and cannot be verified is passed over: Debian's own address comes last."""
    machine.know(KNOWN, "lists", "network")
    (machine.root / "targets").write_text("http://looks.like/debian/ main\n")
    (machine.bin / "dpkg-deb").write_text('#!/bin/sh\nmkdir -p "$3/usr/share/keyrings"; : > "$3$KEYS"\n')
    (machine.bin / "dpkg-deb").chmod(0o755)
    (machine.bin / "mkdir").symlink_to("/bin/mkdir")
    monkeypatch.setattr(suites, "DEBIAN", suites.Mirror("http://real/debian", "http://real/debian-security"))
    monkeypatch.setattr(suites, "_KEYRINGS", (suites.Path("/usr/share/keyrings/no-such-keys.gpg"),))
    monkeypatch.setenv("KEYS", "/usr/share/keyrings/no-such-keys.gpg")
    fetch_package("linux-image-6.1/sid", tmp_path / "out")
    used = [call for call in machine.calls if call.startswith("deb ")]
    assert [line.split()[-3:] for line in used] == [
        ["http://looks.like/debian", "sid", "main"],
        ["http://real/debian", "sid", "main"],
    ]
    assert "keyring/usr/share/keyrings/no-such-keys.gpg]" in used[0]


def test_another_suite_without_keys(machine, tmp_path, monkeypatch):
    """Without Debian's keys nothing is fetched, and the package that has them is named."""
    machine.know(KNOWN, "lists", "network")
    monkeypatch.setattr(suites, "_KEYRINGS", (tmp_path / "none.gpg",))
    with pytest.raises(InputError, match="keys of Debian's archive") as caught:
        fetch_package("linux-image-6.1/bookworm", tmp_path / "out")
    assert "debian-archive-keyring" in caught.value.hint
    assert names(tmp_path / "out") == []


def test_progress(machine, tmp_path):
    """Progress ends with all bytes that apt announced."""
    machine.know(DEBIAN, "lists", "network")
    calls = []
    fetch_newest(tmp_path / "out", lambda *call: calls.append(call))
    assert calls[-1] == (7, 7, "fetching linux-image-6.1.0-56-amd64")


def test_machine_without_lists(machine, tmp_path):
    """Without package lists private ones are fetched into a directory that goes away again."""
    machine.know(DEBIAN, "network")
    path = fetch_newest(tmp_path / "out")
    assert names(tmp_path / "out") == [path.name]
    [update] = [call for call in machine.calls if call.endswith("update")]
    assert f"Dir::State::Lists={tmp_path}" in update


def test_outdated_lists(machine, tmp_path):
    """Lists that name a package which the mirror no longer has are replaced by private ones."""
    machine.know(DEBIAN, "lists", "network", "stale")
    assert fetch_newest(tmp_path / "out").read_bytes() == b"package"


@pytest.mark.parametrize("facts", [(), ("lists",)])
def test_no_network(machine, tmp_path, facts):
    """Without a network the error is apt's own, with a next step, and nothing stays."""
    machine.know(DEBIAN, *facts)
    with pytest.raises(InputError, match="Failed to fetch http://mirror/") as caught:
        fetch_newest(tmp_path / "out")
    assert "apt-get update" in caught.value.hint
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linux-image-6.1.0-9-amd64", "linux-image-6.1.0-9-amd64"),
        ("linux-image-6.1", "linux-image-6.1.0-56-amd64"),
        ("^linux-image-6.1", "linux-image-6.1.0-56-amd64"),
        ("linux-image-*-amd64", "linux-image-6.1.0-56-amd64"),
        ("linux-image-6.1.0-56-rt-amd64", "linux-image-6.1.0-56-rt-amd64"),
    ],
)
def test_package_by_name(machine, tmp_path, name, expected):
    """A name, the beginning of one, or a pattern gives the newest usual kernel that fits, by number."""
    machine.know(KNOWN, "lists", "network")
    assert fetch_package(name, tmp_path / "out").name == f"{expected}_1_amd64.deb"


def test_unknown_package(machine, tmp_path):
    """A package that apt does not know is named in the error, without a useless update."""
    machine.know(DEBIAN, "lists", "network")
    with pytest.raises(InputError, match=r"linux-image-9\.9"):
        fetch_package("linux-image-9.9", tmp_path / "out")
    assert not [call for call in machine.calls if "update" in call]


@pytest.mark.parametrize("name", ["-oDebug=1", "a b", "../x", "x;y", "", "x/-o", "x/y/z", "x/"])
def test_names_that_are_none(machine, tmp_path, name):
    """What is no package name never reaches a command."""
    machine.know(DEBIAN, "lists", "network")
    with pytest.raises(InputError, match="not the name of a package"):
        fetch_package(name, tmp_path / "out")
    assert not (machine.root / "calls").exists()


def test_dnf(machine, tmp_path):
    """On a machine with dnf the parts that its release has are fetched together."""
    machine.install(dnf=DNF)
    assert fetch_newest(tmp_path / "out") == tmp_path / "out"
    assert names(tmp_path / "out") == ["kernel-core-6.9-1.x86_64.rpm", "kernel-modules-6.9-1.x86_64.rpm"]
    assert machine.calls[-1].endswith("kernel-core-0:6.9-1 kernel-modules-0:6.9-1")


def test_no_package_manager(machine, tmp_path):
    """Without a package manager and a readable kernel the error says what to give instead."""
    with pytest.raises(InputError, match="neither apt nor dnf") as caught:
        fetch_newest(tmp_path / "out")
    assert "kodojo kernel add" in caught.value.hint
    with pytest.raises(InputError, match="neither apt nor dnf"):
        fetch_package("linux-image-6.1", tmp_path / "out")


def test_own_kernel_of_the_host(machine, tmp_path, monkeypatch):
    """Without a package manager the host's own kernel is the answer, if it can be read and is for x86-64."""
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) == "/boot/vmlinuz-0.0-no-such-kernel")
    assert str(fetch_newest(tmp_path / "out")) == "/boot/vmlinuz-0.0-no-such-kernel"
    monkeypatch.setattr(fetch.platform, "machine", lambda: "aarch64")
    with pytest.raises(InputError):
        fetch_newest(tmp_path / "out")


def test_stalled_download(machine, tmp_path, monkeypatch):
    """A download that does not grow is ended, with an error."""
    machine.know(DEBIAN, "lists", "network")
    (machine.bin / "sleep").symlink_to("/bin/sleep")
    machine.install(apt_get=APT_GET.replace('printf "package" >', "exec sleep 60 #"))
    monkeypatch.setattr(fetch, "_STALL_TIMEOUT", 0.2)
    with pytest.raises(InputError, match="nothing arrived"):
        fetch_newest(tmp_path / "out")
    assert names(tmp_path / "out") == []


# -- headers ----------------------------------------------------------------------------------------------

HEADERS = {
    "linux-headers-6.1.0-56-amd64": "  Depends: linux-headers-6.1.0-56-common\n  Depends: linux-kbuild-6.1\n"
    "  Depends: linux-compiler-gcc-12-x86\n",
    "linux-headers-6.1.0-56-arm64": "  Depends: linux-headers-6.1.0-56-common\n  Depends: linux-kbuild-6.1\n",
}


def test_headers(machine, tmp_path):
    """The headers of a release come with what they refer to, and without the compiler."""
    machine.know(HEADERS, "lists", "network")
    found = fetch_headers("6.1.0-56-amd64", "x86_64", tmp_path / "out")
    assert [path.name for path in found] == [
        "linux-headers-6.1.0-56-amd64_1_amd64.deb",
        "linux-headers-6.1.0-56-common_1_amd64.deb",
        "linux-kbuild-6.1_1_amd64.deb",
    ]


def test_headers_of_another_architecture(machine, tmp_path):
    """They are asked for as that architecture's, but the programs of the build as this machine's."""
    machine.know(HEADERS, "lists", "network")
    found = fetch_headers("6.1.0-56-arm64", "aarch64", tmp_path / "out")
    assert {path.name.partition("_")[0] for path in found} == {
        "linux-headers-6.1.0-56-arm64",
        "linux-headers-6.1.0-56-common",
        "linux-kbuild-6.1",
    }
    downloads = [call for call in machine.calls if " download " in call and "print-uris" not in call]
    assert ["APT::Architecture=arm64" in call for call in downloads] == [True, False]
    assert downloads[1].endswith("download linux-kbuild-6.1")


@pytest.mark.parametrize("facts", [("lists", "network"), ("lists",), ()])
def test_headers_that_cannot_be_had(machine, tmp_path, facts):
    """Whatever fails, the next step is to give them."""
    machine.know(HEADERS, *facts)
    with pytest.raises(InputError) as caught:
        fetch_headers("6.1.0-2-amd64", "x86_64", tmp_path / "out")
    assert caught.value.hint == "give the headers: --headers PACKAGE or DIRECTORY"


def test_headers_without_a_package_manager(machine, tmp_path):
    """Where neither apt nor dnf is, that is said."""
    with pytest.raises(InputError, match="neither apt nor dnf"):
        fetch_headers("6.1.0-2-amd64", "x86_64", tmp_path / "out")
