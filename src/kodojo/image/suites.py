"""apt for another suite of Debian than the machine's own: sources, lists and state of its own, in one directory.

Nothing of the machine is changed, and no root is needed. apt verifies everything as it always does, with the keys of
Debian's archive. The machine's apt settings (proxies, for example) hold here, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kodojo.errors import InputError

__all__ = ["BOOTS", "DEBIAN", "Mirror", "keyring", "mirrors", "settings"]

BOOTS = "linux-image-6.12/bookworm"
"""A kernel that kodojo boots, as ``kodojo kernel add`` takes it: for hints where another one does not."""

_KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{suffix}") for suffix in ("pgp", "gpg"))
_WITHOUT_UPDATES = ("sid", "unstable", "experimental", "rc-buggy")
_TIMEOUT = 120.0  # seconds


@dataclass(frozen=True)
class Mirror:
    """Where Debian's archive is, and its security updates."""

    archive: str
    security: str


DEBIAN = Mirror("http://deb.debian.org/debian", "http://deb.debian.org/debian-security")


def mirrors() -> list[Mirror]:
    """What this machine's apt has Debian from, then Debian's own addresses.

    Whether it is a mirror of Debian or only looks like one is seen when apt verifies it.
    """
    try:
        text = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages")
    except InputError:
        text = ""
    found = [uri.rstrip("/") for uri, component in re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)
             if component == "main" and not uri.startswith("cdrom:")]  # fmt: skip
    security = next((uri for uri in found if uri.endswith("/debian-security")), DEBIAN.security)
    archives = [uri for uri in found if uri.endswith("/debian")]
    return list(dict.fromkeys([*(Mirror(uri, security) for uri in archives), DEBIAN]))


def keyring(directory: Path) -> Path:
    """The keys of Debian's archive: this machine's, or its distribution's package of them unpacked in a directory.

    :raises InputError: neither can be had.
    """
    installed = next((path for path in _KEYRINGS if path.is_file()), None)
    if installed is not None:
        return installed
    place = directory / "keyring"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _run("apt-get", "-oAPT::Sandbox::User=root", "--quiet=2", "download", "debian-archive-keyring", place=place)
        for package in place.glob("debian-archive-keyring_*.deb"):
            _run("dpkg-deb", "--extract", str(package), str(place))
        return next(path for path in (place / str(each).lstrip("/") for each in _KEYRINGS) if path.is_file())
    except (InputError, StopIteration) as error:
        raise InputError(
            f"the keys of Debian's archive are not here ({_KEYRINGS[-1]}), and cannot be fetched",
            hint="as root: apt-get install debian-archive-keyring",
        ) from error


def settings(suite: str, mirror: Mirror, directory: Path, keys: Path) -> list[str]:
    """Settings by which apt knows one suite (with its updates) and nothing else, each as ``NAME=value``.

    :param suite: a codename or the like: ``bookworm``, ``stable``.
    :param directory: for sources, lists and state; created.
    """
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    places = [(mirror.archive, suite)]
    if suite not in _WITHOUT_UPDATES and "-" not in suite:
        places += [(mirror.archive, f"{suite}-updates"), (mirror.security, f"{suite}-security")]
    sources = directory / "sources.list"
    sources.write_text("".join(f"deb [signed-by={keys}] {uri} {name} main\n" for uri, name in places))
    (directory / "status").touch()
    found = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory / "cache",
        "APT::Default-Release": "",  # the machine's preference is for a suite that is not here
        "APT::Update::Error-Mode": "any",
    }
    if os.geteuid() == 0:
        found["APT::Sandbox::User"] = "root"  # user _apt may not write into our directory
    return [f"{name}={value}" for name, value in found.items()]


def _run(program: str, *arguments: str, place: Path | None = None) -> str:
    if shutil.which(program) is None:
        raise InputError(f"there is no {program} here")
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603  (no shell; the arguments are ours)
            [program, *arguments],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"`{program}` failed: {error}") from error
    return done.stdout
