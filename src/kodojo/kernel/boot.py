"""Bring a kernel from its image to the instant before its first user-space instruction.

The machine is entered as the architecture's boot protocol says (``boot_x86_64``, ``boot_arm64``), with an
initramfs whose ``/init`` is a program of one instruction. The boot is over when PID 1 has executed it and is
about to leave for user space: it is then a user process in kernel mode, with credentials, a user
address space and an empty kernel stack of its own, and may sleep. From there every system call works.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kodojo.errors import FaultReport, ImageError, InputError, MachineFault, MissingInformationError
from kodojo.image.image import Image
from kodojo.image.suites import BOOTS
from kodojo.kernel.boot_arm64 import Arm64Boot
from kodojo.kernel.boot_x86_64 import X86_64Boot
from kodojo.kernel.calls import Calls, Place
from kodojo.machine.cpu import Cpu, RunLimit
from kodojo.machine.memory import PAGE_SIZE, Ram

__all__ = [
    "DEFAULT_MEMORY",
    "BootProtocol",
    "base_command_lines",
    "check_bootable",
    "command_line",
    "init_program",
    "load",
    "make_initramfs",
    "missing_symbols",
    "protocol_of",
    "run_to_user_space",
    "trap_time_stamp_reads",
]

DEFAULT_MEMORY = 256 << 20

_SHF_EXECINSTR = 4
_CODE = (("_stext", "_etext"), ("_sinittext", "_einittext"))
_BOOT_LIMIT = RunLimit(ticks=250 * 600)
_BOOT_WALL_LIMIT = 3600.0  # seconds of this computer's time
_PROGRESS_STEPS = 100


class BootProtocol(Protocol):
    """What is particular to an architecture.

    :attr command_line: what every kernel is booted with.
    :attr elf_machine: and ``endless_loop``: of the program that is started.
    :attr kernel_offset: how far behind the start of memory the kernel's physical addresses begin.
    :attr passes: a function that is passed when PID 1 is executed, and ``leaves``: that which then takes it to user
        space.
    """

    command_line: str
    elf_machine: int
    endless_loop: bytes
    kernel_offset: int
    passes: str
    leaves: str

    def enter(self, cpu: Cpu, image: Image, entry: int, cmdline: bytes, initramfs: tuple[int, int]) -> None:
        """Write what the kernel is told, and point the processor at its first instruction.

        :param entry: physical address. :param initramfs: first physical address, and the one behind the last.
        """

    def resting_place(self, cpu: Cpu) -> tuple[int, int]:
        """The stack pointer and the trap frame, at the function ``leaves``."""


_PROTOCOLS: dict[str, BootProtocol] = {"x86_64": X86_64Boot(), "aarch64": Arm64Boot()}
BOOTABLE = tuple(_PROTOCOLS)
"""The architectures whose kernels can be booted, as ``uname -m`` says."""


def protocol_of(architecture: str) -> BootProtocol:
    """:param architecture: one of :data:`BOOTABLE`."""
    return _PROTOCOLS[architecture]


def base_command_lines() -> list[str]:
    """What kernels are booted with, architecture by architecture."""
    return [protocol.command_line for protocol in _PROTOCOLS.values()]


def command_line(architecture: str, extra: str = "") -> str:
    """The kernel's whole command line: the base, then what the user adds."""
    return f"{_PROTOCOLS[architecture].command_line} {extra}".strip()


def missing_symbols(image: Image) -> list[str]:
    """What a boot is steered by and this kernel has not; empty if it can be booted."""
    protocol = _PROTOCOLS[image.architecture]
    wanted = ("panic", protocol.passes, protocol.leaves)
    return [name for name in wanted if image.kallsyms.get(name) is None]


