"""Kernels of Debian's other architectures, fetched and unpacked without root; apt on the host knows nothing of them.

In the cache: ``arches/ARCHITECTURE/apt`` (apt's lists), ``image`` and ``headers`` (unpacked).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.distribution import locked, replacing
from tests.support.packages import Apt, DistributionError, apt_of_suite, cache_directory

__all__ = ["FLAVOURS", "Files", "fetch"]


@dataclass(frozen=True)
class Flavour:
    """A kernel as Debian calls it.

    :param machine: as ``uname -m`` says. :param debian: the architecture of the packages.
    :param name: how the names of the packages end. :param suite: the release that has it.
    """

    machine: str
    debian: str
    name: str
    suite: str = "bookworm"


FLAVOURS = {
    flavour.machine: flavour
    for flavour in (
        Flavour("aarch64", "arm64", "arm64"),
        Flavour("armv7l", "armhf", "armmp"),
        Flavour("i686", "i386", "686-pae"),
        Flavour("ppc64le", "ppc64el", "powerpc64le"),
        Flavour("riscv64", "riscv64", "riscv64", "trixie"),
        Flavour("s390x", "s390x", "s390x"),
    )
}


@dataclass(frozen=True)
class Files:
    """An unpacked kernel: what its image package and its headers packages install."""

    image: Path
    headers: Path

    @property
    def modules(self) -> Path:
        """The tree of modules."""
        trees = [*self.image.glob("lib/modules/*"), *self.image.glob("usr/lib/modules/*")]
        return next(iter(trees))


def fetch(machine: str) -> Files:
    """The newest kernel of an architecture; downloaded unless it is there.

    :raises DistributionError: it cannot be had.
    """
    flavour = FLAVOURS[machine]
    directory = cache_directory() / "arches" / machine
    files = Files(directory / "image", directory / "headers")
    if files.headers.is_dir():
        return files
    with locked():
        apt = apt_of_suite(flavour.suite, flavour.debian, directory / "apt")
        image = _newest(apt, flavour)
        headers = image.replace("linux-image-", "linux-headers-")
        common = re.findall(r"linux-headers-\S+-common(?=[ ,]|$)", apt.field(headers, "Depends"))
        for packages, place in (([image], files.image), ([headers, *common], files.headers)):
            with replacing(place) as new:
                for deb in apt.download(packages):
                    subprocess.run(["dpkg-deb", "--extract", deb, new], check=True)
    return files


def _newest(apt: Apt, flavour: Flavour) -> str:
    text = apt.run("apt-cache", "search", "--names-only", r"^linux-image-[0-9]")
    pattern = rf"^linux-image-[0-9.]+[^ -]*(?:-[0-9]+)?-{re.escape(flavour.name)}(?= )"
    found = re.findall(pattern, text, re.MULTILINE)
    if not found:
        raise DistributionError(f"apt knows no kernel {flavour.name} for {flavour.debian} in {flavour.suite}")
    return max(found, key=lambda name: [int(digits) for digits in re.findall("[0-9]+", name)])
