"""The modules of tests/modules, built by kbuild against the distribution's headers, without root.

Debian packages: ``gcc``, ``make``, ``libelf1`` (objtool is linked with it), each without its recommendations.
Everything else that kbuild runs is in essential packages or comes unpacked by
:mod:`tests.support.distribution`, which also unpacks these three where they are not installed. ``pahole`` is
not needed: no BTF is generated.

For arm64 kernels: ``gcc-aarch64-linux-gnu`` and ``binutils-aarch64-linux-gnu``, fetched and unpacked likewise. The
headers are the arm64 packages (``linux-headers-RELEASE-arm64``, and ``-common``, which is for all architectures).
Their scripts (modpost, genksyms, ...) are links into ``linux-kbuild-*``, which is made for the machine that builds.
amd64's package of the same name comes from the same source and has the same paths, so it is unpacked in the place
of arm64's: that is all there is to it. By hand::

    make -f .../linux-headers-*-common/Makefile -C .../linux-headers-RELEASE-arm64 M=$PWD \\
        ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc modules

The headers' own ``Makefile`` includes the kernel's by its absolute path below /usr/src. So make is given
the kernel's itself (``-f``), in the directory of the headers: it then finds everything relative to them.

``python -m tests.support.kbuild`` builds for all kernels and prints what there is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.distribution import (
    ARM64,
    SERIES,
    DistributionError,
    KernelFiles,
    cache_directory,
    kernel_of,
    locked,
    replacing,
    tools,
)

__all__ = ["ALTERED", "SOURCES", "BuildError", "build"]

SOURCES = Path(__file__).resolve().parents[1] / "modules"
STAMP = ".built-from"
# Debian's headers ask for the very version of the compiler that built the kernel, which need not be here.
COMPILERS = {
    "amd64": ("CC=gcc",),
    "arm64": ("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc"),
}

# What modpost refuses: changed in the finished module, in .modinfo, length kept.
ALTERED = {
    "kd_gplonly_prop": (b"\0license=Dual BSD/GPL\0", b"\0license=Proprietary\0\0"),
    "kd_import_without_ns": (b"\0import_ns=KD\0", b"\0import_no=KD\0"),
}
# modpost may say this, and nothing else. (That it may at all, KBUILD_MODPOST_WARN says.)
EXPECTED_WARNINGS = {('"kd_exists_nowhere"', "kd_unknown.ko")}


class BuildError(Exception):
    """The modules could not be built; the message has what make said."""


def build(series: str) -> dict[str, Path]:
    """The test modules for a kernel series, by name; built unless nothing has changed since they were.

    :raises BuildError: with the compiler's words.
    :raises DistributionError: if the kernel or the tools cannot be had.
    """
    kernel = kernel_of(series)
    key = _key(kernel)
    directory = cache_directory() / series / f"modules-{key[:12]}"  # other checkouts may share the cache
    if not _is_current(directory, key):
        environment = tools(kernel.architecture)
        with locked():
            if not _is_current(directory, key):
                _build(kernel, directory, key, environment)
    return {path.stem: path for path in sorted(directory.glob("*.ko"))}


def _key(kernel: KernelFiles) -> str:
    """A digest of all that the modules are made from (and of how: this file)."""
    digest = hashlib.sha256(kernel.release.encode())
    for path in [*_sources(), kernel.build_directory / "Module.symvers", Path(__file__)]:
        digest.update(b"\0" + path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in {".c", ".h"} or path.name == "Kbuild")


def _is_current(directory: Path, key: str) -> bool:
    try:
        return (directory / STAMP).read_text() == key
    except OSError:
        return False


def _build(kernel: KernelFiles, directory: Path, key: str, environment: dict[str, str]) -> None:
    work = directory.parent / "build"
    _copy_sources(work)
    print(f"tests: building modules for {kernel.release}", file=sys.stderr, flush=True)  # noqa: T201
    output = _make(kernel, work, environment)
    try:
        _judge_warnings(output)
        with replacing(directory) as new:
            for name in re.findall(r"^obj-m \+= (\w+)\.o$", (work / "Kbuild").read_text(), re.MULTILINE):
                (new / f"{name}.ko").write_bytes(_altered(name, (work / f"{name}.ko").read_bytes()))
            (new / STAMP).write_text(key)
    except BuildError:
        shutil.rmtree(work)  # make would find nothing left to do, and say nothing, the next time
        raise


def _copy_sources(work: Path) -> None:
    """Bring the build directory up to date; what is unchanged keeps its time, so that make is quick."""
    work.mkdir(exist_ok=True)
    sources = {path.name: path for path in _sources()}
    for old in work.iterdir():
        if (old.suffix in {".c", ".h"} and not old.name.endswith(".mod.c")) and old.name not in sources:
            old.unlink()
    for name, path in sources.items():
        copy, text = work / name, path.read_bytes()
        if not copy.is_file() or copy.read_bytes() != text:
            copy.write_bytes(text)


def _make(kernel: KernelFiles, work: Path, environment: dict[str, str]) -> str:
    # The same bytes wherever they are built: QEMU's recorded answers are for them.
    places = {work: "module", kernel.build_directory: "build", kernel.source_directory: "source"}
    maps = " ".join(f"-ffile-prefix-map={path}={name}" for path, name in places.items())
    command = [
        "make",
        f"--jobs={os.cpu_count() or 1}",
        f"--directory={kernel.build_directory}",
        f"--file={kernel.source_directory / 'Makefile'}",
        f"M={work}",
        *COMPILERS[kernel.architecture],
        "CONFIG_DEBUG_INFO_BTF_MODULES=",  # would need pahole, with some headers
        "KBUILD_MODPOST_WARN=1",
        f"KCFLAGS={maps}",
        f"KAFLAGS={maps}",
        "modules",
    ]
    # Nothing of a make that runs us may reach kbuild.
    clean = {name: value for name, value in environment.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(
        command,
        env=clean | {"LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


def _judge_warnings(output: str) -> None:
    unexpected = []
    for line in re.findall(r"^(?:WARNING|ERROR): modpost: .*$", output, re.MULTILINE):
        match = re.search(r'modpost: ("\w+") \[(?:.*/)?(\w+\.ko)\] undefined!', line)
        if match is None or match.groups() not in EXPECTED_WARNINGS:
            unexpected.append(line)
    if unexpected:
        raise BuildError("\n".join(unexpected))


def _altered(name: str, module: bytes) -> bytes:
    if name not in ALTERED:
        return module
    old, new = ALTERED[name]
    if module.count(old) != 1 or len(old) != len(new):
        raise BuildError(f"{name}.ko has {module.count(old)} times {old!r}, to be replaced by {new!r}")
    return module.replace(old, new)


def main() -> int:
    try:
        for series in [*SERIES, *ARM64]:
            for name, path in build(series).items():
                print(f"{series} {name}: {path}")  # noqa: T201
    except (BuildError, DistributionError) as error:
        print(f"tests: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
