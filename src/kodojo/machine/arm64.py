"""An arm64 processor on a bare machine: the engine, and what it leaves out.

Unicorn executes instructions, walks page tables and returns from exceptions. It does not enter the guest's
handlers, and its counter is the host's clock. Here exceptions and interrupts go where VBAR_EL1 says, and the counter
is the number of basic blocks executed and of those that were skipped while the guest waited (WFI) or looked at the
clock, so two runs from the same state are the same to the last byte. The generic timer compares with that counter.

The processor is at EL1 with the firmware's side (PSCI) answered here. User code (EL0) is not run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from kodojo.errors import FaultReport, MachineError, MachineHang
from kodojo.machine.board_arm64 import VirtBoard
from kodojo.machine.cpu import LIMIT_REACHED, ProcessorState, Registers, RunLimit
from kodojo.machine.engine import Engine, Stop, SystemRegister, engine_identity
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.processor import UNUSUAL, Processor, Window, register_in_state
from kodojo.machine.toll import EARNED_PER_TICK, EXCEPTION, STOP

__all__ = ["Arm64"]

GENERAL_REGISTERS = (*(f"x{number}" for number in range(31)), "sp", "pc")
_CPU_MODEL = "A72"

COUNTER_FREQUENCY = 62_500_000  # as QEMU's; a basic block takes one count, 16 nanoseconds
TICKS_PER_SECOND = 250
COUNTS_PER_TICK = COUNTER_FREQUENCY // TICKS_PER_SECOND
# Code that faults for ever, having executed next to nothing, comes to its limit too.
COUNTS_PER_EXCEPTION = 1_000
# A kernel delays by reading the counter until it is late enough (1.6 microseconds a read). Reading it costs as much.
COUNTS_PER_READ = 100
# An interrupt that is masked is looked at again block by block for a while: the kernel's idle loop unmasks interrupts
# for a few instructions only. Later it is now and then, at intervals that fall into step with no loop, and that grow:
# what has them masked for long may be about to hang.
_PATIENCE = 64
_ONE_BLOCK = 2  # a run ends at the beginning of the block with this number
_NOW_AND_THEN = range(151, 248)
_GROWTH = 256  # looks after which the interval grows by its length
_LONGEST_RUN = 1 << 26  # a second of guest time, which no kernel lets pass without a timer

# Arm ARM, D13.2 (op0, op1, CRn, CRm, op2)
_SCTLR_EL1: SystemRegister = (3, 0, 1, 0, 0)
_TCR_EL1: SystemRegister = (3, 0, 2, 0, 2)
_SPSR_EL1: SystemRegister = (3, 0, 4, 0, 0)
_SP_EL0: SystemRegister = (3, 0, 4, 1, 0)
_SCR_EL3: SystemRegister = (3, 6, 1, 1, 0)
_HCR_EL2: SystemRegister = (3, 4, 1, 1, 0)
_SYSTEM_REGISTERS = {
    "sctlr_el1": _SCTLR_EL1, "tcr_el1": _TCR_EL1, "spsr_el1": _SPSR_EL1, "sp_el0": _SP_EL0,
}  # fmt: skip
_SCR_NON_SECURE_HVC_AARCH64 = 0x501
_HCR_EL1_IS_AARCH64 = 1 << 31

_EL1H = 0x5
_MODE_MASK, _EXCEPTION_LEVEL = 0xF, 0xC
_DAIF, _IRQ_MASKED = 0x3C0, 0x80
_VECTOR_SYNCHRONOUS, _VECTOR_IRQ = 0x200, 0x280  # from the current level, with its own stack pointer
_FETCH_AND_DATA_ABORTS = frozenset({0x20, 0x21, 0x22, 0x24, 0x25})  # exception classes that set FAR_EL1

# The engine's numbers of exceptions that are no business of the guest's EL1
_EXCP_HVC, _EXCP_SMC = 11, 13
_PSCI_VERSION, _PSCI_OFF, _PSCI_RESET = 0x8400_0000, 0x8400_0008, 0x8400_0009
_PSCI_1_0, _PSCI_NOT_SUPPORTED = 0x1_0000, (1 << 64) - 1

_YIELDS = frozenset({0xD503_203F, 0xD503_205F})  # YIELD, WFE: the engine comes back to let others run

# MRS and MSR of CNTPCT, CNTVCT, CNT{P,V}_{TVAL,CTL,CVAL}: op1 3, CRn 14, CRm 0, 2 or 3
_TIMER_ACCESS_MASK, _TIMER_ACCESS = 0xFFDF_F000, 0xD51B_E000
_COUNTER, _PHYSICAL_TIMER, _VIRTUAL_TIMER = 0, 2, 3  # CRm
_TVAL, _CTL, _CVAL = 0, 1, 2  # op2 of a timer
_CTL_ENABLE, _CTL_MASKED, _CTL_STATUS = 1, 2, 4
_WORD = (1 << 64) - 1

_DESCRIPTOR_ADDRESS = 0xFFFF_FFFF_F000
_GRANULES = ({0: 12, 1: 16, 2: 14}, {1: 14, 2: 12, 3: 16})  # bits of a page, by TCR's TG0 and TG1
_GIB = 1 << 30
_WINDOW = 0x60_0000_0000  # far below the stack and the mappings of a process, far above its program
_WINDOW_SIZE = 0x10_0000_0000
_WINDOW_BLOCK = 0x781  # valid, inner shareable, accessed, read-only
_WINDOW_TABLE = 3


class Arm64(Processor):
    """One processor; see :class:`kodojo.machine.cpu.Cpu` for what its methods promise.

    :attr user_table: where the page table of user space is, if it is not where TTBR0_EL1 says: a kernel may keep it
        out of its own reach while it does not need it (``CONFIG_ARM64_SW_TTBR0_PAN``).
    """

    architecture = "aarch64"
    program_counter = "pc"
    stack_pointer = "sp"

    def __init__(self, ram: Ram, board: VirtBoard, places: tuple[int, ...] | None = None) -> None:
        """Make a processor at rest.

        :param places: see :attr:`places`; found by experiment if not given.
        """
        super().__init__()
        self.ram = ram
        self.board = board
        self.places = places or (_find_exception_state(),)
        self.engine = Engine("aarch64", _CPU_MODEL, ram)
        self.engine.set_system(_SCR_EL3, _SCR_NON_SECURE_HVC_AARCH64)
        self.engine.set_system(_HCR_EL2, _HCR_EL1_IS_AARCH64)
        self._window = _window(self.engine, ram)
        self.engine.map_bus(0, ram.base, board.bus_read, board.bus_write)
        self._registers = self.engine.batch(GENERAL_REGISTERS)
        self._counter_sites: set[int] = set()
        self.blocks = 0
        self.skipped = 0
        self._paid_until = 0  # the counter when credit was earned last
        self._looks = 0  # at an interrupt that is masked
        self.user_table: int | None = None
        # The two timers: control and compare value.
        self._timers = {_PHYSICAL_TIMER: [0, 0], _VIRTUAL_TIMER: [0, 0]}
        self._running = False
        self._deadline = 0
        board.interrupted = lambda: self.engine.shorten(1)

    # -- time ---------------------------------------------------------------------------------------
    @property
    def counter(self) -> int:
        """CNTVCT_EL0."""
        return self.blocks + self.skipped + (self.engine.blocks_so_far() if self._running else 0)

    @property
    def ticks(self) -> int:
        """Periods of 1/250 s since power-on."""
        return self.counter // COUNTS_PER_TICK

    def _due(self) -> int | None:
        """When the timer's line rises, as a value of the counter; None if never."""
        control, compare = self._timers[_VIRTUAL_TIMER]
        return compare if control & (_CTL_ENABLE | _CTL_MASKED) == _CTL_ENABLE else None

    def _raise_line(self) -> None:
        due = self._due()
        self.board.timer = due is not None and due <= self.counter

    # -- running ------------------------------------------------------------------------------------
    def run(self, until: int, limit: RunLimit | None = None, stack: int | None = None) -> None:
        """See :meth:`kodojo.machine.cpu.Cpu.run`; the limit's ticks are periods of the counter."""
        deadline = self.counter + (limit or RunLimit()).ticks * COUNTS_PER_TICK
        self._run(until, deadline, stack)

    def _run_to_event(self, pc: int, deadline: int) -> None:
        self._started = True
        self._deadline = deadline
        blocks = self._blocks_to_run(deadline)
        self._running = True
        try:
            stop, number, used = self.engine.start(pc, blocks)
        finally:
            self._running = False
        self.blocks += used
        if stop is Stop.EXCEPTION and number in (_EXCP_HVC, _EXCP_SMC):
            self._call_firmware()
        elif stop is Stop.EXCEPTION:
            self._deliver_exception()
        elif stop is Stop.INVALID:
            if int.from_bytes(self.read(self.engine.get("pc") - 4, 4), "little") not in _YIELDS:
                self._deliver_exception()
        elif stop is Stop.HALTED:
            self._wait(deadline)
        self._pay()
        if self.counter >= deadline:
            raise self._hang("guest code did not come back within the limit", LIMIT_REACHED)
        self._interrupt()

    def _pay(self) -> None:
        """Earn for the time that has passed, pay for the stop, and wait if there is no credit left."""
        toll = self.engine.toll
        earned = (self.counter - self._paid_until) * EARNED_PER_TICK // COUNTS_PER_TICK
        if earned:
            toll.earn(earned)
            self._paid_until = self.counter
        if toll.pay(STOP):
            self.skipped += toll.debt * COUNTS_PER_TICK // EARNED_PER_TICK

    def _blocks_to_run(self, deadline: int) -> int:
        now = self.counter
        ends = [deadline]
        due = self._due()
        if self.board.interrupt() is not None:  # held back by the processor's own mask
            ends.append(now + self._blocks_to_next_look())
            self._looks += 1
        elif due is not None and due > now:
            ends.append(due)
        return max(1, min(_LONGEST_RUN, min(ends) - now))

    def _blocks_to_next_look(self) -> int:
        if self._looks < _PATIENCE:
            return _ONE_BLOCK
        return _NOW_AND_THEN[self._looks % len(_NOW_AND_THEN)] * (1 + self._looks // _GROWTH)

    def _wait(self, deadline: int) -> None:
        """WFI: skip the time until something would wake the processor."""
        self._looks = 0
        self._raise_line()
        if self.board.interrupt() is not None:
            return
        due = self._due()
        if due is None or not self.board.timer_enabled:
            masked = self.engine.get("pstate") & _IRQ_MASKED
            what = "was halted with interrupts off" if masked else "waits, and every interrupt is masked"
            raise self._hang(f"the processor {what}", "halted for ever")
        self.skipped += max(0, min(due, deadline) - self.counter)

    def _interrupt(self) -> None:
        self._raise_line()
        if self.board.interrupt() is not None and not self.engine.get("pstate") & _IRQ_MASKED:
            self._looks = _PATIENCE  # the handler needs some blocks to acknowledge it, and nobody unmasks it before
            self._enter(_VECTOR_IRQ)

    def _hang(self, message: str, cause: str) -> MachineHang:
        return MachineHang(message, FaultReport(cause, registers=self.read_registers()))

    # -- exceptions ---------------------------------------------------------------------------------
    def _deliver_exception(self) -> None:
        """Enter the guest's handler of synchronous exceptions with what the engine knows about this one."""
        self.skipped += COUNTS_PER_EXCEPTION
        self.engine.toll.pay(EXCEPTION)
        syndrome, _, low, high = self.engine.state_words(self.places[0], 4)
        self.engine.set("esr_el1", syndrome)
        if syndrome >> 26 in _FETCH_AND_DATA_ABORTS:
            self.engine.set("far_el1", high << 32 | low)
        self._enter(_VECTOR_SYNCHRONOUS)

    def _enter(self, vector: int) -> None:
        """What the architecture does on taking an exception to EL1 (Arm ARM, D1.10)."""
        engine = self.engine
        pstate = engine.get("pstate")
        if not pstate & _EXCEPTION_LEVEL:
            raise MachineError("an exception in user mode: this machine runs no user code")
        handlers = engine.get("vbar_el1")
        if self.translate(handlers + vector) is None:
            raise MachineError(f"an exception at {engine.get('pc'):#x}, and the guest has no handlers in VBAR_EL1")
        engine.set("elr_el1", engine.get("pc"))
        engine.set_system(_SPSR_EL1, pstate)
        engine.set("pstate", _DAIF | _EL1H)
        engine.set("pc", handlers + vector)

    def _call_firmware(self) -> None:
        """HVC or SMC: the Power State Coordination Interface (ARM DEN 0022)."""
        function = self.engine.get("x0") & 0xFFFF_FFFF
        if function in (_PSCI_OFF, _PSCI_RESET):
            what = "off" if function == _PSCI_OFF else "on again"
            raise MachineError(f"the guest has turned the machine {what}")
        self.engine.set("x0", _PSCI_1_0 if function == _PSCI_VERSION else _PSCI_NOT_SUPPORTED)

    # -- the counter and the timers ------------------------------------------------------------------
    def trap_time_stamp_reads(self, addresses: Iterable[int]) -> None:
        """Answer the accesses to counter and timers at exactly these addresses from here, not from the host.

        An address that later holds something else (its memory was used again) is passed over.
        """
        wanted = set(addresses)
        for address in self._counter_sites - wanted:
            self.engine.remove_trap(address)
        for address in sorted(wanted - self._counter_sites):
            self.engine.trap_system_register(address, self._access)
            if self._started and self.translate(address) is not None:
                self.forget_code(address, 4)
        self._counter_sites = wanted

    @property
    def time_stamp_sites(self) -> frozenset[int]:
        """The addresses that are trapped (:meth:`trap_time_stamp_reads`)."""
        return frozenset(self._counter_sites)

    @staticmethod
    def time_stamp_reads(code: bytes, address: int) -> list[int]:
        """Where in ``code``, which is at ``address``, counter and timers are read or written."""
        words = np.frombuffer(code, "<u4", len(code) // 4)
        found = np.flatnonzero((words & _TIMER_ACCESS_MASK) == _TIMER_ACCESS)
        timers = words[found] >> 8 & 0xF
        wanted = np.isin(timers, (_COUNTER, _PHYSICAL_TIMER, _VIRTUAL_TIMER)) & (words[found] & 0xFE0 != 0)
        return [address + 4 * index for index in found[wanted].tolist()]

    def _access(self, register: SystemRegister, number: int, is_read: bool) -> bool:
        timer, which = register[3:]
        if register[:3] != (3, 3, 14) or timer not in (_COUNTER, *self._timers) or not timer | which:
            return False
        if is_read:
            if timer == _COUNTER:
                self.skipped += COUNTS_PER_READ
                self._end_in_time()
            value = self.counter if timer == _COUNTER else self._read_timer(timer, which)
            if number < 31:
                self.engine.set(f"x{number}", value & _WORD)
            return True
        self._write_timer(timer, which, self.engine.get(f"x{number}") if number < 31 else 0)
        return True

    def _read_timer(self, timer: int, which: int) -> int:
        control, compare = self._timers[timer]
        if which == _CTL:
            status = control & _CTL_ENABLE and compare <= self.counter
            return control | (_CTL_STATUS if status else 0)
        return compare if which == _CVAL else (compare - self.counter) & 0xFFFF_FFFF

    def _write_timer(self, timer: int, which: int, value: int) -> None:
        state = self._timers[timer]
        if which == _CTL:
            state[0] = value & (_CTL_ENABLE | _CTL_MASKED)
        elif which == _CVAL:
            state[1] = value
        else:
            state[1] = (self.counter + ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000) & _WORD
        self._raise_line()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """Let this run end when the timer is due, or the limit is reached."""
        due = self._due()
        end = self._deadline if due is None or self.board.timer else min(due, self._deadline)
        self.engine.shorten(max(1, end - self.counter))

    # -- registers ----------------------------------------------------------------------------------
    def read_registers(self) -> Registers:
        return {**self._registers.read(), "pstate": int(self.engine.get("pstate"))}

    def write_registers(self, values: Registers) -> None:
        for name, value in values.items():
            self.set(name, value)

    def restore_registers(self, values: Registers) -> None:
        """All the general registers, as :meth:`read_registers` gave them."""
        self._registers.write(values)
        self.engine.set("pstate", values["pstate"])

    def get(self, register: str) -> int:
        system = _SYSTEM_REGISTERS.get(register)
        return self.engine.get_system(system) if system is not None else int(self.engine.get(register))

    def set(self, register: str, value: int) -> None:
        system = _SYSTEM_REGISTERS.get(register)
        if system is not None:
            self.engine.set_system(system, value)
        else:
            self.engine.set(register, value)

    # -- memory -------------------------------------------------------------------------------------
    def _mapping(self, address: int) -> tuple[int, int] | None:
        """Physical address, and how many bytes from there on are contiguous (Arm ARM, D5.2)."""
        engine, ram = self.engine, self.ram
        if not engine.get_system(_SCTLR_EL1) & 1:
            return (address, ram.base + ram.size - address) if address in ram else None
        upper = address >> 63
        control = engine.get_system(_TCR_EL1)
        if upper:
            table, size, granule = engine.get("ttbr1_el1"), 64 - (control >> 16 & 0x3F), control >> 30 & 3
        else:
            table, size, granule = engine.get("ttbr0_el1"), 64 - (control & 0x3F), control >> 14 & 3
            if self.user_table is not None:
                table = self.user_table
        if address >> size != (_WORD >> size if upper else 0) or granule not in _GRANULES[upper]:
            return None
        bits = _GRANULES[upper][granule]
        stride = bits - 3
        table &= _DESCRIPTOR_ADDRESS
        levels = -(-(size - bits) // stride)
        for level in range(levels - 1, -1, -1):
            shift = bits + level * stride
            index = (address & ((1 << size) - 1)) >> shift & ((1 << stride) - 1)
            entry = ram.table_entry(table + 8 * index)
            if not entry & 1 or (level == 0 and not entry & 2):
                return None
            table = entry & _DESCRIPTOR_ADDRESS
            if level == 0 or not entry & 2:
                inside = address & ((1 << shift) - 1)
                physical = (table & ~((1 << shift) - 1)) | inside
                return (physical, (1 << shift) - inside) if physical in ram else None
        return None

    # -- the whole state ----------------------------------------------------------------------------
    def save_state(self) -> ProcessorState:
        return ProcessorState(
            self.engine.save_state(),
            {
                "blocks": self.blocks,
                "skipped": self.skipped,
                "looks": self._looks,
                "credit": self.engine.toll.credit,
                "paid_until": self._paid_until,
                "timers": [list(self._timers[_PHYSICAL_TIMER]), list(self._timers[_VIRTUAL_TIMER])],
                "counter_sites": sorted(self._counter_sites),
                "user_table": self.user_table,
            },
        )

    def restore_state(self, state: ProcessorState) -> None:
        """The inverse of :meth:`save_state`; the timer's line follows from its registers."""
        self.engine.restore_state(state.engine)
        self._started = True
        facts = state.facts
        self.blocks, self.skipped, self.user_table = facts["blocks"], facts["skipped"], facts["user_table"]
        self._looks = facts["looks"]
        self.engine.toll.credit, self._paid_until = facts["credit"], facts["paid_until"]
        physical, virtual = facts["timers"]
        self._timers = {_PHYSICAL_TIMER: list(physical), _VIRTUAL_TIMER: list(virtual)}
        self._raise_line()
        self.trap_time_stamp_reads(facts["counter_sites"])

    @staticmethod
    def identity() -> str:
        """A saved state of this processor can be restored into one of the same identity."""
        return f"{engine_identity()}-{_CPU_MODEL}"

    def reset_for_boot(self, entry: int, x0: int) -> None:
        """The state in which the arm64 boot protocol enters a kernel (Documentation/arch/arm64/booting.rst)."""
        self.engine.set("pstate", _DAIF | _EL1H)
        self.engine.set("x0", x0)
        self.engine.set("pc", entry)


def _window(engine: Engine, ram: Ram) -> Window:
    """Blocks of 1 GiB, in a part of user space that no process uses."""
    own = Ram(2 * PAGE_SIZE, base=_WINDOW_SIZE)
    root, middle = own.base, own.base + PAGE_SIZE
    own.write(root, struct.pack("<Q", middle | _WINDOW_TABLE))
    for block in range((ram.base + ram.size - 1) // _GIB + 1):
        own.write(middle + 8 * ((_WINDOW // _GIB) + block), struct.pack("<Q", block * _GIB | _WINDOW_BLOCK))
    return Window(engine, own, _WINDOW, register_in_state(engine, "ttbr0_el1"))


def _find_exception_state() -> int:
    """Where a saved state keeps what an exception is about: syndrome (32 bits), FSR (32), address (64).

    The place differs from build to build, so a load from an unusual address is made to fail.
    """
    ram = Ram(16 * PAGE_SIZE)
    ram.write(0x1000, struct.pack("<I", 0xF9400000))  # ldr x0, [x0]
    ram.write(0x2000, struct.pack("<512Q", *([0] * 512)))
    ram.write(0x2000, struct.pack("<Q", 0x3003))
    ram.write(0x3000, struct.pack("<Q", 0x4003))
    ram.write(0x4000, struct.pack("<Q", 0x5003))
    ram.write(0x5008, struct.pack("<Q", 0x1783))
    engine = Engine("aarch64", _CPU_MODEL, ram)
    engine.set_system(_SCR_EL3, _SCR_NON_SECURE_HVC_AARCH64)
    engine.set_system(_HCR_EL2, _HCR_EL1_IS_AARCH64)
    engine.set_system(_TCR_EL1, 16)
    engine.set("ttbr0_el1", 0x2000)
    engine.set_system(_SCTLR_EL1, engine.get_system(_SCTLR_EL1) | 1)
    engine.set("x0", UNUSUAL)
    engine.start(0x1000, 100)
    engine.set("x0", 0)
    state = engine.save_state()
    where = state.find(struct.pack("<Q", UNUSUAL)) - 8
    if where < 0 or int.from_bytes(state[where : where + 4], "little") >> 26 != 0x25:
        raise MachineError(
            "this build of Unicorn keeps its exception state where kodojo cannot find it",
            hint="install unicorn 2.1.4",
        )
    return where
