"""Sources times kernels: each is built once, in a sandbox of its own; what comes out is checked like any module."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from kodojo.check.build.compiler import Tools, tools_for
from kodojo.check.build.complaints import complaints, last_words, missing_on_this_machine
from kodojo.check.build.dkms import BUILD, CLEAN, EVALUATE, MAKE, Conf, read_answers
from kodojo.check.build.headers import Headers, given_headers, headers_for
from kodojo.check.build.keep import keep, places_to_keep
from kodojo.check.build.sandbox import CancelledError, Done, Limits, Sandbox
from kodojo.check.build.sources import Source
from kodojo.check.examine import examine
from kodojo.check.matrix import Built
from kodojo.check.results import NotBuilt, Result
from kodojo.check.sources import GivenModule
from kodojo.durable import disk_error, temporary_directory
from kodojo.errors import InputError, KodojoError

if TYPE_CHECKING:
    from kodojo.check.matrix import Kernel
    from kodojo.check.sources import Spool
    from kodojo.durable import Progress

__all__ = ["Settings", "build_all"]

_KEPT = 1 << 16  # bytes of answers that are read
_CHUNK = 1 << 18
_MOST_MODULES = 1000


class Settings(NamedTuple):
    """How to build.

    :param headers: directories and packages with headers, for kernels whose headers are not elsewhere.
    :param store: the directory in which fetched headers are kept.
    :param logs: the directory in which everything that builds print is kept; None: it is not.
    :param modules: the directory in which built modules are kept; None: they are not.
    :param sandbox: False: with this process's rights, without a sandbox. :param jobs: processes of compilers.
    """

    store: Path
    headers: tuple[str, ...] = ()
    logs: Path | None = None
    modules: Path | None = None
    sandbox: bool = True
    jobs: int = 1
    limits: Limits = Limits()


class _Outcome(NamedTuple):
    """Of one source and one kernel.

    :param names: the labels of its modules, as far as they are known. :param modules: those that were built.
    :param failure: why it could not be tried. :param not_built: why there are none.
    """

    names: tuple[str, ...] = ()
    modules: tuple[GivenModule, ...] = ()
    failure: KodojoError | None = None
    not_built: NotBuilt | None = None
    note: str = ""


class _Place(NamedTuple):
    """A kernel with what modules for it are built against and with.

    :param kept: where the modules of each source are kept, by its label, if they are to be.
    """

    kernel: str
    machine: str
    headers: Headers
    tools: Tools
    kept: dict[str, Path]


def build_all(
    sources: Sequence[Source],
    kernels: Sequence[Kernel],
    settings: Settings,
    spool: Spool,
    progress: Progress | None = None,
) -> dict[str, Built]:
    """Build every source for every kernel. What cannot be built is a result, too.

    :return: by the kernels' names.
    :raises InputError: headers that were given are none; no sandbox can be made here; what is to be kept cannot be.
    :raises KodojoError: the disk is full.
    """
    end = threading.Event()
    outcomes: dict[tuple[str, str], _Outcome] = {}
    with temporary_directory("build") as temporary:
        directory = temporary.resolve()
        directory.chmod(0o711)
        given = given_headers(settings.headers, _new(directory / "headers"))
        names = [kernel.name for kernel in kernels]
        kept = places_to_keep(settings.modules, sources, names) if settings.modules else {}
        places = _places(kernels, given, settings, kept, progress)
        for name, place in places.items():
            if isinstance(place, KodojoError):
                outcomes |= {(source.label, name): _Outcome(failure=place) for source in sources}
        builds = [(source, place) for place in places.values() if isinstance(place, _Place) for source in sources]
        workers = max(1, min(settings.jobs, len(builds)))
        each = settings._replace(jobs=max(1, settings.jobs // workers))
        if progress is not None and builds:
            progress(0, len(builds), f"building {builds[0][0].title} for {builds[0][1].kernel}")
        with ThreadPoolExecutor(workers) as pool:
            futures = {
                pool.submit(_build, source, place, each, directory / str(number), spool, end.is_set): (source, place)
                for number, (source, place) in enumerate(builds)
            }
            try:
                for done, future in enumerate(as_completed(futures)):
                    source, place = futures[future]
                    outcomes[source.label, place.kernel] = future.result()
                    if progress is not None:
                        progress(done + 1, len(futures), f"building {source.title} for {place.kernel}")
            except BaseException:
                end.set()
                pool.shutdown(cancel_futures=True)
                raise
    return {kernel.name: _built(sources, kernel.name, outcomes, spool) for kernel in kernels}


def _places(
    kernels: Iterable[Kernel],
    given: dict[str, Headers],
    settings: Settings,
    kept: dict[tuple[str, str], Path],
    progress: Progress | None,
) -> dict[str, _Place | KodojoError]:
    """Headers and tools for each kernel, by its name; or why there are none."""
    places: dict[str, _Place | KodojoError] = {}
    for kernel in kernels:
        if kernel.image is None:
            places[kernel.name] = InputError(kernel.problem, hint=kernel.hint)
            continue
        try:
            headers = headers_for(kernel.image, given, settings.store, progress)
            if not settings.sandbox:
                headers.check_in_place()
            machine = kernel.image.architecture
            here = {label: place for (label, name), place in kept.items() if name == kernel.name}
            places[kernel.name] = _Place(kernel.name, machine, headers, tools_for(headers, machine), here)
        except InputError as error:
            places[kernel.name] = error
    return places


def _built(sources: Iterable[Source], kernel: str, outcomes: dict[tuple[str, str], _Outcome], spool: Spool) -> Built:
    labels: list[str] = []
    modules: list[GivenModule] = []
    others: list[Result] = []
    notes: dict[str, None] = {}
    for source in sources:
        outcome = outcomes[source.label, kernel]
        if outcome.note:
            notes[outcome.note] = None
        modules += outcome.modules
        if outcome.modules:
            labels += outcome.names
            continue
        result = Result("", kernel, not_built=outcome.not_built)
        if outcome.failure is not None:
            result = replace(result, failure=outcome.failure.message, advice=outcome.failure.hint)
        of_source = (each.names for (label, _), each in outcomes.items() if label == source.label)
        known = list(dict.fromkeys(chain.from_iterable(of_source))) or [source.label]
        labels += known
        others += (replace(result, module=name) for name in known)
    return Built(tuple(labels), tuple(examine(modules, spool)), tuple(others), tuple(notes))


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _build(
    source: Source, place: _Place, settings: Settings, directory: Path, spool: Spool, cancelled: Callable[[], bool]
) -> _Outcome:
    """One build, from an empty directory to modules in the spool."""
    try:
        directory.mkdir(mode=0o755)
        sandbox = Sandbox(
            directory,
            shown=[place.headers.shown, *place.tools.shown],
            links=place.headers.links(),
            namespaces=settings.sandbox,
            limits=settings.limits,
            cancelled=cancelled,
        )
        try:
            return _Build(source, place, settings, sandbox, spool).run()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except OSError as error:
        raise disk_error(directory, error) from error
    except CancelledError:
        return _Outcome()


class _Build:
    """A build on its way."""

    def __init__(self, source: Source, place: _Place, settings: Settings, sandbox: Sandbox, spool: Spool) -> None:
        self._source = source
        self._place = place
        self._settings = settings
        self._sandbox = sandbox
        self._spool = spool
        self._log: list[str] = []
        work = sandbox.work
        place.tools.write_names(work / "bin")
        path = f"{work / 'bin'}:{place.tools.environment['PATH']}"
        self._environment = place.tools.environment | {
            "PATH": path,
            "kernelver": place.headers.release,
            "arch": place.machine,
            "kernel_source_dir": str(place.headers.build),
            "dkms_tree": str(work / "dkms"),
            "source_tree": "/usr/src" if settings.sandbox else str(work),
        }

    def run(self) -> _Outcome:
        source = self._sandbox.work / "source"
        shutil.copytree(self._source.place, source, symlinks=True)
        conf = self._conf(source)
        if isinstance(conf, str):
            return self._failed((), conf, heard=False)
        names = tuple(self._source.module_label(f"{record.name}.ko") for record in conf.modules)
        if conf.excluded:
            return self._failed(names, f"dkms.conf excludes this kernel: {conf.excluded}", heard=False)
        build = self._sandbox.work / "dkms" / conf.name / conf.version / "build"
        self._sandbox.links |= {
            f"/usr/src/{conf.name}-{conf.version}": str(source),
            "/var/lib/dkms": str(self._sandbox.work / "dkms"),
        }
        make = conf.make + _for_clang(self._place.headers)
        environment = self._environment | conf._replace(make=make).variables()
        done = self._run([BUILD, "build", str(source), str(build), str(self._settings.jobs)], environment)
        library = missing_on_this_machine(done.output)
        if library:
            hint = "install the package that has it (libelf.so.1: libelf1 on Debian)"
            return _Outcome(names, failure=InputError(f"a program that building needs wants {library}", hint=hint))
        if done.stopped:
            return self._failed(names, f"the build was stopped: {done.stopped}", heard=False)
        if done.status != 0:
            return self._failed(names, "", build)
        return self._taken(conf, build, names)

    def _run(self, script: Sequence[str], environment: dict[str, str]) -> Done:
        done = self._sandbox.run(["bash", "--norc", "-c", *script], environment)
        self._log.append(done.output)
        return done

    def _conf(self, source: Path) -> Conf | str:
        """What the package says about this kernel; for a directory without ``dkms.conf``, what kbuild does.

        :return: if it says nonsense, what is wrong with it.
        """
        if self._source.kind == "kbuild":
            for path in _modules_below(source):  # of an earlier build
                path.unlink()
            return Conf(re.sub(r"[^\w.+-]", "_", self._source.title) or "module", "0", (), f"{MAKE} modules", CLEAN)
        answers = self._sandbox.work / "answers"
        # As DKMS has it: dkms.conf may ask where it lies.
        done = self._run([EVALUATE, "dkms.conf", str(source / "dkms.conf"), str(answers)], self._environment)
        if done.stopped:
            return f"dkms.conf: its evaluation was stopped: {done.stopped}"
        try:
            with self._sandbox.open(answers) as file:
                return read_answers(file.read(_KEPT))
        except InputError as error:
            return error.message

    def _taken(self, conf: Conf, build: Path, names: tuple[str, ...]) -> _Outcome:
        """What was built, in the spool."""
        if self._source.kind == "kbuild":
            paths = {self._source.module_label(os.path.relpath(path, build)): path for path in _modules_below(build)}
        else:
            paths = {
                name: build / record.location / f"{record.built}.ko"
                for name, record in zip(names, conf.modules, strict=True)
            }
        modules = []
        for name, path in paths.items():
            try:
                with self._sandbox.open(path) as file:
                    modules.append(GivenModule(name, self._spool.write(_pieces(file))))
            except InputError as error:
                return self._failed(names, f"it was built, but {error.message}", build)
        if not modules:
            return self._failed(names, "it was built, and there is no module", build)
        self._keep_modules(modules)
        self._keep_log()
        return _Outcome(tuple(paths), tuple(modules), note=self._place.tools.note)

    def _failed(self, names: tuple[str, ...], why: str, build: Path | None = None, *, heard: bool = True) -> _Outcome:
        """It does not build.

        :param why: if the log does not say more about it. :param heard: False: the log is not asked.
        """
        beside = self._place.headers.build.parent.glob("linux-headers-*")
        directories = [str(path) for path in (build, *beside, self._place.headers.build) if path]
        log = self._log[-1] if self._log and heard else ""
        found = complaints(log, directories)
        why = found[0] if found else why or last_words(log) or "the build failed without a word"
        return _Outcome(names, not_built=NotBuilt(self._source.label, why, tuple(found), self._keep_log()))

    def _keep_modules(self, modules: Iterable[GivenModule]) -> None:
        """Write the modules where the user wants them."""
        place = self._place.kept.get(self._source.label)
        if place is not None:
            start = len(self._source.module_label(""))
            keep(place, ((module.label[start:], module.path) for module in modules))

    def _keep_log(self) -> str:
        """Write everything that was printed where the user wants it; its path, or nothing."""
        logs = self._settings.logs
        if logs is None:
            return ""
        title = re.sub(r"[^\w.+~-]", "_", f"{self._source.label}-{self._place.kernel}".lstrip("./"))[-200:]
        path = logs / f"{title}.log"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._log), "utf-8", "replace")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        return str(path)


def _modules_below(directory: Path) -> list[Path]:
    """The modules in a directory, by path; of a great many the first ones."""
    found = (
        Path(root, name) for root, _, names in os.walk(directory) for name in names if name.endswith(".ko")
    )  # links to directories are not followed
    return sorted(islice(found, _MOST_MODULES))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _for_clang(headers: Headers) -> str:
    """What DKMS adds to the command for a kernel that clang built."""
    config = headers.config()
    compiler = " CC=clang" if config.get("CONFIG_CC_IS_CLANG") == "y" else ""
    return compiler + (" LD=ld.lld" if config.get("CONFIG_LD_IS_LLD") == "y" else "")
