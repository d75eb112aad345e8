"""The distribution's kernels and build tools for the tests, fetched and unpacked without root.

:func:`kernels` gives both kernel series of Debian 12, for amd64 or arm64: image, headers and kbuild's own programs.
:func:`tools` gives an environment in which gcc (for arm64 the cross compiler, too), make and libelf are found; what
the machine lacks is fetched like the kernels. apt decides what is newest, here nothing is pinned: to move on to newer
packages, delete the directory of a series from the cache.

A series is called "6.1" or "6.12" where it is amd64's, "6.1-arm64" or "6.12-arm64" otherwise.

The cache is ``$KODOJO_TEST_CACHE``, or ``.cache`` in the repository::

    debs/                    what was downloaded
    6.1/image, 6.1/headers   unpacked (likewise 6.12)
    6.1/modules              written by tests.support.kbuild
    6.1-arm64/...            the same for arm64 (likewise 6.12-arm64)
    tools/, tools-arm64/     programs and libraries that this machine has not installed
    qemu/, qemu-arm64/       QEMU, likewise (only for `make oracle`)
    chromium/                Chromium, likewise
    apt/                     package lists, where the machine's own are missing or out of date

``python -m tests.support.distribution`` fetches what is missing and prints where things are.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

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
# What an external module needs besides the headers: a compiler (it brings binutils), make, and the library
# that objtool is linked with. The rest of kbuild's tools (sh, bash, awk, sed, ...) is essential in Debian.
PROGRAMS = {"gcc": "gcc", "make": "make", "ld": "binutils"}
LIBRARIES = {"libelf.so.1": "libelf1"}
CROSS = {"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu", "aarch64-linux-gnu-ld": "binutils-aarch64-linux-gnu"}
QEMU = {"amd64": ("qemu-system-x86_64", "qemu-system-x86"), "arm64": ("qemu-system-aarch64", "qemu-system-arm")}
KMOD = {"kmod": "kmod"}
CHROMIUM = {"chromium": "chromium"}

Result = TypeVar("Result")


class DistributionError(Exception):
    """Something the tests need cannot be had; the message names the next step."""


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
    return native if architecture == "amd64" else _with_programs(f"tools-{architecture}", CROSS, {}, native)


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
    """The program that is depmod, modprobe and others by the name that it is called by, and its environment.

    :raises DistributionError: with the package to install.
    """
    environment = _with_programs("kmod", KMOD, {})
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


def _with_programs(
    name: str, programs: Mapping[str, str], libraries: Mapping[str, str], base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """This process's environment (or another), plus what it lacks, unpacked in the cache under a name."""
    environment = dict(base)
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    missing += [package for library, package in libraries.items() if not _loadable(library)]
    if not missing:
        return environment
    root = cache_directory() / name
    stamp = root / "packages"
    with locked():
        if not (stamp.is_file() and set(missing) <= set(stamp.read_text().split())):
            _say(f"not installed here: {' '.join(missing)}; unpacking a copy in the cache")
            _fetch_tools(root, missing)
    found = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    _prepend(environment, "PATH", [root / "usr/bin", root / "bin"])
    _prepend(environment, "LD_LIBRARY_PATH", found)
    return environment


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
    architecture = _architecture(series) or "amd64"
    kernel = KernelFiles(series, architecture, release, directory / "image", directory / "headers", image_deb)
    wanted = [image_deb, kernel.image_root / f"boot/vmlinuz-{release}", kernel.build_directory / ".config"]
    return kernel if all(path.exists() for path in wanted) else None


def _architecture(series: str) -> str:
    """As Debian calls it; empty for the one that the tests run on."""
    return series.partition("-")[2]


def _fetch_kernel(series: str, directory: Path) -> KernelFiles:
    task = functools.partial(_download_kernel, series)
    release, image, headers, programs = _with_fresh_lists(task, _architecture(series))
    # For whatever the kernel is: kbuild's programs run here. The same source makes them, whatever they run on.
    headers += _with_fresh_lists(lambda apt: apt.download(programs))
    with replacing(directory) as new:
        _say(f"{series}: unpacking {release}")
        for deb in image:
            _unpack(deb, new / "image")
        for deb in headers:
            _unpack(deb, new / "headers")
        manifest = {"release": release, "image_deb": image[0].name}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    kernel = _unpacked(series, directory)
    if kernel is None:
        raise DistributionError(f"{image[0]} holds no kernel {release}; delete it and try again")
    return kernel


def _download_kernel(series: str, apt: Apt) -> tuple[str, list[Path], list[Path], list[str]]:
    image = apt.newest_image(series.partition("-")[0], _architecture(series) or "amd64")
    release = image.removeprefix("linux-image-")
    headers = f"linux-headers-{release}"
    # The other headers and kbuild's programs: the names differ, the dependency is always there.
    needed = apt.field(headers, "Depends")
    common = re.findall(r"linux-headers-\S+-common(?=[ ,]|$)", needed)
    programs = re.findall(r"linux-kbuild-\S+?(?=[ ,]|$)", needed)
    return release, apt.download([image]), apt.download([headers, *common]), programs


