"""``kodojo dmesg``."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kodojo.cli.app import App, machine_options, pass_app, readable
from kodojo.errors import InputError, KodojoError, LogRecord
from kodojo.report.log import LEVELS, log_lines, parse_levels, parse_time

if TYPE_CHECKING:
    from kodojo.kernel.kernel import Kernel

__all__ = ["dmesg"]

_SLICE = 0.1  # seconds, of the guest and of the person who looks on

Selection = Callable[[Sequence[LogRecord]], list[LogRecord]]


def _levels(_ctx: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> set[int] | None:
    try:
        return parse_levels(value) if value else None
    except InputError as error:
        raise click.BadParameter(f"{error.message}; {error.hint}") from error


def _switches(function: Any) -> Any:
    for names, text in reversed(
        [
            (("-c", "--read-clear"), "Print the log, then clear it."),
            (("-C", "--clear"), "Clear the log: what was printed before is not shown again."),
            (("-w", "--follow"), "Let the machine's time pass, and print what comes, until Ctrl-C."),
            (("-W", "--follow-new"), "Likewise, without what is in the log already."),
        ]
    ):
        function = click.option(*names, is_flag=True, help=text)(function)
    return function


@click.command(short_help="Print the kernel's log.")
@click.option(
    "-l",
    "--level",
    "levels",
    multiple=True,
    callback=_levels,
    metavar="LIST",
    help=f"Only these levels, separated by commas: {', '.join(LEVELS)}; err+ is that and all above, +err all below.",
)
@click.option("--since", metavar="TIME", help="Only from this time on: 12.5 as the log shows it, or -5s, -2min, now.")
@click.option("--until", metavar="TIME", help="Only up to this time.")
@_switches
@machine_options
@pass_app
def dmesg(app: App, /, levels: set[int] | None, since: str | None, until: str | None, **switches: bool) -> None:
    """Print the kernel's log since it was booted, or cleared.

    Between commands the machine stands still. -w lets its time pass as fast as ours, and saves the state at the end;
    --limit does not end it, Ctrl-C does.
    """
    follow = switches["follow"] or switches["follow_new"]
    if switches["clear"] + switches["read_clear"] + follow > 1:
        raise click.UsageError("mutually exclusive arguments: --clear --read-clear --follow")
    shown: list[LogRecord] = []
    damage: list[KodojoError] = []
    gone: BrokenPipeError | None = None
    with app.machine(save=switches["clear"] or switches["read_clear"] or follow) as kernel:
        chosen = _selection(kernel, levels, since, until)
        if not (switches["clear"] or switches["follow_new"]):
            shown = chosen(readable(lambda: kernel.log, damage))
        if switches["clear"] or switches["read_clear"]:
            kernel.clear_log()
        if follow:
            try:
                _follow(app, kernel, chosen, shown)
            except BrokenPipeError as error:  # the state is worth more than the reader
                gone = error
    if gone is not None:
        raise gone
    if app.json:
        from kodojo.report import json  # noqa: PLC0415

        app.out_json(json.record_list(shown))
    elif not follow:
        app.out(log_lines(shown, app.paint))
    app.complain(damage)


def _selection(kernel: Kernel, levels: set[int] | None, since: str | None, until: str | None) -> Selection:
    now = kernel.clock(boot=True) if since is not None or until is not None else 0.0
    first = parse_time(since, now) if since is not None else float("-inf")
    last = parse_time(until, now) if until is not None else float("inf")

    def chosen(records: Sequence[LogRecord]) -> list[LogRecord]:
        return [
            record
            for record in records
            if first <= record.time <= last and (levels is None or record.level in levels)
        ]

    return chosen


def _follow(app: App, kernel: Kernel, chosen: Selection, shown: list[LogRecord]) -> None:
    """Print what is there and what comes; with ``--json`` it is collected in ``shown``."""
    sequence = kernel.printk.next_sequence()
    with _asked_to_stop() as stop:  # from the first line on that somebody could react to
        if not app.json:
            app.out(log_lines(shown, app.paint))
        while not stop.is_set():
            began = time.monotonic()
            kernel.sleep(_SLICE)
            records = chosen(kernel.printk.records(sequence))
            sequence = kernel.printk.next_sequence()
            if app.json:
                shown += records
            else:
                app.out(log_lines(records, app.paint))
            stop.wait(max(0.0, began + _SLICE - time.monotonic()))


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C, or a request to terminate: guest code is never interrupted by it."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda _number, _frame: stop.set()) for each in signals]
    try:
        yield stop
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
