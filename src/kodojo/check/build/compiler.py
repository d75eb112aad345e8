"""What modules are built with: this machine's compiler and tools, by the names that a kernel's headers use."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kodojo.errors import InputError
from kodojo.image.architecture import architecture_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kodojo.check.build.headers import Headers

__all__ = ["Tools", "tools_for"]

_BINUTILS = ("ld", "ld.bfd", "ar", "as", "nm", "objcopy", "objdump", "readelf", "strip")
_NEEDED = {"make": "make", "bash": "bash"}
_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/opt/", "/nix/", "/gnu/")
_NAMED = re.compile(r"(?P<prefix>(?:[a-z0-9_]+-)*)(?P<kind>gcc|clang)(?P<version>(?:-[\d.]+)?)")
# By the architectures' names in Image: what the kernel's Makefile calls it, and the prefix of its tools on Debian.
_CROSS = {
    "x86_64": ("x86", "x86_64-linux-gnu-"),
    "aarch64": ("arm64", "aarch64-linux-gnu-"),
    "i686": ("x86", "i686-linux-gnu-"),
    "armv7l": ("arm", "arm-linux-gnueabihf-"),
    "riscv64": ("riscv", "riscv64-linux-gnu-"),
    "ppc64le": ("powerpc", "powerpc64le-linux-gnu-"),
    "s390x": ("s390", "s390x-linux-gnu-"),
}


class Tools(NamedTuple):
    """The tools of a build.

    :param environment: for the build. :param names: further names of programs: name -> path.
    :param shown: directories that they are in, where those are not the system's.
    :param note: what a person should know about them; empty if nothing.
    """

    environment: dict[str, str]
    names: dict[str, str]
    shown: list[Path]
    note: str = ""

    def write_names(self, directory: Path) -> None:
        """Make the further names in a new directory, which the environment's PATH has to begin with."""
        directory.mkdir()
        for name, path in self.names.items():
            (directory / name).symlink_to(path)


def tools_for(headers: Headers, machine: str) -> Tools:
    """The tools to build modules for a kernel with.

    :param machine: its architecture.
    :raises InputError: one is not here; the hint has the command that installs it.
    """
    for program, package in _NEEDED.items():
        if shutil.which(program) is None:
            raise InputError(
                f"there is no {program} here, which building needs", hint=f"apt-get install {package}, or alike"
            )
    config = headers.config()
    text = config.get("CONFIG_CC_VERSION_TEXT", "")
    wanted = _NAMED.match(text.partition(" ")[0])
    kind = "clang" if config.get("CONFIG_CC_IS_CLANG") == "y" else "gcc"
    known = architecture_named(machine).name
    native = known == architecture_named(platform.machine()).name
    arch, prefix = _CROSS.get(known, ("", ""))
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    if not native:
        environment |= {"ARCH": arch, "CROSS_COMPILE": prefix}
    program, other = _compiler(kind, prefix, wanted["version"] if wanted else "", native=native)
    names = dict(_further_names(program, kind, prefix, wanted["version"] if wanted else "", native=native))
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    if config.get("CONFIG_DEBUG_INFO_BTF_MODULES") == "y" and shutil.which("pahole") is None:
        environment["MAKEFLAGS"] = "CONFIG_DEBUG_INFO_BTF_MODULES="  # modules without their types load as well
    note = f"built with {os.path.basename(program)}, the kernel with {text}" if other else ""  # noqa: PTH119
    return Tools(environment, names, _foreign_directories([program, "make", f"{prefix}ld", "ld"]), note)


def _compiler(kind: str, prefix: str, version: str, *, native: bool) -> tuple[str, bool]:
    """The compiler's path, and whether it is another one than that which built the kernel."""
    start = "" if native or kind == "clang" else prefix
    for name in (f"{start}{kind}{version}", f"{prefix}{kind}{version}", f"{start}{kind}"):
        found = shutil.which(name)
        if found is not None:
            return found, bool(version) and not name.endswith(version)
    package = kind if native or kind == "clang" else f"gcc-{prefix.rstrip('-').replace('_', '-')}"
    raise InputError(
        f"there is no {start}{kind} here, which the kernel's headers ask for", hint=f"apt-get install {package}"
    )


def _further_names(program: str, kind: str, prefix: str, version: str, *, native: bool) -> Iterator[tuple[str, str]]:
    """The names that the headers may ask for, where the machine has the programs by other names only."""
    names = [f"{prefix}{kind}{version}", f"{prefix}{kind}", *([f"{kind}{version}", kind] if native else [])]
    for name in names:
        if shutil.which(name) is None:
            yield name, program
    if native and prefix:
        for tool in _BINUTILS:
            found = shutil.which(tool)
            if found is not None and shutil.which(prefix + tool) is None:
                yield prefix + tool, found


def _foreign_directories(programs: list[str]) -> list[Path]:
    """Directories that are not the system's and that tools and libraries of the build are in."""
    found: dict[Path, None] = {}
    for program in programs:
        path = shutil.which(program)
        if path is not None and not path.startswith(_SYSTEM):
            directory = Path(path).absolute().parent
            found[directory.parent if directory.name in ("bin", "sbin") else directory] = None
    for word in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if word and not word.startswith(("/lib", *_SYSTEM)):
            found[Path(word).absolute()] = None
    return list(found)
