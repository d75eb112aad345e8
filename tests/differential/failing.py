"""Make the n-th allocation of a load fail, whichever allocator is asked; count what is allocated and freed."""

from __future__ import annotations

from collections import Counter
from functools import partial

from kodojo.kernel.kernel import Kernel

__all__ = ["Allocations"]

# What kmalloc() becomes where the compiler knows the size.
SIZE_IS_CONSTANT = ("kmalloc_trace", "__kmalloc_cache")
# Each of them returns NULL where it has nothing. Newer kernels add _noprof to the names.
ALLOCATORS = (
    "__kmalloc", *SIZE_IS_CONSTANT, "kmalloc_large", "__kmalloc_large", "kmalloc_node_trace", "__kmalloc_cache_node",
    "__kmalloc_node", "__kmalloc_node_track_caller", "kmem_cache_alloc", "kmem_cache_alloc_lru",
    "kmem_cache_alloc_node", "__vmalloc_node_range", "pcpu_alloc",
)  # fmt: skip
RELEASES = ("kfree", "kmem_cache_free", "vfree", "free_percpu", "kvfree_call_rcu")
# Of the caller's own address space, in which a test puts the file before a load and takes it away after it.
ADDRESS_SPACE = frozenset({b"maple_node", b"vm_area_struct", b"anon_vma", b"anon_vma_chain", b"vma_lock"})


class Allocations:
    """Watches the allocators of a machine, from the copy of the module's file on.

    :param fail: number of the allocation that fails, from 0; None: none does.
    :attr fail: may be changed.
    :attr made: which function was asked, in order.
    :attr freed: calls by function, those that free nothing left out.
    """

    def __init__(self, kernel: Kernel, fail: int | None = None) -> None:
        self._cpu = kernel.machine.cpu
        self._abi = kernel.calls.abi
        self._memory = kernel.memory
        self.fail = fail
        self._counts = False
        self.made: list[str] = []
        self.freed: Counter[str] = Counter()
        for names, handler in ((ALLOCATORS, self._allocate), (RELEASES, self._free)):
            for name in names:
                for suffix in ("", "_noprof"):
                    address = kernel.image.kallsyms.get(name + suffix)
                    if address is not None:
                        self._cpu.add_breakpoint(address, partial(handler, name))

    def stop(self) -> None:
        """Count no more, fail no more."""
        self._counts = False
        self.fail = None

    def _allocate(self, name: str) -> None:
        if name == "__vmalloc_node_range" and not self.made:
            self._counts = True
        if not self._counts or self._is_for_address_space(name):
            return
        number = len(self.made)
        self.made.append("__kmalloc" if name in SIZE_IS_CONSTANT else name)
        if number == self.fail:
            called = self._abi.spot_here(self._cpu, self._cpu.read_registers())
            self._cpu.write_registers(self._abi.coming_back(called, 0))

    def _free(self, name: str) -> None:
        if not self._counts or self._is_for_address_space(name):
            return
        if self._abi.argument(self._cpu, 1 if name == "kmem_cache_free" else 0):
            self.freed[name] += 1

    def _is_for_address_space(self, name: str) -> bool:
        if not name.startswith("kmem_cache_"):
            return False
        cache = self._memory.struct("kmem_cache", self._abi.argument(self._cpu, 0))
        return self._memory.string(cache.get("name")) in ADDRESS_SPACE
