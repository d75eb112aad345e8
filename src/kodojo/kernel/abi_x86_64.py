"""The System V x86-64 psABI, and the kernel's entry points of that architecture."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kodojo.kernel.orc import BY_BASE, BY_POINTER, BY_STACK, unwinding_at
from kodojo.kernel.system_calls import X86_64
from kodojo.kernel.ways import Branches, Site, Spot

if TYPE_CHECKING:
    from kodojo.image.btf import Btf
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.kernel.calls import Calls
    from kodojo.kernel.memory import KernelMemory
    from kodojo.machine.cpu import Cpu, Registers

__all__ = ["X86_64Abi"]

_ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_KEPT = ("rbx", "r12", "r13", "r14", "r15")
_RFLAGS_AT_REST = 0x202  # interrupts on
_INTERRUPT_FLAG = 0x200
_DIRECTION_AND_TRAP = 0x500
_KERNEL_CS, _KERNEL_SS = 0x10, 0x18
_MASK = (1 << 64) - 1
_WORD = 8
_LOCALS = 256  # bytes of a frame whose size is not constant

# Instructions (Intel SDM vol. 2): CALL and JMP with a distance of 32 bits; CALL through a register or memory.
_CALL, _NEAR = 0xE8, 0xFE  # JMP has one more bit, the lowest
_INDIRECT = re.compile(
    rb"\xff(?:[\xd0-\xd7\x10-\x13\x16\x17]|\x14.|\x15.{4}|[\x50-\x53\x55-\x57].|\x54..|[\x90-\x93\x95-\x97].{4}|\x94.{5})",
    re.DOTALL,
)
_REX = range(0x40, 0x50)  # a prefix
_THUNKS = tuple(
    f"__x86_indirect_{kind}thunk_{register}"
    for kind in ("", "its_")
    for register in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{number}" for number in range(8, 16)))
)

# Offsets in struct pt_regs (arch/x86/include/asm/ptrace.h), an ABI.
_R10, _RAX, _RDX = 0x38, 0x50, 0x60
_ENOSYS = 38
_PREEMPT_NEED_RESCHED = 1 << 31  # arch/x86/include/asm/preempt.h


class X86_64Abi:  # noqa: N801  the architecture's name
    """See :class:`kodojo.kernel.abi.Abi`."""

    returns_to = "kernel_init"
    program_counter, stack_register = "rip", "rsp"
    instruction = 1
    entry = ("entry_SYSCALL_64", "do_syscall_64")
    system_call_prefix = "__x64_sys_"
    arguments_in_registers = len(_ARGUMENT_REGISTERS)
    oops = ("oops_end", 1)
    frame_registers: tuple[str, ...] = (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
    )  # fmt: skip
    system_calls = X86_64
    open_directory = 0o200000
    idles_in: tuple[str, ...] = ("default_idle", "native_safe_halt", "acpi_safe_halt", "mwait_idle")

    def takes_interrupts(self, registers: Registers) -> bool:
        return bool(registers["rflags"] & _INTERRUPT_FLAG)

    def link(self, registers: Registers) -> int | None:
        del registers
        return None  # it is on the stack

    def argument(self, cpu: Cpu, number: int) -> int:
        return cpu.get(_ARGUMENT_REGISTERS[number])

    def set_argument(self, cpu: Cpu, number: int, value: int) -> None:
        cpu.set(_ARGUMENT_REGISTERS[number], value)

    def result(self, cpu: Cpu) -> int:
        return cpu.get("rax")

    def call_here(self, cpu: Cpu, function: int, argument: int) -> None:
        stack = cpu.get("rsp") - 8
        cpu.write(stack, struct.pack("<Q", cpu.get("rip")))
        cpu.write_registers({"rsp": stack, "rdi": argument, "rip": function})

    def place(self, cpu: Cpu, stack: int, until: int, values: Sequence[int]) -> Registers:
        on_stack = values[len(_ARGUMENT_REGISTERS) :]
        if on_stack:
            stack = (stack - 8 * len(on_stack)) & ~0xF
        stack -= 8
        cpu.write(stack, struct.pack(f"<{1 + len(on_stack)}Q", until, *on_stack))
        return {**dict(zip(_ARGUMENT_REGISTERS, values, strict=False)), "rsp": stack}

    def spot_of_entry(self, btf: Btf, frame: int, returns: int) -> Spot:
        """The trap frame is what is on the stack."""
        del btf
        return Spot(returns, frame, 0)

    def spot_here(self, cpu: Cpu, registers: Registers) -> Spot:
        stack = registers["rsp"]
        return Spot(int.from_bytes(cpu.read(stack, 8), "little"), stack + 8, registers["rbp"])

    def call_from(self, cpu: Cpu, spot: Spot, site: Site) -> Spot:
        """A frame as the unwinder's tables want it; they do not tell what else is in it, nor all sizes."""
        end, found = spot.stack, site.unwinding
        assert found is not None
        if found.kind == BY_STACK:
            stack, base = end - found.distance, spot.frame
        else:
            base = end - found.distance if found.kind == BY_BASE else (end & ~0xF) - 4 * _WORD
            stack = min(base, base - abs(found.distance)) - _LOCALS
        words = {end - _WORD: spot.returns}
        if found.kind == BY_POINTER:
            words[base + found.distance] = end
        if found.base is not None:
            words[(base if found.kind == BY_POINTER else end) + found.base] = spot.frame
        cpu.write(stack, bytes(end - stack))
        for address, word in words.items():
            cpu.write(address, struct.pack("<Q", word))
        return Spot(site.returns, stack, base)

    def at_spot(self, spot: Spot) -> Registers:
        return {"rbp": spot.frame}

    def coming_back(self, spot: Spot, value: int) -> Registers:
        return {"rax": value & _MASK, "rip": spot.returns, "rsp": spot.stack}

    def branches(self, code: bytes, address: int) -> Branches:
        """CALL and JMP with a distance of 32 bits. Other bytes may look like it, and lead nowhere."""
        data = np.frombuffer(code, np.uint8)
        where = np.flatnonzero(data[:-4] & _NEAR == _CALL)
        distances = data[where[:, None] + np.arange(1, 5)].view("<i4").ravel().astype(np.int64)
        behind = np.uint64(address) + where.astype(np.uint64) + np.uint64(5)
        targets = behind + distances.view(np.uint64)
        return Branches.of(behind.tolist(), targets.tolist(), (data[where] == _CALL).tolist())

    def indirect_calls(self, calls: Calls, address: int, code: bytes) -> list[int]:
        """CALL through a register, or by way of a thunk; the kernel's decoder tells what is an instruction."""
        direct = self.branches(code, address).calls
        thunks = [calls.address(name) for name in _THUNKS if calls.has(name)]
        behind = [after for thunk in thunks for after in direct.get(thunk, ())]
        for match in _INDIRECT.finditer(code):
            start = match.start()
            if start and code[start - 1] in _REX:
                start -= 1
            if not calls.has("can_probe") or calls("can_probe", address + start) & 0xFF:
                behind.append(address + match.end())
        return sorted(behind)

    def site(self, cpu: Cpu, symbols: Kallsyms, returns: int) -> Site | None:
        found = unwinding_at(cpu, symbols, returns - 1)
        return None if found is None else Site(returns, found)

    def stack_after(self, registers: Registers) -> int:
        return registers["rsp"] + 8

    def enter(self, address: int, interrupted: Registers | None, *, interrupts: bool) -> Registers:
        begin = {"rax": 0, "rbp": 0, "rip": address}
        if not interrupts:  # as the entry of system calls does: functions keep these on the stack, where traces look
            begin |= dict.fromkeys(_KEPT, 0)
        if interrupted is not None:
            return {**begin, "rflags": interrupted["rflags"] & ~_DIRECTION_AND_TRAP}
        return {**begin, "rflags": _RFLAGS_AT_REST if interrupts else _RFLAGS_AT_REST & ~_INTERRUPT_FLAG}

    def begin_system_call(self, cpu: Cpu, frame: int, number: int, arguments: Sequence[int]) -> tuple[str, list[int]]:
        cpu.write(frame + _R10, struct.pack("<QQQ", arguments[3], arguments[5], arguments[4]))
        cpu.write(frame + _RAX, struct.pack("<q", -_ENOSYS))
        cpu.write(frame + _RDX, struct.pack("<QQQQ", arguments[2], arguments[1], arguments[0], number))
        return "do_syscall_64", [frame, number]

    def system_call_value(self, cpu: Cpu, frame: int) -> int:
        return int.from_bytes(cpu.read(frame + _RAX, 8), "little", signed=True)

    def current_task(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """Per-CPU ``current_task``, or a member of ``pcpu_hot`` (since 6.2)."""
        return memory.u64(_per_processor(cpu, symbols, memory, "current_task", "current_task"))

    def preemption_count(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """Per-CPU ``__preempt_count``, or a member of ``pcpu_hot``; its highest bit is another matter."""
        count = memory.u32(_per_processor(cpu, symbols, memory, "__preempt_count", "preempt_count"))
        return count & ~_PREEMPT_NEED_RESCHED

    def find_user_space(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> None:
        """Nothing: one table is for both."""

    def copy_from_user(self, calls: Calls, memory: KernelMemory, to: int, source: int, size: int) -> int:
        del memory
        return calls("_copy_from_user", to, source, size)

    def fault_address(self, cpu: Cpu) -> tuple[str, int]:
        return "cr2", cpu.get("cr2")

    def kernel_frame(self, registers: Registers) -> bytes:
        values = {**registers, "cs": _KERNEL_CS, "ss": _KERNEL_SS}
        return struct.pack(f"<{len(self.frame_registers)}Q", *(values.get(name, 0) for name in self.frame_registers))


def _per_processor(cpu: Cpu, symbols: Kallsyms, memory: KernelMemory, variable: str, member: str) -> int:
    """Where a variable of this processor is: it has a symbol, or is a member of ``pcpu_hot``."""
    offset = symbols.get(variable)
    if offset is None:
        offset = symbols.address("pcpu_hot") + memory.field("pcpu_hot", member).offset
    return (cpu.get("gs_base") + offset) & _MASK