def check_bootable(image: Image) -> None:
    """Refuse a kernel that cannot be booted here, before it is tried.

    :raises ImageError: it is for a machine that kodojo does not have, or lacks what the boot is steered by.
    """
    against = "modules can be checked against it: kodojo check --kernel"
    if image.architecture not in BOOTABLE:
        raise ImageError(
            f"{image.release}: a kernel for {image.architecture}, which kodojo does not run", hint=against
        )
    missing = missing_symbols(image)
    if missing:
        raise MissingInformationError(
            f"{image.release}: kodojo cannot boot this kernel: it has no function {' or '.join(missing)}",
            hint=f"take another one, by its name: kodojo kernel add {BOOTS}; {against}",
        )


def load(cpu: Cpu, image: Image, cmdline: str) -> None:
    """Put the kernel, its boot parameters and the initramfs into memory and point the CPU at them."""
    ram, protocol = cpu.ram, _PROTOCOLS[cpu.architecture]
    base = ram.base + protocol.kernel_offset
    kernel_end = _load_segments(ram, image, base)
    initramfs = make_initramfs(init_program(protocol))
    where = (ram.base + ram.size - len(initramfs)) & ~(PAGE_SIZE - 1)
    if where < kernel_end:
        raise _too_small(ram, image)
    ram.write(where, initramfs)
    cpu.trap_time_stamp_reads(time_stamp_sites(cpu, image))
    protocol.enter(cpu, image, base + image.entry, cmdline.encode(), (where, where + len(initramfs)))


def _load_segments(ram: Ram, image: Image, base: int) -> int:
    end = 0
    for segment in image.segments:
        end = max(end, base + segment.paddr + segment.memsz)
        if end > ram.base + ram.size:
            raise _too_small(ram, image)
        ram.write(base + segment.paddr, image.segment_data(segment))
    if not end:
        raise ImageError(f"{image.release}: the kernel has nothing to load")
    return end


def _too_small(ram: Ram, image: Image) -> InputError:
    return InputError(
        f"{ram.size >> 20} MiB of memory are too small for {image.release}",
        hint="give the machine more memory (--memory)",
    )


def make_initramfs(init: bytes) -> bytes:
    """A cpio archive (newc) with the directories that a system has and ``/init``.

    :param init: the program.
    """
    entries = [(name, 0o040755, b"") for name in ("dev", "proc", "sys", "run", "tmp", "sbin")]
    entries.append(("init", 0o100755, init))
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{field:08X}" for field in fields).encode()
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def init_program(protocol: BootProtocol) -> bytes:
    """A static ELF whose only instruction jumps to itself; it is never run."""
    base, header_size = 0x400000, 64 + 56
    code = protocol.endless_loop
    size = header_size + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, protocol.elf_machine, 1, base + header_size, 64, 0, 0, 64, 56, 1, 64, 0, 0,
    )  # fmt: skip
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, PAGE_SIZE)
    return header + program + code


def time_stamp_sites(cpu: Cpu, image: Image) -> list[int]:
    """Where the kernel's code may read a clock of the processor, and what looks like such an instruction.

    An address in the middle of another instruction is never executed, so trapping it costs nothing.
    """
    found: list[int] = []
    for start, code in _code(image):
        found.extend(cpu.time_stamp_reads(code, start))
    return found


def _code(image: Image) -> Iterator[tuple[int, bytes]]:
    """The kernel's executable areas; its symbols tell where they are if it has no section headers."""
    sections = [name for name, section in image.elf.sections.items() if section.flags & _SHF_EXECINSTR]
    for name in sections:
        yield image.elf.sections[name].address, bytes(image.elf.section_data(name))
    for first, last in () if sections else _CODE:
        start, end = image.kallsyms.get(first), image.kallsyms.get(last)
        if start is not None and end is not None:
            yield start, image.elf.read(start, end - start)


def trap_time_stamp_reads(cpu: Cpu, calls: Calls) -> None:
    """Trap the reads of a clock in the code as the boot has left it, and nothing that only looks like one.

    The kernel has patched itself (``apply_alternatives()`` moves RDTSC behind a fence) and freed its init code. Its
    own decoder (``arch/x86/kernel/kprobes/core.c: can_probe``) tells which addresses are instructions; a kernel
    without it gets them all.
    """
    start, end = calls.address("_stext"), calls.address("_etext")
    sites = cpu.time_stamp_reads(cpu.read(start, end - start), start)
    if calls.has("can_probe"):
        sites = [site for site in sites if calls("can_probe", site) & 0xFF]
    cpu.trap_time_stamp_reads(sites)


