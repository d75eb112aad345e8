"""A distribution kernel from the package manager, without root and without changing the system.

apt's own package lists are used where they are good; on a machine that has none (a fresh container), or
whose lists are older than its mirror, private ones are fetched into a temporary directory. What is
downloaded is checked by the package manager, against its signed lists.

A package may be taken from another suite of Debian than the machine's, named as apt does: ``PACKAGE/SUITE``.
"""

from __future__ import annotations

import fnmatch
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.durable import disk_error
from kodojo.errors import InputError
from kodojo.image.suites import BOOTS, keyring, mirrors, settings
from kodojo.image.versions import version_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kodojo.durable import Progress

__all__ = ["fetch_headers", "fetch_newest", "fetch_package"]

_QUERY_TIMEOUT = 120.0  # seconds for a question to the package manager
_UPDATE_TIMEOUT = 900.0  # seconds to fetch package lists
_STALL_TIMEOUT = 120.0  # seconds in which a download has not grown
_POLL = 0.1

_NEWEST_ON_APT = ("linux-image-amd64", "linux-image-generic")  # Debian and kin; Ubuntu and kin
_NEWEST_ON_DNF = ("kernel-core", "kernel-modules-core", "kernel-modules")
# The packages that make up one kernel, as against its headers, firmware and microcode.
# (Debian 14 has split it: linux-image is empty, linux-binary the kernel, linux-base its System.map and config.)
_PART = re.compile(r"linux-(image|image-unsigned|binary|binary-unsigned|base|modules|modules-extra)-\d\S*")
_PACKAGE = re.compile(r"(?P<name>\^?[a-z0-9][\w.+~*?\[\]-]*)(/(?P<suite>[a-z][a-z0-9-]*))?")
_ODD_FLAVOUR = re.compile(r"-(dbg|dbgsym|unsigned|cloud|rt|template)\b")


def fetch_newest(destination: Path, progress: Progress | None = None) -> Path:
    """Fetch the distribution's newest kernel into the directory ``destination`` (created if need be).

    :return: the package; ``destination`` itself if the kernel is in several packages; or the host's own
        ``/boot/vmlinuz-...`` if there is no package manager that can be asked.
    :raises InputError: none of these is possible; the hint says what to do.
    :raises StoreError: ``destination`` cannot be written.
    """
    fetch = _manager()
    if fetch is None:
        return _host_kernel("there is neither apt nor dnf here")
    try:
        return _in_temporary(destination, lambda work: fetch(None, work, progress))
    except InputError as error:
        try:
            return _host_kernel("")
        except InputError:
            raise error from None


def fetch_package(name: str, destination: Path, progress: Progress | None = None) -> Path:
    """Fetch the kernel that a package name stands for, with its modules if they are packaged apart.

    :param name: a package (``linux-image-6.12.117+deb12-amd64``), or the beginning of its name or a pattern
        (``linux-image-6.12``, ``linux-image-6.12*-amd64``): the newest one that fits is taken. With ``/SUITE`` behind
        it (``linux-image-6.12/bookworm``): from that suite of Debian, whatever the machine's own is.
    :return, raises: as :func:`fetch_newest`.
    """
    if not _PACKAGE.fullmatch(name):
        raise InputError(f"{name}: not the name of a package")
    fetch = _manager()
    if fetch is not None:
        return _in_temporary(destination, lambda work: fetch(name, work, progress))
    raise InputError(
        f"{name}: there is neither apt nor dnf here to fetch it",
        hint="download the package elsewhere and give its path to: kodojo kernel add",
    )


def fetch_headers(release: str, machine: str, destination: Path, progress: Progress | None = None) -> list[Path]:
    """Fetch the packages that modules for a kernel are built against, in the directory ``destination``.

    :param release: of the kernel. :param machine: its architecture, as ``uname -m`` says.
    :return: the packages, those with the programs of the build for this computer.
    :raises InputError: they cannot be had; the hint says what to do.
    :raises StoreError: ``destination`` cannot be written.
    """
    hint = "give the headers: --headers PACKAGE or DIRECTORY"
    if _manager() is None:
        raise InputError(f"{release}: there is neither apt nor dnf here to fetch its headers", hint=hint)
    fetch = _headers_by_apt if _manager() is _fetch_by_apt else _headers_by_dnf
    try:
        found = _in_temporary(destination, lambda packages: fetch(release, machine, packages, progress))
    except InputError as error:
        error.hint = hint
        raise
    return sorted(destination.iterdir()) if found == destination else [found]


