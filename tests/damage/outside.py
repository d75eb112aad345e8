"""Watch the kernel's own loader for reads of what lies behind the file.

The temporary copy of the file fills its last page only in part. What follows in that page is nobody's;
then comes a page that is not mapped. A read there shows that a file makes the kernel read behind its end, even
where nothing faults.
"""

from __future__ import annotations

from typing import Any

import unicorn

from kodojo.kernel.kernel import Kernel
from tests.damage.outcomes import Result, native_load

__all__ = ["native_load_watched"]

PAGE_SIZE = 4096


def native_load_watched(kernel: Kernel, image: bytes, arguments: str) -> Result:
    """The kernel's own answer; ``damage`` says where it read behind the file, if it did."""
    seen: list[tuple[int, int]] = []
    load_module = kernel.image.kallsyms.address("load_module")
    uc = kernel.machine.cpu.engine._uc

    def on_read(_uc: Any, _access: int, address: int, size: int, _value: int, _data: Any) -> None:
        if len(seen) < 4:
            seen.append((address, uc.reg_read(unicorn.x86_const.UC_X86_REG_RIP)))

    starts: list[int] = []

    def entered() -> None:
        info = kernel.memory.struct("load_info", kernel.machine.cpu.get("rdi"))
        start = info.get("hdr")
        starts.append(start)
        end = start + len(image)
        last = (end + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)
        if last > end:
            uc.hook_add(unicorn.UC_HOOK_MEM_READ, on_read, begin=end, end=last - 1)
            uc.ctl_flush_tb()

    kernel.machine.cpu.add_breakpoint(load_module, entered)
    result = native_load(kernel, image, arguments)
    if seen:
        address, rip = seen[0]
        place = kernel.image.kallsyms.symbol_at(rip)
        name = place.name if place else f"{rip:#x}"
        result.damage = f"{name} read {address - starts[0] - len(image):#x} bytes behind the end of the file"
    return result
