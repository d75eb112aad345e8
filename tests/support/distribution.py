"""The distribution's kernels and build tools for the tests, fetched and unpacked without root.

:func:`kernels` gives both kernel series of Debian 12, for amd64 or arm64: image, headers and kbuild's own programs.
They come from Debian 12's archive (with updates and security) whatever the machine has, by an apt whose sources and
lists are the cache's (:mod:`kodojo.image.suites`). Where no apt is, ``$KODOJO_TEST_PACKAGES`` names a directory with
those packages. Of each series the newest kernel is taken for which answers of QEMU are kept (tests/oracle/answers),
or the newest of all; to move on to a newer one, delete the directory of a series from the cache.

:func:`tools` gives an environment in which gcc (for arm64 the cross compiler, too), make and libelf are found. What
else the machine lacks (make, libelf, QEMU, Chromium) is fetched from its own distribution, so that it runs on
the libraries that are here.

The compilers are Debian 12's, too, as the kernels' own: other ones make other modules of the same source, and what
QEMU answered was asked with these. So is kmod: other versions say other things.

A series is called "6.1" or "6.12" where it is amd64's, "6.1-arm64" or "6.12-arm64" otherwise.

The cache is ``$KODOJO_TEST_CACHE``, or ``.cache`` in the repository::

    debs/                    what was downloaded
    6.1/image, 6.1/headers   unpacked (likewise 6.12)
    6.1/modules              written by tests.support.kbuild
    6.1-arm64/...            the same for arm64 (likewise 6.12-arm64)
    tools/                   programs and libraries that this machine has not installed
    compiler-amd64/          Debian 12's compiler where it is not this machine's own (likewise compiler-arm64)
    kmod-30/                 Debian 12's kmod, likewise
    qemu/, qemu-arm64/       QEMU, likewise (only for `make oracle`)
    chromium/                Chromium, likewise
    apt/                     package lists, where the machine's own are missing or out of date
    apt-amd64/, apt-arm64/   package lists of Debian 12

``python -m tests.support.distribution`` fetches what is missing and prints where things are.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.packages import (
    Apt,
    DistributionError,
    apt_of_debian_12,
    cache_directory,
    packages_of_debian_12,
    reason,
    run,
    say,
    with_fresh_lists,
)

__all__ = [
    "ARM64",
    "SERIES",
    "ChromiumFiles",
    "DistributionError",
    "KernelFiles",
    "QemuFiles",
    "cache_directory",
    "chromium",
    "kernel_of",
    "kernels",
    "kmod",
    "locked",
    "qemu",
    "tools",
]

SERIES = ("6.1", "6.12")
ARM64 = tuple(f"{series}-arm64" for series in SERIES)
MANIFEST = "kernel.json"
# What an external module needs besides the headers: a compiler with binutils, make, and the library that objtool is
# linked with. The rest of kbuild's tools (sh, bash, awk, sed, ...) is essential in Debian.
PROGRAMS = {"make": "make"}
LIBRARIES = {"libelf.so.1": "libelf1"}
COMPILERS = {
    "amd64": {"gcc": "gcc", "ld": "binutils"},
    "arm64": {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "aarch64-linux-gnu-ld": "binutils-aarch64-linux-gnu"},
}
# What Debian 12's say of themselves with --version.
VERSIONS = (
    re.compile(r"gcc\b.* \(Debian 12\.2\.0-"),
    re.compile(r"GNU ld \(GNU Binutils for Debian\) 2\.40$"),
    re.compile(r"kmod version 30$"),
)
QEMU = {"amd64": ("qemu-system-x86_64", "qemu-system-x86"), "arm64": ("qemu-system-aarch64", "qemu-system-arm")}
KMOD = {"kmod": "kmod"}
CHROMIUM = {"chromium": "chromium"}
ANSWERS = Path(__file__).resolve().parents[1] / "oracle/answers"


@dataclass(frozen=True)
class KernelFiles:
    """One kernel of the distribution, unpacked.

    :param architecture: as Debian calls it.
    """

    series: str
    architecture: str
    release: str
    image_root: Path
    headers_root: Path
    image_deb: Path

    @property
    def build_directory(self) -> Path:
        """What /lib/modules/RELEASE/build is where the headers are installed."""
        return self.headers_root / "usr/src" / f"linux-headers-{self.release}"

    @property
    def source_directory(self) -> Path:
        """The headers that all flavours share; its Makefile is the kernel's."""
        return next((self.headers_root / "usr/src").glob("linux-headers-*-common"))


@dataclass(frozen=True)
class QemuFiles:
    """A QEMU, wherever it is.

    :param environment: in which it finds its libraries and modules.
    :param firmware: directories to be named to it.
    """

    program: Path
    environment: dict[str, str]
    firmware: tuple[Path, ...]


@dataclass(frozen=True)
class ChromiumFiles:
    """A Chromium, wherever it is.

    :param environment: in which it finds its libraries.
    :param fonts: directories that have fonts.
    """

    program: Path
    environment: dict[str, str]
    fonts: tuple[Path, ...]


