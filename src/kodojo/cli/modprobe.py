"""``kodojo modprobe``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.errors import GuestOSError, LoadError, decode
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel
    from kodojo.kernel.module import Module
    from kodojo.kmod.config import ModprobeConfig
    from kodojo.kmod.index import ModuleIndex
    from kodojo.kmod.modprobe import Flags, Modprobe, Outcome

__all__ = ["KernelModules", "modprobe"]


class KernelModules:
    """A kernel as :mod:`kodojo.kmod.modprobe` wants it (its ``Loader`` and ``Unloader``)."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def loaded(self, name: str) -> bool:
        module = self._find(name)
        return module is not None and module.state == "Live"

    def present(self, name: str) -> bool:
        return self._find(name) is not None

    def refcount(self, name: str) -> int:
        module = self._find(name)
        return -1 if module is None else module.refcount

    def holders(self, name: str) -> list[str]:
        module = self._find(name)
        return [] if module is None else list(module.users)

    def insmod(self, path: Path, options: str) -> None:
        self._kernel.insmod(str(path), *([options] if options else []))

    def rmmod(self, name: str) -> None:
        self._kernel.rmmod(name)

    def _find(self, name: str) -> Module | None:
        modules = self._kernel.modules
        return next((each for each in modules if each.name == name and each.state != "Unformed"), None)


def _switches(function: Any) -> Any:
    """The options without a value, in the order of modprobe's help."""
    for names, text in reversed(
        [
            (("-a", "--all"), "Load every NAME; there are no parameters then."),
            (("-r", "--remove"), "Remove the modules, and those that they needed and nobody else does."),
            (("--remove-holders",), "Remove also what uses the module (with -r)."),
            (("--first-time",), "Fail if a module is loaded already, or not there to be removed."),
            (("-i", "--ignore-install", "--ignore-remove"), "Ignore install and remove commands, and softdeps."),
            (("-b", "--use-blacklist"), "Apply the blacklist to names, too, not only to aliases."),
            (("-R", "--resolve-alias"), "Only print the modules that NAME stands for."),
            (("-D", "--show-depends"), "Only print what would be loaded into a kernel without modules."),
            (("-n", "--dry-run", "--show"), "Load and remove nothing."),
            (("-q", "--quiet"), "Do not complain."),
            (("-v", "--verbose"), "Print what is done."),
        ]
    ):
        function = click.option(*names, is_flag=True, help=text)(function)
    return function


@click.command(short_help="Load or remove a module by name or alias, with what it needs.")
@click.argument("names", nargs=-1, metavar="NAME [PARAM=VALUE]...")
@_switches
@click.option("-C", "--config", "paths", multiple=True, metavar="DIR", help="A directory like /etc/modprobe.d.")
@machine_options
@pass_app
def modprobe(app: App, /, names: tuple[str, ...], paths: tuple[str, ...], **switches: bool) -> None:
    """Load the module NAME (or what has that alias) from the kernel's module tree, with what it depends on.

    Prints and exits as modprobe does. No configuration of this computer is read, only what -C names.
    """
    if not names:
        app.say(_line(app, "ERROR", "missing parameters. See -h."))
        raise click.exceptions.Exit(1)
    printed: list[str] = []
    if switches["resolve_alias"]:
        status = _print_names(app, names, paths)
    else:
        with app.machine(save=not (switches["dry_run"] or switches["show_depends"])) as kernel:
            run, flags = _prepare(app, kernel, paths, switches, printed.append)
            _work(run, KernelModules(kernel), names, switches)
        _report(app, run.outcome, printed, names, switches, dry=flags.dry_run)
        status = run.outcome.status
    if status:
        raise click.exceptions.Exit(status)


def _prepare(
    app: App, kernel: Kernel, paths: tuple[str, ...], switches: dict[str, bool], show: Callable[[str], None]
) -> tuple[Modprobe, Flags]:
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine has imported by now
    from kodojo.kmod.modprobe import Flags, Modprobe  # noqa: PLC0415

    flags = Flags(
        dry_run=switches["dry_run"] or switches["show_depends"],
        ignore_loaded=switches["show_depends"],
        ignore_install=switches["ignore_install"],
        use_blacklist=switches["use_blacklist"],
        first_time=switches["first_time"],
        remove_holders=switches["remove_holders"],
    )
    command_line = ""
    with suppress(GuestOSError):
        command_line = decode(kernel.read_file("/proc/cmdline"))
    config = _config(app, paths, command_line)
    quiet = not (switches["verbose"] or switches["show_depends"])
    return Modprobe(_index(app, kernel.image), config, flags, None if quiet else show, errno_text), flags


