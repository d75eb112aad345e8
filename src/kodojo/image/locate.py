"""The files of a kernel (vmlinuz, configuration, module tree) found in a directory that somebody gave.

Known layouts: an unpacked package or a root file system (``boot/vmlinuz-RELEASE``), a module
directory with its kernel in it (``lib/modules/RELEASE/vmlinuz``, as Fedora has it), a kernel's build
directory, and everything flat in one directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kodojo.errors import InputError

if TYPE_CHECKING:
    from kodojo.image.described.files import DescriptionFiles

__all__ = ["KernelFiles", "build_around", "files_around", "find_kernel", "find_kernel_or_description", "find_modules"]

_PATTERNS = (
    "boot/vmlinuz-*",
    "boot/vmlinux-*",
    "lib/modules/*/vmlinuz",
    "usr/lib/modules/*/vmlinuz",
    "vmlinuz-*",
    "vmlinuz",
    "arch/x86/boot/bzImage",
    "bzImage",
    "vmlinux-*",
    "vmlinux",
)
_TREES = ("lib/modules", "usr/lib/modules")


class KernelFiles(NamedTuple):
    """Where the parts of a kernel are; None for what was not found."""

    vmlinuz: Path
    config: Path | None = None
    modules: Path | None = None


def find_kernel(directory: Path) -> KernelFiles:
    """The one kernel in a directory.

    :raises InputError: there is none, or there are several.
    """
    kernels: dict[str, Path] = {}  # by release, which two places may have
    for pattern in _PATTERNS:
        for path in sorted(directory.glob(pattern)):
            if path.is_file() and not path.name.endswith((".old", ".bak", ".sig", ".hmac")):
                kernels.setdefault(_release_of(path), path)
    if kernels.keys() - {""}:
        kernels.pop("", None)  # `vmlinuz` beside `vmlinuz-RELEASE` is a link to one of them
    if not kernels:
        raise InputError(
            f"{directory}: holds no kernel: neither boot/vmlinuz-... nor lib/modules/.../vmlinuz nor vmlinuz,"
            " and no Module.symvers that describes one",
            hint="give the package with the kernel itself (linux-image-..., kernel-core-...), the vmlinuz, or headers"
            " of one flavour (linux-headers-...-amd64, kernel-devel-...)",
        )
    if len(kernels) > 1:
        names = ", ".join(sorted(str(path) for path in kernels.values()))
        raise InputError(
            f"{directory}: holds several kernels: {names}",
            hint="give the path of the one that you mean",
        )
    files = files_around(next(iter(kernels.values())))
    if files.modules is None and _has_modules(directory):
        files = files._replace(modules=directory)
    return files


def find_kernel_or_description(directory: Path) -> KernelFiles | DescriptionFiles:
    """The one kernel in a directory; or, where there is none, what describes one.

    :raises InputError: there is neither, or there are several.
    """
    try:
        files = find_kernel(directory)
    except InputError:
        described = _find_description(directory)
        if described is None:
            raise
        return described
    if files.vmlinuz.name == "vmlinux":  # headers packages have one without code, for its types
        described = _find_description(files.vmlinuz.parent)
        if described is not None and described.types == files.vmlinuz:
            return described
    return files


def build_around(vmlinuz: Path) -> DescriptionFiles | None:
    """What describes a kernel's build where the kernel lies: in its tree, or beside ``symvers.gz``."""
    directory = vmlinuz.parent
    if directory.name == "boot" and directory.parent.name == "x86":  # arch/x86/boot/bzImage
        directory = directory.parents[2]
    if not any(directory.glob("*symvers*")):
        return None
    from kodojo.image.described.files import describe_build  # noqa: PLC0415  (kernels alone are the usual case)

    return describe_build(directory)


def _find_description(directory: Path) -> DescriptionFiles | None:
    from kodojo.image.described.files import find_description  # noqa: PLC0415  (kernels are the usual case)

    return find_description(directory)


def files_around(vmlinuz: Path) -> KernelFiles:
    """The parts that lie where they belong in relation to a vmlinuz."""
    release = _release_of(vmlinuz)
    parent = vmlinuz.parent
    if parent.name == "boot" and parent.parent.name == "x86":  # a build directory: arch/x86/boot/bzImage
        build = parent.parent.parent.parent
        return KernelFiles(vmlinuz, _first_file(build / ".config"), build)
    root = parent.parent if parent.name == "boot" else parent
    trees = [root / tree / release for tree in _TREES if release]
    configs = [parent / "config", parent / ".config", *(tree / "config" for tree in trees)]
    if release:
        configs.insert(0, parent / f"config-{release}")
        configs.append(root / "boot" / f"config-{release}")
    modules = next((tree for tree in trees if tree.is_dir()), None)
    if modules is None and vmlinuz.name == "vmlinuz" and parent.parent.name == "modules":
        modules = parent
        configs.append(parent.parents[2] / f"boot/config-{release}")
    return KernelFiles(vmlinuz, _first_file(*configs), modules)


def find_modules(directory: Path, release: str) -> Path:
    """The module tree of a release in what was given: the tree, ``lib/modules``, or a root above it."""
    for candidate in (*(directory / tree / release for tree in _TREES), directory / release):
        if candidate.is_dir():
            return candidate
    return directory


def _release_of(vmlinuz: Path) -> str:
    if vmlinuz.name == "vmlinuz" and vmlinuz.parent.parent.name == "modules":
        return vmlinuz.parent.name
    return vmlinuz.name.partition("-")[2]


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _has_modules(directory: Path) -> bool:
    names = ("modules.dep.bin", "modules.dep", "modules.order")
    return any((directory / name).is_file() for name in names) or next(directory.rglob("*.ko*"), None) is not None