def _unpack(deb: Path, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    done = _run(["dpkg-deb", "--extract", str(deb), str(directory)])
    if done.returncode:
        raise DistributionError(f"cannot unpack {deb}: {_reason(done)}; delete it and try again")


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
        debs = _with_fresh_lists(download)
    except DistributionError as error:
        advice = f"install them: apt-get install --no-install-recommends {' '.join(missing)}"
        raise DistributionError(f"{error}; or {advice}") from error
    with replacing(root) as new:
        for deb in debs:
            _unpack(deb, new)
        (new / "packages").write_text("\n".join(missing) + "\n")


def _prepend(environment: dict[str, str], variable: str, paths: Sequence[Path]) -> None:
    old = environment.get(variable)
    environment[variable] = os.pathsep.join([*map(str, paths), *([old] if old else [])])


# apt


class Apt:
    """apt as an ordinary user may use it: to ask and to download, never to install."""

    def __init__(self, options: Sequence[str] = ()) -> None:
        self.options = list(options)

    def run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        # Root's downloads would be made by _apt, who may not write into a user's cache.
        command = [program, "-oAPT::Sandbox::User=root", *self.options, *arguments]
        done = _run(command, cwd=cwd)
        if done.returncode:
            raise DistributionError(f"{program} {' '.join(arguments)}: {_reason(done)}")
        return done.stdout

    def field(self, package: str, name: str) -> str:
        """One field of the newest version of `package`."""
        text = self.run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
        if match is None:
            raise DistributionError(f"apt knows no {name} of {package}")
        return match[1]

    def newest_image(self, series: str, architecture: str = "amd64") -> str:
        """The package with the newest kernel of a series, without its variants (cloud, rt, unsigned)."""
        start = rf"linux-image-{re.escape(series)}\."
        pattern = rf"{start}[0-9][^ -]*(-[0-9]+)?-{architecture}"
        known = self.field(f"linux-image-{architecture}", "Depends") + "\n"
        known += self.run("apt-cache", "search", "--names-only", rf"^{start}.*-{architecture}$")
        found = {match[0] for match in re.finditer(rf"\b{pattern}(?=[ ,]|$)", known, re.MULTILINE)}
        if not found:
            raise DistributionError(
                f"apt knows no linux-image-{series}.*-{architecture}; Debian 12 (with updates and security) does"
            )
        return max(found, key=lambda name: [int(digits) for digits in re.findall("[0-9]+", name)])

    def not_installed(self, packages: Sequence[str]) -> list[str]:
        """`packages` and what they depend on, without what is installed."""
        # Not --print-uris: it leaves out what is in apt's own cache.
        text = self.run("apt-get", "--simulate", "--no-install-recommends", "install", *packages)
        return re.findall(r"^Inst (\S+)", text, re.MULTILINE)

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
            _say(f"downloading {path.name} ({package.size / 1e6:.1f} MB)")
            with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as new:
                self.run("apt-get", "--quiet=2", "download", name, cwd=Path(new))
                (Path(new) / path.name).replace(path)
        return [directory / by_name[name].file_name for name in packages]


def _parse_uris(text: str) -> list[Package]:
    found = re.findall(r"^'(\S+)' (\S+) ([0-9]+) (\S*)$", text, re.MULTILINE)
    return [Package(uri, file_name, int(size), digest) for uri, file_name, size, digest in found]


@functools.cache  # once a process is enough
def _apt_with_own_lists(architecture: str = "") -> Apt:
    """apt on package lists of ours, brought up to date; for that no root is needed either.

    :param architecture: as Debian calls it; the machine's own if empty.
    """
    directory = cache_directory() / (f"apt-{architecture}" if architecture else "apt")
    foreign = [f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}"] if architecture else []
    for part in ("lists/partial", "cache/archives/partial"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    apt = Apt([f"-oDir::State::Lists={directory}/lists", f"-oDir::Cache={directory}/cache", *foreign])
    _say("updating package lists in the cache")
    # Without --error-on=any an update without network ends well, with nothing updated.
    apt.run("apt-get", "--quiet=2", "--error-on=any", "update")
    return apt


def _with_fresh_lists(task: Callable[[Apt], Result], architecture: str = "") -> Result:
    """Do it with the machine's package lists; if they are missing, old or of another architecture, with our own."""
    for program in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(program) is None:
            _give_up(f"{program} is not here", "the tests need Debian's apt; run them on Debian 12")
    if not architecture:
        # Whatever goes wrong, lists of today are the remedy, or give the message that matters.
        with contextlib.suppress(DistributionError):
            return task(Apt())
    try:
        return task(_apt_with_own_lists(architecture))
    except DistributionError as error:
        _give_up(str(error), "connect to the network, check /etc/apt/sources.list*, and try again")


def _give_up(what: str, next_step: str) -> NoReturn:
    raise DistributionError(f"{what}; {next_step}")


def _run(command: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment: Mapping[str, str] = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
    return (lines or done.stderr.splitlines() or [f"status {done.returncode}"])[0].strip()


def _say(text: str) -> None:
    print(f"tests: {text}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> int:
    try:
        found = kernels([*SERIES, *ARM64])
        environment = tools("arm64")
    except DistributionError as error:
        _say(f"error: {error}")
        return 1
    for kernel in found.values():
        for field in dataclasses.fields(kernel):
            print(f"{kernel.series} {field.name}: {getattr(kernel, field.name)}")  # noqa: T201
    for program in [*PROGRAMS, *CROSS]:
        print(f"{program}: {shutil.which(program, path=environment['PATH'])}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
