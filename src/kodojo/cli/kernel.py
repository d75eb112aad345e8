"""``kodojo kernel``: the kernels in the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, json_option, pass_app
from kodojo.errors import KodojoError
from kodojo.image.suites import BOOTS
from kodojo.report.kernels import KernelLine, SnapshotFacts, architecture, kernel_facts, list_rows, show_rows

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.image.store import Store

__all__ = ["kernel"]

_PATH = click.Path(path_type=Path)
_MOST_NOTES = 10


@click.group(short_help="Add, list, show and remove kernels, and add modules to them.")
def kernel() -> None:
    """The kernels that kodojo knows."""


@kernel.command(short_help="Add a kernel, or fetch one.")
@click.argument("source", required=False)
@click.option(
    "--modules", type=click.Path(path_type=Path), metavar="DIR", help="The module tree, if SOURCE has none."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The kernel's configuration, if SOURCE has none.",
)
@json_option
@pass_app
def add(app: App, source: str | None, modules: Path | None, config: Path | None) -> None:
    """Add a kernel: SOURCE is a .deb, a .rpm, an unpacked directory, a vmlinuz, or the name of a package.

    A package's name may end with the suite of Debian that has it, whatever the machine's own is:
    linux-image-6.12/bookworm.

    Headers packages, build trees and a Module.symvers describe a kernel: enough to check modules, not to boot it.
    The name of such a one ends with +headers.

    Without SOURCE the distribution's newest kernel is fetched by the package manager, or the one in /boot is taken.
    """
    before = set(app.store.names())
    with app.bar() as bar:
        image = app.store.add(source, modules=modules, config=config, progress=bar.update)
    name = _name_of(app.store, image)
    added = name not in before
    facts: dict[str, Any] = {
        "name": name,
        "release": image.release,
        "architecture": architecture(image),
        "kind": image.kind,
        "modules": len(image.modules),
        "warnings": [*image.warnings, *_notes_on_tree(image)],
    }
    if app.json:
        app.out_json(facts | {"added": added})
        return
    for warning in facts["warnings"]:
        app.say(f"kodojo: {name}: {warning}")
    if added and "kernel" not in image.describes:
        app.out(
            f"{name} added: it is described, not there; modules can be checked against it, but it cannot be booted"
        )
    elif added:
        app.out(f"{name} added, with {facts['modules']} modules; {_use_of(image, name)}")
    else:
        app.out(f"{name} was there already")


def _notes_on_tree(image: Image) -> list[str]:
    """Files of the module tree that modprobe would not load, and what could not be looked at."""
    contents = image.modules.contents()
    root = image.modules.root
    notes = [f"{os.path.relpath(path, root)}: {why}" for path, why in contents.others.items()]
    notes += [f"{path}: not looked at: {why}" for path, why in contents.passed_over]
    more = len(notes) - _MOST_NOTES
    return [*notes[:_MOST_NOTES], f"and {more} more such files"] if more > 0 else notes


def _use_of(image: Image, name: str) -> str:
    """What can be done with a kernel that is there, in words."""
    from kodojo.kernel.boot import BOOTABLE, missing_symbols  # noqa: PLC0415  the emulator takes long to import

    missing: list[str] = []
    if "kernel" in image.describes and image.architecture in BOOTABLE:
        missing = missing_symbols(image)
        if not missing:
            return f"kodojo boot {name} starts it"
    why = "" if "kernel" not in image.describes else f"; kodojo does not boot {image.architecture} kernels"
    if missing:
        why = (
            f"; kodojo cannot boot it, for it has no function {' or '.join(missing)}. "
            f"A kernel that it boots: kodojo kernel add {BOOTS}"
        )
    return f"modules can be checked against it{why}"


def _name_of(store: Store, image: Image) -> str:
    """The name in the store of an image that was opened there."""
    return image.path.relative_to(store.root / "images").parts[0]


@kernel.command(name="list", short_help="List the kernels.")
@json_option
@pass_app
def list_(app: App) -> None:
    """List the kernels, oldest first; * marks the one that is used when none is named."""
    names = app.store.names()
    current = app.store.current_name() if names else ""
    lines = [_line(app.store, name, current=name == current) for name in names]
    if app.json:
        app.out_json(lines)
    elif lines:
        app.table(
            ("", "kernel", "what", "architecture", "modules", "snapshots"),
            list_rows(lines),
            ("green", "cyan", "", "", "", ""),
        )
    else:
        app.say("kodojo: no kernels yet; kodojo kernel add fetches the newest of this distribution")


def _line(store: Store, name: str, *, current: bool) -> KernelLine:
    try:
        image = store.open(name)
        snapshots = [path for path in store.snapshots_directory(image).glob("[!.]*") if path.is_dir()]
        return KernelLine(
            name,
            image.release,
            architecture(image),
            len(image.modules),
            len(snapshots),
            current=current,
            kind=image.kind,
        )
    except KodojoError as error:
        return KernelLine(name, current=current, problem=error.message)


@kernel.command(short_help="Tell all about a kernel.")
@click.argument("name", required=False)
@json_option
@pass_app
def show(app: App, name: str | None) -> None:
    """Tell all about the kernel NAME (the current one by default)."""
    full = app.store.resolve(name)
    image = app.store.open(full)
    facts = kernel_facts(
        full,
        image,
        _disk_usage(app.store.root / "images" / full),
        _snapshots(app.store, image),
        current=full == app.store.current_name(),
    )
    if app.json:
        app.out_json(facts)
    else:
        app.table(("", ""), show_rows(facts), ("cyan", ""))


def _snapshots(store: Store, image: Image) -> list[SnapshotFacts]:
    from kodojo.kernel.snapshots import existing  # noqa: PLC0415  imports the emulator

    if "kernel" not in image.describes:
        return []
    return [SnapshotFacts(key.cmdline, key.memory, key.bare) for key, _ in existing(store, image)]


def _disk_usage(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


@kernel.command(short_help="Add modules, configuration and firmware to a kernel.")
@click.argument("name", metavar="KERNEL")
@click.argument("modules", nargs=-1, type=_PATH, metavar="[FILE.ko]...")
@click.option("--modprobe-d", multiple=True, type=_PATH, metavar="FILE", help="A file for modprobe.d.")
@click.option("--depmod-d", multiple=True, type=_PATH, metavar="FILE", help="A file for depmod.d.")
@click.option(
    "--firmware",
    multiple=True,
    type=_PATH,
    metavar="FILE",
    help="A file for /lib/firmware, or a directory with what belongs there.",
)
@json_option
@pass_app
def install(
    app: App,
    name: str,
    modules: tuple[Path, ...],
    modprobe_d: tuple[Path, ...],
    depmod_d: tuple[Path, ...],
    firmware: tuple[Path, ...],
) -> None:
    """Put modules into updates/ of the kernel's tree, as DKMS does, and configuration and firmware beside it.

    modprobe finds them from then on, and so does the kernel with what it asks for itself. The kernel and its
    snapshots stay what they are. Firmware is in the machine when the next module is loaded.
    """
    if not (modules or modprobe_d or depmod_d or firmware):
        raise click.UsageError("give the modules to install, or --modprobe-d, --depmod-d or --firmware")
    from kodojo.image.additions import Kind, given_configuration, given_firmware, given_modules  # noqa: PLC0415

    full = app.store.resolve(name)
    image = app.store.open(full)
    given = [
        *given_modules(modules, image.release, image.architecture),
        *given_configuration(Kind.MODPROBE_D, modprobe_d),
        *given_configuration(Kind.DEPMOD_D, depmod_d),
        *given_firmware(firmware),
    ]
    changed = app.store.install(full, given)
    _index_anew(app, changed)
    labels = [f"{file.kind.value}/{file.name}" for file in given]
    warnings = [file.warning for file in given if file.warning]
    if app.json:
        app.out_json({"name": full, "installed": labels, "warnings": warnings})
        return
    for warning in warnings:
        app.say(f"kodojo: warning: {warning}; `kodojo check` tells whether it would load")
    app.out([f"{full}: installed {label}" for label in labels])


@kernel.command(short_help="Remove what was installed for a kernel.")
@click.argument("name", metavar="KERNEL")
@click.argument("words", nargs=-1, required=True, metavar="NAME...")
@json_option
@pass_app
def uninstall(app: App, name: str, words: tuple[str, ...]) -> None:
    """Remove modules and files that `kodojo kernel install` brought, by their names; `kodojo kernel show` lists them.

    A machine that runs keeps its firmware until it is booted.
    """
    full = app.store.resolve(name)
    labels = [addition.label for addition in app.store.uninstall(full, words)]
    _index_anew(app, app.store.open(full))
    if app.json:
        app.out_json({"name": full, "uninstalled": labels})
    else:
        app.out([f"{full}: removed {label}" for label in labels])


def _index_anew(app: App, image: Image) -> None:
    """As depmod is run when a module was installed."""
    from kodojo.kmod.index import ModuleIndex  # noqa: PLC0415

    with app.bar() as bar:
        ModuleIndex.of(image, refresh=True, progress=bar.update)


@kernel.command(short_help="Remove a kernel and its snapshots.")
@click.argument("name")
@json_option
@pass_app
def remove(app: App, name: str) -> None:
    """Remove the kernel NAME and its snapshots."""
    full = app.store.remove(name)
    if app.json:
        app.out_json({"removed": full})
    else:
        app.out(f"{full} removed")


@kernel.command(short_help="Choose the kernel that is used when none is named.")
@click.argument("name")
@json_option
@pass_app
def use(app: App, name: str) -> None:
    """Make NAME the kernel that commands use when none is named."""
    app.store.set_current(name)
    full = app.store.current_name()
    if app.json:
        app.out_json({"current": full})
    else:
        app.out(f"{full} is the current kernel; {_use_of(app.store.open(), full)}")
