"""The procedure call standard of arm64 (AAPCS64), and the kernel's entry points of that architecture."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kodojo.kernel.system_calls import ARM64
from kodojo.kernel.ways import Branches, Site, Spot

if TYPE_CHECKING:
    from kodojo.image.btf import Btf
    from kodojo.image.kallsyms import Kallsyms
    from kodojo.kernel.calls import Calls
    from kodojo.kernel.memory import KernelMemory
    from kodojo.machine.cpu import Cpu, Registers

__all__ = ["Arm64Abi"]

_EL1H = 0x5
_DAIF = 0x3C0
_IRQ_MASKED = 0x80
_FLAGS_MASK = _DAIF | 0xF
_SVC_FROM_EL0 = 0x15 << 26 | 1 << 25  # ESR_EL1: SVC in AArch64 state, a 32-bit instruction
_TASK_SIZE = 1 << 48
_AT_FDCWD = (1 << 64) - 100
_MASK = (1 << 64) - 1
_HERE = 1 << 32  # beside a number: the directory is the current one

# Instructions (Arm ARM, C6.2)
_B, _BRANCH = 0x1400_0000, 0x7C00_0000  # BL has one more bit, the highest
_BLR, _BUT_REGISTER = 0xD63F_0000, 0xFFFF_FC1F

# Offsets in struct pt_regs (arch/arm64/include/asm/ptrace.h): user_pt_regs is an ABI.
_X0, _X8, _ORIG_X0 = 0x00, 0x40, 0x110


class Arm64Abi:
    """See :class:`kodojo.kernel.abi.Abi`."""

    returns_to = "kernel_init"
    program_counter, stack_register = "pc", "sp"
    instruction = 4
    entry = ("el0t_64_sync", "el0t_64_sync_handler")
    system_call_prefix = "__arm64_sys_"
    arguments_in_registers = 8
    oops = ("die", 1)
    frame_registers: tuple[str, ...] = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
    # The old calls without a directory's descriptor are no part of the ABI: what a C library makes of them.
    system_calls = {  # noqa: RUF012  a table
        **ARM64,
        **{
            old: _HERE | ARM64[new] for old, new in (("open", "openat"), ("unlink", "unlinkat"), ("mkdir", "mkdirat"))
        },
    }
    open_directory = 0o40000
    idles_in: tuple[str, ...] = ("cpu_do_idle",)

    def takes_interrupts(self, registers: Registers) -> bool:
        return not registers["pstate"] & _IRQ_MASKED

    def link(self, registers: Registers) -> int | None:
        return registers["x30"]

    def argument(self, cpu: Cpu, number: int) -> int:
        return cpu.get(f"x{number}")

    def set_argument(self, cpu: Cpu, number: int, value: int) -> None:
        cpu.set(f"x{number}", value)

    def result(self, cpu: Cpu) -> int:
        return cpu.get("x0")

    def call_here(self, cpu: Cpu, function: int, argument: int) -> None:
        cpu.write_registers({"x30": cpu.get("pc"), "x0": argument, "pc": function})

    def place(self, cpu: Cpu, stack: int, until: int, values: Sequence[int]) -> Registers:
        on_stack = values[self.arguments_in_registers :]
        if on_stack:
            stack = (stack - 8 * len(on_stack)) & ~0xF
            cpu.write(stack, struct.pack(f"<{len(on_stack)}Q", *on_stack))
        registers = {f"x{number}": value for number, value in enumerate(values[: self.arguments_in_registers])}
        return {**registers, "sp": stack, "x30": until}

    def spot_of_entry(self, btf: Btf, frame: int, returns: int) -> Spot:
        return Spot(returns, frame, frame + btf.struct("pt_regs").field("stackframe").offset)

    def spot_here(self, cpu: Cpu, registers: Registers) -> Spot:
        del cpu
        return Spot(registers["x30"], registers["sp"], registers["x29"])

    def call_from(self, cpu: Cpu, spot: Spot, site: Site) -> Spot:
        record = spot.stack - 16
        cpu.write(record, struct.pack("<QQ", spot.frame, spot.returns))
        return Spot(site.returns, record, record)

    def at_spot(self, spot: Spot) -> Registers:
        return {"x29": spot.frame}

    def coming_back(self, spot: Spot, value: int) -> Registers:
        return {"x0": value & _MASK, "sp": spot.stack, "pc": spot.returns}

    def branches(self, code: bytes, address: int) -> Branches:
        """BL and B."""
        words = np.frombuffer(code, "<u4", len(code) // 4)
        where = np.flatnonzero(words & _BRANCH == _B)
        distances = (words[where] << np.uint32(6)).view(np.int32).astype(np.int64) >> 4
        here = np.uint64(address) + 4 * where.astype(np.uint64)
        targets, are_calls = here + distances.view(np.uint64), words[where] >> np.uint32(31) == 1
        return Branches.of((here + np.uint64(4)).tolist(), targets.tolist(), are_calls.tolist())

    def indirect_calls(self, calls: Calls, address: int, code: bytes) -> list[int]:
        """BLR."""
        del calls
        words = np.frombuffer(code, "<u4", len(code) // 4)
        return [address + 4 * int(index) + 4 for index in np.flatnonzero(words & _BUT_REGISTER == _BLR)]

    def site(self, cpu: Cpu, symbols: Kallsyms, returns: int) -> Site | None:
        """What unwinds the stack looks at the chain of frame records only."""
        del cpu, symbols
        return Site(returns)

    def stack_after(self, registers: Registers) -> int:
        return registers["sp"]

    def enter(self, address: int, interrupted: Registers | None, *, interrupts: bool) -> Registers:
        if interrupted is not None:
            pstate = interrupted["pstate"] & _FLAGS_MASK
        else:
            pstate = _EL1H if interrupts else _EL1H | _DAIF
        return {"x29": 0, "pc": address, "pstate": pstate}

    def begin_system_call(self, cpu: Cpu, frame: int, number: int, arguments: Sequence[int]) -> tuple[str, list[int]]:
        if number & _HERE:
            number &= ~_HERE
            arguments = [_AT_FDCWD, *arguments]
        cpu.write(frame + _X0, struct.pack("<6Q", *arguments[:6]))
        cpu.write(frame + _X8, struct.pack("<Q", number))
        cpu.set("esr_el1", _SVC_FROM_EL0)
        return "el0t_64_sync_handler", [frame]

    def system_call_value(self, cpu: Cpu, frame: int) -> int:
        return int.from_bytes(cpu.read(frame + _X0, 8), "little", signed=True)

    def current_task(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        """SP_EL0, which the kernel does not need for a stack (arch/arm64/include/asm/current.h)."""
        del symbols, memory
        return cpu.get("sp_el0")

    def preemption_count(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> int:
        return memory.struct("task_struct", self.current_task(cpu, symbols, memory)).get("thread_info.preempt.count")

    def find_user_space(self, cpu: Cpu, symbols: Kallsyms, memory: KernelMemory) -> None:
        """While the kernel does not touch user space, TTBR0_EL1 points elsewhere (``uaccess_ttbr0_disable()``)."""
        task = memory.struct("task_struct", self.current_task(cpu, symbols, memory))
        cpu.user_table = cpu.translate(memory.struct("mm_struct", task.get("mm")).get("pgd"))

    def copy_from_user(self, calls: Calls, memory: KernelMemory, to: int, source: int, size: int) -> int:
        """The function is inline: checks the range, makes user space reachable, copies."""
        if source + size > _TASK_SIZE:
            return size
        cpu = calls.cpu
        kept = cpu.get("ttbr0_el1")
        task = memory.struct("task_struct", self.current_task(cpu, calls.image.kallsyms, memory))
        if memory.btf.struct("thread_info").has("ttbr0"):  # CONFIG_ARM64_SW_TTBR0_PAN
            cpu.set("ttbr0_el1", task.get("thread_info.ttbr0"))
        try:
            return calls("__arch_copy_from_user", to, source, size)
        finally:
            cpu.set("ttbr0_el1", kept)

    def fault_address(self, cpu: Cpu) -> tuple[str, int]:
        return "far_el1", cpu.get("far_el1")

    def kernel_frame(self, registers: Registers) -> bytes:
        frame = struct.pack(f"<{len(self.frame_registers)}Q", *(registers[name] for name in self.frame_registers))
        return frame.ljust(0x150, b"\0")