def kernels(names: Sequence[str] = SERIES) -> dict[str, KernelFiles]:
    """Kernel series, by name: amd64's unless others are named; fetched and unpacked unless they are there already.

    :raises DistributionError: with what to do next.
    """
    return {name: kernel_of(name) for name in names}


def kernel_of(series: str) -> KernelFiles:
    """One kernel series, as :func:`kernels` has it.

    :raises DistributionError: with what to do next.
    """
    directory = cache_directory() / series
    found = _unpacked(series, directory)
    if found is None:
        with locked():  # another process may have been faster
            found = _unpacked(series, directory) or _fetch_kernel(series, directory)
    return found


def tools(architecture: str = "amd64") -> dict[str, str]:
    """The environment for a build: this process's, plus programs and libraries unpacked in the cache.

    :param architecture: for which is built, as Debian calls it.
    :raises DistributionError: with the packages to install.
    """
    native = _with_programs("tools", PROGRAMS, LIBRARIES)
    for each in dict.fromkeys(("amd64", architecture)):
        native = _with_debian_12s(f"compiler-{each}", COMPILERS[each], native)
    return native


def _with_debian_12s(name: str, programs: Mapping[str, str], environment: dict[str, str]) -> dict[str, str]:
    """An environment, plus Debian 12's programs, unpacked in the cache under a name.

    Where no apt is, those that are installed have to do.
    """
    installed = [shutil.which(program) for program in programs]
    if all(path and _is_of_debian_12(path) for path in installed):
        return environment
    if shutil.which("apt-get") is None and all(installed):
        return environment
    root = cache_directory() / name
    with locked():
        if not (root / "packages").is_file():
            say(f"Debian 12's {' '.join(programs)} are not installed here; unpacking a copy in the cache")
            _unpack_all(root, apt_of_debian_12("amd64").closure([*programs.values()]), programs.values())
    return _with_root(environment, root)


def _is_of_debian_12(program: str) -> bool:
    said = run([program, "--version"]).stdout.partition("\n")[0]
    return any(version.search(said) for version in VERSIONS)


def qemu(architecture: str = "amd64") -> QemuFiles:
    """QEMU for the machines of an architecture, as Debian calls it; fetched and unpacked like the tools.

    :raises DistributionError: with the package to install.
    """
    program, package = QEMU[architecture]
    name = "qemu" if architecture == "amd64" else f"qemu-{architecture}"
    environment = _with_programs(name, {program: package}, {})
    found = shutil.which(program, path=environment["PATH"])
    if found is None:
        raise DistributionError(f"the package {package} holds no {program}")
    usr = Path(found).resolve().parents[1]
    environment["QEMU_MODULE_DIR"] = str(usr / "lib/x86_64-linux-gnu/qemu")
    return QemuFiles(Path(found), environment, (usr / "share/qemu", usr / "share/seabios"))


def kmod() -> tuple[Path, dict[str, str]]:
    """Debian 12's program that is depmod, modprobe and others by the name that it is called by, and its environment.

    :raises DistributionError: with the package to install.
    """
    environment = _with_debian_12s("kmod-30", KMOD, dict(os.environ))
    found = shutil.which("kmod", path=environment["PATH"])
    if found is None:
        raise DistributionError("the package kmod holds no kmod")
    return Path(found), environment


def chromium() -> ChromiumFiles:
    """A browser; fetched and unpacked like the tools. Its libraries bring fonts where the machine has none.

    :raises DistributionError: with the package to install.
    """
    environment = _with_programs("chromium", CHROMIUM, {})
    found = shutil.which("chromium", path=environment["PATH"])
    if found is None:
        raise DistributionError("the package chromium holds no chromium")
    usr = cache_directory() / "chromium/usr"
    fonts = (Path("/usr/share/fonts"), usr / "share/fonts")
    if not Path(found).is_relative_to(usr):
        return ChromiumFiles(Path(found), environment, fonts)
    # The script in bin starts what is installed below /usr/lib, and so does a library look for parts of its own.
    _prepend(environment, "LD_LIBRARY_PATH", [usr / "lib/x86_64-linux-gnu/pulseaudio"])
    return ChromiumFiles(usr / "lib/chromium/chromium", environment, fonts)


