"""Call functions of the guest's kernel from Python, as the task that the machine stands in.

At rest the machine stands where PID 1 is about to leave for user space: a task with credentials, a user
address space and an empty kernel stack, which may sleep. A call puts its arguments where the ABI
wants them, runs until the function returns, and leaves the machine at rest again. While Python
handles a breakpoint, calls nest: they run on the stack of the code that was interrupted, and must not sleep.

Other tasks can have a program in Python, too (:meth:`Calls.play`), such as the modprobe that the kernel starts. Such
a program may call whatever sleeps: it is a coroutine that goes on when its call has returned, in whatever order the
tasks of the guest come to that.

Guest time passes in calls. A call that sleeps lets other tasks, timers and interrupts run, as on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from greenlet import GreenletExit, getcurrent, greenlet

from kodojo.errors import FaultReport, InputError, MachineError, MachineFault, MachineHang, UnmodelledError
from kodojo.image.image import Image
from kodojo.kernel.abi import abi_of
from kodojo.kernel.diversions import STACK_SIZE, Diversions
from kodojo.kernel.ways import Site, Spot, Ways
from kodojo.machine.cpu import LIMIT_REACHED, Cpu, Registers, RunLimit

__all__ = ["Argument", "Calls", "Inside", "Place"]

Argument = int | bytes | str

_MASK = (1 << 64) - 1
RED_ZONE = 256  # bytes above each call's frame that it does not touch
_STACK_DATA_LIMIT = 2048  # of a kernel stack of 16 KiB
_STACK_END = 64  # bytes, in which the kernel keeps a mark by which it notices an overflow
_DEPTH_LIMIT = 12
_SHARE = 10  # of the limit is there for each call
_FOR_EVER = (1 << 63) - 1  # include/linux/sched.h: MAX_SCHEDULE_TIMEOUT


def _not_in_time(hang: MachineHang, _finish: Callable[[RunLimit], None]) -> None:
    raise hang


@dataclass(slots=True)
class Place:
    """Where a user process stands that is about to leave for user space, and what Python has of it.

    :param stack: top of the free part of its kernel stack.
    :param frame: address of its ``struct pt_regs``.
    :param scratch: a populated piece of its user memory, 0 until it is needed (:attr:`UserSpace.scratch`).
    :param kernel_scratch: a page of kernel memory, 0 until it is needed.
    :param spot: where functions are called that Python calls: the entry point of system calls, or, inside of one,
        where the function was called that does it. None: the code that calls is none of the kernel's.
    :param inside: address of the function that does the system call; 0 outside of one.
    :param user_table: see :attr:`kodojo.machine.cpu.Cpu.user_table`.
    """

    stack: int
    frame: int = 0
    scratch: int = 0
    kernel_scratch: int = 0
    user_table: int | None = None
    spot: Spot | None = None
    inside: int = 0


@dataclass(slots=True)
class Inside:
    """A function that Python stands for.

    :param value: what it returns.
    """

    value: int | None = None


@dataclass(slots=True, eq=False)
class _Play:
    """A task of the guest with a program in Python.

    :param dead: its task runs no more, so it can do no more calls.
    :param left: nobody waits for its end.
    """

    place: Place
    greenlet: greenlet = field(repr=False)
    dead: bool = False
    left: bool = False


class Calls:
    """Calls of C functions, on a machine at rest.

    :param place: where the resting task stands.
    :param limit: the limit of each call that does not bring its own.
    :attr stopped: what ended the machine.
    :attr problems: what programs of other tasks have raised.
    :attr too_late: what to do about a call at rest that has not come back within the limit: it is told how to let it
        run on, returns if it has come back after all, or raises what the caller is told.
    :attr ends: when the operation that is under way has taken as long as it may, by the processor's ticks; None: it
        may take as long as it likes.
    :attr overdue: of the operation that is under way: what ended it at its limit.
    """

    def __init__(self, cpu: Cpu, image: Image, place: Place, limit: RunLimit) -> None:
        self.cpu = cpu
        self.abi = abi_of(cpu.architecture)
        self.image = image
        self.limit = limit
        self._resting = place
        # Code that no task will ever run again: PID 1 has been started. One address for each depth, and behind them
        # the one that programs' calls return to.
        self._returns = image.kallsyms.address(self.abi.returns_to)
        self._play_returns = self._returns + self.abi.instruction * _DEPTH_LIMIT
        self._depth = 0
        self.ways = Ways(self)
        self._diversions = Diversions(cpu, self.abi)
        place.spot = self._entry(place.frame)
        self._playing: _Play | None = None
        self._waiting: dict[int, tuple[_Play, Registers]] = {}  # by the stack pointer with which the call returns
        self._symbols: dict[str, int] = {}
        self.stopped: MachineError | None = None
        self.problems: list[Exception] = []
        self.failed: Callable[[MachineError], MachineError] = lambda error: error
        self.too_late: Callable[[MachineHang, Callable[[RunLimit], None]], None] = _not_in_time
        self.overdue: MachineHang | None = None
        self.ends: int | None = None
        cpu.add_breakpoint(self._play_returns, self._arrived)
        cpu.add_breakpoint(self._returns, self.put_to_sleep)  # of a task that was left in a call, and comes back

    def interrupted(self) -> None:
        """Somebody has pressed Ctrl-C amid something: nobody knows in what state the machine is."""
        self.stopped = self.stopped or MachineError("it was interrupted")

    @property
    def place(self) -> Place:
        """Where the task stands that Python acts for: the resting one, or that of the program that is running."""
        return self._resting if self._playing is None else self._playing.place

    def time_left(self) -> RunLimit:
        """The limit of the operation's next call if all of them together may not take longer than one.

        :raises MachineHang: there is no time left.
        """
        if self.ends is None or self._playing is not None:
            return self.limit
        left = self.ends - self.cpu.ticks
        if left <= 0:
            self.ends = None
            self.overdue = MachineHang(
                "the operation did not end within the limit: what it asks for comes, and there is always more",
                FaultReport(LIMIT_REACHED, self.cpu.read_registers()),
                hint="ask for a part of it, or give it more time (--limit SECONDS)",
                survived=True,
            )
            raise self.overdue
        return RunLimit(max(left, self.limit.ticks // _SHARE))  # the last one is not cut short for what others took

    def rest_at(self, place: Place) -> None:
        """From now on it is another task that makes the calls: the current one, which stands there."""
        place.spot = self._entry(place.frame)
        self._resting = place

    @property
    def left(self) -> list[tuple[int, int]]:
        """Return address and stack pointer of each call that is still under way while the machine is at rest."""
        return self._diversions.returns

    def leave(self, returns: Iterable[tuple[int, int]]) -> None:
        """Nobody waits for these calls: their tasks have nothing to do when they return."""
        for address, stack in returns:
            self._diversions.at_return(Spot(address, stack, 0), self._play_returns)

    def clear_stack(self) -> None:
        """Forget what the resting task has done: below its trap frame is nothing that it would go back to."""
        start, end = (self._resting.stack & -STACK_SIZE) + _STACK_END, self._resting.frame
        self.cpu.write(start, bytes(end - start))

    def stack_above(self) -> tuple[int, bytes]:
        """Address and content of the resting task's stack above all calls: a task that dies begins there anew."""
        start = self._resting.stack - RED_ZONE
        return start, self.cpu.read(start, (start | (STACK_SIZE - 1)) + 1 - start)

    def address(self, function: str) -> int:
        """The function's address. Raises MissingInformationError if this kernel has none of the name."""
        address = self._symbols.get(function)
        if address is None:
            address = self._symbols[function] = self.image.kallsyms.address(function)
        return address

    def is_return(self, address: int) -> bool:
        """Whether it is an address that calls return to, and no place in the kernel's code."""
        return self._returns <= address <= self._play_returns

    @property
    def playing(self) -> bool:
        """Whether it is a program of another task that runs."""
        return self._playing is not None

    @property
    def at_rest(self) -> bool:
        """Whether no call is under way that Python is a part of."""
        return not self._depth and self._playing is None

    @property
    def nested(self) -> bool:
        """Whether more than one call is under way."""
        return self._depth > 1

    def has(self, function: str) -> bool:
        return self.image.kallsyms.get(function) is not None

    def first(self, *names: str) -> str:
        """The first of these that the kernel has; the last, if none (then the call says so)."""
        return next((name for name in names if self.has(name)), names[-1])

    def __call__(
        self,
        function: str | int,
        *arguments: Argument,
        limit: RunLimit | None = None,
        interrupts: bool = True,
        way: Sequence[Site] = (),
    ) -> int:
        """The value of ``function(arguments)``, as a register holds it.

        :param function: name or address.
        :param arguments: integers and pointers as int (wrapped to 64 bits); bytes and str are copied to the
            stack, str with a terminating NUL, and passed as pointers that are valid during the call.
        :param limit: MachineHang after it (:attr:`too_late`); after that of a nested call, the machine is not at rest
            and cannot be used further.
        :param interrupts: whether they are enabled when the function is entered (not for nested calls).
        :param way: what the kernel's own code has on the stack when it calls the function (:meth:`way`).
        """
        address = self.address(function) if isinstance(function, str) else function
        if self._playing is not None:
            # Interrupts are as they are; what the task has in registers, it gets back afterwards.
            enter = self.abi.enter(address, self.cpu.read_registers(), interrupts=False)
            return self._call_of(self._playing, enter, arguments, way)
        if self.stopped is not None and not self._depth:
            raise MachineError(
                f"this machine has stopped: {self.stopped}",
                hint="go on from a fork that was made before, or boot again",
            )
        if self._depth >= _DEPTH_LIMIT:
            raise UnmodelledError("calls into the kernel are nested too deeply")
        cpu, abi = self.cpu, self.abi
        nested = self._depth > 0
        saved = cpu.read_registers() if nested else {}
        until = self._returns + abi.instruction * self._depth
        enter = abi.enter(address, saved if nested else None, interrupts=interrupts)
        if nested:
            registers, spot = self._place_below(saved[abi.stack_register], until, arguments) | enter, None
        else:
            registers, spot = self._begin(enter, arguments, way, until)
        self._run(registers, spot, until, limit)
        value = abi.result(cpu)
        if spot is None:
            self._wipe(abi.stack_after(registers))
        if nested:
            cpu.restore_registers(saved)
        return value

    def _run(self, registers: Registers, spot: Spot | None, until: int, limit: RunLimit | None) -> None:
        """Run a call to its end.

        :param spot: where the kernel's code is that it comes back to; :param until: the address, if there is none.
        """
        stack = self.abi.stack_after(registers)
        if spot is not None:
            until, stack = spot.returns, spot.stack
        self.cpu.write_registers(registers)
        self._depth += 1
        left = False
        try:
            self._finish(until, stack, limit or self.limit)
        except MachineError as error:
            if isinstance(error, MachineFault) and error.survived:
                left = isinstance(error, MachineHang) and error.left
                raise
            if self.stopped is None:
                self.stopped = error
                self.stopped = self.failed(error)
            raise self.stopped from error
        except KeyboardInterrupt:
            self.interrupted()
            raise
        finally:
            self._depth -= 1
            if spot is not None and left:
                self._diversions.at_return(spot, self._play_returns)

    def _finish(self, until: int, stack: int, limit: RunLimit) -> None:
        """Run until the call that was begun has come back, with this stack pointer."""
        try:
            self.cpu.run(until, limit, stack)
        except MachineHang as hang:
            if self.nested or self.stopped is not None:
                raise
            self.ends = None  # what has to be cleaned up takes no time to speak of
            self.too_late(hang, lambda limit: self.cpu.run(until, limit, stack))

    # -- from where functions are called ------------------------------------------------------------------
    def _entry(self, frame: int) -> Spot | None:
        """Where the entry point of system calls calls C, with this trap frame."""
        behind = self.ways.behind_call(*self.abi.entry) if frame else None
        return None if behind is None else self.abi.spot_of_entry(self.image.btf, frame, behind)

    def _spot(self, arguments: tuple[Argument, ...], way: Sequence[Site]) -> Spot | None:
        """Where the kernel's own code would call a function, None for one that wants anything on the stack."""
        if len(arguments) > self.abi.arguments_in_registers:
            return None
        for argument in arguments:
            if not isinstance(argument, int):
                return None
        spot = self.place.spot
        if spot is not None:
            for site in way:
                spot = self.abi.call_from(self.cpu, spot, site)
        return spot

    def way(self, function: int, by: str = "", after: tuple[str, ...] = ()) -> tuple[Site, ...]:
        """The calls by which the system call that we are inside of comes to a function: see :meth:`Ways.to`."""
        inside = self.place.inside
        return self.ways.to(inside, function, by, after) if inside else ()

    @contextmanager
    def inside(self, function: int, begin: Callable[[], object]) -> Iterator[Inside]:
        """In the ``with`` block be inside of a function that a call comes to; it does not run itself.

        Calls from there have the kernel's real code below them. At the end the function returns, if it was given a
        value, and the call goes on to its own end; otherwise the task is somewhere else by then.

        :param function: address. :param begin: makes the call.
        """
        place, inside = self.place, Inside()
        outer = place.spot
        if outer is None or place.inside or (self._depth and self._playing is None):
            yield inside
            return
        stop = self._diversions.at_function(function, outer)
        try:
            begin()
        finally:
            self._diversions.forget_function(function, outer)
        if not stop.registers:  # something on the way, such as a filter of system calls, has answered
            yield inside
            return
        stack, spot = place.stack, self.abi.spot_here(self.cpu, stop.registers)
        place.stack, place.spot, place.inside = stop.registers[self.abi.stack_register], spot, function
        try:
            yield inside
        finally:
            place.stack, place.spot, place.inside = stack, outer, 0
        if inside.value is not None:
            registers = {**stop.registers, **self.abi.coming_back(spot, inside.value)}
            if self._playing is not None:
                self._wait(self._playing, registers, outer)
            else:
                self._run(registers, outer, self._returns, None)

    # -- programs of other tasks ------------------------------------------------------------------------
    @property
    def plays(self) -> int:
        """How many programs wait for the end of a call, without those that nobody waits for."""
        return sum(not play.left for play, _ in self._waiting.values())

    def leave_plays(self) -> None:
        """Wait for none of the programs any more. They go on when their calls return."""
        for play, _ in self._waiting.values():
            play.left = True

    def play(self, place: Place, program: Callable[[], None]) -> None:
        """Run a program as the current task, which stands at a breakpoint; its calls may sleep.

        It begins at once. This comes back when it calls the kernel, or has ended; at its end the program has to leave
        the registers so that the task has something to do. An exception of the program ends the run.
        """
        place.spot = self._entry(place.frame)
        play = _Play(place, greenlet(program))
        self._go_on(play, play.greenlet.switch)

    def _go_on(self, play: _Play, switch: Callable[[], object]) -> None:
        """Let a program run until it waits for its next call, or has ended."""
        cpu, outer, table = self.cpu, self._playing, self.cpu.user_table
        play.greenlet.parent = getcurrent()
        self._playing, cpu.user_table = play, play.place.user_table
        try:
            switch()
        finally:
            self._playing, cpu.user_table = outer, table

    def _call_of(self, play: _Play, enter: Registers, arguments: tuple[Argument, ...], way: Sequence[Site]) -> int:
        """What a program calls: the machine goes on, and the program when that has returned."""
        if play.dead:
            raise GreenletExit
        return self._wait(play, *self._begin(enter, arguments, way, self._play_returns))

    def _wait(self, play: _Play, registers: Registers, spot: Spot | None) -> int:
        """Let the machine go on with these registers, and the program when the call has returned: its value."""
        cpu = self.cpu
        stack = self.abi.stack_after(registers) if spot is None else spot.stack
        self._waiting[stack] = play, cpu.read_registers()
        if spot is not None:
            self._diversions.at_return(spot, self._play_returns)
        cpu.write_registers(registers)
        parent = play.greenlet.parent
        assert parent is not None  # only the first greenlet of a thread has none
        try:
            value = int(parent.switch())
        finally:
            if spot is not None:
                self._diversions.forget_return(spot)
        if spot is None:
            self._wipe(stack)
        return value

    def _arrived(self) -> None:
        """A program's call has returned."""
        found = self._waiting.pop(self.cpu.get(self.abi.stack_register), None)
        if found is None:  # nobody waits for it any more: its task has nothing to do
            self.put_to_sleep()
            return
        play, saved = found
        value = self.abi.result(self.cpu)
        self.cpu.restore_registers(saved)
        self._go_on(play, lambda: play.greenlet.switch(value))

    def put_to_sleep(self) -> None:
        """The current task sleeps for ever, wherever it is."""
        saved = self.cpu.read_registers()
        registers = self._place_below(saved[self.abi.stack_register], self._play_returns, (_FOR_EVER,))
        address = self.address("schedule_timeout_uninterruptible")
        self.cpu.write_registers({**registers, **self.abi.enter(address, saved, interrupts=True)})

    def _wipe(self, stack: int) -> None:
        """Take back the return address that a call has left below its stack: it is none of the kernel's own.

        What unwinds a stack shows all that looks like one.
        """
        self.cpu.write(stack - 8, bytes(8))

    def abandon(self, stack: int) -> None:
        """End the program of the task that has this address on its kernel stack."""
        for address, (play, _) in list(self._waiting.items()):
            if address // STACK_SIZE == stack // STACK_SIZE:
                del self._waiting[address]
                play.dead = True
                self._go_on(play, play.greenlet.throw)

    def _begin(
        self, enter: Registers, arguments: tuple[Argument, ...], way: Sequence[Site], until: int
    ) -> tuple[Registers, Spot | None]:
        """What a call that is amid no other one begins with: the registers, and where the kernel's code makes it."""
        spot = self._spot(arguments, way)
        if spot is None:
            return self._place_below(self.place.stack, until, arguments) | enter, None
        return self._place(spot.stack, spot.returns, arguments) | enter | self.abi.at_spot(spot), spot

    def _place_below(self, stack: int, until: int, arguments: tuple[Argument, ...]) -> Registers:
        """As :meth:`_place`, where nothing is disturbed of what has this stack pointer."""
        return self._place((stack - RED_ZONE) & ~0xF, until, arguments)

    def _place(self, stack: int, until: int, arguments: tuple[Argument, ...]) -> Registers:
        """Write arguments and return address; the registers to set."""
        values = []
        for argument in arguments:
            if isinstance(argument, int):
                values.append(argument & _MASK)
                continue
            data = argument if isinstance(argument, bytes) else argument.encode("utf-8", "surrogateescape") + b"\0"
            if len(data) > _STACK_DATA_LIMIT:
                raise InputError(f"an argument of {len(data)} bytes is too long for the kernel's stack")
            stack = (stack - len(data)) & ~0xF
            self.cpu.write(stack, data)
            values.append(stack)
        return self.abi.place(self.cpu, stack, until, values)
