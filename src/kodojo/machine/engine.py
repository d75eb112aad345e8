"""Unicorn, as kodojo needs it. The only file that imports unicorn; it knows no architecture.

An :class:`Engine` executes instructions on a :class:`~kodojo.machine.memory.Ram` and says why it
stopped. Nothing happens inside a hook but noting the reason; what to do about it is decided outside,
where the engine is at rest and may be used again.

Basic blocks are counted at the engine's own speed: a hook in Python costs a microsecond for every
block, so the counter is a few machine instructions in a page of their own, called by the engine in
place of a Python function. They count down a word and call ``uc_emu_stop`` when it reaches zero. Hosts
without such a routine, or that forbid executable memory, get a Python function: same counts, slower.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any

import unicorn
from unicorn import unicorn_const as const
from unicorn.unicorn_py3.arch.arm64 import UcRegCP64
from unicorn.unicorn_py3.unicorn import HOOK_CODE_CFUNC, HOOK_INTR_CFUNC, HOOK_MEM_INVALID_CFUNC, uclib

from kodojo.errors import MachineError
from kodojo.machine.code_pages import COUNTED_TOGETHER, CodePages, HookCalls
from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.native import executable_page
from kodojo.machine.rescue import Rescue, address_of, code_of
from kodojo.machine.toll import BUS, FLUSH, TRAP, Toll
from kodojo.machine.translation import TranslationLimit, find_counters, find_cpu, find_flushes, word_of

__all__ = ["Engine", "RegisterBatch", "Stop", "SystemRegister", "engine_identity"]

SystemRegister = tuple[int, int, int, int, int]
"""op0, op1, CRn, CRm, op2, as the instructions MRS and MSR name a system register."""

_ARCHITECTURES = {
    "x86_64": (const.UC_ARCH_X86, const.UC_MODE_64, "unicorn.x86_const", "UC_X86_REG_", "UC_CPU_X86_"),
    "aarch64": (
        const.UC_ARCH_ARM64,
        const.UC_MODE_ARM,
        "unicorn.arm64_const",
        "UC_ARM64_REG_",
        "UC_CPU_ARM64_",
    ),
}

# Arguments of a block hook: engine, address, size, user data. User data points at two words: the
# count and the address of uc_emu_stop.
_COUNTING_ROUTINES = {
    # dec qword [rcx]; jz 1f; ret; 1: jmp [rcx+8]
    ("Linux", "x86_64"): bytes.fromhex("48ff09 7401 c3 ff6108"),
    # ldr x4,[x3]; subs x4,x4,#1; str x4,[x3]; b.eq 1f; ret; 1: ldr x4,[x3,#8]; br x4
    ("Linux", "aarch64"): bytes.fromhex("640040f9 840400f1 640000f9 40000054 c0035fd6 640440f9 80001fd6"),
}

# Of each architecture: an instruction that does nothing, and a jump
_SAMPLES = {
    "x86_64": (b"\x90", b"\xeb\x00"),
    "aarch64": (b"\x1f\x20\x03\xd5", b"\x01\x00\x00\x14"),
}
_PROGRAM_COUNTERS = {"x86_64": "rip", "aarch64": "pc"}

_TRANSLATED_CODE = 1 << 30  # address space for what the engine translates, of which it uses a few dozen MiB
_BESIDE = 64 << 20  # and for its tables
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)

# Registers that are a plain number of 64 bits. They are asked for all the time, and unicorn's own way to one of them
# takes longer than most pieces of guest code.
_WORDS = frozenset(
    (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "rflags", "cr2", "cr3", "gs_base",
        *(f"r{number}" for number in range(8, 16)),
        *(f"x{number}" for number in range(31)), "sp", "pc", "elr_el1", "vbar_el1", "ttbr0_el1", "ttbr1_el1",
    )
)  # fmt: skip


def engine_identity() -> str:
    """Name and version of the emulator; a saved CPU state is valid for the same one only."""
    return f"unicorn-{unicorn.__version__}-{platform.machine()}-{sys.byteorder}"


class Stop(Enum):
    """Why the engine came to rest."""

    HALTED = "waiting for an interrupt"
    EXCEPTION = "an exception or software interrupt"
    INVALID = "an invalid instruction"
    BREAKPOINT = "a breakpoint"
    COUNTED = "the block counter reached zero"


class _Words(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int64), ("stop", ctypes.c_void_p))


class Engine:
    """A Unicorn engine with all of a machine's RAM mapped.

    :param architecture: ``x86_64`` or ``aarch64``.
    :param model: name of the CPU model as in Unicorn's constants (``QEMU64``).
    :raises MachineError: no room for it in this process, or a build of Unicorn that is not known.
    """

    def __init__(self, architecture: str, model: str, ram: Ram) -> None:
        arch, mode, constants, register_prefix, model_prefix = _ARCHITECTURES[architecture]
        self._constants = importlib.import_module(constants)
        self._register_prefix = register_prefix
        self._program_counter = _PROGRAM_COUNTERS[architecture]
        self._uc = _new_engine(arch, mode, getattr(self._constants, model_prefix + model))
        # Stopping is left to hooks. An end address would be translated at each start, by way of the guest's
        # page tables, and where it is not mapped that leaves a page fault behind that never happened.
        self._uc.ctl_exits_enabled(True)
        self._handle = self._uc._uch
        self._uc.mem_map_ptr(ram.base, ram.size, const.UC_PROT_ALL, ram.address)
        self.ram = ram
        self.toll = Toll()
        self._ids: dict[str, int] = {}
        self._word_ids: dict[str, int] = {}  # of those in _WORDS that have been asked for
        self._system: dict[SystemRegister, UcRegCP64] = {}  # likewise, as the engine wants them
        self._context = self._uc.context_save()
        self._keep: list[object] = []  # what the engine holds pointers to
        handle = self._uc._uch.value
        counters, cpu, flushes = _places(architecture)
        lookup = address_of(uclib, f"find_memory_mapping_{architecture}")
        self._keep.append(TranslationLimit(handle, lookup, counters))
        self._flushes = ctypes.c_uint64.from_address(word_of(handle, cpu) + flushes)
        self._flushed = self._flushes.value
        self._run = (handle, word_of(handle, cpu), address_of(uclib, f"cpu_loop_exit_{architecture}"))
        self._words = _Words(0, ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value)
        self._word = ctypes.c_uint64()
        self._word_pointer = ctypes.cast(ctypes.pointer(self._word), ctypes.c_void_p)
        self._armed = 0
        self._stop = Stop.HALTED
        self._vector = 0
        self._starting_at = -1
        self._breakpoints: dict[int, int] = {}
        self._traps: dict[int, list[int]] = {}
        self._breakpoint_callback = HOOK_CODE_CFUNC(self._on_breakpoint)
        self._add_exception_hook()
        self._add_counter()
        self._code_pages = CodePages(handle, uclib, ram, self._hook_calls())

    # -- hooks --------------------------------------------------------------------------------------
    def _hook(self, kind: int, callback: Any, data: int, begin: int, end: int) -> int:
        handle = ctypes.c_size_t()
        status = uclib.uc_hook_add(
            self._uc._uch,
            ctypes.byref(handle),
            kind,
            ctypes.cast(callback, ctypes.c_void_p),
            ctypes.c_void_p(data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if status != const.UC_ERR_OK:
            raise unicorn.UcError(status)
        return handle.value

    def _add_exception_hook(self) -> None:
        callback = HOOK_INTR_CFUNC(self._on_exception)
        self._keep.append(callback)
        self._hook(const.UC_HOOK_INTR, callback, 0, 1, 0)

    def _hook_calls(self) -> HookCalls:
        never = HOOK_MEM_INVALID_CFUNC(lambda *_: False)
        self._keep.append(never)

        def remove(handle: int) -> None:
            uclib.uc_hook_del(self._uc._uch, ctypes.c_size_t(handle))

        return HookCalls(
            add=lambda first, last: self._hook(const.UC_HOOK_MEM_FETCH_UNMAPPED, never, 0, first, last),
            remove=remove,
            on_generated=lambda code, data: (self._hook(const.UC_HOOK_EDGE_GENERATED, code, data, 1, 0), None)[1],
            flush_tlb=self.flush_tlb,
            on_counted=self._pay_for_translations,
        )

    def _on_exception(self, _uc: Any, vector: int, _data: Any) -> None:
        self._vector = vector
        self._stop = Stop.EXCEPTION
        uclib.uc_emu_stop(self._uc._uch)

    def _on_breakpoint(self, _uc: Any, address: int, _size: int, _data: Any) -> None:
        if self._starting_at == address:
            self._starting_at = -1  # the instruction that this run began with
            return
        self._stop = Stop.BREAKPOINT
        uclib.uc_emu_stop(self._uc._uch)

    def _add_counter(self) -> None:
        routine = _COUNTING_ROUTINES.get((platform.system(), platform.machine()))
        page = executable_page(routine) if routine is not None else None
        if page is None:
            self._uc.hook_add(const.UC_HOOK_BLOCK, self._count)
            return
        self._keep.append(page)
        code = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        self._hook(const.UC_HOOK_BLOCK, code, ctypes.addressof(self._words), 1, 0)

    def _count(self, uc: Any, _address: int, _size: int, _data: Any) -> None:
        self._words.count -= 1
        if self._words.count == 0:
            uc.emu_stop()

    def _pay(self, price: int) -> None:
        """The guest has let Python work: its time passes at the next block if it cannot pay for that."""
        if self.toll.pay(price):
            self.shorten(1)

    def hook_instruction(self, name: str, callback: Callable[..., Any], price: int = 0) -> None:
        """Call Python for ``IN`` (port, size), ``OUT`` (port, size, value) or ``CPUID`` ()."""
        number = getattr(self._constants, f"UC_X86_INS_{name}")

        def served(_uc: Any, *arguments: Any) -> Any:
            self._pay(price)
            return callback(*arguments[:-1])

        self._uc.hook_add(const.UC_HOOK_INSN, served, aux1=number)

    def map_bus(
        self, start: int, end: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Make devices of the physical addresses ``start`` to ``end``.

        They are ``read(offset, size)`` and ``write(offset, size, value)``.
        """

        def served_read(_uc: Any, offset: int, size: int, _data: Any) -> int:
            self._pay(BUS)
            return read(offset, size)

        def served_write(_uc: Any, offset: int, size: int, value: int, _data: Any) -> None:
            self._pay(BUS)
            write(offset, size, value)

        self._uc.mmio_map(start, end - start, served_read, None, served_write, None)

    def trap_system_register(self, address: int, access: Callable[[SystemRegister, int, bool], bool]) -> None:
        """Call Python for the ``MRS`` or ``MSR`` at ``address``.

        ``access(register, number, is_read)`` gets the system register and the number of the general one (31: none).
        It is true if that has done the instruction's work.
        """
        handles = []
        for name, is_read in (("MRS", True), ("MSR", False)):

            def callback(_uc: Any, number: int, register: Any, _data: Any, is_read: bool = is_read) -> int:
                self._pay(TRAP)
                where = (register.op0, register.op1, register.crn, register.crm, register.op2)
                return int(access(where, self._general_numbers.get(number, 31), is_read))

            kind = getattr(self._constants, f"UC_ARM64_INS_{name}")
            handles.append(self._uc.hook_add(const.UC_HOOK_INSN, callback, None, address, address, kind))
        self._traps[address] = handles

    def remove_trap(self, address: int) -> None:
        with self._without_a_trace():
            for handle in self._traps.pop(address):
                self._uc.hook_del(handle)

    @cached_property
    def _general_numbers(self) -> dict[int, int]:
        return {self.register_id(f"x{number}"): number for number in range(31)}

    def add_breakpoint(self, address: int) -> None:
        """Stop before the instruction at ``address``; see :meth:`forget_code` if it ran before."""
        if address not in self._breakpoints:
            self._breakpoints[address] = self._hook(
                const.UC_HOOK_CODE, self._breakpoint_callback, 0, address, address
            )

    def remove_breakpoint(self, address: int) -> None:
        with self._without_a_trace():
            uclib.uc_hook_del(self._uc._uch, ctypes.c_size_t(self._breakpoints.pop(address)))

    @contextmanager
    def _without_a_trace(self) -> Iterator[None]:
        """Undo what Unicorn's dropping of translated code does to the processor.

        It looks the address up in the page tables as if it were to fetch from there. Where that is not
        mapped or not executable, it leaves a page fault behind that never happened.
        """
        self._uc.context_update(self._context)
        try:
            yield
        finally:
            self._uc.context_restore(self._context)

    # -- running ------------------------------------------------------------------------------------
    def start(self, address: int, blocks: int) -> tuple[Stop, int, int]:
        """Execute from ``address`` until something happens.

        :param blocks: stop at the beginning of the basic block with this number.
        :returns: the reason, the exception's number if it was one, and the basic blocks executed.
        """
        self._stop = Stop.HALTED
        self._starting_at = address
        self._armed = self._words.count = blocks
        if self._code_pages.is_full:
            self._uc.ctl_flush_tb()
            self._code_pages.clear()
        self._code_pages.start(address)
        rescue = _rescue()
        run = rescue.begin(*self._run)
        try:
            self._uc.emu_start(address, 0)
        except unicorn.UcError as error:
            if error.errno != const.UC_ERR_INSN_INVALID:
                raise MachineError(f"the emulator cannot go on: {error}") from error
            self._stop = Stop.INVALID
        finally:
            aborted = rescue.end(run)
        if aborted:
            raise MachineError(
                f"the emulator cannot translate the code at {self.get(self._program_counter):#x}, or just behind it",
                hint="this is an error of Unicorn (contrib/unicorn-abort.md); the machine cannot be used any more",
            )
        self._pay_for_flushes()
        used = self._armed - max(self._words.count, 0)
        if self._stop is Stop.HALTED and self._words.count <= 0:
            self._stop = Stop.COUNTED
        return self._stop, self._vector, used

    def _pay_for_flushes(self) -> None:
        """The guest has loaded its page tables anew: what the engine knew of them is lost."""
        flushes = self._flushes.value
        if flushes != self._flushed:
            self.toll.pay((flushes - self._flushed) * FLUSH)
            self._flushed = flushes

    def _pay_for_translations(self) -> None:
        if self.toll.pay_translations(COUNTED_TOGETHER):
            self.shorten(1)

    @property
    def blocks_left(self) -> int:
        """Address of the number of basic blocks that this run has still to execute: 1 ends it soon."""
        return ctypes.addressof(self._words)

    def blocks_so_far(self) -> int:
        """Basic blocks that this run has executed, for those who are called while it goes on."""
        left: int = self._words.count
        return self._armed - max(left, 0)

    def shorten(self, blocks: int) -> None:
        """Let this run end after ``blocks`` more basic blocks at the latest, 1 or more."""
        if self._words.count > blocks:
            self._armed -= self._words.count - blocks
            self._words.count = blocks

    # -- registers ----------------------------------------------------------------------------------
    def get_system(self, register: SystemRegister) -> int:
        """A system register of arm64."""
        asked = self._system.get(register)
        if asked is None:
            op0, op1, crn, crm, op2 = register
            asked = self._system[register] = UcRegCP64(crn, crm, op0, op1, op2)
        if uclib.uc_reg_read(self._handle, self.register_id("cp_reg"), ctypes.byref(asked)) != const.UC_ERR_OK:
            raise MachineError(f"this processor has no system register {register}")
        return int(asked.val)

    def set_system(self, register: SystemRegister, value: int) -> None:
        op0, op1, crn, crm, op2 = register
        self._uc.reg_write(self.register_id("cp_reg"), (crn, crm, op0, op1, op2, value))

    def register_id(self, name: str) -> int:
        number = self._ids.get(name)
        if number is None:
            number = self._ids[name] = getattr(self._constants, self._register_prefix + name.upper())
        return number

    def get(self, name: str) -> Any:
        number = self._word_ids.get(name) or self._word_id(name)
        if number is None:
            return self._uc.reg_read(self.register_id(name))
        uclib.uc_reg_read(self._handle, number, self._word_pointer)
        return self._word.value

    def set(self, name: str, value: Any) -> None:
        number = self._word_ids.get(name) or self._word_id(name)
        if number is None:
            self._uc.reg_write(self.register_id(name), value)
            return
        self._word.value = value
        uclib.uc_reg_write(self._handle, number, self._word_pointer)

    def _word_id(self, name: str) -> int | None:
        if name not in _WORDS:
            return None
        number = self._word_ids[name] = self.register_id(name)
        return number

    def batch(self, names: Sequence[str]) -> RegisterBatch:
        return RegisterBatch(self._uc, names, [self.register_id(name) for name in names])

    # -- memory -------------------------------------------------------------------------------------
    def has_code(self, physical: int, size: int) -> bool:
        """Whether code has been translated from the pages of this physical memory."""
        return self._code_pages.among(physical, size)

    def map_ram(self, ram: Ram) -> None:
        """Map more memory beside the machine's own; the caller keeps it alive."""
        self._uc.mem_map_ptr(ram.base, ram.size, const.UC_PROT_ALL, ram.address)

    def forget_code(self, address: int, size: int, word: int, value: int) -> None:
        """Drop what was translated from the memory that these virtual addresses stand for.

        They are looked up as if the 64-bit word at offset ``word`` of the CPU's state were ``value``. The
        engine cannot be told a physical address, and it does not notice what Python writes.
        """
        self._uc.context_update(self._context)
        place = ctypes.c_uint64.from_address(self._context.context.value + word)
        kept = place.value
        place.value = value
        self._uc.context_restore(self._context)
        self._uc.ctl_remove_cache(address, address + size)
        place.value = kept
        self._uc.context_restore(self._context)

    def expect_code(self, physical: int, size: int) -> None:
        """Physical memory that is code; telling so early saves time, and nothing depends on it."""
        self._code_pages.expect(physical, size)

    def flush_tlb(self) -> None:
        """Forget what the page tables said: they have changed behind the guest's back."""
        self._uc.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE)

    # -- the whole state ----------------------------------------------------------------------------
    def save_state(self) -> bytes:
        self._uc.context_update(self._context)
        return bytes(self._context)

    def restore_state(self, state: bytes) -> None:
        """Raises MachineError if the state is not of this emulator."""
        if len(state) != self._context.size:
            raise MachineError("a saved CPU state is not from this emulator")
        ctypes.memmove(self._context.context, state, len(state))
        self._uc.context_restore(self._context)

    def state_words(self, offset: int, count: int) -> tuple[int, ...]:
        """32-bit words of the CPU's state."""
        self._uc.context_update(self._context)
        words = (ctypes.c_uint32 * count).from_address(self._context.context.value + offset)
        return tuple(words)

    def exchange_word(self, offset: int, value: int, also: int) -> int:
        """Set the 32-bit word at ``offset`` of the CPU's state; the word at ``also``."""
        self._uc.context_update(self._context)
        base = self._context.context.value
        other = ctypes.c_int32.from_address(base + also).value
        ctypes.c_int32.from_address(base + offset).value = value
        self._uc.context_restore(self._context)
        return other


