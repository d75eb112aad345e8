"""What all commands share: options, the store and the machine, and how things are said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kodojo.cli.checks import seconds
from kodojo.errors import DamagedMemoryError, FaultReport, KodojoError, LogRecord, MachineFault
from kodojo.report.paint import Paint

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.image.store import Store
    from kodojo.kernel.kernel import Kernel
    from kodojo.kernel.session import Session
    from kodojo.report.progress import Bar

__all__ = ["App", "fresh_option", "json_option", "kernel_option", "machine_options", "pass_app", "readable"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class App:
    """One run of the command line.

    :attr json: print JSON instead of text.
    :attr fresh: work on a copy of the machine that is thrown away.
    :attr kernel: the kernel that the machine should run, by name or path; None: any.
    :attr limit: how long the machine may take to answer, in seconds of its own time; None: as usual.
    :attr leave: at the limit, leave what waits where it is, and keep the machine.
    :attr wall_limit: how long an operation may take in this computer's time; None: as usual.
    :attr guarded: a child process does what guest code runs in (:mod:`kodojo.cli.guard`).
    :attr syslog: the tool in whose name messages go to the computer's system log; empty: to standard error.
    :attr log: what the kernel printed during the last :meth:`machine` block.
    """

    def __init__(self) -> None:
        self.json = False
        self.fresh = False
        self.kernel: str | None = None
        self.limit: float | None = None
        self.leave = False
        self.wall_limit: float | None = None
        self.guarded = False
        self.syslog = ""
        self.log: tuple[LogRecord, ...] = ()

    # -- saying things ------------------------------------------------------------------------------
    @cached_property
    def paint(self) -> Paint:
        """Colours of standard output."""
        return Paint.of(sys.stdout)

    @cached_property
    def error_paint(self) -> Paint:
        """Colours of standard error."""
        return Paint.of(sys.stderr)

    def out(self, lines: str | Iterable[str]) -> None:
        """Print lines to standard output.

        :raises KodojoError: it cannot be written, a full disk for instance; a closed pipe is left to click.
        """
        if isinstance(lines, str):
            lines = [lines] if lines else []
        text = "".join(f"{line}\n" for line in lines)
        if text:
            self.out_bytes(text.encode("utf-8", "backslashreplace"))

    def out_bytes(self, data: bytes) -> None:
        """Write bytes to standard output as they are. Raises as :meth:`out`."""
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise KodojoError(f"cannot write to standard output: {error.strerror}") from error

    def say(self, lines: str | Iterable[str]) -> None:
        """Print lines to standard error, or write them to the system log."""
        text = lines if isinstance(lines, str) else "\n".join(lines)
        if text and self.syslog:
            import syslog  # noqa: PLC0415  not everywhere

            syslog.openlog(self.syslog, syslog.LOG_CONS, syslog.LOG_DAEMON)
            for line in text.splitlines():
                syslog.syslog(syslog.LOG_ERR, click.unstyle(line))
        elif text:
            click.echo(text, err=True)

    def out_json(self, value: Any) -> None:
        """Print the one value that a command with ``--json`` prints."""
        from kodojo.report.json import dumps  # noqa: PLC0415  only with --json

        self.out(dumps(value))

    def table(self, columns: tuple[str, ...], rows: list[Any], styles: tuple[str, ...] = ()) -> None:
        """Print a table: a drawn one on a terminal, aligned columns otherwise."""
        from kodojo.report.table import drawn_table, plain_table  # noqa: PLC0415  only for tables

        if self.paint.enabled:
            from shutil import get_terminal_size  # noqa: PLC0415

            self.out(drawn_table(columns, rows, get_terminal_size().columns, styles))
        else:
            self.out(plain_table(columns, rows))

    def fail(self, error: KodojoError) -> None:
        """Report an error that ends the command."""
        if self.json:
            from kodojo.report.json import error as as_json  # noqa: PLC0415

            try:
                self.out_json(as_json(error))
            except KodojoError as unwritten:
                self.say(f"kodojo: {unwritten.message}")
        elif isinstance(error, MachineFault):
            from kodojo.report.fault import fault_lines  # noqa: PLC0415

            self.say(fault_lines(error, self.error_paint, kept=self.leave and not self.fresh and error.survived))
        else:
            from kodojo.report.refusal import error_lines  # noqa: PLC0415

            self.say(error_lines(error, self.error_paint))

    def complain(self, problems: Sequence[KodojoError]) -> None:
        """Report what could not be shown, each cause once, and end the command with status 1 if there is any."""
        if not problems:
            return
        from kodojo.report.refusal import error_lines  # noqa: PLC0415

        for error in {each.message: each for each in problems}.values():
            self.say(error_lines(error, self.error_paint))
        raise click.exceptions.Exit(1)

    def mention_warnings(self) -> None:
        """Report WARNs of the last operation, and crashes of other tasks."""
        if self.warnings:
            from kodojo.report.fault import warning_lines  # noqa: PLC0415

            self.say(warning_lines(self.warnings, self.error_paint))

    @property
    def warnings(self) -> tuple[FaultReport, ...]:
        """The reports of WARNs and of other tasks' oopses in :attr:`log`."""
        if not self.log:
            return ()
        from kodojo.kernel.faults import reports_in  # noqa: PLC0415

        return reports_in(self.log)

    # -- the store and the machine --------------------------------------------------------------------
    @cached_property
    def store(self) -> Store:
        """The user's store."""
        from kodojo.image.store import Store  # noqa: PLC0415  --help needs none

        return Store.default()

    @cached_property
    def session(self) -> Session:
        """The machine that lasts."""
        from kodojo.kernel.session import Session  # noqa: PLC0415  imports the emulator

        return Session(self.store)

    def bar(self, title: str = "") -> Bar:
        """A progress bar on standard error, silent where that is no terminal."""
        from kodojo.report.progress import Bar  # noqa: PLC0415

        return Bar(sys.stderr, title)

    def open_kernel(self, word: str | None) -> Image:
        """The kernel that a person means: by path, else by a name in the store; None is the current one.

        :raises KodojoError: there is none, or it cannot be used.
        """
        if word is not None and (os.sep in word or os.path.lexists(word)):
            from kodojo.image.image import Image  # noqa: PLC0415  most kernels are given by name, or not at all

            return Image.open(word)
        return self.store.open(word)

    def chosen_image(self) -> Image | None:
        """The kernel that ``--kernel`` gives."""
        return None if self.kernel is None else self.open_kernel(self.kernel)

    def kernel_image(self) -> Image:
        """The kernel that ``--kernel`` gives, else the one that the machine runs, else the current one."""
        return self.chosen_image() or self.session.running_image() or self.store.open()

    @contextmanager
    def machine(self, *, save: bool = True) -> Iterator[Kernel]:
        """The machine for the ``with`` block; what the kernel prints meanwhile is in :attr:`log` afterwards.

        Print after the block, not in it: a reader that has gone away must not keep the state from being saved.

        :param save: False if the block only looks.
        """
        with self.guard():
            image = self.chosen_image()
            with self._machine(image, save=save) as kernel:
                yield kernel

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Guest code runs in the ``with`` block: if the engine dies of it, that is an error like any other.

        The block, and what follows it, is left to a child process; this one only waits for it.

        :raises MachineError: the engine died.
        """
        if not self.guarded:
            yield
            return
        from kodojo.cli.guard import hand_over  # noqa: PLC0415  not for every command

        self.guarded = False
        done = hand_over()
        try:
            yield
        finally:
            done()

    @contextmanager
    def _machine(self, image: Image | None, *, save: bool) -> Iterator[Kernel]:
        with (
            self.bar("booting") as bar,
            self.session.machine(
                image=image,
                fresh=self.fresh,
                save=save,
                leave=self.leave,
                progress=bar.share,
                on_wait=self._on_wait,
            ) as kernel,
        ):
            bar.close()
            if self.limit is not None or self.leave:
                from kodojo.kernel.kernel import DEFAULT_LIMIT  # noqa: PLC0415  imports the emulator

                kernel.limit(DEFAULT_LIMIT if self.limit is None else self.limit, leave=self.leave)
            if self.wall_limit is not None:
                kernel.wall_limit(self.wall_limit)
            since = kernel.printk.next_sequence()
            yield kernel
            self.log = kernel.printk.records(since)

    def _on_wait(self, words: str) -> None:
        self.say(f"kodojo: {words}")


pass_app = click.make_pass_decorator(App, ensure=True)


def readable(read: Callable[[], Sequence[T]], damage: list[KodojoError]) -> Sequence[T]:
    """What can be read of the kernel's data; what is the matter with the rest is noted (:meth:`App.complain`)."""
    try:
        return read()
    except DamagedMemoryError as error:
        damage.append(error)
        return error.found