def run_to_user_space(cpu: Cpu, image: Image, progress: Callable[[float], None] | None = None) -> Place:
    """Run from :func:`load` to the instant at which PID 1 would leave for user space.

    :param progress: told now and then which share of the kernel's initcalls has begun.
    """
    protocol = _PROTOCOLS[cpu.architecture]
    leave = image.kallsyms.address(protocol.leaves)
    watched = dict.fromkeys(("panic", protocol.passes), lambda: None)
    watched["panic"] = lambda: _give_up(cpu, image)
    # PID 1 is the first task that leaves for user space, but a helper might come before it.
    for name, handler in watched.items():
        cpu.add_breakpoint(image.kallsyms.address(name), handler)
    levels = _watch_initcalls(cpu, image, progress)
    try:
        with cpu.watch.ending():
            cpu.watch.begin(_BOOT_WALL_LIMIT)
            cpu.run(image.kallsyms.address(protocol.passes), _BOOT_LIMIT)
            cpu.run(leave, _BOOT_LIMIT)
    finally:
        for name in watched:
            cpu.remove_breakpoint(image.kallsyms.address(name))
        for address in levels:
            cpu.remove_breakpoint(address)
    stack, frame = protocol.resting_place(cpu)
    return Place(stack, frame)


def _watch_initcalls(cpu: Cpu, image: Image, progress: Callable[[float], None] | None) -> list[int]:
    """Breakpoints on a part of the initcalls, which the image lists in the order in which they run.

    They are there whether anybody looks or not: stops are part of the course that the machine takes.
    """
    entries = _initcalls(image)
    watched = entries[:: max(1, len(entries) // _PROGRESS_STEPS)]
    unique = list(dict.fromkeys(watched))
    for index, address in enumerate(unique):
        cpu.add_breakpoint(address, partial(progress or _ignore, index / len(unique)))
    return unique


def _initcalls(image: Image) -> list[int]:
    """Their addresses. Where the symbol table lists no variables: the longest table of functions behind init code."""
    symbols = image.kallsyms
    start, end = symbols.get("__initcall_start"), symbols.get("__initcall_end")
    if start is not None and end is not None:
        return [int(target) for target in _relative(image, start, end - start)]
    last = symbols.get("_einittext")
    if last is None:
        return []
    behind = (last + 3) & ~3
    size = next((one.vaddr + one.filesz - behind for one in image.segments if one.vaddr <= behind), 0)
    targets = _relative(image, behind, max(0, size) & ~3)
    # Where runs of such words begin, and where they end.
    functions = np.array([address for _, address in symbols.names_and_addresses()], np.uint64)
    edges = np.flatnonzero(np.diff(np.pad(np.isin(targets, functions), 1).astype(np.int8)))
    if not edges.size:
        return []
    longest = int(np.argmax(edges[1::2] - edges[::2]))
    return [int(target) for target in targets[edges[2 * longest] : edges[2 * longest + 1]]]


def _relative(image: Image, start: int, size: int) -> npt.NDArray[np.uint64]:
    """A table of 32-bit offsets from the entry itself."""
    offsets = np.frombuffer(image.elf.read(start, size), "<i4").astype(np.int64)
    return np.arange(start, start + size, 4, dtype=np.uint64) + offsets.view(np.uint64)


def _ignore(_share: float) -> None:
    """Nobody looks."""


def _give_up(cpu: Cpu, image: Image) -> None:
    raise MachineFault(
        f"{image.release}: the kernel panicked while it booted",
        FaultReport("panic", cpu.read_registers()),
        hint="look at the command line that was given with --cmdline, and at the size of the memory",
    )
