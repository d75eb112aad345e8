"""What a test of a booted kernel must know about its processor."""

from __future__ import annotations

from dataclasses import dataclass

from kodojo.kernel.kernel import Kernel
from kodojo.machine.cpu import Registers

__all__ = ["Processor", "processor_of"]


@dataclass(frozen=True)
class Processor:
    """Its words.

    :param registers: that a crash or a hang tells.
    :param shown: those of them that the kernel prints for a warning.
    :param first_argument: the register, likewise ``stack``, ``pc``, and ``fault_address`` of the last page fault.
    :param kernel_half: from where on addresses are the kernel's.
    :param backtrace: what the kernel prints above one.
    """

    registers: frozenset[str]
    shown: frozenset[str]
    first_argument: str
    stack: str
    pc: str
    fault_address: str
    kernel_half: int
    backtrace: str
    flags: str
    interrupts_masked: int
    interrupts_enabled: int

    def takes_interrupts(self, registers: Registers) -> bool:
        """Whether they were enabled."""
        flags = registers[self.flags]
        return bool(flags & self.interrupts_enabled) or not flags & self.interrupts_masked


_X86_64 = frozenset(
    "rax rbx rcx rdx rsi rdi rbp rsp rip rflags r8 r9 r10 r11 r12 r13 r14 r15".split()  # noqa: SIM905
)
_ARM64 = frozenset({*(f"x{number}" for number in range(30)), "sp", "pc", "pstate"})

_PROCESSORS = {
    "x86_64": Processor(
        registers=_X86_64,
        shown=_X86_64 - {"rip"},
        first_argument="rdi",
        stack="rsp",
        pc="rip",
        fault_address="cr2",
        kernel_half=0xFFFF800000000000,
        backtrace="Call Trace:",
        flags="rflags",
        interrupts_masked=~0,
        interrupts_enabled=0x200,
    ),
    "aarch64": Processor(
        registers=_ARM64,
        shown=_ARM64 - {"pc"},
        first_argument="x0",
        stack="sp",
        pc="pc",
        fault_address="far_el1",
        kernel_half=0xFFFF000000000000,
        backtrace="Call trace:",
        flags="pstate",
        interrupts_masked=0x80,
        interrupts_enabled=0,
    ),
}


def processor_of(kernel: Kernel) -> Processor:
    return _PROCESSORS[kernel.image.architecture]