def _manager() -> Callable[[str | None, Path, Progress | None], None] | None:
    if shutil.which("apt-get"):
        return _fetch_by_apt
    if shutil.which("dnf"):
        return _fetch_by_dnf
    return None


def _in_temporary(destination: Path, fetch: Callable[[Path], None]) -> Path:
    """Run ``fetch`` with an empty directory, and move what it left there to ``destination`` at the end."""
    try:
        destination.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch.", dir=destination) as work:
            packages = Path(work, "packages")
            packages.mkdir(mode=0o700)
            fetch(packages)
            fetched = [path.replace(destination / path.name) for path in sorted(packages.iterdir())]
    except OSError as error:
        raise disk_error(destination, error) from error
    if not fetched:
        raise InputError("the package manager reported success but left no package", hint="fetch it by hand")
    return fetched[0] if len(fetched) == 1 else destination


def _run(command: Sequence[str], timeout: float = _QUERY_TIMEOUT) -> str:
    """Run a command to its end for its output.

    :raises InputError: it failed; the message is its own.
    """
    try:
        done = subprocess.run(  # noqa: S603  (no shell; names are checked)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"`{shlex.join(command)}` did not end within {timeout:.0f} s") from None
    except OSError as error:
        raise InputError(f"`{command[0]}` cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise _failed(command, done.stderr or done.stdout)
    return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _failed(command: Sequence[str], output: str) -> InputError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("E:", "Error"))] or lines[-1:]
    shown = shlex.join(word for word in command if word != "-o" and "::" not in word)  # without our settings
    return InputError(f"`{shown}` failed: {'; '.join(said[:3]) or 'it said nothing'}")


def _download(command: Sequence[str], directory: Path, total: int, progress: Progress | None, what: str) -> None:
    """Run a command that downloads into ``directory``, watching it grow.

    :raises InputError: it failed, or nothing arrived for a while.
    """
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(  # noqa: S603  (no shell; names are checked)
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
        ) as process,
    ):
        try:
            _watch(process, directory, total, progress, what)
        except BaseException:
            process.kill()
            raise
        if process.returncode != 0:
            output.seek(0)
            raise _failed(command, output.read().decode("utf-8", "replace"))


def _watch(
    process: subprocess.Popen[bytes], directory: Path, total: int, progress: Progress | None, what: str
) -> None:
    done, changed = -1, time.monotonic()
    while True:
        try:
            process.wait(_POLL)
        except subprocess.TimeoutExpired:
            ended = False
        else:
            ended = True
        size = _size(directory)
        if size != done:
            done, changed = size, time.monotonic()
            if progress is not None:
                progress(min(done, total) if total else done, total, what)
        if ended:
            return
        if time.monotonic() - changed > _STALL_TIMEOUT:
            raise InputError(
                f"{what}: nothing arrived for {_STALL_TIMEOUT:.0f} s", hint="check the network, try again"
            )


