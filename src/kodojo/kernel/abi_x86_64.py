"""The System V x86-64 psABI, and the kernel's entry points of that architecture."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kodojo.kernel.system_calls import X86_64

if TYPE_CHECKING:
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.kernel.calls import Calls
    from kodojo.kernel.memory import KernelMemory
    from kodojo.machine.cpu import Cpu, Registers

__all__ = ["X86_64Abi"]

_ARGUMENT_REGISTERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_RFLAGS_AT_REST = 0x202  # interrupts on
_INTERRUPT_FLAG = 0x200
_DIRECTION_AND_TRAP = 0x500
_KERNEL_CS, _KERNEL_SS = 0x10, 0x18
_MASK = (1 << 64) - 1

# Offsets in struct pt_regs (arch/x86/include/asm/ptrace.h), an ABI.
_R10, _RAX, _RDX = 0x38, 0x50, 0x60
_ENOSYS = 38
_PREEMPT_NEED_RESCHED = 1 << 31  # arch/x86/include/asm/preempt.h


class X86_64Abi:  # noqa: N801  the architecture's name
    """See :class:`kodojo.kernel.abi.Abi`."""

    returns_to = "kernel_init"
    stack_register = "rsp"
    instruction = 1
    oops = ("oops_end", 1)
    frame_registers: tuple[str, ...] = (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
        "orig_rax", "rip", "cs", "rflags", "rsp", "ss",
    )  # fmt: skip
    system_calls = X86_64
    open_directory = 0o200000
    idles_in: tuple[str, ...] = ("default_idle", "native_safe_halt", "acpi_safe_halt", "mwait_idle")

    def pc(self, registers: Registers) -> int:
        return registers["rip"]

    def stack(self, registers: Registers) -> int:
        return registers["rsp"]

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

    def return_from(self, cpu: Cpu, value: int) -> None:
        stack = cpu.get("rsp")
        back = int.from_bytes(cpu.read(stack, 8), "little")
        cpu.write_registers({"rax": value, "rip": back, "rsp": stack + 8})

    def call_here(self, cpu: Cpu, function: int, argument: int) -> None:
        stack = cpu.get("rsp") - 8
        cpu.write(stack, struct.pack("<Q", cpu.get("rip")))
        cpu.write_registers({"rsp": stack, "rdi": argument, "rip": function})

    def place(self, cpu: Cpu, stack: int, until: int, values: Sequence[int]) -> Registers:
        on_stack = values[len(_ARGUMENT_REGISTERS) :]
        stack = (stack - 8 * len(on_stack)) & ~0xF
        stack -= 8
        cpu.write(stack, struct.pack(f"<{1 + len(on_stack)}Q", until, *on_stack))
        return {**dict(zip(_ARGUMENT_REGISTERS, values, strict=False)), "rsp": stack}

    def stack_after(self, registers: Registers) -> int:
        return registers["rsp"] + 8

    def enter(self, address: int, interrupted: Registers | None, *, interrupts: bool) -> Registers:
        if interrupted is not None:
            rflags = interrupted["rflags"] & ~_DIRECTION_AND_TRAP
        else:
            rflags = _RFLAGS_AT_REST if interrupts else _RFLAGS_AT_REST & ~_INTERRUPT_FLAG
        return {"rax": 0, "rbp": 0, "rip": address, "rflags": rflags}

    def begin_system_call(self, cpu: Cpu, frame: int, number: int, arguments: Sequence[int]) -> tuple[str, list[int]]:
        cpu.write(frame + _R10, struct.pack("<QQQ", arguments[3], arguments[5], arguments[4]))
        cpu.write(frame + _RAX, struct.pack("<q", -_ENOSYS))
        cpu.write(frame + _RDX, struct.pack("<QQQQ", arguments[2], arguments[1], arguments[0], number))
        return "do_syscall_64", [frame, number]

    def system_call_value(self, cpu: Cpu, frame: int) -> int:
        return int.from_bytes(cpu.read(frame + _RAX, 8), "little", signed=True)

    def current_task(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """Per-CPU ``current_task``, or a member of ``pcpu_hot`` (since 6.2)."""
        offset = symbols.get("current_task")
        if offset is None:
            offset = symbols.address("pcpu_hot") + memory.field("pcpu_hot", "current_task").offset
        return memory.u64((cpu.get("gs_base") + offset) & _MASK)

    def preemption_count(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """Per-CPU ``__preempt_count``, or a member of ``pcpu_hot``; its highest bit is another matter."""
        offset = symbols.get("__preempt_count")
        if offset is None:
            offset = symbols.address("pcpu_hot") + memory.field("pcpu_hot", "preempt_count").offset
        return memory.u32((cpu.get("gs_base") + offset) & _MASK) & ~_PREEMPT_NEED_RESCHED

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
