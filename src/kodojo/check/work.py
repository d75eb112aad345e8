"""The work itself, as tasks that can be done anywhere: some modules, one kernel, and what has to be loaded first.

A task is data, and so are its results; :func:`do` needs nothing else. Processes of this computer
(:mod:`kodojo.check.pool`) and of a cluster (:mod:`kodojo.check.cluster`) do the same tasks.
"""

from __future__ import annotations

import hashlib
import shlex
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kodojo.check.memory import demand_room
from kodojo.check.results import Result
from kodojo.errors import KodojoError, MissingInformationError
from kodojo.image.tree import module_name
from kodojo.loader.verdict import Verdict, judge

if TYPE_CHECKING:
    from kodojo.check.plan import Node
    from kodojo.check.sources import GivenModule, Key
    from kodojo.errors import Refusal
    from kodojo.image.image import Image
    from kodojo.kmod.index import ModuleIndex
    from kodojo.kmod.siblings import Siblings
    from kodojo.loader.dry import DryTarget, Resident
    from kodojo.loader.target import Module

__all__ = ["Task", "do", "failed", "run_here"]

_MOST_ROOMS = 4
_MOST_SYMBOLS = 40  # of one module that are looked up beside it
REPORT = "this is a bug of kodojo: please report it, with the module"


class Task(NamedTuple):
    """Modules to check against a kernel.

    :param run: tells the tasks of one command from those of another.
    :param kernel: the name of its column. :param nodes: of the jobs and of what has to be loaded before them.
    :param jobs: keys of the modules to check.
    :param parameters: ``NAME=VALUE`` each, for all of the jobs.
    :param explain: find out what is behind refusals, too (:mod:`kodojo.check.explain`).
    :param relatives: kernels by release, one of which a module may have been built for.
    """

    run: str
    kernel: str
    image: Image
    nodes: dict[Key, Node]
    jobs: tuple[Key, ...]
    parameters: tuple[str, ...] = ()
    explain: bool = False
    relatives: Mapping[str, Image] | None = None

    def only(self, job: Key) -> Task:
        """The part of it that is about one of its jobs."""
        wanted = {job, *self.nodes[job].before}
        return self._replace(jobs=(job,), nodes={key: node for key, node in self.nodes.items() if key in wanted})

    def travelling(self) -> Task:
        """The same for another computer, which sees the kernels' files and no others."""
        nodes = {
            key: node if node.module.own else node._replace(module=node.module.travelling())
            for key, node in self.nodes.items()
        }
        return self._replace(nodes=nodes)


class _Done(NamedTuple):
    result: Result
    resident: Resident | None


