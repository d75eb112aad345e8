"""What modules for a kernel are built against: headers that were given, that are here, or that are fetched.

A kernel that was given as a build tree has its own. Headers from packages are unpacked into the store once, below
``headers/RELEASE-MACHINE``.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kodojo.check.build.unpack import unpack_members
from kodojo.durable import Progress, disk_error, lock
from kodojo.errors import InputError
from kodojo.image.described.files import describe_build
from kodojo.image.described.release import release_of
from kodojo.image.fetch import fetch_headers
from kodojo.image.package import is_package, package_members

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = ["Headers", "given_headers", "headers_for"]

_TREES = (".", "usr/src/*", "usr/src/kernels/*", "lib/modules/*/build", "usr/lib/modules/*/build", "build")
_INSTALLED = ("/lib/modules/{}/build", "/usr/src/linux-headers-{}", "/usr/src/kernels/{}")
_INCLUDE = re.compile(r"^include\s+(/\S*/Makefile)\s*$", re.MULTILINE)
_OPTION = re.compile(r'^(CONFIG_\w+)=(?:"(.*)"|(.*))$', re.MULTILINE)


class Headers(NamedTuple):
    """Headers of one kernel.

    :param build: the directory that make is to be run for (``make -C``).
    :param shown: what a build has to see besides the system: ``build`` itself, or the directory that its links
        lead to.
    """

    release: str
    build: Path
    shown: Path

    def config(self) -> dict[str, str]:
        """The kernel's options as they are set; ``CONFIG_X`` -> ``y``, ``m`` or a text."""
        try:
            text = (self.build / ".config").read_text("utf-8", "replace")
        except OSError:
            return {}
        return {match[1]: match[2] or match[3] or "" for match in _OPTION.finditer(text)}

    def check_in_place(self) -> None:
        """Whether they can be used without a sandbox, which has them where they look for each other.

        :raises InputError: they include what would be there if they were installed.
        """
        makefile = self.build / "Makefile"
        found = _INCLUDE.fullmatch(makefile.read_text("utf-8", "replace").strip())
        if found is not None and not Path(found[1]).is_file():
            raise InputError(
                f"{makefile}: includes {found[1]}, which is not there",
                hint="give the packages of the headers, or install them; or build in a sandbox",
            )

    def links(self) -> dict[str, str]:
        """Where builds look for them on a system that they are installed on."""
        found = {f"/lib/modules/{self.release}/{name}": str(self.build) for name in ("build", "source")}
        for path in self.build.parent.iterdir():
            if path.name.startswith("linux-headers-") and not Path("/usr/src", path.name).exists():
                found[f"/usr/src/{path.name}"] = str(path)
        return found


def given_headers(words: Iterable[str], directory: Path) -> dict[str, Headers]:
    """The headers that are in directories and packages, by release.

    :param directory: an empty one, for the content of packages.
    :raises InputError: there are none in one of the words, or parts are missing.
    """
    found: dict[str, Headers] = {}
    packages = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            in_it = _in_directory(path.resolve())
            if not in_it:
                raise InputError(
                    f"{path}: has no headers that modules could be built against",
                    hint="give a build tree, or /usr/src/linux-headers-RELEASE",
                )
            for headers in in_it.values():
                if not _is_prepared(headers):
                    raise InputError(
                        f"{headers.build}: cannot be built against as it is: it has no scripts/mod/modpost",
                        hint="in a build tree: make modules_prepare; else give the package, or where it was unpacked",
                    )
            found |= in_it
        elif path.is_file() and is_package(path):
            packages.append(path)
        else:
            raise InputError(f"{path}: neither a directory nor a package", hint="give the headers of a kernel")
    if packages:
        _unpack(packages, directory)
        in_them = _in_directory(directory)
        if not in_them:
            raise InputError(f"{packages[0]}: has no headers that modules could be built against")
        for headers in in_them.values():
            _check_complete(headers, packages[0])
        found |= in_them
    return found


def headers_for(image: Image, given: Mapping[str, Headers], store: Path, progress: Progress | None = None) -> Headers:
    """The headers of a kernel.

    :param given: by release; they come first. :param store: where fetched ones are kept.
    :raises InputError: there are none; the hint says what to give.
    :raises StoreError: the store cannot be written.
    """
    release, machine = image.release, image.architecture
    if release in given:
        return given[release]
    if not re.fullmatch(r"[A-Za-z0-9][\w.+~-]{0,99}", release, re.ASCII):
        raise InputError(
            f"{release!r}: not a release whose headers could be fetched", hint="give them: --headers DIR"
        )
    places = [image.path, *(Path(place.format(release)) for place in _INSTALLED), store / f"{release}-{machine}"]
    for place in places:
        found = _in_directory(place.resolve()) if place.is_dir() else {}
        if release in found and _is_prepared(found[release]):
            return found[release]
    return _fetched(release, machine, store, progress)


