"""Which pages of memory hold code that was translated: every write to them is to be seen by the engine.

The engine drops what it translated from memory that is written; but it looks at writes only as long as the TLB entry
by which they come is marked "not dirty". Unlike QEMU it marks the entries of the *virtual* page that code was
translated from, none of another mapping of the same memory, and it takes the mark away after the first write, though
there may be more code on the page. So the kernel's writes through an alias (``text_poke()``, the BPF JIT, the direct
mapping) were seen once, or never (contrib/unicorn-stale-code.md has the whole of it).

The rule here: once code has been translated from a physical page, every entry by which that page can be written keeps
its mark. The engine leaves the mark alone where a memory hook covers the physical address, so each page gets a hook
(of a kind that is never called), and the TLB is flushed once, for entries that have lost theirs. New pages are
noticed when the engine has translated a block; what it calls then are machine instructions of ours, which call Python
only for a page that is new.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass

from kodojo.machine.memory import PAGE_SIZE, Ram
from kodojo.machine.native import executable_page
from kodojo.machine.rescue import address_of

__all__ = ["COUNTED_TOGETHER", "CodePages", "HookCalls"]

COUNTED_TOGETHER = 256  # translated blocks

_CODE = b"\1"
_FETCH = 4  # UC_PROT_EXEC
_MOST_RANGES = 400  # of pages; the engine goes through all of them for the first write by each entry

# int uc_vmem_translate(uc, address, protection, &physical)
_Translate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_Found = ctypes.CFUNCTYPE(None, ctypes.c_uint64)
_Counted = ctypes.CFUNCTYPE(None)
_Generated = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

# Arguments: engine, the block (its address, and 10 bytes further 16 bits of its size), the one before, _Words. For
# the block's first and last byte: translate, and unless the page is known, call found with its number. Before that
# the block is counted, and counted() called when there were as many as there may be.
_ROUTINES = {
    ("Linux", "x86_64"): bytes.fromhex(
        "53 55 4154 4155 4156"  # push rbx, rbp, r12, r13, r14
        "4889cb 4889fd"  # mov rbx, rcx; mov rbp, rdi
        "4c8b26 440fb76e0a 4f8d6c2cff"  # mov r12, [rsi]; movzx r13d, word [rsi+10]; lea r13, [r12+r13-1]
        "48ff4b30 7503 ff5338"  # dec qword [rbx+48]; jne 1f; call [rbx+56]
        "4889ef 4c89e6 ba04000000 4889d9 ff5308"  # 1: call [rbx+8](rbp, r12, 4, rbx)
        "85c0 751e"  # test eax, eax; jne 2f
        "488b3b 482b7b18 48c1ef0c"  # mov rdi, [rbx]; sub rdi, [rbx+24]; shr rdi, 12
        "483b7b20 730d"  # cmp rdi, [rbx+32]; jae 2f
        "488b4b28 803c3900 7503 ff5310"  # mov rcx, [rbx+40]; cmp byte [rcx+rdi], 0; jne 2f; call [rbx+16]
        "4c89e0 4c31e8 48c1e80c 7405"  # 2: mov rax, r12; xor rax, r13; shr rax, 12; je 3f
        "4d89ec ebbc"  # mov r12, r13; jmp 1b
        "415e 415d 415c 5d 5b c3"  # 3: pop r14, r13, r12, rbp, rbx; ret
    ),
    ("Linux", "aarch64"): b"".join(
        word.to_bytes(4, "little")
        for word in (
            0xA9BC7BFD, 0xA90153F3, 0xA9025BF5,  # stp x29, x30, [sp, -64]!; stp x19 to x22, [sp, 16]
            0xAA0303F3, 0xAA0003F4,  # mov x19, x3; mov x20, x0
            0xF9400035, 0x79401436,  # ldr x21, [x1]; ldrh w22, [x1, 10]
            0x8B1502D6, 0xD10006D6,  # add x22, x22, x21; sub x22, x22, 1
            0xF9401A69, 0xF1000529, 0xF9001A69,  # ldr x9, [x19, 48]; subs x9, x9, 1; str x9, [x19, 48]
            0x54000061, 0xF9401E70, 0xD63F0200,  # b.ne 1f; ldr x16, [x19, 56]; blr x16
            0xAA1403E0, 0xAA1503E1, 0x52800082, 0xAA1303E3,  # 1: x0 to x3 are x20, x21, 4, x19
            0xF9400670, 0xD63F0200, 0x35000180,  # ldr x16, [x19, 8]; blr x16; cbnz w0, 2f
            0xA941AA69, 0xF9400260, 0xCB090000, 0xD34CFC00,  # ldp x9, x10, [x19, 24]; x0 = (*x19 - x9) >> 12
            0xEB0A001F, 0x540000C2,  # cmp x0, x10; b.hs 2f
            0xF9401669, 0x38606929, 0x35000069,  # ldr x9, [x19, 40]; ldrb w9, [x9, x0]; cbnz w9, 2f
            0xF9400A70, 0xD63F0200,  # ldr x16, [x19, 16]; blr x16
            0xCA1602A9, 0xAA1603F5, 0xD34CFD29, 0xB5FFFD69,  # 2: x9 = (x21 ^ x22) >> 12; mov x21, x22; cbnz x9, 1b
            0xA9425BF5, 0xA94153F3, 0xA8C47BFD, 0xD65F03C0,  # ldp x19 to x22; ldp x29, x30, [sp], 64; ret
        )
    ),
}  # fmt: skip


class _Words(ctypes.Structure):
    _fields_ = (
        ("physical", ctypes.c_uint64),
        ("translate", ctypes.c_void_p),
        ("found", ctypes.c_void_p),
        ("base", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("known", ctypes.c_void_p),  # a byte for each page
        ("left", ctypes.c_int64),  # blocks until counted() is called
        ("counted", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class HookCalls:
    """What an engine offers.

    :param add: has every write to the physical addresses from the first to the last looked at; a handle.
    :param remove: takes that back.
    :param on_generated: calls a function of C, with user data, when a block has been translated.
    :param flush_tlb: forgets the TLB.
    :param on_counted: is told, in a hook, whenever COUNTED_TOGETHER more blocks have been translated.
    """

    add: Callable[[int, int], int]
    remove: Callable[[int], None]
    on_generated: Callable[[ctypes.c_void_p, int], None]
    flush_tlb: Callable[[], None]
    on_counted: Callable[[], None]


class CodePages:
    """The pages of one engine's memory.

    :param handle: the engine's structure; ``library``: its library, loaded.
    """

    def __init__(self, handle: int, library: ctypes.CDLL, ram: Ram, calls: HookCalls) -> None:
        pages = ram.size // PAGE_SIZE
        self._handle, self._ram, self._calls = handle, ram, calls
        self._known = (ctypes.c_uint8 * pages)()
        self._flags = memoryview(self._known).cast("B")
        self._first: dict[int, tuple[int, int]] = {}  # the last page and the handle of the range that begins here
        self._last: dict[int, int] = {}  # the first page of the range that ends here
        self._found = _Found(self._on_found)
        self._is_called = False
        translate = address_of(library, "uc_vmem_translate")
        self._translate = _Translate(translate)
        self._counted = _Counted(self._on_counted)
        found, counted = (ctypes.cast(each, ctypes.c_void_p).value for each in (self._found, self._counted))
        known = ctypes.addressof(self._known)
        self._words = _Words(0, translate, found, ram.base, pages, known, COUNTED_TOGETHER, counted)
        routine = _ROUTINES.get((platform.system(), platform.machine()))
        self._page = executable_page(routine) if routine is not None else None
        self._callback = _Generated(self._generated)
        code = ctypes.cast(self._callback, ctypes.c_void_p)
        if self._page is not None:
            code = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._page)))
        calls.on_generated(code, ctypes.addressof(self._words))
        self.is_full = False

    def start(self, address: int) -> None:
        """A run begins here. The engine does not call for a block that is translated before any other has ended."""
        if not self._is_called:
            self._note(address)
            self._note(address + PAGE_SIZE)

    def expect(self, physical: int, size: int) -> None:
        """All of this is code, though not all of it has been translated yet."""
        first, last = ((address - self._ram.base) // PAGE_SIZE for address in (physical, physical + size - 1))
        if 0 <= first <= last < len(self._known) and not self.among(physical, size):
            self._add(first, last)

    def among(self, physical: int, size: int) -> bool:
        """Whether any page of this memory is known to have code."""
        start = physical - self._ram.base
        return _CODE in self._flags[start // PAGE_SIZE : (start + size - 1) // PAGE_SIZE + 1].tobytes()

    def _note(self, address: int) -> None:
        """Code may have been translated from this virtual address."""
        if self._translate(self._handle, address & (1 << 64) - 1, _FETCH, ctypes.addressof(self._words)) == 0:
            page = (self._words.physical - self._ram.base) // PAGE_SIZE
            if 0 <= page < len(self._known) and not self._known[page]:
                self._add(page, page)

    def clear(self) -> None:
        """Nothing is translated any more: begin anew."""
        for _last, handle in self._first.values():
            self._calls.remove(handle)
        self._first.clear()
        self._last.clear()
        ctypes.memset(self._known, 0, len(self._known))
        self.is_full = False

    def _generated(self, _engine: int, block: int, _before: int, _data: int) -> None:
        start = ctypes.c_uint64.from_address(block).value
        size = ctypes.c_uint16.from_address(block + 10).value
        self._note(start)
        self._note(start + size - 1)
        self._is_called = True
        self._words.left -= 1
        if not self._words.left:
            self._on_counted()

    def _on_counted(self) -> None:
        self._words.left = COUNTED_TOGETHER
        self._calls.on_counted()

    def _on_found(self, page: int) -> None:
        self._is_called = True
        self._add(page, page)

    def _add(self, first: int, last: int) -> None:
        """Pages that were not known. This is called in a hook; it touches nothing but hooks and the TLB."""
        for page in range(first, last + 1):
            self._known[page] = 1
        before, after = self._last.pop(first - 1, None), self._first.pop(last + 1, None)
        if before is not None:
            first = before
            self._calls.remove(self._first.pop(before)[1])
        if after is not None:
            last = after[0]
            self._calls.remove(after[1])
        start = self._ram.base + first * PAGE_SIZE
        handle = self._calls.add(start, start + (last - first + 1) * PAGE_SIZE - 1)
        self._first[first], self._last[last] = (last, handle), first
        self.is_full = len(self._first) > _MOST_RANGES
        self._calls.flush_tlb()
