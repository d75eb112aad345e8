"""By which calls the kernel's own code comes from one of its functions to another, and what that leaves on the stack.

Our loader calls what the kernel's loader calls. It does so from the very places of the code that it stands for:
whatever goes wrong below then shows the way to it as the kernel's own unwinder finds it (:class:`Ways`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kodojo.kernel.calls import Calls

__all__ = ["MODULE_FUNCTIONS", "Site", "Spot", "Ways"]

MODULE_FUNCTIONS = (
    "__se_sys_init_module", "__do_sys_init_module", "__se_sys_finit_module", "__do_sys_finit_module",
    "idempotent_init_module", "init_module_from_file", "load_module", "prepare_coming_module", "do_init_module",
    "parse_args", "__se_sys_delete_module", "__do_sys_delete_module", "free_module",
)  # fmt: skip
"""The functions of ``kernel/module/main.c`` that our loader stands for; compilers inline some of them."""

_CODE_LIMIT = 1 << 16  # bytes of a function
_ENTRY_LIMIT = 1 << 10  # bytes of an entry point, which may have more than one symbol in it


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in the kernel's code at which a call is made.

    :param returns: where the function goes back to.
    :param stack: the stack pointer when it has.
    :param frame: the frame pointer of the code that calls it.
    """

    returns: int
    stack: int
    frame: int


@dataclass(frozen=True, slots=True)
class Site:
    """A call in a function's code.

    :param returns: the address behind it.
    :param size: how far below the function's caller the stack pointer is there; 0 if a chain of frames tells that.
    :param base: how far below the base pointer is kept, 0 if it is in its register.
    """

    returns: int
    size: int = 0
    base: int = 0


class Ways:
    """Looks for calls in the kernel's code, as it is in memory."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._cpu = calls.cpu
        self._symbols = calls.image.kallsyms
        self._abi = calls.abi
        self._code: dict[int, bytes] = {}
        self._found: dict[tuple[int, int], tuple[Site, ...]] = {}

    def to(self, start: int, function: int) -> tuple[Site, ...]:
        """The calls by which a function that has just begun comes to another one.

        :param function: 0 for one that is called through a pointer.
        :returns: one for each function on the way that stays on the stack; nothing if no way is known.
        """
        key = start, function
        if key not in self._found:
            self._found[key] = self._search(start, function)
        return self._found[key]

    def behind_call(self, function: str, callee: str) -> int | None:
        """The address behind the first call of ``callee`` in the code that begins at ``function``."""
        start, target = self._symbols.get(function), self._symbols.get(callee)
        if start is None or target is None:
            return None
        code = self._cpu.read(start, _ENTRY_LIMIT)
        return next(iter(self._abi.direct_calls(code, start, target)[0]), None)

    def _search(self, start: int, function: int) -> tuple[Site, ...]:
        """Breadth first, by direct calls and jumps."""
        known = [address for name in MODULE_FUNCTIONS for address in self._symbols.specialised(name)]
        seen, queue = {start}, [(start, tuple[int, ...]())]
        while queue:
            at, way = queue.pop(0)
            last = self._last(at, function)
            if last is not None:
                return self._sites((*way, *last))
            for following in known:
                edge = None if following in seen else self._edge(at, following)
                if edge is not None:
                    seen.add(following)
                    queue.append((following, (*way, *edge)))
        return ()

    def _last(self, at: int, function: int) -> tuple[int, ...] | None:
        if function:
            return self._edge(at, function)
        calls = [
            after
            for start in self._pieces(at)
            for after in self._abi.indirect_calls(self._calls, start, self._code_of(start))
        ]
        return (calls[0],) if len(calls) == 1 else None

    def _edge(self, at: int, function: int) -> tuple[int, ...] | None:
        """The address behind the call of a function, nothing for a jump to it; None if there is neither."""
        jumps = False
        for start in self._pieces(at):
            calls, jump = self._abi.direct_calls(self._code_of(start), start, function)
            if calls:
                return (calls[0],)
            jumps = jumps or jump
        return () if jumps else None

    def _pieces(self, function: int) -> list[int]:
        """Where the code of a function begins, and what the compiler has put elsewhere as it is rarely run."""
        located = self._symbols.symbol_at(function)
        rare = None if located is None else self._symbols.get(f"{located.name}.cold")
        return [function] if rare is None else [function, rare]

    def _sites(self, addresses: tuple[int, ...]) -> tuple[Site, ...]:
        sites = [self._abi.site(self._cpu, self._symbols, address) for address in addresses]
        known = tuple(site for site in sites if site is not None)
        return known if len(known) == len(sites) else ()

    def _code_of(self, function: int) -> bytes:
        code = self._code.get(function)
        if code is None:
            located = self._symbols.symbol_at(function)
            size = 0 if located is None else min(located.start + located.size - function, _CODE_LIMIT)
            code = self._code[function] = self._cpu.read(function, size)
        return code