def _fetched(release: str, machine: str, store: Path, progress: Progress | None) -> Headers:
    place = store / f"{release}-{machine}"
    with lock(store / "lock", timeout=None):
        found = _in_directory(place) if place.is_dir() else {}  # another process may have been faster
        if release in found:
            return found[release]
        try:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=store) as work:
                packages = fetch_headers(release, machine, Path(work, "packages"), progress)
                new = Path(work, "headers")
                new.mkdir()
                _unpack(packages, new, progress)
                in_it = _in_directory(new)
                if release not in in_it:
                    raise InputError(f"{packages[0].name}: has no headers of {release}", hint="give them: --headers")
                _check_complete(in_it[release], packages[0])
                if place.exists():
                    shutil.rmtree(place)
                new.rename(place)
        except OSError as error:
            raise disk_error(store, error) from error
    return _in_directory(place)[release]


def _unpack(packages: Sequence[Path], directory: Path, progress: Progress | None = None) -> None:
    for number, package in enumerate(packages):
        if progress is not None:
            progress(number, len(packages), f"unpacking {package.name.partition('_')[0]}")
        unpack_members(str(package), package_members(package), directory, _is_of_headers)
    for root, directories, files in os.walk(directory):
        for path in [Path(root), *(Path(root, name) for name in directories)]:
            if not path.is_symlink():
                path.chmod(0o755)
        for name in files:  # readable for whom the build runs as, whatever the umask is
            path = Path(root, name)
            if not path.is_symlink():
                path.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
    for makefile in directory.glob("usr/src/*/Makefile"):
        _make_movable(makefile)


def _is_of_headers(parts: tuple[str, ...]) -> bool:
    return parts[:2] == ("usr", "src") or (parts[:2] == ("usr", "lib") and parts[2:3] != ("modules",))


def _make_movable(makefile: Path) -> None:
    """Debian's headers include the kernel's Makefile by the path where it is installed: let it be the one beside."""
    text = makefile.read_text("utf-8", "surrogateescape")
    found = _INCLUDE.fullmatch(text.strip())
    if found is not None:
        beside = f"../{Path(found[1]).parent.name}/Makefile"
        makefile.write_text(f"include $(dir $(lastword $(MAKEFILE_LIST))){beside}\n", "utf-8", "surrogateescape")


def _check_complete(headers: Headers, package: Path) -> None:
    """Whether what the headers refer to was given, too."""
    lacking = []
    for name in ("scripts", "Makefile"):
        path = headers.build / name
        if path.is_symlink() and not path.exists():
            target = path.readlink().parts
            lacking += [part for part in target if part.startswith(("linux-kbuild", "linux-headers"))]
    makefile = headers.build / "Makefile"
    text = makefile.read_text("utf-8", "replace") if makefile.is_file() else ""
    found = re.search(r"\.\./([\w.+~-]+)/Makefile", text)
    if found is not None and not (headers.build.parent / found[1]).is_dir():
        lacking.append(found[1])
    if lacking:
        names = " and ".join(lacking)
        raise InputError(
            f"{package}: is only a part of the headers: they need {names}, too",
            hint=" ".join(f"--headers {name}_*.deb" for name in lacking),
        )


def _shown(build: Path) -> Path:
    """The directory that all links of the headers lead into."""
    unpacked = build.parent.parts[-2:] == ("usr", "src") and len(build.parents) > 3
    return build.parents[2] if unpacked else build


def _is_prepared(headers: Headers) -> bool:
    """Whether modules can be built against it: not so with the few files that the store keeps of a description."""
    return (headers.build / "scripts/mod/modpost").exists()


def _in_directory(root: Path) -> dict[str, Headers]:
    """The headers in a directory, by release: itself, or what was unpacked or installed there."""
    found: dict[str, Headers] = {}
    for pattern in _TREES:
        for path in [root] if pattern == "." else sorted(root.glob(pattern)):
            if not (path / "Makefile").is_file():
                continue
            files = describe_build(path)
            release = release_of(files).name if files is not None else ""
            if release and release not in found:
                build = path.resolve()
                found[release] = Headers(release, build, _shown(build))
    return found
