"""Watch the kernel's own loader for reads of what is not the module's.

The temporary copy of the file fills its last page only in part. What follows in that page is nobody's;
then comes a page that is not mapped. A read there shows that a file makes the kernel read behind its end, even
where nothing faults. And relocations have no business in the memory of other modules, nor behind the symbols in their
own, where only names are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import unicorn

from kodojo.image.elf import SHDR, SYM
from kodojo.kernel.kernel import Kernel
from tests.damage.outcomes import Result, native_load

__all__ = ["native_load_watched"]

PAGE_SIZE = 4096
MODULES_SIZE = 64 << 20  # more are never in use here
AREAS_BEHIND = 4096  # pages of other memory behind the copy
READERS = frozenset({"strcmp", "strncmp", "strlen", "load_module", "module_finalize", "find_sec"})


class Watch:
    """Hooks in the engine of a machine that is used up afterwards.

    :attr seen: what was read where it should not have been, in words.
    """

    def __init__(self, kernel: Kernel, length: int) -> None:
        self._kernel = kernel
        self._length = length
        self._end = 0
        self._start = 0
        self._others: dict[int, int] = {}
        self._foreign: dict[int, int] = {}
        self._behind_symbols = 0
        self._cpu, self._abi = kernel.calls.cpu, kernel.calls.abi
        self._uc = self._cpu.engine._uc
        self.seen: list[str] = []
        kallsyms = kernel.image.kallsyms
        self._cpu.add_breakpoint(kallsyms.address("load_module"), self._entered)
        self._cpu.add_breakpoint(kallsyms.address("apply_relocate_add"), self._relocating)
        self._uc.ctl_flush_tb()

    def _entered(self) -> None:
        """``load_module(struct load_info *info, ...)``."""
        info = self._kernel.memory.struct("load_info", self._abi.argument(self._cpu, 0))
        self._end = info.get("hdr") + self._length
        self._start = self._cpu.translate(self._end) or 0
        first = (self._end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        for page in range(first, first + PAGE_SIZE * AREAS_BEHIND, PAGE_SIZE):
            place = self._cpu.translate(page)
            if place is not None:
                self._others[place] = page
        self._hook(self._behind, 1, 0)

    def _hook(self, callback: Any, begin: int, end: int) -> None:
        """The engine's hooks are told physical addresses. It asks for them only in code translated from now on."""
        self._uc.hook_add(unicorn.UC_HOOK_MEM_READ, callback, begin=begin, end=end)
        self._uc.ctl_flush_tb()

    def _relocating(self) -> None:
        """``apply_relocate_add(sechdrs, strtab, symindex, relsec, struct module *me)``."""
        if self._foreign:
            return
        target = self._kernel.target
        mod = self._kernel.memory.struct("module", self._abi.argument(self._cpu, 4))
        own, others = (
            [range(part.base, part.base + part.size) for one in some for part in target._regions(one).values()]
            for some in ([mod], [target.of(other) for other in target.modules()])
        )
        header = self._abi.argument(self._cpu, 0) + SHDR.itemsize * self._abi.argument(self._cpu, 2)
        symbols = np.frombuffer(self._cpu.read(header, SHDR.itemsize), SHDR)[0]
        self._behind_symbols = int(symbols["sh_addr"] + symbols["sh_size"] // SYM.itemsize * SYM.itemsize)
        start = min(region.start for region in own + others if region.start) & -PAGE_SIZE
        for page in range(start, start + MODULES_SIZE, PAGE_SIZE):
            holder = next((region for region in own if page in region), None)
            if holder is None or (self._behind_symbols in holder and page + PAGE_SIZE > self._behind_symbols):
                place = self._cpu.translate(page)
                if place is not None:
                    self._foreign[place] = page
        self._hook(self._in_modules, 1, 0)

    def _where(self) -> str:
        here = self._cpu.get(self._cpu.program_counter)
        place = self._kernel.image.kallsyms.symbol_at(here)
        return place.name.removeprefix("__pi_") if place else f"{here:#x}"

    def _behind(self, _uc: Any, _access: int, address: int, *_rest: Any) -> None:
        if len(self.seen) < 2:
            rest = -self._end % PAGE_SIZE
            page = self._others.get(address & ~(PAGE_SIZE - 1))
            if rest and self._start <= address < self._start + rest:
                self.seen.append(f"{self._where()} read {address - self._start:#x} bytes behind the end of the file")
            elif page is not None and self._where() in READERS:
                far = page + address % PAGE_SIZE - self._end
                self.seen.append(f"{self._where()} read {far:#x} bytes behind the end of the file")

    def _in_modules(self, _uc: Any, _access: int, address: int, *_rest: Any) -> None:
        page = self._foreign.get(address & ~(PAGE_SIZE - 1))
        if page is None or len(self.seen) >= 2:
            return
        place = page + address % PAGE_SIZE
        if place < self._behind_symbols < page + PAGE_SIZE:  # it is its own symbols that end in this page
            return
        where = self._where()
        if "reloc" in where or where == "memcmp":  # by which x86's looks whether a place is zero
            self.seen.append(f"{where} read {place:#x}, which is not the module's")


def native_load_watched(kernel: Kernel, image: bytes, arguments: str) -> Result:
    """The kernel's own answer; ``damage`` says what it read that was not the module's, if it did."""
    watch = Watch(kernel, len(image))
    result = native_load(kernel, image, arguments)
    if watch.seen:
        result.damage = watch.seen[0]
    return result
