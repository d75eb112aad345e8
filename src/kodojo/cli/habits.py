"""What the usual tools have in common: how options may be typed, what a wrong one costs, and ``-V`` and ``-s``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kodojo.cli.app import App

__all__ = [
    "KMOD_TOOLS",
    "STATUS_OF_WRONG_USAGE",
    "c_number",
    "full_names",
    "syslog_option",
    "usage_message",
    "verbose_option",
    "version_option",
]

_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+)|(0[0-7]*)|[1-9][0-9]*")

F = TypeVar("F", bound=Callable[..., Any])

KMOD_TOOLS = ("depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod")
STATUS_OF_WRONG_USAGE = {
    **dict.fromkeys(KMOD_TOOLS, 1),
    **dict.fromkeys(("cat", "chmod", "dmesg", "mkdir", "mknod", "mount", "rm", "umount"), 1),
    "ls": 2,
}
"""The exit status for wrong usage, by command, as the tool of that name has it; click's 2 for the rest."""


def full_names(command: click.Command, ctx: click.Context, arguments: list[str]) -> list[str]:
    """The arguments with long options written out that were abbreviated, as ``getopt_long(3)`` allows it.

    :raises click.UsageError: there is more than one option that it may stand for.
    """
    options = [each for each in command.get_params(ctx) if isinstance(each, click.Option)]
    names = {name: option for option in options for name in option.opts if name.startswith("--")}
    taking = {name for option in options for name in option.opts if not (option.is_flag or option.count)}
    full: list[str] = []
    for position, word in enumerate(arguments):
        if word == "--":
            return full + arguments[position:]
        name, equals, value = word.partition("=")
        is_value = bool(full) and full[-1] in taking
        if name.startswith("--") and name not in names and not is_value:
            found = [each for each in names if each.startswith(name)]
            if len({names[each].name for each in found}) > 1:
                listed = " ".join(f"'{each}'" for each in found)
                raise click.UsageError(f"option '{word}' is ambiguous; possibilities: {listed}")
            name = found[0] if found else name
        full.append(f"{name}{equals}{value}")
    return full


def c_number(text: str) -> int:
    """A number as ``strtoul(3)`` reads it with base 0: decimal, octal behind 0, hexadecimal behind 0x.

    :raises ValueError: it is none.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(text, 16 if match[1] else 8 if match[2] else 10)


def usage_message(tool: str, error: click.UsageError) -> str:
    """The message for wrong usage, in getopt's words."""
    if isinstance(error, click.NoSuchOption):
        long = error.option_name.startswith("--")
        said = (
            f"unrecognized option '{error.option_name}'" if long else f"invalid option -- '{error.option_name[1:]}'"
        )
    elif isinstance(error, click.BadOptionUsage):
        name = error.option_name
        if "requires" not in error.message:
            said = f"option '{name}' doesn't allow an argument"
        elif name.startswith("--"):
            said = f"option '{name}' requires an argument"
        else:
            said = f"option requires an argument -- '{name[1:]}'"
    else:
        said = error.format_message()
    if tool in KMOD_TOOLS:
        return f"{tool}: {said}"
    return f"{tool}: {said}\nTry 'kodojo {tool} --help' for more information."


def version_option(function: F) -> F:
    """``-V``."""
    return click.option(
        "-V", "--version", "print_version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
        help="Print the version.",
    )(function)  # fmt: skip


def verbose_option(function: F) -> F:
    """``-v``, where kmod prints nothing for it that is not printed anyway."""
    return click.option(
        "-v", "--verbose", count=True, expose_value=False, help="Accepted; there is nothing more to print."
    )(function)


def syslog_option(function: F) -> F:
    """``-s``."""
    return click.option(
        "-s", "--syslog", is_flag=True, expose_value=False, callback=_to_syslog,
        help="Write messages to this computer's system log, not to standard error.",
    )(function)  # fmt: skip


def _print_version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from kodojo import __version__ as number  # noqa: PLC0415

    click.echo(f"kodojo version {number}, with the habits of kmod 30")
    ctx.exit()


def _to_syslog(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value and sys.platform != "win32":
        ctx.ensure_object(App).syslog = ctx.info_name or "kodojo"