class _Room:
    """One kernel with whatever was loaded for a run, so that each dependency is loaded once in a process."""

    def __init__(self, task: Task) -> None:
        self._kernel = task.kernel
        self._image = task.image
        self._explain = task.explain
        self._relatives = task.relatives or {}
        self._done: dict[Key, _Done] = {}
        self._siblings: dict[Path, Siblings] = {}

    def check(self, task: Task, job: Key) -> Result:
        node = task.nodes[job]
        for key in node.before:
            self._load(task, key)
        if task.parameters:
            return self._judge(node, task.parameters).result
        return self._load(task, job).result

    def _load(self, task: Task, key: Key) -> _Done:
        if key not in self._done:
            self._done[key] = self._judge(task.nodes[key], ())
        return self._done[key]

    def _judge(self, node: Node, parameters: Sequence[str]) -> _Done:
        notes = list(node.notes)
        if "kernel" in self._image.describes:  # where it is only described, its verdicts speak of that
            notes += (
                f"it depends on {name}, which is neither given nor in this kernel's tree" for name in node.absent
            )
        result = Result(node.module.label, self._kernel, notes=tuple(notes))
        try:
            payload = node.module.read()
            demand_room(node.module.label, len(payload.content))
        except KodojoError as error:
            return _Done(replace(result, failure=error.message, advice=error.hint), None)
        content = payload.content
        if not payload.problem:
            result = replace(result, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        before = [(key, self._done[key]) for key in node.before if key in self._done]
        unknown = [name for _, done in before if done.result.verdict is None for name in _names(done.result)]
        residents = [done.resident for _, done in before if done.resident is not None]
        known: list[Module] = []

        def prepare(target: DryTarget) -> None:
            for resident in residents:
                target.adopt(resident)
            target.stand_in([*node.absent, *unknown])
            known.extend(target.modules())

        result = replace(
            result,
            first=tuple(key[1] for key, done in before if done.resident is not None),
            notes=(*notes, *(_absence(done.result) for _, done in before if done.resident is None)),
        )
        try:
            verdict, target = judge(self._image, payload, parameters, prepare)
            if self._explain and not verdict.ok:
                verdict = self._explained(node.module, content, verdict)
        except KodojoError as error:
            advice = _give_too(node.module, node.beside) if isinstance(error, MissingInformationError) else ""
            return _Done(replace(result, failure=error.message, advice=advice or error.hint), None)
        verdict = self._with_providers(node, verdict)
        loaded = next((mod for mod in target.modules() if mod not in known), None)
        resident = target.resident(loaded) if verdict.ok and loaded else None
        return _Done(_with_verdict(result, verdict), resident)

    def _with_providers(self, node: Node, verdict: Verdict) -> Verdict:
        """With who exports the symbols that the module does not get."""
        problems = tuple(
            self._provided(node, problem) if problem.slug == "unknown-symbol" else problem
            for problem in verdict.problems
        )
        return verdict if problems == verdict.problems else replace(verdict, hint=problems[0].hint, problems=problems)

    def _provided(self, node: Node, problem: Refusal) -> Refusal:
        beside = tuple(dict.fromkeys((*node.beside, *self._exporters_beside(node, problem))))
        if beside:
            return replace(problem, hint=_give_too(node.module, beside))
        if self._explain or self._index is None:  # an explanation has said it
            return problem
        from kodojo.kmod.providers import with_providers  # noqa: PLC0415  only where it is wanted

        file = Path(node.module.label) if _is_file(node.module) else None
        provided = with_providers(problem, self._index, module_name(node.module.label), file)
        if provided == problem and node.absent:
            names = ", ".join(node.absent)
            hint = f"Give {names}, too, which it depends on (kodojo check A.ko B.ko): this kernel's tree has none."
            return replace(problem, hint=hint)
        return provided

    def _exporters_beside(self, node: Node, problem: Refusal) -> Iterator[str]:
        """Files beside a module that have what it lacks, though it does not name them."""
        if not _is_file(node.module) or self._index is None:
            return
        from kodojo.kmod.providers import owners_of  # noqa: PLC0415  likewise
        from kodojo.kmod.siblings import Siblings, modules_beside  # noqa: PLC0415

        file = Path(node.module.label)
        if module_name(file) is None:
            return
        directory = file.parent
        if directory not in self._siblings:
            self._siblings[directory] = Siblings(self._index, modules_beside(file), self._image.release)
        there = self._siblings[directory]
        loaded = {module_name(label) for _, label in (node.module.key, *node.before)}
        owners = owners_of(there, (detail.subject for detail in problem.details[:_MOST_SYMBOLS]))
        yield from (str(there.files[name]) for name in owners.values() if name in there.files.keys() - loaded)

    @cached_property
    def _index(self) -> ModuleIndex | None:
        from kodojo.kmod.index import ModuleIndex  # noqa: PLC0415  likewise

        try:
            return ModuleIndex.of(self._image)
        except KodojoError:  # the tree cannot be read
            return None

    def _explained(self, module: GivenModule, content: bytes, verdict: Verdict) -> Verdict:
        from kodojo.check.explain import Case, explain  # noqa: PLC0415  only where it is wanted
        from kodojo.check.suitable import Origin  # noqa: PLC0415

        built_for = self._relatives.get(Origin.of(content).release)
        if built_for is not None and built_for.release == self._image.release:
            built_for = None
        return explain(
            Case(self._image, content, built_for, Path(module.label) if _is_file(module) else None), verdict
        )


def _with_verdict(result: Result, verdict: Verdict) -> Result:
    step = "" if verdict.ok else verdict.problems[0].step
    return replace(result, verdict=replace(verdict, steps=()), step=step)


def _is_file(module: GivenModule) -> bool:
    """Whether it is a file that a person named, not part of an archive or of the kernel."""
    return not module.own and Path(module.label).is_file()


def _give_too(module: GivenModule, beside: Sequence[str]) -> str:
    """The command that checks a module together with what lies beside it; empty if nothing does."""
    if not beside:
        return ""
    files = " ".join(map(shlex.quote, (module.label, *beside)))
    lies, them = ("lies", "it") if len(beside) == 1 else ("lie", "them")
    return f"{', '.join(beside)} {lies} beside it: give {them} too: kodojo check {files}"


def _names(result: Result) -> list[str]:
    name = module_name(result.module)
    return [name] if name is not None else []


def _absence(result: Result) -> str:
    if result.verdict is None:
        return f"it needs {result.module}, which could not be checked: {result.why}"
    return f"it needs {result.module}, which would not load itself: {result.why} ({result.slug})"


_rooms: dict[tuple[str, str], _Room] = {}


def do(task: Task) -> list[Result]:
    """The results of a task, in the order of its jobs. Nothing that a module is ends it."""
    key = task.run, task.kernel
    if key not in _rooms:
        while len(_rooms) >= _MOST_ROOMS:  # workers of a cluster live longer than a run
            _rooms.pop(next(iter(_rooms)))
        _rooms[key] = _Room(task)
    room = _rooms[key]
    results = []
    for job in task.jobs:
        try:
            results.append(room.check(task, job))
        except MemoryError:
            results.append(failed(task, job, "not enough memory to check it", "give it to a larger computer"))
        except Exception as error:  # noqa: BLE001  one module must not take the others with it
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
            results.append(failed(task, job, text, REPORT))
    return results


def run_here(tasks: Iterable[Task]) -> Iterator[list[Result]]:
    """Do tasks in this process."""
    return map(do, tasks)


def failed(task: Task, job: Key, failure: str, advice: str) -> Result:
    """The result of a job without a verdict."""
    return Result(task.nodes[job].module.label, task.kernel, failure=failure, advice=advice)
