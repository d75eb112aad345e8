"""The machines of QEMU that come nearest to ours, by architecture.

On x86-64 that is ``microvm``: no PCI, no ACPI, no clock chip; two 8259s, an 8254, and here no APIC. The kernel is the
same uncompressed image, on the same command line, and the processor says of itself what ours says (test_recorded.py).
What differs: the processor has the CPUID leaf of the topology; the kernel is entered by PVH instead of by the 64-bit
boot protocol; the timer counts down as a real one does; fw_cfg and two debug ports are there, for which the kernel
has no driver.

On arm64 it is ``virt``, with a GICv2, described by our device tree: of the devices that are not in it the kernel
learns nothing. What differs: a PL011 that does more than to swallow what is written; firmware that says it is PSCI
1.1, not 1.0; where device tree and initramfs lie in memory.

On both, the initramfs has another /init (guest.c), which runs in user mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kodojo.image.image import Image
from kodojo.kernel import boot
from kodojo.kernel.boot_arm64 import machine_tree
from kodojo.kernel.device_tree import flatten

__all__ = ["CASE", "MACHINES", "REPORT", "Machine"]

CASE, REPORT = "case", "report"
"""Files where QEMU runs: what the guest is given, and what it says (see guest_ARCHITECTURE.h)."""


class Machine(Protocol):
    """What is particular to an architecture.

    :attr debian: what Debian calls it.
    :attr compiler: of the guest's program.
    """

    @property
    def debian(self) -> str: ...
    @property
    def compiler(self) -> str: ...

    def options(self, image: Image, directory: Path) -> list[str]:
        """QEMU's, of machine, processor, kernel and of what the guest reads and writes; files are made as needed."""


@dataclass(frozen=True)
class Microvm:
    """x86-64."""

    debian: str = "amd64"
    compiler: str = "gcc"
    machine: str = (
        "microvm,pit=on,pic=on,rtc=off,isa-serial=off,acpi=off,ioapic2=off,pcie=off,usb=off,"
        "x-option-roms=off,auto-kernel-cmdline=off"
    )
    # What our machine's processor has (machine/x86_64.py): family and model of the older qemu64, and nothing random.
    processor: str = "qemu64,family=6,model=6,stepping=3,-apic,-tsc,-rdtscp,-rdrand,-rdseed"

    def options(self, image: Image, directory: Path) -> list[str]:
        kernel = directory / "vmlinux"
        kernel.write_bytes(image.elf.data)
        return [
            "-machine", self.machine, "-cpu", self.processor, "-kernel", str(kernel),
            "-chardev", f"file,id=report,path={REPORT}", "-device", "isa-debugcon,iobase=0x402,chardev=report",
            "-fw_cfg", f"name=opt/kodojo/case,file={CASE}", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
        ]  # fmt: skip


@dataclass(frozen=True)
class Virt:
    """arm64."""

    debian: str = "arm64"
    compiler: str = "aarch64-linux-gnu-gcc"
    machine: str = "virt,gic-version=2"
    processor: str = "cortex-a72"
    memory: int = 0x4000_0000

    def options(self, image: Image, directory: Path) -> list[str]:
        tree = directory / "tree"
        # QEMU itself enters the command line, and where it puts the initramfs.
        tree.write_bytes(flatten(machine_tree(self.memory, boot.DEFAULT_MEMORY, b"", (0, 0))))
        return [
            "-machine", self.machine, "-cpu", self.processor, "-kernel", str(image.path), "-dtb", str(tree),
            "-semihosting-config", "enable=on,target=native,userspace=on",
        ]  # fmt: skip


MACHINES: dict[str, Machine] = {"x86_64": Microvm(), "aarch64": Virt()}