def _with_programs(name: str, programs: Mapping[str, str], libraries: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, plus what it lacks, unpacked in the cache under a name."""
    environment = dict(os.environ)
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    missing += [package for library, package in libraries.items() if not _loadable(library)]
    if not missing:
        return environment
    root = cache_directory() / name
    stamp = root / "packages"
    with locked():
        if not (stamp.is_file() and set(missing) <= set(stamp.read_text().split())):
            say(f"not installed here: {' '.join(missing)}; unpacking a copy in the cache")
            _fetch_tools(root, missing)
    return _with_root(environment, root)


def _with_root(environment: Mapping[str, str], root: Path) -> dict[str, str]:
    """An environment in which the programs and libraries of an unpacked root are found first."""
    changed = dict(environment)
    _prepend(changed, "PATH", [root / "usr/bin", root / "bin"])
    _prepend(changed, "LD_LIBRARY_PATH", [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"])
    return changed


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep other processes from changing the cache; not to be nested."""
    with (cache_directory() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty directory that takes the place of `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        scratch.chmod(0o755)
        new = scratch / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(scratch / "old")
        new.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# Kernels


def _unpacked(series: str, directory: Path) -> KernelFiles | None:
    """The kernel in `directory`, or None if it is not there or not whole."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        release, image_deb = str(manifest["release"]), cache_directory() / "debs" / str(manifest["image_deb"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    architecture = series.partition("-")[2] or "amd64"
    kernel = KernelFiles(series, architecture, release, directory / "image", directory / "headers", image_deb)
    wanted = [image_deb, kernel.image_root / f"boot/vmlinuz-{release}", kernel.build_directory / ".config"]
    return kernel if all(path.exists() for path in wanted) else None


def _fetch_kernel(series: str, directory: Path) -> KernelFiles:
    name, _, foreign = series.partition("-")
    architecture = foreign or "amd64"
    packages = packages_of_debian_12(architecture)
    release = newest_release(packages.names(), name, architecture)
    headers = f"linux-headers-{release}"
    # The other headers and kbuild's programs: the names differ, the dependency is always there.
    needed = packages.field(headers, "Depends")
    common = re.findall(r"linux-headers-\S+-common(?=[ ,]|$)", needed)
    programs = re.findall(r"linux-kbuild-\S+?(?=[ ,]|$)", needed)
    [image] = packages.download([f"linux-image-{release}"])
    # For whatever the kernel is: kbuild's programs run here. The same source makes them, whatever they run on.
    debs = packages.download([headers, *common]) + packages_of_debian_12("amd64").download(programs)
    with replacing(directory) as new:
        say(f"{series}: unpacking {release}")
        _unpack(image, new / "image")
        for deb in debs:
            _unpack(deb, new / "headers")
        (new / MANIFEST).write_text(json.dumps({"release": release, "image_deb": image.name}, indent=1) + "\n")
    kernel = _unpacked(series, directory)
    if kernel is None:
        raise DistributionError(f"{image} holds no kernel {release}; delete it and try again")
    return kernel


def newest_release(packages: Sequence[str], series: str, architecture: str) -> str:
    """Of a series the newest kernel for which answers of QEMU are kept, or the newest; no variants (cloud, rt).

    :param packages: the names of all that there are.
    :raises DistributionError: there is none.
    """
    pattern = re.compile(rf"linux-image-({re.escape(series)}\.[0-9][^ -]*(-[0-9]+)?-{architecture})")
    found = [match[1] for match in map(pattern.fullmatch, packages) if match]
    if not found:
        raise DistributionError(
            f"no linux-image-{series}.*-{architecture} among {len(packages)} packages; "
            "Debian 12 (with updates and security) has it"
        )
    kept = {path.name.removesuffix(".jsonl.xz") for path in ANSWERS.glob("*.jsonl.xz")}
    return max(
        [release for release in found if release in kept] or found,
        key=lambda release: [int(digits) for digits in re.findall("[0-9]+", release)],
    )


def _unpack(deb: Path, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    done = run(["dpkg-deb", "--extract", str(deb), str(directory)])
    if done.returncode:
        raise DistributionError(f"cannot unpack {deb}: {reason(done)}; delete it and try again")


# Tools


def _loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _fetch_tools(root: Path, missing: Sequence[str]) -> None:
    def download(apt: Apt) -> list[Path]:
        return apt.download(apt.not_installed(missing))

    try:
        debs = with_fresh_lists(download)
    except DistributionError as error:
        advice = f"install them: apt-get install --no-install-recommends {' '.join(missing)}"
        raise DistributionError(f"{error}; or {advice}") from error
    _unpack_all(root, debs, missing)


def _unpack_all(root: Path, debs: Sequence[Path], wanted: Iterable[str]) -> None:
    with replacing(root) as new:
        for deb in debs:
            _unpack(deb, new)
        (new / "packages").write_text("\n".join(wanted) + "\n")


def _prepend(environment: dict[str, str], variable: str, paths: Sequence[Path]) -> None:
    old = environment.get(variable)
    environment[variable] = os.pathsep.join([*map(str, paths), *([old] if old else [])])


def main() -> int:
    try:
        found = kernels([*SERIES, *ARM64])
        environment = tools("arm64")
    except DistributionError as error:
        say(f"error: {error}")
        return 1
    for kernel in found.values():
        for field in dataclasses.fields(kernel):
            print(f"{kernel.series} {field.name}: {getattr(kernel, field.name)}")  # noqa: T201
    for program in [*PROGRAMS, *(program for programs in COMPILERS.values() for program in programs)]:
        print(f"{program}: {shutil.which(program, path=environment['PATH'])}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
