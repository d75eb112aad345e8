"""What ``modprobe`` only shows: the configuration with the indexes, and the versions of symbols."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.cli.app import App
from kodojo.errors import ImageError, InputError
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.kmod.config import ModprobeConfig
    from kodojo.kmod.index import ModuleIndex

__all__ = ["show_config", "show_versions"]

_NONE, _DAMAGED = "No such file or directory", "Exec format error"


def show_config(app: App, config: ModprobeConfig, index: ModuleIndex) -> int:
    """``modprobe -c`` (``tools/modprobe.c: show_config``): the exit status."""
    configured = config.lines(index.softdeps, index.weakdeps)
    if app.json:
        app.out_json({"configuration": configured, "aliases": index.aliases, "symbols": index.symbols})
        return 0
    lines = [*configured, "", "# End of configuration files. Dumping indexes now:", ""]
    lines += [f"alias {alias} {module}" for alias, module in index.aliases]
    lines += [f"alias symbol:{symbol} {module}" for symbol, module in index.symbols]
    app.out([clean(line) for line in lines])
    return 0


def show_versions(app: App, name: str, index: Callable[[], ModuleIndex], *, exports: bool) -> int:
    """``modprobe --show-exports`` or ``--show-modversions`` of a file, or of the modules that a name stands for.

    :return: the exit status.
    """
    if Path(name).exists():
        files = {name: Path(name)}
    else:
        from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415
        from kodojo.kmod.modprobe import lookup  # noqa: PLC0415

        tree = index()
        found = {each.name: tree.path(each.name) for each in lookup(tree, ModprobeConfig(), name)}
        files = {module: path for module, path in found.items() if path is not None}
    if not files:
        return _fatal(app, f"Module {name} not found.")
    status = 0
    for module, path in files.items():
        status = _show_file(app, module, path, exports=exports)
    return status


def _show_file(app: App, name: str, path: Path, *, exports: bool) -> int:
    from kodojo.image.payload import read_module  # noqa: PLC0415
    from kodojo.kmod.versions import exported_versions, version_line, wanted_versions  # noqa: PLC0415

    what = "symbols" if exports else "modversions"
    try:
        data = read_module(path).module()
        versions = exported_versions(data, name) if exports else wanted_versions(data, name)
    except InputError as error:
        return _fatal(app, f"could not get {what} of {name}: {error.message.rpartition(': ')[2]}")
    except ImageError:
        return _fatal(app, f"could not get {what} of {name}: {_DAMAGED}")
    if versions is None:
        return _fatal(app, f"could not get {what} of {name}: {_NONE}")
    if app.json:
        app.out_json([{"symbol": symbol, "crc": f"0x{crc:08x}"} for crc, symbol in versions])
    else:
        app.out([clean(version_line(crc, symbol)) for crc, symbol in versions])
    return 0


def _fatal(app: App, text: str) -> int:
    app.say(f"{app.error_paint('modprobe: FATAL:', 'bold', 'red')} {clean(text)}")
    return 1
