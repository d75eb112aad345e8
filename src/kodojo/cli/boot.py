"""``kodojo boot``."""

from __future__ import annotations

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.errors import InputError

__all__ = ["boot"]

_MOST_MEMORY = 1 << 20  # MiB


@click.command(short_help="Start the machine, or start it over.")
@click.argument("name", required=False, metavar="[KERNEL]")
@click.option("--cmdline", default="", metavar="TEXT", help="Extra words for the kernel's command line.")
@click.option(
    "--memory", type=click.IntRange(1, _MOST_MEMORY), metavar="MIB", help="Memory of the machine in MiB [256]."
)
@kernel_option
@json_option
@pass_app
def boot(app: App, name: str | None, cmdline: str, memory: int | None) -> None:
    """Start the machine with KERNEL (the current one by default); what the old machine had in it is gone.

    KERNEL is a name that `kodojo kernel list` shows, a package, a vmlinuz or a directory.

    The first boot takes about ten seconds. It is kept, and the next one with the same kernel, command line and memory
    takes milliseconds.
    """
    from kodojo.kernel.boot import DEFAULT_MEMORY  # noqa: PLC0415  imports the emulator

    if name and app.kernel and name != app.kernel:
        raise InputError(f"{name} and --kernel {app.kernel}: which one?", hint="name one kernel")
    size = DEFAULT_MEMORY if memory is None else memory << 20
    with app.guard():
        image = app.open_kernel(name or app.kernel)
        with app.bar(f"booting {image.release}") as bar:
            kernel = app.session.boot(image, cmdline, size, bar.share)
    if app.json:
        app.out_json(
            {
                "release": image.release,
                "architecture": image.architecture,
                "cmdline": " ".join(cmdline.split()),
                "memory": size,
                "time": kernel.time,
            }
        )
    else:
        app.out(f"{image.release} is up, with {size >> 20} MiB of memory")
