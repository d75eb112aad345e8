"""An x86-64 processor on a bare machine: the engine, and what it leaves out.

Unicorn executes instructions and walks page tables. It does not deliver exceptions and interrupts
through the guest's IDT, and it has no notion of time. Here they are. Time passes only when the guest
waits (HLT) or when it has executed a fixed number of basic blocks without waiting, and the time-stamp
counter is derived from the blocks executed, so two runs from the same state are the same to the last byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from kodojo.errors import FaultReport, MachineError, MachineHang, UnmappedError
from kodojo.machine.board import PcBoard
from kodojo.machine.cpu import LIMIT_REACHED, ProcessorState, Registers, RunLimit
from kodojo.machine.engine import Engine, Stop, engine_identity
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.processor import Processor, Window, register_in_state
from kodojo.machine.toll import CPUID, EARNED_PER_TICK, EXCEPTION, PORT, STOP

__all__ = ["X86_64"]

GENERAL_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip

_RFLAGS_IF = 1 << 9
_RFLAGS_CLEARED_BY_GATE = (1 << 8) | (1 << 14) | (1 << 16) | (1 << 17)  # TF, NT, RF, VM
_INTERRUPT_GATE = 0xE
_INVALID_OPCODE = 6
_PAGE_FAULT = 14
_DOUBLE_FAULT = 8
_VECTORS_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_MSR_EFER = 0xC0000080
_EFER_LONG_MODE = 0x501 | (1 << 11)  # SCE, LME, LMA, NXE
_RDTSC = b"\x0f\x31"
_RDTSCP = b"\x0f\x01\xf9"
_TIME_STAMP_READ = re.compile(rb"\x0f\x31|\x0f\x01\xf9")

# What the guest must not find, by CPUID leaf: bits of EAX, EBX, ECX, EDX. The time-stamp counter (leaf
# 1 EDX bit 4; RDTSCP), RDRAND (leaf 1 ECX bit 30) and RDSEED (leaf 7 EBX bit 18) would be the host's.
_CPUID_HIDDEN = {
    0x1: (0, 0, 1 << 30, 1 << 4),
    0x7: (0, 1 << 18, 0, 0),
    0x80000001: (0, 0, 0, (1 << 27) | (1 << 4)),
}
_CPU_MODEL = "QEMU64"

# A guest that does not wait gets a timer tick each time it has executed this many basic blocks.
BLOCKS_PER_TICK = 250_000
# An exception takes as much of a timer period as this many blocks. Code that faults for ever, having executed
# next to nothing, so comes to its limit too.
BLOCKS_PER_EXCEPTION = 1_000

_PHYSICAL_BITS = 40
_PHYSICAL_MASK = 0xFFFFFFFFFF000
_CANONICAL_BITS = 47  # those above are all the same
_CANONICAL = (0, 0x1FFFF)
_IDT_ENTRY = struct.Struct("<HHBBHII")
_GIB = 1 << 30
_TABLE_FLAGS = 0x23  # present, writable, accessed
_LARGE_PAGE = 0x80
_WINDOW_SLOT = 271  # 0xffff800000000000 to 0xffff87ffffffffff: Documentation/arch/x86/x86_64/mm.rst, "hypervisor"
_WINDOW = 0xFFFF878000000000


class X86_64(Processor):  # noqa: N801  the architecture's name
    """One processor; see :class:`kodojo.machine.cpu.Cpu` for what its methods promise."""

    architecture = "x86_64"
    program_counter = "rip"
    stack_pointer = "rsp"

    def __init__(self, ram: Ram, board: PcBoard, places: tuple[int, ...] | None = None) -> None:
        """Make a processor at rest.

        :param places: see :attr:`places`; found by experiment if not given (10 ms).
        """
        super().__init__()
        self.ram = ram
        self.board = board
        self.places = places or _find_in_flight()
        self.user_table: int | None = None
        self.engine = Engine("x86_64", _CPU_MODEL, ram)
        window = self._window = _window(self.engine, ram)
        self.engine.map_bus(ram.base + ram.size, window.ram.base, board.bus_read, board.bus_write)
        self.engine.hook_instruction("IN", board.port_in, PORT)
        self.engine.hook_instruction("OUT", lambda port, _size, value: board.port_out(port, value), PORT)
        self.engine.hook_instruction("CPUID", self._cpuid, CPUID)
        self._registers = self.engine.batch(GENERAL_REGISTERS)
        self._cpuid_answers: dict[int, tuple[int, ...]] = {}
        self._tsc_sites: set[int] = set()
        self.blocks = 0
        self.ticks = 0
        self._until_tick = BLOCKS_PER_TICK

    # -- running ------------------------------------------------------------------------------------
    def run(self, until: int, limit: RunLimit | None = None, stack: int | None = None) -> None:
        deadline = self.ticks + (limit or RunLimit()).ticks
        self._run(until, deadline, stack)

    def _run_to_event(self, rip: int, deadline: int) -> None:
        self._started = True
        budget = self._until_tick
        stop, vector, used = self.engine.start(rip, budget)
        self.blocks += used
        self._until_tick -= used
        if stop is Stop.EXCEPTION:
            self._deliver_exception(vector)
        elif stop is Stop.INVALID:
            self._deliver_exception(_INVALID_OPCODE)
        elif stop is Stop.HALTED:
            self._halted(deadline)
        elif stop is Stop.COUNTED:
            self._tick(deadline, deliver=bool(self.engine.get("rflags") & _RFLAGS_IF))
        if self.engine.toll.pay(STOP):
            self._until_tick = min(self._until_tick, 1)
        if self._until_tick > 0:
            return
        self._until_tick = 1  # the next block is a safe place to let time pass
        if budget == 1 and not used:  # and there is none: its first fetch was an exception
            self._tick(deadline, deliver=bool(self.engine.get("rflags") & _RFLAGS_IF))

    def _halted(self, deadline: int) -> None:
        if not self.engine.get("rflags") & _RFLAGS_IF:
            raise self._hang("the processor was halted with interrupts off", "halted for ever")
        if not self._tick(deadline, deliver=True):
            raise self._hang("the processor waits, and every interrupt is masked", "halted for ever")

    def _tick(self, deadline: int, *, deliver: bool) -> bool:
        """A timer period is over; whether an interrupt was delivered. MachineHang if it was the last one."""
        self.ticks += 1
        if self.ticks >= deadline:
            self._until_tick = 1  # the guest hears of the next one, if it goes on
            raise self._hang("guest code did not come back within the limit", LIMIT_REACHED)
        self._until_tick = BLOCKS_PER_TICK
        self.engine.toll.earn(EARNED_PER_TICK)
        vector = self.board.timer_interrupt() if deliver else None
        if vector is not None:
            self._enter_handler(vector, None)
        return vector is not None

    def _hang(self, message: str, cause: str) -> MachineHang:
        return MachineHang(message, FaultReport(cause, registers=self.read_registers()))

    # -- exceptions and interrupts --------------------------------------------------------------------
    def _deliver_exception(self, vector: int) -> None:
        """Clear the engine's "exception in flight" and enter the guest's handler."""
        self._until_tick -= BLOCKS_PER_EXCEPTION
        self.engine.toll.pay(EXCEPTION)
        where, error_code = self.places
        code = self.engine.exchange_word(where, -1, error_code)
        self._enter_handler(vector, (code & 0xFFFFFFFF) if vector in _VECTORS_WITH_ERROR_CODE else None)

    def _enter_handler(self, vector: int, error_code: int | None) -> None:
        """Push the frame and go where the guest's IDT says (Intel SDM vol. 3, 6.14: 64-bit mode)."""
        engine = self.engine
        idt = engine.get("idtr")[1]
        try:
            gate = self.read(idt + 16 * vector, 16)
        except UnmappedError as error:
            raise MachineError(f"triple fault: exception {vector}, and the guest's IDT is not mapped") from error
        low, _selector, ist, kind, middle, high, _ = _IDT_ENTRY.unpack(gate)
        if not kind & 0x80:
            raise MachineError(f"exception {vector} at {engine.get('rip'):#x} has no handler in the guest's IDT")
        registers = self.read_registers()
        code_segment = engine.get("cs")
        if code_segment & 3:
            raise MachineError("an exception in user mode: this machine runs no user code")
        stack = registers["rsp"]
        if ist & 7:
            tss = engine.get("tr")[1]
            stack = struct.unpack("<Q", self.read(tss + 0x24 + 8 * ((ist & 7) - 1), 8))[0]
        frame = [registers["rip"], code_segment, registers["rflags"], registers["rsp"], engine.get("ss")]
        if error_code is not None:
            frame.insert(0, error_code)
        stack = (stack & ~0xF) - 8 * len(frame)
        if self.translate(stack) is None:  # an overflown stack: the processor knows only one way out
            if vector == _DOUBLE_FAULT:
                raise MachineError("triple fault: the guest's double-fault stack is not mapped")
            return self._enter_handler(_DOUBLE_FAULT, 0)
        self.write(stack, struct.pack(f"<{len(frame)}Q", *frame))
        rflags = registers["rflags"] & ~_RFLAGS_CLEARED_BY_GATE
        if kind & 0xF == _INTERRUPT_GATE:
            rflags &= ~_RFLAGS_IF
        engine.set("rsp", stack)
        engine.set("rflags", rflags)
        engine.set("rip", low | middle << 16 | high << 32)
        return None

    # -- what would come from the host -----------------------------------------------------------------
    def _cpuid(self) -> int:
        """Answer for a leaf that must be filtered; 0 lets the engine answer."""
        leaf = self.engine.get("eax")
        hidden = _CPUID_HIDDEN.get(leaf)
        if hidden is None:
            return 0
        if leaf not in self._cpuid_answers:
            self._cpuid_answers[leaf] = _cpuid_of_model(leaf)
        for register, value, mask in zip(
            ("rax", "rbx", "rcx", "rdx"), self._cpuid_answers[leaf], hidden, strict=True
        ):
            self.engine.set(register, value & ~mask)
        return 1

    def trap_time_stamp_reads(self, addresses: Iterable[int]) -> None:
        """Answer RDTSC and RDTSCP at exactly these addresses from the blocks executed, not from the host.

        The engine has no hook for the instruction itself. An address that later holds something else
        (its memory was used again) is passed over. Each costs: the engine compares every instruction
        that it translates with all of them.
        """
        wanted = set(addresses)
        for address in self._tsc_sites - wanted:
            self.remove_breakpoint(address)
        for address in sorted(wanted - self._tsc_sites):
            self.add_breakpoint(address, self._read_time_stamp)
        self._tsc_sites = wanted

    @staticmethod
    def time_stamp_reads(code: bytes, address: int) -> list[int]:
        """Where in ``code``, which is at ``address``, RDTSC and RDTSCP are, and what looks like them."""
        return [address + match.start() for match in _TIME_STAMP_READ.finditer(code)]

    @property
    def time_stamp_sites(self) -> frozenset[int]:
        """The addresses that are trapped (:meth:`trap_time_stamp_reads`)."""
        return frozenset(self._tsc_sites)

    def _read_time_stamp(self) -> None:
        rip = self.engine.get("rip")
        code = self.read(rip, 3)
        size = 2 if code.startswith(_RDTSC) else 3 if code == _RDTSCP else 0
        if not size:
            return
        value = self.blocks * 8
        self.engine.set("rax", value & 0xFFFFFFFF)
        self.engine.set("rdx", value >> 32)
        if size == len(_RDTSCP):
            self.engine.set("rcx", 0)
        self.engine.set("rip", rip + size)
        self.blocks += 1

    # -- registers --------------------------------------------------------------------------------
    def read_registers(self) -> Registers:
        return self._registers.read()

    def write_registers(self, values: Registers) -> None:
        for name, value in values.items():
            self.engine.set(name, value)

    def restore_registers(self, values: Registers) -> None:
        """All the general registers, as :meth:`read_registers` gave them."""
        self._registers.write(values)

    def get(self, register: str) -> int:
        return int(self.engine.get(register))

    def set(self, register: str, value: int) -> None:
        self.engine.set(register, value)

    # -- memory -----------------------------------------------------------------------------------
    def _mapping(self, address: int) -> tuple[int, int] | None:
        """Physical address, and how many bytes from there on are contiguous."""
        if address >> _CANONICAL_BITS not in _CANONICAL:
            return None
        table = self.engine.get("cr3") & _PHYSICAL_MASK
        ram = self.ram
        for shift in (39, 30, 21, 12):
            entry = ram.table_entry(table + (address >> shift & 0x1FF) * 8)
            if not entry & 1:
                return None
            table = entry & _PHYSICAL_MASK
            if shift == 12 or (entry & 0x80 and shift < 39):
                inside = address & ((1 << shift) - 1)
                physical = (table & ~((1 << shift) - 1)) | inside
                return (physical, (1 << shift) - inside) if physical in ram else None
        return None

    # -- the whole state --------------------------------------------------------------------------
    def save_state(self) -> ProcessorState:
        return ProcessorState(
            self.engine.save_state(),
            {
                "blocks": self.blocks,
                "ticks": self.ticks,
                "until_tick": self._until_tick,
                "credit": self.engine.toll.credit,
                "time_stamp_sites": sorted(self._tsc_sites),
            },
        )

    def restore_state(self, state: ProcessorState) -> None:
        self.engine.restore_state(state.engine)
        facts = state.facts
        self.blocks, self.ticks, self._until_tick = facts["blocks"], facts["ticks"], facts["until_tick"]
        self.engine.toll.credit = facts["credit"]
        self.trap_time_stamp_reads(facts["time_stamp_sites"])

    @staticmethod
    def identity() -> str:
        """A saved state of this processor can be restored into one of the same identity."""
        return f"{engine_identity()}-{_CPU_MODEL}"

    def reset_for_boot(self, entry: int, cr3: int, gdt: int, gdt_size: int, rsi: int) -> None:
        """The state in which the x86 64-bit boot protocol enters a kernel."""
        engine = self.engine
        _enter_long_mode(engine, cr3)
        engine.set("gdtr", (0, gdt, gdt_size - 1, 0))
        engine.set("cs", 0x10)
        for register in ("ds", "es", "ss"):
            engine.set(register, 0x18)
        engine.set("rflags", 2)
        engine.set("rsi", rsi)
        engine.set("rip", entry)