def _config(app: App, paths: tuple[str, ...], command_line: str = "") -> ModprobeConfig:
    from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415

    config = ModprobeConfig.read(paths, command_line)
    for problem in config.problems:
        app.say(_line(app, "ERROR", problem))
    return config


def _index(app: App, image: Any) -> ModuleIndex:
    from kodojo.kmod.index import ModuleIndex  # noqa: PLC0415

    with app.bar() as bar:
        return ModuleIndex.of(image, progress=bar.update)


def _work(run: Modprobe, kernel: KernelModules, names: tuple[str, ...], switches: dict[str, bool]) -> None:
    from kodojo.kmod.modprobe import join_options  # noqa: PLC0415

    if switches["remove"]:
        for name in names:
            run.remove(kernel, name)
    elif switches["all"]:
        for name in names:
            run.insert(kernel, name)
    else:
        run.insert(kernel, names[0], join_options(names[1:]))


def _print_names(app: App, names: tuple[str, ...], paths: tuple[str, ...]) -> int:
    """``modprobe -R``: no machine is needed for it."""
    from kodojo.kmod.modprobe import lookup  # noqa: PLC0415

    image = app.chosen_image()
    if image is None:
        description = app.session.describe()
        image = app.store.open(description.release if description else None)
    index = _index(app, image)
    found = [candidate.name for candidate in lookup(index, _config(app, paths), names[0])]
    if app.json:
        app.out_json(found)
    elif found:
        app.out([clean(name) for name in found])
    else:
        app.say(_line(app, "FATAL", f"Module {names[0]} not found in directory {index.root}"))
    return 0 if found else 1


def _line(app: App, priority: str, text: str) -> str:
    style = "yellow" if priority == "WARNING" else "red"
    return f"{app.error_paint(f'modprobe: {priority}:', 'bold', style)} {clean(text)}"


def _report(
    app: App, outcome: Outcome, printed: list[str], names: tuple[str, ...], switches: dict[str, bool], *, dry: bool
) -> None:
    if app.json:
        app.out_json(_shape(app, outcome, names, dry=dry))
        return
    app.out([clean(line) for line in printed])
    if switches["quiet"]:
        return
    fatal = "WARNING" if switches["all"] else "FATAL"
    for is_fatal, text in outcome.messages:
        app.say(_line(app, fatal if is_fatal else "ERROR", text))
    from kodojo.report.log import log_lines  # noqa: PLC0415
    from kodojo.report.refusal import advice_lines  # noqa: PLC0415

    for _, error in outcome.failures:
        if isinstance(error, LoadError):
            app.say(log_lines(error.log, app.error_paint))
            app.say(advice_lines(error.why, error.slug, error.hint, app.error_paint))
    app.mention_warnings()


def _shape(app: App, outcome: Outcome, names: tuple[str, ...], *, dry: bool) -> dict[str, Any]:
    from kodojo.report import json  # noqa: PLC0415
    from kodojo.report.errnos import errno_name  # noqa: PLC0415

    return {
        "names": names,
        "ok": outcome.status == 0,
        "dry_run": dry,
        "actions": [
            {
                "action": action.how.value,
                "name": action.name,
                "path": str(action.path) if action.path else None,
                "options": action.options.strip(),
                "command": action.command,
                "required": action.required,
            }
            for action in outcome.actions
        ],
        "removed": outcome.removed,
        "messages": [text for _, text in outcome.messages],
        "failures": [
            {
                "name": name,
                "errno": error.errno,
                "errno_name": errno_name(error.errno),
                "message": error.message,
                "slug": getattr(error, "slug", ""),
                "why": getattr(error, "why", ""),
                "hint": error.hint,
            }
            for name, error in outcome.failures
        ],
        "log": json.record_list(app.log),
        "warnings": [report.cause for report in app.warnings],
    }
