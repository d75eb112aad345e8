"""Debian's packages for the tests: downloaded by apt as an ordinary user may, or taken from a directory.

:func:`packages_of_debian_12` is what the kernels come from, :func:`with_fresh_lists` what the machine's own
distribution has.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from kodojo.errors import InputError
from kodojo.image import suites

__all__ = [
    "Apt", "DistributionError", "apt_of_debian_12", "apt_of_suite", "cache_directory", "packages_of_debian_12",
    "reason", "run", "say", "with_fresh_lists",
]  # fmt: skip

SUITE = "bookworm"
# Of the C library the dynamic linker, which is the machine's own, needs just the one that belongs to it.
NEVER_REPLACED = {"libc6", "libc-bin"}

Result = TypeVar("Result")


class DistributionError(Exception):
    """Something the tests need cannot be had; the message names the next step."""


@dataclass(frozen=True)
class Package:
    """A package as apt would download it now."""

    uri: str
    file_name: str
    size: int
    digest: str  # "SHA256:..."; other kinds are not verified here, apt does that itself

    def is_complete(self, path: Path) -> bool:
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        kind, _, value = self.digest.partition(":")
        with path.open("rb") as file:
            return kind != "SHA256" or hashlib.file_digest(file, "sha256").hexdigest() == value


def cache_directory() -> Path:
    """Where everything is kept; created if it is not there."""
    default = Path(__file__).resolve().parents[2] / ".cache"
    path = Path(os.environ.get("KODOJO_TEST_CACHE") or default).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


class Apt:
    """apt as an ordinary user may use it: to ask and to download, never to install."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.options = list(options)

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        # Root's downloads would be made by _apt, who may not write into a user's cache.
        command = [program, "-oAPT::Sandbox::User=root", *self.options, *arguments]
        done = run(command, cwd=cwd)
        if done.returncode:
            raise DistributionError(f"{program} {' '.join(arguments)}: {reason(done)}")
        return done.stdout

    def field(self, package: str, name: str, default: str | None = None) -> str:
        """One field of the newest version of `package`."""
        text = self.run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
        if match is None and default is not None:
            return default
        if match is None:
            raise DistributionError(f"apt knows no {name} of {package}")
        return match[1]

    def names(self) -> list[str]:
        """The kernel packages that apt knows."""
        text = self.run("apt-cache", "search", "--names-only", "^linux-image-")
        return [line.partition(" ")[0] for line in text.splitlines()]

    def not_installed(self, packages: Sequence[str]) -> list[str]:
        """`packages` and what they depend on, without what is installed."""
        # Not --print-uris: it leaves out what is in apt's own cache.
        text = self.run("apt-get", "--simulate", "--no-install-recommends", "install", *packages)
        return [name for name in re.findall(r"^Inst (\S+)", text, re.MULTILINE) if name not in NEVER_REPLACED]

    def closure(self, packages: Sequence[str]) -> list[Path]:
        """The files of `packages` and of what they depend on, but for the C library and what that depends on."""
        found: dict[str, None] = {}
        wanted = list(packages)
        while wanted:
            name = wanted.pop()
            if name in found or name in NEVER_REPLACED:
                continue
            found[name] = None
            depends = self.field(name, "Depends", "")
            wanted += [re.split(r"[ (:|]", one.strip(), maxsplit=1)[0] for one in depends.split(",") if one.strip()]
        return self.download(list(found))

    def download(self, packages: Sequence[str]) -> list[Path]:
        """The packages' files, in that order; those that are in the cache already cost no network."""
        directory = cache_directory() / "debs"
        directory.mkdir(parents=True, exist_ok=True)
        listed = _parse_uris(self.run("apt-get", "--print-uris", "download", *packages))
        by_name = {package.file_name.split("_")[0]: package for package in listed}
        for name in packages:
            package, path = by_name[name], directory / by_name[name].file_name
            if package.is_complete(path):
                continue
            say(f"downloading {path.name} ({package.size / 1e6:.1f} MB)")
            with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as new:
                self.run("apt-get", "--quiet=2", "download", name, cwd=Path(new))
                (Path(new) / path.name).replace(path)
        return [directory / by_name[name].file_name for name in packages]


def _parse_uris(text: str) -> list[Package]:
    found = re.findall(r"^'(\S+)' (\S+) ([0-9]+) (\S*)$", text, re.MULTILINE)
    return [Package(uri, file_name, int(size), digest) for uri, file_name, size, digest in found]