def _window(engine: Engine, ram: Ram) -> Window:
    """Pages of 2 MiB, in a place of the address space that the ABI of operating systems leaves to hypervisors."""
    tables = -(-(ram.base + ram.size) // _GIB)  # of 512 pages
    size = (2 + tables) * PAGE_SIZE
    own = Ram(size, base=(1 << _PHYSICAL_BITS) - size)
    root, middle, last = (own.base + PAGE_SIZE * page for page in range(3))
    own.write(root + 8 * _WINDOW_SLOT, struct.pack("<Q", middle | _TABLE_FLAGS))
    addresses = (last + PAGE_SIZE * table | _TABLE_FLAGS for table in range(tables))
    own.write(middle, struct.pack(f"<{tables}Q", *addresses))
    pages = (page << 21 | _TABLE_FLAGS | _LARGE_PAGE for page in range(512 * tables))
    own.write(last, struct.pack(f"<{512 * tables}Q", *pages))
    # CR3 is behind CR2, which can be given any value.
    return Window(engine, own, _WINDOW, register_in_state(engine, "cr2") + 8)


def _enter_long_mode(engine: Engine, cr3: int) -> None:
    """64-bit mode with paging by the tables at ``cr3``, as a boot loader leaves it."""
    engine.set("msr", (_MSR_EFER, _EFER_LONG_MODE))
    engine.set("cr4", 0x20)
    engine.set("cr3", cr3)
    engine.set("cr0", 0x80050033)


def _cpuid_of_model(leaf: int) -> tuple[int, ...]:
    """EAX, EBX, ECX, EDX that the CPU model answers by itself."""
    ram = Ram(16 * PAGE_SIZE)
    engine = Engine("x86_64", _CPU_MODEL, ram)
    ram.write(0x1000, b"\x0f\xa2\xf4")
    engine.set("rax", leaf)
    engine.set("rcx", 0)
    engine.start(0x1000, 100)
    return tuple(engine.get(name) for name in ("rax", "rbx", "rcx", "rdx"))


def _find_in_flight() -> tuple[int, int]:
    """Where a saved state keeps "exception in flight" and "error code" (byte offsets).

    Unicorn never clears the former, and a second fault would be taken for a double fault. The places
    differ from build to build, so two page faults are provoked, a write to a read-only page (error
    code 3) and a read of an absent page (0), and the states compared.
    """
    states = []
    for code, touched in ((b"\xc6\x00\x01", 0x3000), (b"\x8a\x00", 0x5000)):
        ram = Ram(64 * PAGE_SIZE)
        for where, entry in (
            (0x10000, 0x11003),
            (0x11000, 0x12003),
            (0x12000, 0x13003),
            (0x13008, 0x1003),
            (0x13018, 0x3001),
        ):
            ram.write(where, struct.pack("<Q", entry))
        ram.write(0x1000, code + b"\xf4")
        engine = Engine("x86_64", _CPU_MODEL, ram)
        _enter_long_mode(engine, 0x10000)
        engine.set("rax", touched)
        before = _words(engine.save_state())
        engine.start(0x1000, 100)
        states.append((before, _words(engine.save_state())))
    (before1, after1), (before2, after2) = states
    indices = range(len(before1))
    vector = [i for i in indices if before1[i] == before2[i] == -1 and after1[i] == after2[i] == _PAGE_FAULT]
    error = [i for i in indices if before1[i] == before2[i] == 0 and (after1[i], after2[i]) == (3, 0)]
    if len(vector) != 1 or not error:
        raise MachineError(
            "this build of Unicorn keeps its exception state where kodojo cannot find it",
            hint="install unicorn 2.1.4",
        )
    return vector[0] * 4, min(error, key=lambda i: abs(i - vector[0])) * 4


def _words(state: bytes) -> tuple[int, ...]:
    return struct.unpack_from(f"<{len(state) // 4}i", state)
