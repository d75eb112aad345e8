"""The commands, imported when one of them runs, and what happens to errors of all of them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from kodojo.cli.app import App, json_option, kernel_option
from kodojo.cli.habits import STATUS_OF_WRONG_USAGE, full_names, usage_message
from kodojo.cli.main import INTERRUPTED
from kodojo.errors import KodojoError
from kodojo.report.paint import Paint

__all__ = ["CommandTable", "cli"]

# Section of the help: command to (module with a function of that name, what it does).
_COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Kernels": {
        "kernel": ("kodojo.cli.kernel", "Add, list, show and remove kernels, and add modules to them."),
        "boot": ("kodojo.cli.boot", "Start the machine, or start it over."),
    },
    "Will it load?": {
        "check": ("kodojo.cli.check", "Tell whether kernels would load modules, and why not."),
        "explain": ("kodojo.cli.explain", "Tell why a module does not load, and what to do."),
    },
    "Modules": {
        "insmod": ("kodojo.cli.insmod", "Load a module."),
        "rmmod": ("kodojo.cli.rmmod", "Remove modules."),
        "lsmod": ("kodojo.cli.lsmod", "List the loaded modules."),
        "modprobe": ("kodojo.cli.modprobe", "Load or remove a module by name, with what it needs."),
        "modinfo": ("kodojo.cli.modinfo", "Show what a module says about itself."),
        "depmod": ("kodojo.cli.depmod", "Write modules.dep and the other lists of a module tree."),
    },
    "Looking around in the machine": {
        "dmesg": ("kodojo.cli.dmesg", "Print the kernel's log."),
        "sleep": ("kodojo.cli.sleep", "Let time pass: timers, threads and delayed work run."),
        "cat": ("kodojo.cli.files", "Print files."),
        "ls": ("kodojo.cli.files", "List a directory."),
        "write": ("kodojo.cli.files", "Write a text, or standard input, to a file."),
    },
    "Changing its files": {
        "mkdir": ("kodojo.cli.nodes", "Make directories."),
        "mknod": ("kodojo.cli.nodes", "Make a device file or a fifo."),
        "chmod": ("kodojo.cli.nodes", "Change the permissions of files."),
        "rm": ("kodojo.cli.nodes", "Remove files and directories."),
        "mount": ("kodojo.cli.mounts", "Mount a file system, or list what is mounted."),
        "umount": ("kodojo.cli.mounts", "Take mounted file systems away."),
    },
}


class CommandTable(click.Group):
    """A group that knows its commands by name, and imports them when they are asked for.

    :param sections: title to command to (module, short help).
    """

    def __init__(self, *args: Any, sections: dict[str, dict[str, tuple[str, str]]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's interface
        return [name for section in self._sections.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's interface
        for section in self._sections.values():
            if cmd_name in section:
                command: click.Command = getattr(importlib.import_module(section[cmd_name][0]), cmd_name)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name in STATUS_OF_WRONG_USAGE and command is not None:
            ctx.invoked_subcommand = name
            rest = full_names(command, ctx, rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  likewise
        paint = Paint.of(sys.stdout)
        for title, section in self._sections.items():
            rows = [(paint(name, "bold", "cyan"), text) for name, (_, text) in section.items()]
            with formatter.section(paint(title, "bold", "yellow")):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; a KodojoError ends in its message and status 1, Ctrl-C in 130.

        Wrong usage of a command that is named after a tool ends as it does there.
        """
        app = ctx.ensure_object(App)
        try:
            super().invoke(ctx)
        except click.UsageError as error:
            tool = ctx.invoked_subcommand
            if tool not in STATUS_OF_WRONG_USAGE:
                raise
            app.say(usage_message(tool, error))
            ctx.exit(STATUS_OF_WRONG_USAGE[tool])
        except KodojoError as error:
            app.fail(error)
        except MemoryError:
            app.fail(KodojoError("not enough memory on this computer", hint="give the machine less: --memory"))
        except KeyboardInterrupt:
            app.say("kodojo: interrupted; the machine is as it was before this command")
            ctx.exit(INTERRUPTED)
        else:
            return
        ctx.exit(1)


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from kodojo import __version__ as number  # noqa: PLC0415

    click.echo(f"kodojo {number}")
    ctx.exit()


@click.command(
    cls=CommandTable,
    sections=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="kodojo COMMAND --help tells more about a command.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@json_option
@kernel_option
def cli() -> None:
    """Load real Linux kernel modules into a real Linux kernel that runs inside this process.

    The machine's state lasts from one command to the next, until `kodojo boot` starts it over.
    """
