"""modprobe: from a name to the modules that must be loaded, and loading them (``libkmod/libkmod-module.c``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from kodojo.errors import InputError, LoadError, UnloadError, UnmodelledError
from kodojo.image.tree import module_name
from kodojo.kmod.config import ModprobeConfig, Softdep
from kodojo.kmod.known import KnownModules
from kodojo.kmod.names import alias_normalize

__all__ = [
    "Action",
    "Candidate",
    "Flags",
    "How",
    "Loader",
    "Modprobe",
    "Outcome",
    "Unloader",
    "answer_request",
    "join_options",
    "lookup",
    "lookup_name",
    "modprobe_quietly",
    "resolve",
]

EAGAIN, EEXIST, EINVAL, ENOENT = 11, 17, 22, 2
_DEEPEST = 200  # softdeps of softdeps of ...; no real tree has more than a few
# With these commands people say "pretend to have loaded" and "do not load": what they do is known without a shell.
_TRUE = frozenset({"/bin/true", "/usr/bin/true", "true", ":"})
_FALSE = frozenset({"/bin/false", "/usr/bin/false", "false"})


class Loader(Protocol):
    """What modprobe asks of a kernel."""

    def loaded(self, name: str) -> bool:
        """Whether the module is in the kernel and live."""

    def insmod(self, path: Path, options: str) -> None:
        """Load a file. Raises LoadError when the kernel refuses."""


class Unloader(Protocol):
    """What ``modprobe -r`` asks of a kernel."""

    def present(self, name: str) -> bool:
        """Whether the module is in the kernel, whatever its state."""

    def refcount(self, name: str) -> int:
        """Its reference count; not 0 (-1, say) for a module that is not there."""

    def holders(self, name: str) -> list[str]:
        """The modules that use it."""

    def rmmod(self, name: str) -> None:
        """Remove it. Raises UnloadError when the kernel refuses."""

    def wait(self, seconds: float) -> None:
        """Let time pass in the kernel."""


class How(Enum):
    """What is done about a module."""

    INSMOD = "insmod"
    BUILTIN = "builtin"
    INSTALL = "install"
    MISSING = "missing"  # a name from modprobe.d that no file belongs to


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that a look-up gives.

    :param alias: the alias that it was found by (of modprobe.d: the pattern); None if it was asked for by its name.
    """

    name: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a load.

    :param options: for the module, as they are passed to the kernel.
    :param command: of modprobe.d, in which ``$CMDLINE_OPTS`` stands for the options.
    :param required: without it the rest is pointless: not merely a soft dependency.
    :param last: this is the module that was asked for.
    """

    how: How
    name: str
    path: Path | None
    options: str
    command: str = ""
    required: bool = True
    last: bool = False

    def __str__(self) -> str:
        """As ``modprobe -v`` prints it, with the blank at the end."""
        if self.how is How.INSTALL:
            return f"install {self.command} {self.options}"
        if self.how is How.BUILTIN:
            return f"builtin {self.name}"
        return f"insmod {self.path} {self.options}" if self.path is not None else ""


@dataclass(frozen=True, slots=True)
class Flags:
    """Options of modprobe, by their long names; ``ignore_loaded`` is part of ``--show-depends``.

    :param ends: the first fatal message ends it, whatever else was asked for; so it is without ``-a`` and ``-q``.
    :param wait: milliseconds that a removal may wait for the module's reference count.
    """

    dry_run: bool = False
    ignore_loaded: bool = False
    ignore_install: bool = False
    use_blacklist: bool = False
    first_time: bool = False
    remove_holders: bool = False
    ends: bool = False
    wait: int = 0


@dataclass
class Outcome:
    """How it went.

    :param status: the exit status.
    :param actions: what was done, or in a dry run would be.
    :param messages: (fatal: or only an error, kmod's text), in order.
    :param failures: the kernel's refusals, each with the name of its module; those of soft dependencies do not count.
    :param removed: the modules that were removed.
    """

    status: int = 0
    actions: list[Action] = field(default_factory=list)
    messages: list[tuple[bool, str]] = field(default_factory=list)
    failures: list[tuple[str, LoadError | UnloadError]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def lookup(index: KnownModules, config: ModprobeConfig, name: str) -> list[Candidate]:
    """The modules that a name or alias stands for (``kmod_module_new_from_lookup``); none if it is unknown.

    Asked in this order, until one answers: aliases of modprobe.d, module names, symbols, modules with an install or
    remove command, aliases in the modules, names and aliases of what is built in.
    """
    alias = alias_normalize(name)
    if alias is None:
        return []
    if configured := config.matching_aliases(alias):
        return [Candidate(module, pattern) for pattern, module in configured]
    if ":" not in alias and alias in index:
        return [Candidate(alias)]
    if found := index.by_symbol(alias):
        return [Candidate(module, alias) for module in found]
    if any(alias == module for module, _ in (*config.install, *config.remove)):
        return [Candidate(alias)]
    if found := index.by_alias(alias):
        return [Candidate(module, alias) for module in found]
    found = index.by_builtin_alias(alias)
    return [Candidate(module, None if module == alias else alias) for module in found]


def lookup_name(index: KnownModules, name: str) -> list[Candidate]:
    """The module of that name, or what is built in under it (``kmod_module_new_from_name_lookup``); no alias."""
    folded = name.replace("-", "_")
    if folded in index:
        return [Candidate(folded)]
    return [Candidate(module) for module in index.by_builtin_alias(folded)]


def resolve(
    index: KnownModules, config: ModprobeConfig, name: str, options: str = "", flags: Flags | None = None
) -> list[Action]:
    """All that modprobe would do for a name in a kernel without modules, in order; nothing if it is unknown.

    :raises InputError: soft dependencies that are nested beyond reason.
    """
    flags = flags or Flags()
    actions: list[Action] = []
    for candidate in lookup(index, config, name):
        if not _is_blacklisted(config, candidate, flags):
            actions += _Plan(index, config, flags).actions(candidate, options)
    return actions


def _is_blacklisted(config: ModprobeConfig, candidate: Candidate, flags: Flags) -> bool:
    return (candidate.alias is not None or flags.use_blacklist) and candidate.name in config.blacklist


class _Plan:
    """The order of one load (``kmod_module_get_probe_list``)."""

    def __init__(self, index: KnownModules, config: ModprobeConfig, flags: Flags) -> None:
        self._index = index
        self._config = config
        self._flags = flags
        self._own = index.softdeps
        self._visited: set[Candidate] = set()
        self._required: set[Candidate] = set()
        self._ignores_command: dict[Candidate, bool] = {}
        self._order: list[Candidate] = []

    def actions(self, candidate: Candidate, options: str) -> list[Action]:
        self._required = {candidate, *map(Candidate, self._index.dependencies(candidate.name))}
        self._visit(candidate, 0, ignore_command=self._flags.ignore_install)
        return [self._action(each, candidate, options) for each in self._order]

    def _visit(self, candidate: Candidate, depth: int, *, ignore_command: bool = False) -> None:
        if candidate in self._visited:
            return
        if depth > _DEEPEST:
            raise InputError(f"{candidate.name}: soft dependencies nested more than {_DEEPEST} deep")
        self._visited.add(candidate)
        for name in self._index.dependencies(candidate.name):
            self._append(Candidate(name), depth)
        if ignore_command:
            self._order.append(candidate)
            self._ignores_command[candidate] = True
        else:
            self._append(candidate, depth)

    def _append(self, candidate: Candidate, depth: int) -> None:
        """Add a module between its soft dependencies."""
        softdep = self._config.softdep(candidate.name, self._own)
        before, after = self._found(softdep.pre), self._found(softdep.post)
        for each in before:
            self._visit(each, depth + 1)
        self._order.append(candidate)
        self._ignores_command[candidate] = bool(before or after)
        for each in after:
            self._visit(each, depth + 1)

    def _found(self, names: tuple[str, ...]) -> list[Candidate]:
        return [candidate for name in names for candidate in lookup(self._index, self._config, name)]

    def _action(self, candidate: Candidate, asked: Candidate, extra: str) -> Action:
        name = candidate.name
        options = self._config.options_of(name, candidate.alias)
        if options:
            options += " "
        if candidate == asked:
            options += extra
        path = self._index.path(name)
        command = self._config.install_command(name)
        if command is not None and not self._ignores_command[candidate]:
            how = How.INSTALL
        elif path is not None:
            how = How.INSMOD
        else:
            how = How.BUILTIN if self._index.is_builtin(name) else How.MISSING
        return Action(how, name, path, options, command or "", candidate in self._required, last=candidate == asked)


class _EndError(Exception):
    """A fatal message was printed (``tools/log.c: log_printf``, which exits then)."""


class Modprobe:
    """One run of modprobe.

    :param show: called with each action before it is taken, or in a dry run instead.
    :param errno_text: ``strerror`` for the guest's numbers.
    """

    def __init__(
        self,
        index: KnownModules,
        config: ModprobeConfig,
        flags: Flags | None = None,
        show: Callable[[str], None] | None = None,
        errno_text: Callable[[int], str] = os.strerror,
    ) -> None:
        self._index = index
        self._config = config
        self._flags = flags or Flags()
        self._show = show or (lambda _line: None)
        self._errno_text = errno_text
        self.outcome = Outcome()
        self.ended = False

    # -- loading ----------------------------------------------------------------------------------------
    def insert(self, loader: Loader, name: str, options: str = "") -> bool:
        """Load what a name stands for (``tools/modprobe.c: insmod``); whether all is well.

        :raises UnmodelledError: a command of modprobe.d would have to be run.
        """
        return self._until_end(lambda: self._insert(loader, name, options))

    def _insert(self, loader: Loader, name: str, options: str) -> bool:
        candidates = lookup(self._index, self._config, name)
        if not candidates:
            self._complain(f"Module {name} not found in directory {self._index.root}", fatal=True)
            return self._failed()
        return self._insert_each(loader, candidates, options)

    def insert_file(self, loader: Loader, file: str, options: str = "") -> bool:
        """Load a module by its file, with what it needs; the index has it. Raises likewise."""
        return self._until_end(lambda: self._insert_file(loader, file, options))

    def _insert_file(self, loader: Loader, file: str, options: str) -> bool:
        name = module_name(file)
        try:
            os.stat(file)  # noqa: PTH116  as it was typed
        except OSError as error:
            self._complain(f"Failed to get module from path {file}: {error.strerror}", fatal=True)
            return self._failed()
        if name is None:
            self._complain(f"Failed to get module from path {file}: {self._errno_text(ENOENT)}", fatal=True)
            return self._failed()
        return self._insert_each(loader, [Candidate(name)], options)

    def insert_module(self, loader: Loader, name: str, options: str = "") -> bool:
        """Load the module of that name, whatever else the name may be an alias of. Raises likewise."""
        return self._until_end(lambda: self._insert_each(loader, [Candidate(name)], options))

    def _insert_each(self, loader: Loader, candidates: list[Candidate], options: str) -> bool:
        good = True
        for candidate in candidates:  # the last one's fate is the command's, as kmod has it
            errno = self._probe(loader, candidate, options)
            good = errno == 0
            if errno:
                self._complain(f"could not insert '{candidate.name}': {_TEXTS.get(errno) or self._errno_text(errno)}")
        return good or self._failed()

    def _probe(self, loader: Loader, candidate: Candidate, options: str) -> int:
        """``kmod_module_probe_insert_module``: 0 or an errno."""
        if self._in_kernel(loader, candidate.name):
            return EEXIST if self._flags.first_time else 0
        if _is_blacklisted(self._config, candidate, self._flags):
            return 0
        errno = 0
        for action in _Plan(self._index, self._config, self._flags).actions(candidate, options):
            errno = EEXIST if self._in_kernel(loader, action.name) else self._take(loader, action)
            if errno == EEXIST and action.last and self._flags.first_time:
                break
            if errno == EEXIST or not action.required:
                errno = 0
            elif errno:
                break
        return errno

    def _in_kernel(self, loader: Loader, name: str) -> bool:
        if self._flags.ignore_loaded:
            return False
        return self._index.is_builtin(name) or loader.loaded(name)

    def _take(self, loader: Loader, action: Action) -> int:
        self.outcome.actions.append(action)
        if str(action):
            self._show(str(action))
        if self._flags.dry_run:
            return 0
        if action.how is How.INSTALL:
            return self._run("install", action.name, action.command.replace("$CMDLINE_OPTS", action.options))
        if action.path is None:
            self._complain(f"could not find module by name='{action.name}'")
            return ENOENT
        try:
            loader.insmod(action.path, action.options)
        except LoadError as error:
            if action.required and (error.errno != EEXIST or self._flags.first_time):
                self.outcome.failures.append((action.name, error))
            return error.errno or EINVAL  # what would have damaged the kernel has no errno
        return 0

    def _run(self, what: str, name: str, command: str) -> int:
        """An ``install`` or ``remove`` command: of those only true and false are known."""
        words = command.split()
        if words and words[0] in _TRUE:
            return 0
        if words and words[0] in _FALSE:
            self._complain(f"Error running {what} command '{command}' for module {name}: retcode 1")
            return EINVAL
        raise UnmodelledError(
            f"{name}: modprobe.d wants the {what} command {command!r} to be run, and this machine has no shell",
            hint="ignore such commands: --ignore-install",
        )

    # -- removing ---------------------------------------------------------------------------------------
    def remove(self, unloader: Unloader, name: str) -> bool:
        """Remove what a name stands for, and what it needed and nobody needs any more (``tools/modprobe.c: rmmod``).

        :raises UnmodelledError: a command of modprobe.d would have to be run.
        """
        return self._until_end(lambda: self._remove_all(unloader, name))

    def _remove_all(self, unloader: Unloader, name: str) -> bool:
        candidates = lookup(self._index, self._config, name)
        if not candidates:
            self._complain(f"Module {name} not found.", fatal=True)
            return self._failed()
        for candidate in candidates:
            if not self._remove(unloader, candidate.name, asked=True, depth=0):
                return self._failed()
        return True

    def _remove(self, unloader: Unloader, name: str, *, asked: bool, depth: int) -> bool:
        """``rmmod_do_module``."""
        if depth > _DEEPEST:
            raise InputError(f"{name}: soft dependencies nested more than {_DEEPEST} deep")
        softdep, command = Softdep(), None
        if not self._flags.ignore_install:
            softdep = self._config.softdep(name, self._index.softdeps)
            command = self._config.remove_command(name)
        if command is None and (done := self._nothing_to_remove(unloader, name, asked=asked)) is not None:
            return done
        self._remove_softdeps(unloader, softdep.post, depth)
        if asked and self._flags.remove_holders:
            for holder in reversed(unloader.holders(name)):
                if not self._remove(unloader, holder, asked=False, depth=depth + 1):
                    return False
        if command is not None:
            self._show(f"remove {command}")
            if not self._flags.dry_run and self._run("remove", name, command):
                return False
        elif self._flags.remove_holders and not unloader.present(name):
            pass  # it went as something that its last holder had needed
        elif not self._remove_unused(unloader, name):
            return False
        self._remove_softdeps(unloader, softdep.pre, depth)
        return True

    def _nothing_to_remove(self, unloader: Unloader, name: str, *, asked: bool) -> bool | None:
        """The answer for what is not a module of the kernel; None for what is one."""
        if self._index.is_builtin(name):
            if asked:
                self._complain(f"Module {name} is builtin.", fatal=True)
            return not asked
        if not unloader.present(name):
            if self._flags.first_time:
                self._complain(f"Module {name} is not in kernel.", fatal=True)
            return not self._flags.first_time
        return None

    def _remove_unused(self, unloader: Unloader, name: str) -> bool:
        """Remove a module if nobody uses it, then what it needed, as far as that is unused then."""
        if not self._flags.wait and unloader.refcount(name) > 0:
            self._complain(f"Module {name} is in use.", fatal=True)
            return False
        if not self._rmmod(unloader, name):
            return False
        for other in self._index.dependencies(name):
            if unloader.refcount(other) == 0:
                self._rmmod(unloader, other)
        return True

    def _remove_softdeps(self, unloader: Unloader, names: tuple[str, ...], depth: int) -> None:
        """In reverse order; errors do not matter."""
        for candidate in reversed([each for name in names for each in lookup(self._index, self._config, name)]):
            self._remove(unloader, candidate.name, asked=False, depth=depth + 1)

    def _rmmod(self, unloader: Unloader, name: str) -> bool:
        """``rmmod_do_remove_module``: at once, or as soon as it is not in use, asking at intervals that double."""
        self._show(f"rmmod {name}")
        if self._flags.dry_run:
            return True
        left, interval = self._flags.wait, 1
        while True:
            try:
                unloader.rmmod(name)
            except UnloadError as error:
                if error.errno == EAGAIN and left > 0:
                    pause = min(interval, left)
                    unloader.wait(pause / 1000)
                    left -= pause
                    interval *= 2
                    continue
                self._complain(f"could not remove '{name}': {self._errno_text(error.errno)}")
                self.outcome.failures.append((name, error))
                return False
            self.outcome.removed.append(name)
            return True

    # -- saying -----------------------------------------------------------------------------------------
    def _complain(self, text: str, *, fatal: bool = False) -> None:
        self.outcome.messages.append((fatal, text))
        if fatal and self._flags.ends:
            raise _EndError

    def _until_end(self, work: Callable[[], bool]) -> bool:
        """Do it, unless a fatal message has ended all."""
        if self.ended:
            return False
        try:
            return work()
        except _EndError:
            self.ended = True
            return self._failed()

    def _failed(self) -> bool:
        self.outcome.status = 1
        return False


_TEXTS = {
    EEXIST: "Module already in kernel",
    ENOENT: "Unknown symbol in module, or unknown parameter (see dmesg)",
}  # tools/modprobe.c: insmod


def join_options(words: list[str] | tuple[str, ...]) -> str:
    """Join ``PARAM=VALUE`` words; a value with a blank is quoted (``tools/modprobe.c: options_from_array``)."""

    def quoted(word: str) -> str:
        name, equals, value = word.partition("=")
        return f'{name}="{value}"' if equals and " " in value and value[0] not in "\"'" else word

    return " ".join(map(quoted, words))


# -- the kernel's own requests ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Callbacks:
    loaded: Callable[[str], bool]
    insmod: Callable[[Path, str], None]


def modprobe_quietly(
    index: KnownModules,
    config: ModprobeConfig,
    name: str,
    loaded: Callable[[str], bool],
    insmod: Callable[[Path, str], None],
) -> int:
    """``modprobe -q -- NAME``, which the kernel's ``request_module()`` runs: the exit status, 0 or 1.

    :param insmod: loads a file with options; raises LoadError when the kernel refuses. Whatever else it raises
        passes through.
    :raises UnmodelledError: modprobe.d wants a command to be run.
    """
    run = Modprobe(index, config)
    run.insert(_Callbacks(loaded, insmod), name)
    return run.outcome.status


def answer_request(
    index: KnownModules, config: ModprobeConfig, argv: list[str], loaded: Callable[[str], bool] = lambda _name: False
) -> list[Action]:
    """What a call of modprobe by the kernel would load: ``argv`` is ``/sbin/modprobe -q -- NAME``.

    :param loaded: whether a module is in the kernel already.
    :raises UnmodelledError: it is another call.
    """
    if len(argv) != 4 or argv[1:3] != ["-q", "--"]:
        raise UnmodelledError(f"a call of modprobe with other arguments than the kernel's own: {argv[1:]}")
    actions = resolve(index, config, argv[3])
    return [action for action in actions if not index.is_builtin(action.name) and not loaded(action.name)]