class PackageDirectory:
    """Packages that somebody has put into a directory, asked as apt is."""

    def __init__(self, directory: Path) -> None:
        self._debs = {path.name.partition("_")[0]: path for path in sorted(directory.glob("*.deb"))}
        self._of_amd64 = {path.name.partition("_")[0]: path for path in sorted(directory.glob("*_amd64.deb"))}
        self._directory = directory

    def names(self) -> list[str]:
        return [name for name in self._debs if name.startswith("linux-image-")]

    def field(self, package: str, name: str) -> str:
        [deb] = self.download([package])
        done = run(["dpkg-deb", "--field", str(deb), name])
        if done.returncode:
            raise DistributionError(f"{deb}: {reason(done)}")
        return done.stdout.strip()

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Copies in the cache, where a kernel's package is looked for."""
        place = cache_directory() / "debs"
        place.mkdir(parents=True, exist_ok=True)
        found = []
        for name in packages:
            deb = self._of_amd64.get(name) or self._debs.get(name)
            if deb is None:
                raise DistributionError(f"{self._directory} has no {name}_*.deb; put it there")
            found.append(place / deb.name)
            if not found[-1].exists():
                shutil.copyfile(deb, found[-1])
        return found


class Packages(Protocol):
    """Where packages come from."""

    def names(self) -> list[str]: ...

    def field(self, package: str, name: str) -> str: ...

    def download(self, packages: Sequence[str]) -> list[Path]: ...


def packages_of_debian_12(architecture: str) -> Packages:
    """Debian 12's, or those that somebody gave."""
    given = os.environ.get("KODOJO_TEST_PACKAGES")
    if given:
        return PackageDirectory(Path(given))
    if shutil.which("apt-get") is None:
        _give_up(
            "apt is not here",
            "put the packages of Debian 12 into a directory, named by KODOJO_TEST_PACKAGES (README)",
        )
    return apt_of_debian_12(architecture)


def apt_of_debian_12(architecture: str) -> Apt:
    """apt that knows Debian 12 and nothing else, whatever the machine has."""
    return apt_of_suite(SUITE, architecture, cache_directory() / f"apt-{architecture}")


@functools.cache  # once a process is enough
def apt_of_suite(suite: str, architecture: str, directory: Path) -> Apt:
    """apt that knows a suite of Debian and nothing else, brought up to date.

    :raises DistributionError: none of the mirrors has it, or the network is not there.
    """
    wanted = [f"APT::Architecture={architecture}", f"APT::Architectures={architecture}"]
    failed: list[str] = []
    try:
        keys = suites.keyring(directory)
    except InputError as error:
        _give_up(str(error), str(error.hint))
    for mirror in suites.mirrors():
        apt = Apt([f"-o{each}" for each in suites.settings(suite, mirror, directory, keys) + wanted])
        try:
            _update(apt, f"{suite} ({architecture})")
        except DistributionError as error:
            failed.append(str(error))
        else:
            return apt
    return _give_up("; ".join(failed), "connect to the network, and try again")


@functools.cache
def _apt_with_own_lists() -> Apt:
    """apt on package lists of ours, brought up to date; for that no root is needed either."""
    directory = cache_directory() / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    apt = Apt([f"-oDir::State::Lists={directory}/lists", f"-oDir::Cache={directory}/cache"])
    _update(apt, "this machine's distribution")
    return apt


def _update(apt: Apt, what: str) -> None:
    say(f"updating package lists in the cache: {what}")
    # Without --error-on=any an update without network ends well, with nothing updated.
    apt.run("apt-get", "--quiet=2", "--error-on=any", "update")


def with_fresh_lists(task: Callable[[Apt], Result]) -> Result:
    """Do it with the machine's package lists; if they are missing or old, with our own."""
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            _give_up(f"{program} is not here", "install what is missing by the package manager that is")
    # Whatever goes wrong, lists of today are the remedy, or give the message that matters.
    with contextlib.suppress(DistributionError):
        return task(Apt())
    try:
        return task(_apt_with_own_lists())
    except DistributionError as error:
        return _give_up(str(error), "connect to the network, check /etc/apt/sources.list*, and try again")


def _give_up(what: str, next_step: str) -> NoReturn:
    raise DistributionError(f"{what}; {next_step}")


def run(command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
    return (lines or done.stderr.splitlines() or [f"status {done.returncode}"])[0].strip()


def say(text: str) -> None:
    print(f"tests: {text}", file=sys.stderr, flush=True)  # noqa: T201