class RegisterBatch:
    """Several registers in one call, into arrays that are made once."""

    def __init__(self, uc: Any, names: Sequence[str], ids: Sequence[int]) -> None:
        count = len(names)
        self._uc = uc
        self._names = tuple(names)
        self._ids = (ctypes.c_int * count)(*ids)
        self._values = (ctypes.c_uint64 * count)()
        base = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * count)(*(base + 8 * i for i in range(count)))

    def read(self) -> dict[str, int]:
        uclib.uc_reg_read_batch(self._uc._uch, self._ids, self._pointers, len(self._names))
        return dict(zip(self._names, self._values, strict=True))

    def write(self, values: dict[str, int]) -> None:
        """All of the registers, from a mapping that has each."""
        for index, name in enumerate(self._names):
            self._values[index] = values[name]
        uclib.uc_reg_write_batch(self._uc._uch, self._ids, self._pointers, len(self._names))


def _new_engine(arch: int, mode: int, model: int | None) -> unicorn.Uc:
    """Raises MachineError where there is no room: Unicorn itself would end the process."""
    try:
        mmap.mmap(-1, _TRANSLATED_CODE + _BESIDE, flags=_RESERVED).close()
    except (OSError, MemoryError) as error:
        needed = (_TRANSLATED_CODE + _BESIDE) >> 20
        raise MachineError(
            f"no room for another machine: it needs {needed} MiB of address space ({error})",
            hint="allow this process more (ulimit -v), or close machines that are no longer used",
        ) from error
    uc = unicorn.Uc(arch, mode, model)
    uc.ctl_set_tcg_buffer_size(_TRANSLATED_CODE)
    return uc


@lru_cache
def _rescue() -> Rescue:
    return Rescue(uclib)


@lru_cache
def _places(architecture: str) -> tuple[tuple[int, int], int, int]:
    """Where this build keeps the translator's counters, the processor and its flushes: found on an engine of its own.

    See ``find_counters``, ``find_cpu`` and ``find_flushes`` in :mod:`kodojo.machine.translation`.
    """
    arch, mode = _ARCHITECTURES[architecture][:2]
    nothing, jump = _SAMPLES[architecture]
    uc = _new_engine(arch, mode, None)
    uc.mem_map(0, 2 * PAGE_SIZE)
    places = iter(range(PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE // 4))  # 0 is where a run would end

    def translate(length: int) -> None:
        address = next(places)
        uc.mem_write(address, nothing * length + jump)
        uc.ctl_request_cache(address)

    handle = uc._uch.value
    counters = find_counters(handle, translate)
    cpu = find_cpu(handle, code_of(address_of(uclib, "uc_emu_start")))
    flushes = find_flushes(word_of(handle, cpu), lambda: uc.ctl(const.UC_CTL_TLB_FLUSH, const.UC_CTL_IO_WRITE))
    return counters, cpu, flushes