def _setting(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that keeps an option's value in the App: the option works before and after the command's name."""

    def keep(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(App), name, value)

    return keep


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", is_flag=True, expose_value=False, callback=_setting("json"), help="Print JSON.")(
        function
    )


def kernel_option(function: F) -> F:
    """``--kernel``."""
    return click.option(
        "--kernel",
        metavar="K",
        expose_value=False,
        callback=_setting("kernel"),
        help="The kernel to use: its name or the beginning of it, or a path.",
    )(function)


def fresh_option(function: F) -> F:
    """``--fresh``."""
    return click.option(
        "--fresh",
        is_flag=True,
        expose_value=False,
        callback=_setting("fresh"),
        help="Work on a copy of the machine, and leave no trace.",
    )(function)


def _limit_option(name: str, text: str) -> Callable[[F], F]:
    """``--limit`` and ``--wall-limit``."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: float | None) -> None:
        setattr(ctx.ensure_object(App), name.strip("-").replace("-", "_"), seconds(ctx, parameter, value))

    return click.option(name, type=float, expose_value=False, callback=keep, metavar="SECONDS", help=text)


_limits = (
    _limit_option(
        "--limit",
        "How long the machine may take to answer, in its own time [30]. Then the command fails with what every task "
        "waits in, and the machine is as it was before.",
    ),
    _limit_option(
        "--wall-limit", "How long all of it may take on this computer's clock [a minute, and 20 times --limit]."
    ),
)


def _leave_option(function: F) -> F:
    """``--leave``."""
    return click.option(
        "--leave",
        is_flag=True,
        expose_value=False,
        callback=_setting("leave"),
        help="At the limit, leave what waits where it is, and keep the machine so.",
    )(function)


def machine_options(function: F) -> F:
    """The options of every command that uses the machine."""
    function = _leave_option(function)
    for limit in reversed(_limits):
        function = limit(function)
    return fresh_option(kernel_option(json_option(function)))
