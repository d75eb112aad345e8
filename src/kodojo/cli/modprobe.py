"""``kodojo modprobe``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, machine_options, pass_app
from kodojo.cli.habits import c_number, syslog_option, version_option
from kodojo.cli.index import current_image, module_index
from kodojo.cli.show import show_config, show_versions
from kodojo.errors import GuestOSError, LoadError, decode
from kodojo.image.tree import module_name
from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.kernel.kernel import Kernel
    from kodojo.kernel.module import Module
    from kodojo.kmod.config import ModprobeConfig
    from kodojo.kmod.index import ModuleIndex
    from kodojo.kmod.known import KnownModules
    from kodojo.kmod.modprobe import Flags, Modprobe, Outcome

__all__ = ["KernelModules", "modprobe"]


class KernelModules:
    """A kernel as :mod:`kodojo.kmod.modprobe` wants it (its ``Loader`` and ``Unloader``).

    :param kernel: None for a dry run without a machine: nothing is loaded then.
    """

    def __init__(
        self,
        kernel: Kernel | None,
        *,
        force: bool = False,
        force_modversion: bool = False,
        force_vermagic: bool = False,
    ) -> None:
        self._kernel = kernel
        self._force = force
        self._forcing = {"force_modversion": force or force_modversion, "force_vermagic": force or force_vermagic}

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
        self._running.insmod(str(path), *([options] if options else []), **self._forcing)

    def rmmod(self, name: str) -> None:
        self._running.rmmod(name, force=self._force)

    def wait(self, seconds: float) -> None:
        self._running.sleep(seconds)

    @property
    def _running(self) -> Kernel:
        assert self._kernel is not None, "a dry run does nothing"
        return self._kernel

    def _find(self, name: str) -> Module | None:
        modules = self._kernel.modules if self._kernel is not None else []
        return next((each for each in modules if each.name == name and each.state != "Unformed"), None)


def _switches(function: Any) -> Any:
    """The options without a value, in the order of modprobe's help."""
    for names, text in reversed(
        [
            (("-a", "--all"), "Load every NAME; there are no parameters then."),
            (("-r", "--remove"), "Remove the modules, and those that they needed and nobody else does."),
            (("--remove-holders", "--remove-dependencies"), "Remove also what uses the module (with -r)."),
            (("--first-time",), "Fail if a module is loaded already, or not there to be removed."),
            (("-i", "--ignore-install", "--ignore-remove"), "Ignore install and remove commands, and softdeps."),
            (("-b", "--use-blacklist"), "Apply the blacklist to names, too, not only to aliases."),
            (("-f", "--force"), "Load what is for another kernel (both of the following), remove what is in use."),
            (("--force-modversion",), "Load a module whose symbol versions are not the kernel's."),
            (("--force-vermagic",), "Load a module whose version magic is not the kernel's."),
            (("-R", "--resolve-alias", "--show-alias"), "Only print the modules that NAME stands for."),
            (("-D", "--show-depends"), "Only print what would be loaded into a kernel without modules."),
            (("-c", "--showconfig", "--show-config"), "Only print the configuration, aliases and symbols."),
            (
                ("--show-modversions", "--dump-modversions"),
                "Only print the symbol versions that NAME or a file wants.",
            ),
            (("--show-exports",), "Only print the symbols that NAME or a file exports, with their versions."),
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
@click.option(
    "-w", "--wait", "wait", metavar="MSEC", help="Wait so long for a module to be no longer in use (with -r)."
)
@click.option("-C", "--config", "paths", multiple=True, metavar="DIR", help="A directory like /etc/modprobe.d.")
@click.option(
    "--path", "place", metavar="DIR", help="Modules in DIR and below come before those of the kernel's tree."
)
@click.option("-d", "--dirname", "root", metavar="DIR", help="Use the module tree in DIR/lib/modules.")
@click.option("-S", "--set-version", "version", metavar="VERSION", help="Use the module tree of this release.")
@syslog_option
@version_option
@machine_options
@pass_app
def modprobe(
    app: App,
    /,
    names: tuple[str, ...],
    paths: tuple[str, ...],
    place: str | None,
    root: str | None,
    version: str | None,
    wait: str | None,
    **switches: bool,
) -> None:
    """Load the module NAME (or what has that alias) from the kernel's module tree, with what it depends on.

    NAME may also be a file, such as ./v4l2loopback.ko: what it needs, or asks for, is looked for beside it, too.

    Prints and exits as modprobe does. No configuration of this computer is read, only what -C names, or else what
    `kodojo kernel install` has brought.
    """
    milliseconds = _milliseconds(app, wait)
    if not names and not switches["showconfig"]:
        app.say(_line(app, "ERROR", "missing parameters. See -h."))
        raise click.exceptions.Exit(1)

    def image() -> Image:
        return current_image(app)

    def index(of: Callable[[], Image] = image) -> ModuleIndex:
        return module_index(app, of, root, version)

    printed: list[str] = []

    def configured(of: Callable[[], Image] = image) -> Sequence[Path | str]:
        return paths or (of().additions.modprobe_d if root is None else ())

    several = switches["all"] or switches["remove"]
    files = _files(names if several else names[:1], place)
    if switches["showconfig"]:
        status = show_config(app, _config(app, configured(), _saved_command_line(app)), index())
    elif switches["show_modversions"] or switches["show_exports"]:
        _config(app, configured())  # for what is wrong with it
        status = show_versions(app, names[0], index, exports=not switches["show_modversions"])
    elif switches["resolve_alias"]:
        status = _print_names(app, names, _config(app, configured()), _known(index(), files))
    else:
        flags = _flags(switches, milliseconds)
        forcing = {name: switches[name] for name in ("force", "force_modversion", "force_vermagic")}
        if _needs_no_machine(app, switches):
            config = _config(app, configured(), _saved_command_line(app))
            run = _prepare(_known(index(), files), config, flags, switches, printed.append)
            _work(run, KernelModules(None, **forcing), names, switches)
        else:
            with app.machine(save=not flags.dry_run) as kernel:
                config = _config(app, configured(lambda: kernel.image), _command_line(kernel))
                run = _prepare(_known(index(lambda: kernel.image), files), config, flags, switches, printed.append)
                with kernel.beside(*files), kernel.operation("modprobe"):
                    _work(run, KernelModules(kernel, **forcing), names, switches)
        _report(app, run.outcome, printed, names, switches, dry=flags.dry_run)
        status = run.outcome.status
    if status:
        raise click.exceptions.Exit(status)


def _milliseconds(app: App, typed: str | None) -> int:
    try:
        return c_number(typed) if typed is not None else 0
    except ValueError:
        app.say(_line(app, "ERROR", f"unexpected wait value '{typed}'."))
        raise click.exceptions.Exit(1) from None


def _needs_no_machine(app: App, switches: dict[str, bool]) -> bool:
    """Whether all that is asked for is known without one; a machine that was never started has no modules."""
    if switches["show_depends"] and not switches["remove"]:
        return True
    return switches["dry_run"] and not switches["remove"] and app.session.describe() is None


def _saved_command_line(app: App) -> str:
    """The command line that the machine was started with."""
    description = app.session.describe()
    return description.cmdline if description is not None else ""


def _command_line(kernel: Kernel) -> str:
    with suppress(GuestOSError):
        return decode(kernel.read_file("/proc/cmdline"))
    return ""


def _flags(switches: dict[str, bool], wait: int) -> Flags:
    from kodojo.kmod.modprobe import Flags  # noqa: PLC0415

    return Flags(
        dry_run=switches["dry_run"] or switches["show_depends"],
        ignore_loaded=switches["show_depends"],
        ignore_install=switches["ignore_install"],
        use_blacklist=switches["use_blacklist"],
        first_time=switches["first_time"],
        remove_holders=switches["remove_holders"],
        ends=not (switches["all"] or switches["quiet"]),
        wait=wait,
    )


def _prepare(
    index: KnownModules, config: ModprobeConfig, flags: Flags, switches: dict[str, bool], show: Callable[[str], None]
) -> Modprobe:
    from kodojo.kernel.user import errno_text  # noqa: PLC0415  imports what the machine has imported by now
    from kodojo.kmod.modprobe import Modprobe  # noqa: PLC0415

    quiet = not (switches["verbose"] or switches["show_depends"])
    return Modprobe(index, config, flags, None if quiet else show, errno_text)


def _known(index: ModuleIndex, files: list[Path]) -> KnownModules:
    from kodojo.kmod.siblings import Siblings  # noqa: PLC0415

    return Siblings(index, files) if files else index


def _files(names: tuple[str, ...], place: str | None) -> list[Path]:
    """The modules that are looked at besides the tree's: beside those that are named by files, and at a place."""
    from kodojo.kmod.siblings import modules_at, modules_beside, named_as_path  # noqa: PLC0415

    named = (Path(name) for name in names if named_as_path(name))
    beside = [file for path in named if path.is_file() and module_name(path) for file in modules_beside(path)]
    return beside + (modules_at(Path(place)) if place is not None else [])


def _config(app: App, paths: Sequence[Path | str], command_line: str = "") -> ModprobeConfig:
    from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415

    config = ModprobeConfig.read(paths, command_line)
    for problem in config.problems:
        app.say(_line(app, "ERROR", problem))
    return config


def _work(run: Modprobe, kernel: KernelModules, names: tuple[str, ...], switches: dict[str, bool]) -> None:
    from kodojo.kmod.modprobe import join_options  # noqa: PLC0415

    if switches["remove"]:
        for name in names:
            run.remove(kernel, _module_in(name) or name)
    elif switches["all"]:
        for name in names:
            _insert(run, kernel, name)
    else:
        _insert(run, kernel, names[0], join_options(names[1:]))


def _insert(run: Modprobe, kernel: KernelModules, name: str, options: str = "") -> None:
    from kodojo.kmod.siblings import named_as_path  # noqa: PLC0415

    if named_as_path(name):
        run.insert_file(kernel, name, options)
    else:
        run.insert(kernel, name, options)


def _module_in(name: str) -> str | None:
    """The name of the module in a file; None for what is named otherwise."""
    from kodojo.kmod.siblings import named_as_path  # noqa: PLC0415

    return module_name(name) if named_as_path(name) else None


def _print_names(app: App, names: tuple[str, ...], config: ModprobeConfig, index: KnownModules) -> int:
    """``modprobe -R``."""
    from kodojo.kmod.modprobe import lookup  # noqa: PLC0415

    found = [candidate.name for candidate in lookup(index, config, _module_in(names[0]) or names[0])]
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
    if outcome.status and not outcome.actions and Path(names[0]).is_file() and "/" not in names[0]:
        app.say(f"hint: a file is named by its path: kodojo modprobe ./{clean(names[0])}")
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
