"""The facade that a user holds: a kernel that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kodojo.errors import (
    DamagedMemoryError,
    FaultReport,
    ImageError,
    InputError,
    KodojoError,
    LoadError,
    LogRecord,
    MachineError,
    MachineFault,
    Refusal,
    UnmodelledError,
    decode,
)
from kodojo.image.image import Image
from kodojo.image.payload import Payload, read_module
from kodojo.kernel.backtraces import Backtraces
from kodojo.kernel.boot import DEFAULT_MEMORY, check_bootable
from kodojo.kernel.bounds import reading
from kodojo.kernel.calls import Argument, Calls, Place
from kodojo.kernel.faults import Faults, oopses_in, warnings_in
from kodojo.kernel.file_calls import as_operation
from kodojo.kernel.files import CLOCK_BOOTTIME, CLOCK_REALTIME, Files
from kodojo.kernel.firmware import bring_firmware
from kodojo.kernel.memory import KernelMemory
from kodojo.kernel.module import Module
from kodojo.kernel.module_calls import ModuleCalls
from kodojo.kernel.new_code import NewCode
from kodojo.kernel.printk import Printk
from kodojo.kernel.requests import ModuleRequests
from kodojo.kernel.snapshots import BootFacts, boot_machine, snapshot_for
from kodojo.kernel.target import BootedTarget
from kodojo.kernel.tasks import Tasks
from kodojo.kernel.user import Passed, UserSpace
from kodojo.kernel.waits import Waits
from kodojo.loader.enter import insmod, other_answers
from kodojo.loader.steps import Steps
from kodojo.loader.syscalls import (
    MODULE_INIT_IGNORE_MODVERSIONS,
    MODULE_INIT_IGNORE_VERMAGIC,
    sys_delete_module,
)
from kodojo.loader.target import Module as LoadedModule
from kodojo.machine.cpu import RunLimit
from kodojo.machine.machine import Machine

if TYPE_CHECKING:
    from kodojo.image.store import Store
    from kodojo.kmod.config import ModprobeConfig
    from kodojo.kmod.known import KnownModules

__all__ = ["DEFAULT_LIMIT", "Kernel"]

DEFAULT_LIMIT = 30.0  # seconds of guest time
_WALL_START, _WALL_PER_GUEST_SECOND = 60.0, 20.0  # seconds of this computer's time: a slow one's are many
_O_NONBLOCK, _O_TRUNC = 0o4000, 0o1000
_SYSLOG_ACTION_CLEAR = 5
_PROCESS_START = 0.04  # seconds of guest time
_OF_A_PLACE = ("stack", "frame", "scratch", "kernel_scratch")


class Kernel(ModuleCalls):
    """A booted Linux kernel with our loader beside it.

    Made by :meth:`boot` and :meth:`fork`. Not thread-safe; machines are independent of each other.
    """

    def __init__(self, image: Image, machine: Machine, facts: BootFacts, once: Iterable[str] = ()) -> None:
        self.image = image
        self.machine = machine
        self._facts = facts
        self._once = set(once)
        self._operating = False
        self._wall_limit: float | None = None
        self.hertz = int(image.config.get("CONFIG_HZ", "250"))
        self.memory = KernelMemory(machine.cpu, image.btf)
        place = Place(facts.stack, facts.frame, facts.scratch, facts.kernel_scratch, machine.cpu.user_table)
        self.calls = Calls(machine.cpu, image, place, self._limit(DEFAULT_LIMIT))
        self.user = UserSpace(machine, self.calls)
        self.files = Files(self.user)
        self.printk = Printk(self.memory, image)
        self.tasks = Tasks(self.calls, self.memory)
        with reading("the current task"):
            self.faults = Faults(self.calls, self.memory, self.printk, self.tasks)
        self.requests = ModuleRequests(self.calls, self.memory, self.tasks)
        backtraces = Backtraces(self.calls, self.memory, self.tasks, facts.kernel_scratch)
        self.waits = Waits(self.calls, self.memory, self.tasks, self.faults, self.requests, backtraces, self.hertz)
        self.requests.knows_modules = lambda: self._has_siblings or bool(self.image.modules)
        self.new_code = NewCode(self.calls)
        self._known: KnownModules | None = None
        self._has_siblings = False
        self.answers_requests = True
        self.target = BootedTarget(
            image,
            self.calls,
            self.memory,
            self.user,
            self.printk,
            self.tasks,
            self.faults,
            facts.file,
            self._once,
        )

    # -- coming and going -----------------------------------------------------------------------------
    @classmethod
    def boot(
        cls,
        image: Image | str | os.PathLike[str],
        cmdline: str = "",
        memory: int = DEFAULT_MEMORY,
        *,
        store: Store | None = None,
        progress: Callable[[float], None] | None = None,
        bare: bool = False,
    ) -> Kernel:
        """A freshly booted kernel: from its snapshot in milliseconds, or by booting (about ten seconds, once).

        :param image: an Image, or what :meth:`kodojo.Image.open` takes.
        :param cmdline: extra words for the kernel's command line.
        :param memory: bytes of RAM.
        :param progress: told the share of the boot that is done, 0 to 1, if it has to be booted.
        :param bare: without what an init does (:mod:`kodojo.kernel.booted_state`): the clock begins in 1970, the
            random generator is not seeded, ``lo`` is down, and fewer file systems are mounted.
        :raises InputError: the memory is too small. ImageError: it is for a machine that kodojo does not have.
            MissingInformationError: the kernel has no symbol table or
            type information. MachineFault: it panicked.
        """
        from kodojo.image.store import Store  # noqa: PLC0415  an unpacked image needs none

        opened = image if isinstance(image, Image) else Image.open(os.fspath(image))
        check_bootable(opened)
        _ = opened.kallsyms, opened.btf  # a kernel without them is refused before it is booted, not after
        snapshot, facts = snapshot_for(store or Store.default(), opened, cmdline, memory, progress, bare=bare)
        return cls(opened, snapshot.start(), facts)

    @classmethod
    def power_on(cls, image: Image, cmdline: str = "", memory: int = DEFAULT_MEMORY, *, bare: bool = False) -> Kernel:
        """Boot without looking for a snapshot and without leaving one."""
        machine, facts = boot_machine(image, cmdline, memory, bare=bare)
        return cls(image, machine, facts)

    def fork(self) -> Kernel:
        """An independent kernel in the same state."""
        self._alive()
        twin = type(self)(self.image, self.machine.fork(), self._current_facts(), self._once)
        twin.answers_requests = self.answers_requests
        twin.calls.limit, twin._wall_limit = self.calls.limit, self._wall_limit
        twin.waits.leave = self.waits.leave
        twin.calls.leave(self.calls.left)
        return twin

    def save(self) -> tuple[bytes, dict[str, Any]]:
        """The difference from the snapshot, and what else :meth:`resume` needs (fit for JSON)."""
        self._alive()
        place = self.calls.place
        saved = {
            "once": sorted(self._once),
            "place": [getattr(place, name) for name in _OF_A_PLACE],
            "left": self.calls.left,
        }
        return self.machine.delta(), saved

    @classmethod
    def resume(cls, image: Image, machine: Machine, facts: BootFacts, saved: dict[str, Any]) -> Kernel:
        """Go on from a machine that :meth:`save` described."""
        place = dict(zip(_OF_A_PLACE, saved["place"], strict=True))
        kernel = cls(image, machine, replace(facts, **place), saved["once"])
        kernel.calls.leave(saved["left"])
        return kernel

    def _current_facts(self) -> BootFacts:
        """Another task may have taken the place of the one that was booted."""
        return replace(self._facts, **{name: getattr(self.calls.place, name) for name in _OF_A_PLACE})

    def _alive(self) -> None:
        if self.calls.stopped is not None:
            raise MachineError(
                f"this machine has stopped: {self.calls.stopped}",
                hint="go on from a fork that was made before, or boot again",
            )

    def _limit(self, seconds: float) -> RunLimit:
        return RunLimit(ticks=max(1, round(seconds * self.hertz)))

    def limit(self, seconds: float = DEFAULT_LIMIT, *, leave: bool = False) -> None:
        """How long a call may take, and so all system calls of an operation, in seconds of guest time (30 at first).

        What takes longer ends in MachineHang, which says what every task waits in; the machine goes on afterwards
        (``survived``), unless guest code spins and nobody else can run.

        :param leave: at the limit, leave what waits where it is, and go on with another process in its place.
            Otherwise it is killed, as Ctrl-C and ``kill -9`` would, and left only if it does not listen to that.
        """
        self.calls.limit = self._limit(_positive(seconds))
        self.waits.leave = leave

    def wall_limit(self, seconds: float) -> None:
        """How long an operation may take on this computer's clock, in seconds.

        At first, and if nobody says otherwise, it is a minute and 20 times the limit of guest time: it is there for
        what no limit of guest time ends, such as a file that is read byte by byte and has no end.
        """
        self._wall_limit = _positive(seconds)

    @property
    def _wall(self) -> float:
        if self._wall_limit is not None:
            return self._wall_limit
        return _WALL_START + _WALL_PER_GUEST_SECOND * self.calls.limit.ticks / self.hertz

    @property
    def answers_requests(self) -> bool:
        """Whether the kernel's ``request_module()`` finds a modprobe, which knows the image's module tree.

        Otherwise, and where the image has no tree, it is a system without ``/sbin/modprobe``.
        """
        return self.requests.answer is not None

    @answers_requests.setter
    def answers_requests(self, wanted: bool) -> None:
        self.requests.answer = self._modprobe if wanted else None

    def _modprobe(self, name: str) -> int:
        """``modprobe -q -- NAME``: its exit status."""
        # Only when something is asked for.
        from kodojo.kernel.probing import answer, known_modules  # noqa: PLC0415

        def pause() -> None:
            # While a process starts or ends, others finish: init memory of modules is freed in the background.
            self.calls("schedule_timeout_uninterruptible", round(_PROCESS_START * self.hertz))

        pause()
        try:
            known = self._known or known_modules(self.image)
        except (ImageError, InputError):  # damaged, or in a circle: modprobe finds nothing then
            status = 1
        else:
            status = answer(known, self._modprobe_config(), name, self.target.modules, self._insmod_file)
        pause()
        return status

    def _modprobe_config(self, path: str | os.PathLike[str] | None = None) -> ModprobeConfig:
        """What the kernel's command line says, and this file or directory, or else those installed for the kernel."""
        from kodojo.kmod.config import ModprobeConfig  # noqa: PLC0415  as in _modprobe

        return ModprobeConfig.read(
            self.image.additions.modprobe_d if path is None else [Path(path)], self.command_line
        )

    @contextmanager
    def beside(self, *places: str | os.PathLike[str]) -> Iterator[KnownModules]:
        """In the ``with`` block modprobe finds these modules, before those of the same names in the kernel's tree.

        So does the kernel with what it asks for itself (``request_module()``). The value is what is known then.

        :param places: ``.ko`` files, and directories with modules in them or below them.
        :raises InputError: a directory has none.
        """
        from kodojo.kernel.probing import known_modules  # noqa: PLC0415  as in _modprobe

        before = self._known, self._has_siblings
        self._known, self._has_siblings = known_modules(self.image, places), bool(places)
        try:
            yield self._known
        finally:
            self._known, self._has_siblings = before

    @property
    def command_line(self) -> str:
        """The kernel's command line, as it was booted with."""
        with reading("the command line"):
            address = self.memory.u64(self.image.kallsyms.address("saved_command_line"))
            return decode(self.memory.string(address))

    @contextmanager
    def operation(self, program: str = "") -> Iterator[None]:
        """Everything that a user does is one. Reports of faults show the log from its beginning.

        Its system calls may take as long as :meth:`limit` says, all together; so may each call of a function.

        At its end time passes until every modprobe that the kernel has started is done, and what a system call does
        on its way back to user space is done.

        :param program: what the task is called meanwhile (``current->comm``), in place of ``init``; as a part of
            another operation it bears that one's name.
        """
        if self._operating or self.calls.playing:  # a part of another one, or of a program in a task of the guest
            yield
            return
        self._alive()
        self.faults.begin()
        self.calls.problems.clear()
        with reading("the kernel's data"), self.tasks.named(program) if program else nullcontext():
            yield from self._operate()
        if self.calls.problems:
            raise self.calls.problems.pop(0)

    def _operate(self) -> Iterator[None]:
        """The operation itself, and what comes at its end."""
        self.calls.overdue = None
        self.calls.ends = self.machine.cpu.ticks + self.calls.limit.ticks
        self._operating = True
        watch = self.machine.cpu.watch
        watch.begin(self._wall)
        try:
            yield
        except KeyboardInterrupt:
            self.calls.interrupted()
            raise
        except KodojoError as error:
            if not isinstance(error, MachineFault):
                self.waits.tell(error)
            raise
        finally:
            self._operating = False
            self.calls.ends = None
            with watch.ending():
                if self.calls.stopped is None:
                    self._come_to_rest()
        self.waits.tell()

    def _come_to_rest(self) -> None:
        """What happens between an operation and the next one."""
        self.waits.end()
        self.waits.for_programs()
        self.user.pass_through()

    # -- looking --------------------------------------------------------------------------------------
    @property
    def log(self) -> tuple[LogRecord, ...]:
        """What ``dmesg`` would print: all since the start, or since :meth:`clear_log`.

        :raises DamagedMemoryError: a part of it cannot be read; the others are in its ``found``.
        """
        records, damage = self.printk.look(self.printk.cleared())
        if damage is not None:
            damage.found = records
            raise damage
        return records

    @property
    def warnings(self) -> tuple[FaultReport, ...]:
        """The WARN reports in the log."""
        return warnings_in(self._readable_log)

    @property
    def oopses(self) -> tuple[FaultReport, ...]:
        """The reports of oopses in the log: those of all tasks."""
        return oopses_in(self._readable_log)

    @property
    def _readable_log(self) -> tuple[LogRecord, ...]:
        """As :attr:`log`, without what cannot be read."""
        return self.printk.records(self.printk.cleared())

    @property
    def modules(self) -> list[Module]:
        """The kernel's own linked list ``modules``, newest first.

        :raises DamagedMemoryError: it does not come to its end; the modules before are in its ``found``.
        """
        try:
            return [Module(self, mod.address) for mod in self.target.modules()]
        except DamagedMemoryError as error:
            error.found = tuple(Module(self, mod.address) for mod in error.found)
            raise

    @property
    def time(self) -> float:
        """Seconds of guest time since power-on."""
        return self.machine.cpu.ticks / self.hertz

    @as_operation
    def clock(self, *, boot: bool = False) -> float:
        """The guest's clock: seconds since 1970, or since its boot, as the log's times are counted."""
        return self.files.clock(CLOCK_BOOTTIME if boot else CLOCK_REALTIME)

    @as_operation
    def clear_log(self) -> None:
        """Clear the log as ``dmesg -C`` does: what was printed before is no longer shown.

        :raises UnmodelledError: the kernel's symbol table does not list where it keeps this.
        """
        if not self.printk.can_be_cleared:
            raise UnmodelledError(
                "this kernel's symbol table does not list clear_seq, where it keeps what was cleared",
                hint="look at the new lines only: kodojo dmesg --since TIME",
            )
        self.user.checked("log", "syslog", _SYSLOG_ACTION_CLEAR, 0, 0)

    # -- doing ----------------------------------------------------------------------------------------
    @as_operation
    def call(self, function: str | int, *arguments: Argument) -> int:
        """Call any function of the kernel, by name or address.

        The value is converted by the function's return type where the kernel's type information has it;
        pointers and unknown types are unsigned 64-bit numbers, void is 0. Routines in assembly may be in it as
        ``void name(void)``, which nothing is known by.

        :raises MissingInformationError: there is no such function.
        """
        value = self.calls(function, *arguments)
        prototype = self.image.btf.function(function) if isinstance(function, str) else None
        if prototype is None or (len(prototype.parameters) < len(arguments) and not prototype.variadic):
            return value
        returns = prototype.returns
        if returns.kind == "void":
            return 0
        value &= (1 << (8 * returns.size)) - 1
        return value - (1 << (8 * returns.size)) if returns.signed and value >> (8 * returns.size - 1) else value

    @as_operation
    def syscall(self, name: str | int, *arguments: Passed) -> int:
        """Any system call of the kernel, by name or number, as PID 1 makes it: what it returns.

        :param arguments: numbers as they are, None for NULL, the address of a copy of bytes, and of a str with a NUL
            behind it. A bytearray is copied in and out: the call can write into it.
        :raises GuestOSError: it returned an errno. InputError: the architecture has no call of that name.
        """
        return self.user.call(name, *arguments)

    @as_operation
    def sleep(self, seconds: float) -> None:
        """Let guest time pass: timers, work queues and threads run. However long it is, no limit ends it."""
        left = max(1, round(seconds * self.hertz))
        while left > 0:
            ticks = min(left, max(1, self.calls.limit.ticks // 2))
            self.calls("schedule_timeout_uninterruptible", ticks)
            self.machine.cpu.watch.begin(self._wall)
            left -= ticks
            if self.calls.ends is not None:
                self.calls.ends += ticks

    @contextmanager
    def as_user(self, uid: int = 1000, gid: int = 1000, capabilities: Iterable[str | int] = ()) -> Iterator[None]:
        """Ask as somebody else in the ``with`` block: these ids, and exactly these capabilities."""
        self._alive()
        with self.tasks.credentials(uid, gid, capabilities):
            yield

    # -- modules --------------------------------------------------------------------------------------
    def modprobe(
        self,
        name: str | os.PathLike[str],
        *parameters: str,
        path: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> Module:
        """Load a module with what it depends on, as ``modprobe`` does; what is loaded already stays as it is.

        Modules are looked for in the kernel's tree and, before that, beside the file and at ``path``. While the load
        runs, the kernel finds them there, too, if it asks for one itself (``request_module()``).

        :param name: a module's name, an alias, or the path of a ``.ko`` file (a text with a slash, or a PathLike).
        :param parameters: ``NAME=VALUE`` words for that module.
        :param path: a directory with modules in it or below it, or one of the modules in a directory.
        :param config: a directory like /etc/modprobe.d, or a file, instead of what was installed for the kernel.
        :raises LoadError: the kernel refuses the module, or one that it needs. InputError: nothing is called so, or
            it is built in. UnmodelledError: modprobe.d wants a command to be run.
        """
        from kodojo.kernel.probing import Probe, places_of  # noqa: PLC0415  as in _modprobe

        self._alive()
        with self.beside(*places_of(name, path)) as known, self.operation("modprobe"):
            probe = Probe(known, self._modprobe_config(config), self.target.modules, self._insmod_file)
            mod, steps = probe.load(name, parameters)
            return Module(self, mod.address, steps)

    def insmod(
        self,
        file: str | os.PathLike[str] | bytes,
        *parameters: str,
        force_modversion: bool = False,
        force_vermagic: bool = False,
        with_dependencies: bool = False,
    ) -> Module:
        """Load a module as ``insmod`` does: by finit_module, or by init_module if user space had to unpack it.

        :param file: path of a ``.ko`` (also ``.gz``, ``.xz``, ``.zst``), or the bytes of one.
        :param parameters: ``NAME=VALUE`` words, joined with blanks.
        :param force_modversion: the CRCs of the symbols that it uses do not count (``modprobe --force-modversion``).
        :param force_vermagic: nor does its version magic. Either taints the kernel.
        :param with_dependencies: load first what it depends on, from the kernel's tree and the file's directory.
        :raises LoadError: the kernel refuses it, or kmod cannot unpack it. InputError: the file cannot be read.
            ImageError: it is larger than any module. MachineFault, MachineHang: guest code crashed, or did not
            come back.
        """
        flags = MODULE_INIT_IGNORE_MODVERSIONS if force_modversion else 0
        flags |= MODULE_INIT_IGNORE_VERMAGIC if force_vermagic else 0
        if not with_dependencies:
            return self._insmod_alone(file, parameters, flags)
        from kodojo.kernel.probing import Probe, places_of  # noqa: PLC0415  as in _modprobe

        if isinstance(file, bytes):
            raise InputError("a module that is given as bytes has no directory", hint="write it to a file")
        self._alive()
        with self.beside(*places_of(Path(file))) as known:
            with self.operation("modprobe"):
                Probe(known, self._modprobe_config(), self.target.modules, self._insmod_file).load_needed(file)
            return self._insmod_alone(file, parameters, flags)

    def _insmod_alone(self, file: str | os.PathLike[str] | bytes, parameters: tuple[str, ...], flags: int) -> Module:
        steps = Steps()
        name = "" if isinstance(file, bytes) else os.fspath(file)
        with self.operation("insmod"):
            payload = read_module(file)
            warnings = other_answers(self.image, payload)
            try:
                mod = self._insmod(payload, " ".join(parameters), steps, flags)
            except LoadError as error:
                refusal = self._advised(error.refusal, file)
                message = f"{name or 'the module'}: {error.message}"
                raise type(error)(message, refusal, tuple(steps), warnings, file=name) from error
        return Module(self, mod.address, tuple(steps), warnings)

    def _advised(self, refusal: Refusal, file: str | os.PathLike[str] | bytes) -> Refusal:
        """With the modules that have the symbols which it lacks."""
        if refusal.slug != "unknown-symbol":
            return refusal
        from kodojo.kernel.probing import advised  # noqa: PLC0415  as in _modprobe

        return advised(self.image, self._known, refusal, file)

    def bring_firmware(self) -> None:
        installed = self.image.additions.firmware
        if installed:
            bring_firmware(self.files, self.user, self.tasks, installed)

    def _insmod(self, payload: Payload, arguments: str, steps: Steps, flags: int = 0) -> LoadedModule:
        self.bring_firmware()
        return insmod(self.target, self.user, payload, arguments, steps, flags)

    def _insmod_file(self, path: Path, arguments: str, steps: Steps) -> LoadedModule:
        """What modprobe does with each file."""
        return self._insmod(read_module(path), arguments, steps)

    def rmmod(self, name: str, *, force: bool = False) -> None:
        """Remove a module as ``rmmod`` does. Raises UnloadError with the kernel's errno.

        :param force: though it is in use or has no exit function, as ``rmmod -f``: it taints the kernel, and what
            used the module may crash it.
        """
        with self.operation("rmmod"):
            sys_delete_module(self.target, name, _O_NONBLOCK | _O_TRUNC if force else _O_NONBLOCK)


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise InputError(f"{seconds}: a limit is a positive number of seconds")
    return seconds