def _size(directory: Path) -> int:
    size = 0
    for path in directory.rglob("*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:  # the package manager renames at the end
            continue
    return size


def _apt_name(machine: str) -> str:
    """What apt calls an architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf", "ppc64le": "ppc64el", "i686": "i386"}.get(
        machine, machine
    )


class _Apt:
    """apt's commands, with the system's package lists or with private ones."""

    def __init__(self, architecture: str = "amd64") -> None:
        self._options: list[str] = []
        self._architecture = architecture
        self._foreign = _apt_name(platform.machine()) != architecture

    def cache(self, *arguments: str) -> str:
        return _run(["apt-cache", *self._options, *arguments])

    def get(self, *arguments: str) -> list[str]:
        return ["apt-get", *self._options, *arguments]

    def use_suite(self, suite: str, directory: Path, progress: Progress | None) -> None:
        """Fetch the package lists of a suite of Debian into ``directory``, and know nothing else."""
        keys = keyring(directory)
        for mirror in (candidates := mirrors()):
            try:
                self.use_private_lists(directory, progress, settings(suite, mirror, directory, keys))
            except InputError as error:
                if mirror == candidates[-1]:
                    error.message = f"{suite} of {mirror.archive}: {error.message}"
                    error.hint = "check the network and the name of the suite (bookworm, for example)"
                    raise
            else:
                return

    def use_private_lists(self, directory: Path, progress: Progress | None, more: Sequence[str] = ()) -> None:
        """Fetch fresh package lists into ``directory``; needs no root."""
        for part in ("lists/partial", "cache/archives/partial"):
            (directory / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = [f"Dir::State::Lists={directory}/lists", f"Dir::Cache={directory}/cache", *more]
        wanted.append("APT::Update::Error-Mode=any")  # a mirror that does not answer is an error
        if os.geteuid() == 0:
            wanted.append("APT::Sandbox::User=root")  # user _apt may not write into our directory
        if self._foreign:
            wanted += [f"APT::{name}={self._architecture}" for name in ("Architecture", "Architectures")]
        self._options = [word for setting in wanted for word in ("-o", setting)]
        try:
            _download(self.get("update"), directory, 0, progress, "fetching package lists")
        except InputError as error:
            if self.has_lists():  # it was another repository that did not answer
                return
            raise InputError(
                f"no package lists: {error.message}",
                hint="check the network and /etc/apt/sources.list; as root, `apt-get update` must succeed. "
                "Or give a package, a directory or a vmlinuz to: kodojo kernel add",
            ) from None

    @property
    def needs_private_lists(self) -> bool:
        return self._foreign and not self._options

    def has_lists(self) -> bool:
        """Whether a kernel could be downloaded; one that is installed is known without any list."""
        try:
            found = self.cache("-o", "Dir::State::status=/dev/null", "search", "--names-only", "^linux-image-")
            return bool(found.strip())
        except InputError:
            return False

    def parts(self, name: str) -> list[str]:
        """The packages of one kernel: ``name`` if it is one of them, and what it depends on."""
        found: list[str] = []
        waiting = [name]
        while waiting:
            package = waiting.pop()
            if package in found:
                continue
            if _PART.fullmatch(package):
                found.append(package)
            output = self.cache("depends", package)
            depends = re.findall(r"^ [ |]Depends: (\S+)$", output, re.MULTILINE)
            waiting += [depend for depend in depends if _PART.fullmatch(depend)]
        return sorted(found)

    def header_parts(self, release: str) -> list[str]:
        """The packages with a kernel's headers, and with the programs that building against them runs.

        :raises InputError: apt does not know them.
        """
        name = f"linux-headers-{release}"
        try:
            output = self.cache("depends", name)
        except InputError:
            output = ""
        depends = re.findall(r"^ [ |]Depends: (\S+)$", output, re.MULTILINE)
        if not depends:
            raise InputError(f"apt knows no {name}")
        return [name, *(each for each in depends if re.fullmatch(r"linux-(headers|kbuild)-\d\S*", each))]

    def choose(self, name: str) -> str:
        """The newest package that a name, the beginning of one, or a pattern stands for."""
        output = self.cache("search", "--names-only", "^linux-image-")
        names = [line.partition(" ")[0] for line in output.splitlines()]
        if name in names:
            return name
        pattern = name.removeprefix("^")
        fitting = [each for each in names if fnmatch.fnmatchcase(each, pattern) or each.startswith(pattern)]
        usual = [each for each in fitting if _PART.fullmatch(each) and not _ODD_FLAVOUR.search(each)]
        if not fitting:
            raise InputError(
                f"{name}: apt knows no such kernel package",
                hint=f"see: apt-cache search ^linux-image-; or name the suite that has it: kodojo kernel add {BOOTS}",
            )
        return max(usual or fitting, key=version_key)


def _fetch_by_apt(name: str | None, packages: Path, progress: Progress | None) -> None:
    found = _PACKAGE.fullmatch(name or "")
    if found is not None and found["suite"]:
        apt = _Apt()
        apt.use_suite(found["suite"], packages.parent / "apt", progress)
        _download_by_apt(apt, found["name"], packages, progress)
        return
    _by_apt(_Apt(), lambda apt: _download_by_apt(apt, name, packages, progress), packages, progress)


def _headers_by_apt(release: str, machine: str, packages: Path, progress: Progress | None) -> None:
    native = _apt_name(platform.machine())
    parts: dict[str, list[str]] = {}

    def of_kernel(apt: _Apt) -> None:
        names = apt.header_parts(release)
        foreign = architecture != native
        parts[native] = [name for name in names if foreign and name.startswith("linux-kbuild-")]
        _get_by_apt(apt, [name for name in names if name not in parts[native]], packages, progress)

    architecture = _apt_name(machine)
    _by_apt(_Apt(architecture), of_kernel, packages, progress)
    if parts[native]:  # its programs run here, whatever the kernel is for; the same source makes them
        _by_apt(_Apt(native), lambda apt: _get_by_apt(apt, parts[native], packages, progress), packages, progress)


def _by_apt(apt: _Apt, download: Callable[[_Apt], None], packages: Path, progress: Progress | None) -> None:
    """Download with the system's package lists, or with private ones where those are missing or old."""
    lists = packages.parent / "apt"
    before = set(packages.iterdir())
    if apt.needs_private_lists or not apt.has_lists():
        apt.use_private_lists(lists, progress)
        download(apt)
        return
    first: InputError
    try:
        download(apt)
    except InputError as error:
        first = error
    else:
        return
    if first.hint:  # not a matter of old lists
        raise first
    for path in set(packages.iterdir()) - before:
        path.unlink()
    # A mirror drops a kernel when the next one comes: with old lists the download fails.
    apt.use_private_lists(lists, progress)
    try:
        download(apt)
    except InputError as error:
        error.hint = error.hint or "check the network and the free space, try again"
        raise


def _download_by_apt(apt: _Apt, name: str | None, packages: Path, progress: Progress | None) -> None:
    names = _newest_parts(apt) if name is None else apt.parts(apt.choose(name))
    if not names:
        raise InputError(f"{name}: not a kernel package", hint="see: apt-cache search ^linux-image-")
    _get_by_apt(apt, names, packages, progress)


def _get_by_apt(apt: _Apt, names: Sequence[str], packages: Path, progress: Progress | None) -> None:
    uris = _run(apt.get("download", "--print-uris", *names))
    total = sum(int(size) for size in re.findall(r"^'[^']*' \S+ (\d+) ", uris, re.MULTILINE))
    _download(apt.get("download", *names), packages, total, progress, f"fetching {names[0]}")


def _newest_parts(apt: _Apt) -> list[str]:
    for meta in _NEWEST_ON_APT:
        try:
            names = apt.parts(meta)
        except InputError:  # another distribution's name
            continue
        if names:
            return names
    raise InputError(f"apt knows neither of {', '.join(_NEWEST_ON_APT)}")


def _fetch_by_dnf(name: str | None, packages: Path, progress: Progress | None) -> None:
    if "/" in (name or ""):
        raise InputError(f"{name}: there is no apt here to fetch it", hint="give its file to: kodojo kernel add")
    wanted: Iterable[str] = _NEWEST_ON_DNF
    if name is not None:
        rest = name.removeprefix("kernel-core")
        wanted = [f"{part}{rest}" for part in _NEWEST_ON_DNF] if rest != name else [name]
    # Older releases have no kernel-modules-core, and `dnf download` fails if one of several is missing.
    query = [
        "dnf",
        "-q",
        "repoquery",
        "--latest-limit=1",
        "--arch=x86_64",
        "--queryformat=%{name}-%{evr}\n",
        *wanted,
    ]
    names = sorted(set(_run(query, _UPDATE_TIMEOUT).split()))
    if not names:
        raise InputError(
            f"dnf knows no package {' '.join(wanted)}", hint="see: dnf list --showduplicates kernel-core"
        )
    command = ["dnf", "-q", "-y", "download", "--arch=x86_64", f"--destdir={packages}", *names]
    try:
        _download(command, packages, 0, progress, f"fetching {names[0]}")
    except InputError as error:
        error.hint = "check the network; `dnf download` needs the package dnf-plugins-core on older systems"
        raise


def _headers_by_dnf(release: str, machine: str, packages: Path, progress: Progress | None) -> None:
    name = f"kernel-devel-{release.removesuffix(f'.{machine}')}"
    command = ["dnf", "-q", "-y", "download", f"--arch={machine}", f"--destdir={packages}", name]
    _download(command, packages, 0, progress, f"fetching {name}")


def _host_kernel(why: str) -> Path:
    """The running kernel's file, if it can be read and is one for x86-64."""
    release = platform.release()
    tried = [Path(f"/boot/vmlinuz-{release}"), Path(f"/lib/modules/{release}/vmlinuz")]
    if platform.machine() == "x86_64":
        for path in tried:
            if os.access(path, os.R_OK):
                return path
    raise InputError(
        f"{why}, and no readable x86-64 kernel at {tried[0]}",
        hint="download a kernel package (.deb or .rpm) and give its path to: kodojo kernel add",
    )
