"""``kodojo check``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from kodojo.cli.app import App, json_option, pass_app
from kodojo.errors import InputError, KodojoError

if TYPE_CHECKING:
    from kodojo.check.examine import Examined
    from kodojo.check.matrix import Built, Kernel
    from kodojo.check.results import Matrix, Result
    from kodojo.check.sources import Spool
    from kodojo.check.work import Task
    from kodojo.image.image import Image
    from kodojo.report.progress import Bar

__all__ = ["check"]

_PARAMETER = re.compile(r"[\w.-]+=")
_UNCHECKED = 2


@click.command(short_help="Would a kernel load these modules?")
@click.argument("words", nargs=-1, metavar="FILE... [PARAM=VALUE]...")
@click.option("--kernel", "kernels", multiple=True, metavar="K", help="A kernel: its name, or a path. [current]")
@click.option("--all", "own", is_flag=True, help="Check the modules of each kernel's own tree.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="How many processes to use. [all cores]"
)
@click.option(
    "--build", is_flag=True, help="Build what is source first, for each kernel: DKMS packages, directories."
)
@click.option("--headers", multiple=True, metavar="PATH", help="Headers to build against, where none can be fetched.")
@click.option("--build-log", type=click.Path(path_type=Path), metavar="DIR", help="Keep what builds print in DIR.")
@click.option("--keep-modules", type=click.Path(path_type=Path), metavar="DIR", help="Keep what is built below DIR.")
@click.option(
    "--no-sandbox", is_flag=True, help="Build with all that this user may do, where no sandbox can be made."
)
@click.option("--explain", is_flag=True, help="Look into what is behind refusals, as kodojo explain does.")
@click.option("--scheduler", metavar="ADDRESS", help="Have a Dask cluster do it: tcp://HOST:PORT.")
@click.option("--format", "form", type=click.Choice(["text", "json", "junit"]), help="What to print. [text]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write that to FILE instead.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page to look at to FILE, too.")
@json_option
@pass_app
def check(
    app: App,
    words: tuple[str, ...],
    kernels: tuple[str, ...],
    own: bool,
    explain: bool,
    jobs: int | None,
    scheduler: str | None,
    form: str | None,
    output: Path | None,
    html: Path | None,
    build: bool,
    headers: tuple[str, ...],
    build_log: Path | None,
    keep_modules: Path | None,
    no_sandbox: bool,
) -> None:
    """Tell whether kernels would load the modules in FILE..., and if not, why. Nothing is booted, and nothing runs.

    FILE is a .ko file (compressed or not), a directory, a pattern in quotes, a .deb or .rpm, or an initramfs image.
    Modules that are given together see each other's exports. A module that the kernel's own tree has is there, too,
    where another one depends on it. PARAM=VALUE is for a single module.

    With --build, FILE may be source, too: a DKMS package, a directory with a dkms.conf, or one with a Kbuild or
    Makefile that has obj-m. It is built for each kernel in a sandbox: without network, with limits, read-only but for
    its own directory.

    K is a name that `kodojo kernel list` shows, a package, a vmlinuz or a directory. It may be given several times.

    Exit status: 0 if all modules would load into all kernels; 1 if some would not, or do not build; 2 if something
    could not be checked, whatever the rest is.
    """
    app.json = app.json or form == "json"
    parameters = tuple(word for word in words if _PARAMETER.match(word) and not os.path.lexists(word))
    files = [word for word in words if word not in parameters]
    if not files and not own:
        raise click.UsageError("give the modules to check, or --all")
    building = _Building.of(build, headers, build_log, keep_modules, no_sandbox)
    try:
        matrix = _check(
            app,
            files,
            kernels,
            parameters,
            building,
            own=own,
            explain=explain,
            jobs=jobs,
            scheduler=scheduler,
        )
        if html is not None:
            from kodojo.report.html import page  # noqa: PLC0415

            _write(html, page(matrix))
        _report(app, matrix, "json" if app.json else form or "text", output)
    except KodojoError as error:
        app.fail(error)
        raise click.exceptions.Exit(_UNCHECKED) from error
    if matrix.exit_status:
        raise click.exceptions.Exit(matrix.exit_status)


def _check(
    app: App,
    files: Sequence[str],
    kernels: Sequence[str],
    parameters: tuple[str, ...],
    building: _Building | None,
    *,
    own: bool,
    explain: bool,
    jobs: int | None,
    scheduler: str | None,
) -> Matrix:
    from kodojo.check.examine import examine  # noqa: PLC0415  --help needs none of it
    from kodojo.check.matrix import check_matrix  # noqa: PLC0415
    from kodojo.check.results import Status  # noqa: PLC0415
    from kodojo.check.sources import Spool, find_modules  # noqa: PLC0415

    columns = _kernels(app, kernels)
    with Spool() as spool, app.bar() as bar:
        files, built = building.build(app, files, columns, jobs, spool, bar) if building else (files, {})
        given = examine(find_modules(files, spool), spool, bar.update)
        size = len(given) + max((len(each.modules) + len(each.others) for each in built.values()), default=0)
        if parameters and (own or size != 1):
            raise InputError(f"{parameters[0]}: parameters are for one module, not for {size}")
        execute, processes = _executor(jobs, scheduler, alone=size * len(columns) == 1 and not own)
        matrix = check_matrix(
            columns,
            given,
            execute,
            built=built,
            own=own,
            parameters=parameters,
            explain=explain,
            relatives=_relatives(app, given) if explain else None,
            jobs=processes,
            progress=bar.update,
        )
    if any(result.status is Status.REFUSED for result in matrix):
        from kodojo.check.suitable import StoreKernels, name_suitable_kernels  # noqa: PLC0415

        name_suitable_kernels(matrix, StoreKernels(app.store), columns, given)
    return matrix


class _Building(NamedTuple):
    """What the options say about building."""

    headers: tuple[str, ...]
    log: Path | None
    modules: Path | None
    sandbox: bool

    @classmethod
    def of(
        cls, build: bool, headers: tuple[str, ...], log: Path | None, modules: Path | None, no_sandbox: bool
    ) -> _Building | None:
        """None if nothing is to be built."""
        if build:
            return cls(headers, log, modules, sandbox=not no_sandbox)
        if headers or log is not None or modules is not None or no_sandbox:
            raise click.UsageError("--headers, --build-log, --keep-modules and --no-sandbox are for --build")
        return None

    def build(
        self, app: App, words: Sequence[str], columns: Sequence[Kernel], jobs: int | None, spool: Spool, bar: Bar
    ) -> tuple[Sequence[str], dict[str, Built]]:
        """The words that are no sources, and what the sources gave."""
        from kodojo.check.build.build import Settings, build_all  # noqa: PLC0415  seldom wanted, like the rest
        from kodojo.check.build.sources import find_sources  # noqa: PLC0415
        from kodojo.check.pool import available_cores  # noqa: PLC0415
        from kodojo.durable import temporary_directory  # noqa: PLC0415

        store = app.store.headers_directory
        settings = Settings(store, self.headers, self.log, self.modules, self.sandbox, jobs or available_cores())
        with temporary_directory("sources") as directory:
            sources, others = find_sources(words, directory)
            if not sources:
                raise InputError(
                    f"{words[0] if words else '--all'}: there is nothing to build in it",
                    hint="--build is for DKMS packages, and for directories with a dkms.conf, or with a Kbuild or "
                    "Makefile that has obj-m",
                )
            return others, build_all(sources, columns, settings, spool, bar.update)


def _relatives(app: App, given: Sequence[Examined]) -> dict[str, Image]:
    """Kernels of the store that modules were built for, by release."""
    from kodojo.check.suitable import StoreKernels  # noqa: PLC0415

    stored = StoreKernels(app.store)
    found = ((release, stored.of_release(release)) for release in {examined.release for examined in given})
    return {release: image for release, image in found if image is not None}


def _executor(
    jobs: int | None, scheduler: str | None, *, alone: bool
) -> tuple[Callable[[Sequence[Task]], Iterator[list[Result]]], int]:
    """What does the tasks, and how many of them at a time."""
    if scheduler is not None:
        from kodojo.check.cluster import Cluster  # noqa: PLC0415

        cluster = Cluster(scheduler)
        return cluster.run, cluster.size
    if alone or jobs == 1:
        from kodojo.check.work import run_here  # noqa: PLC0415

        return run_here, 1
    from kodojo.check.pool import available_cores, run_in_processes  # noqa: PLC0415

    number = jobs or available_cores()
    return lambda tasks: run_in_processes(tasks, number), number


def _kernels(app: App, words: Sequence[str]) -> list[Kernel]:
    """The kernels that are meant, each with a name of its own.

    :raises KodojoError: none of them can be used.
    """
    from kodojo.check.matrix import Kernel  # noqa: PLC0415

    found: dict[str, Kernel] = {}
    errors = []
    meant: Iterable[str | None] = words or [app.kernel]
    for word in _expanded(meant):
        try:
            image = app.open_kernel(word)
            name = image.release
        except KodojoError as error:
            errors.append(error)
            name = str(word)
            found[name] = Kernel(name, None, error.message, error.hint)
            continue
        while name in found:
            name = f"{name} ({word})"
        found[name] = Kernel(name, image)
    if errors and len(errors) == len(found):
        raise errors[0]
    return list(found.values())


def _expanded(words: Iterable[str | None]) -> Iterator[str | None]:
    for word in words:
        paths = [] if word is None or os.path.lexists(word) else sorted(glob.glob(word))  # noqa: PTH207  absolute ones
        if paths:
            yield from paths
        else:
            yield word


def _report(app: App, matrix: Matrix, form: str, output: Path | None) -> None:
    if form == "text" and output is None:
        _print(app, matrix)
        return
    text = _rendered(matrix, form)
    if output is None:
        app.out(text)
        return
    from kodojo.report.matrix import summary  # noqa: PLC0415

    _write(output, text + "\n")
    app.say(f"{summary(matrix)}; see {output}")


def _rendered(matrix: Matrix, form: str) -> str:
    """The results as text, JSON or JUnit XML, for a file or a program."""
    if form == "json":
        from kodojo.report.check_json import matrix_json  # noqa: PLC0415
        from kodojo.report.json import dumps  # noqa: PLC0415

        return dumps(matrix_json(matrix))
    if form == "junit":
        from kodojo.report.junit import junit  # noqa: PLC0415

        return junit(matrix)
    from kodojo.report.matrix import kernel_lines, matrix_rows, reason_lines, summary  # noqa: PLC0415
    from kodojo.report.paint import Paint  # noqa: PLC0415
    from kodojo.report.table import plain_table  # noqa: PLC0415

    columns = ("module", *(kernel.name for kernel in matrix.kernels))
    table, plain = plain_table(columns, matrix_rows(matrix)), Paint(enabled=False)
    return "\n".join([*table, "", *reason_lines(matrix, plain), *kernel_lines(matrix, plain), summary(matrix)])


def _print(app: App, matrix: Matrix) -> None:
    from kodojo.report.matrix import (  # noqa: PLC0415
        drawn_matrix,
        kernel_lines,
        reason_lines,
        summary,
        verdict_lines,
    )

    results = list(matrix)
    if len(results) == 1:
        app.out([*verdict_lines(results[0], results[0].kernel, app.paint), *kernel_lines(matrix, app.paint)])
    elif not app.paint.enabled:
        app.out(_rendered(matrix, "text"))
    else:
        from shutil import get_terminal_size  # noqa: PLC0415

        app.out(drawn_matrix(matrix, get_terminal_size().columns))
        app.out([*reason_lines(matrix, app.paint), *kernel_lines(matrix, app.paint)])
        app.out(summary(matrix))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8", "backslashreplace")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
