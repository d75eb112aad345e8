"""Memory becomes executable: which of its instructions read a clock.

An instruction that reads a clock (RDTSC, MRS of CNTVCT_EL0) has to be trapped by address: it would let a module
read the host's. So new code is looked through when the kernel makes memory executable. That what was written last is
what runs, whoever wrote it and how, is seen to by the machine (``machine/code_pages.py``).
"""

from __future__ import annotations

from kodojo.errors import MachineError
from kodojo.kernel.bounds import at_most
from kodojo.kernel.calls import Calls
from kodojo.machine.memory import PAGE_SIZE

__all__ = ["NewCode"]

# int set_memory_x(unsigned long addr, int numpages), and set_memory_rox: arch/x86/mm/pat/set_memory.c,
# arch/arm64/mm/pageattr.c
_FUNCTIONS = ("set_memory_x", "set_memory_rox")
_MOST_SITES = 512  # of one module; real ones have a handful, and each slows the translation of all code


class NewCode:
    """Watches for memory that becomes executable, and names the kernel's own code."""

    def __init__(self, calls: Calls) -> None:
        self._cpu, self._abi = calls.cpu, calls.abi
        text, end = (calls.image.kallsyms.address(name) for name in ("_stext", "_etext"))
        self._cpu.expect_code(text, end - text)
        for name in _FUNCTIONS:
            address = calls.image.kallsyms.get(name)
            if address is not None:
                self._cpu.add_breakpoint(address, self._executable)

    def _executable(self) -> None:
        abi = self._abi
        start, size = abi.argument(self._cpu, 0), (abi.argument(self._cpu, 1) & 0xFFFFFFFF) * PAGE_SIZE
        try:
            code = self._cpu.read(start, at_most(size, self._cpu.ram.size, "bytes of code"))
        except MachineError:  # a page is not there: the kernel will say so itself
            return
        known = {site for site in self._cpu.time_stamp_sites if not start <= site < start + size}
        found = self._cpu.time_stamp_reads(code, start)
        self._cpu.trap_time_stamp_reads(known.union(found[:_MOST_SITES]))
