"""By which calls the kernel's own code comes from one of its functions to another, and what that leaves on the stack.

Our loader calls what the kernel's loader calls. It does so from the very places of the code that it stands for:
whatever goes wrong below then shows the way to it as the kernel's own unwinder finds it (:class:`Ways`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from kodojo.kernel.calls import Calls
    from kodojo.kernel.orc import Unwinding

__all__ = ["MODULE_FUNCTIONS", "Branches", "Site", "Spot", "Ways"]

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
    :param unwinding: how the function's frame looks there; None where a chain of frames tells that.
    """

    returns: int
    unwinding: Unwinding | None = None


class Branches(NamedTuple):
    """The calls and jumps in some code that name their target.

    :param calls: the addresses behind the calls of each function. :param jumps: where jumps lead.
    """

    calls: Mapping[int, Sequence[int]]
    jumps: Collection[int]

    @classmethod
    def of(cls, behind: Sequence[int], targets: Sequence[int], are_calls: Sequence[bool]) -> Branches:
        """:param behind: the address behind each. :param targets: where it leads."""
        calls: dict[int, list[int]] = {}
        jumps: set[int] = set()
        for after, target, is_call in zip(behind, targets, are_calls, strict=True):
            if is_call:
                calls.setdefault(target, []).append(after)
            else:
                jumps.add(target)
        return cls(calls, jumps)

    def behind_call(self, function: int) -> int | None:
        """The address behind the first call of a function."""
        return self.calls.get(function, (None,))[0]


class Piece(NamedTuple):
    """Code of a function that is in one place."""

    start: int
    code: bytes
    branches: Branches


class Ways:
    """Looks for calls in the kernel's code, as it is in memory."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._cpu = calls.cpu
        self._symbols = calls.image.kallsyms
        self._abi = calls.abi
        self._functions: tuple[int, ...] = ()
        self._pieces_of: dict[int, tuple[Piece, ...]] = {}
        self._found: dict[tuple[int, int, str, tuple[str, ...]], tuple[Site, ...]] = {}

    def to(self, start: int, function: int, by: str = "", after: tuple[str, ...] = ()) -> tuple[Site, ...]:
        """The calls by which a function that has just begun comes to another one.

        :param function: 0 for one that is called through a pointer.
        :param by: the function that calls it, the first that does if empty.
        :param after: the first call through a pointer behind one of these functions is meant, the only one if empty.
        :returns: one for each function on the way that stays on the stack; nothing if no way is known.
        """
        key = start, function, by, after
        if key not in self._found:
            self._found[key] = self._search(*key)
        return self._found[key]

    def behind_call(self, function: str, callee: str) -> int | None:
        """The address behind the first call of ``callee`` in the code that begins at ``function``."""
        start, target = self._symbols.get(function), self._symbols.get(callee)
        if start is None or target is None:
            return None
        return self._abi.branches(self._cpu.read(start, _ENTRY_LIMIT), start).behind_call(target)

    def _search(self, start: int, function: int, by: str, after: tuple[str, ...]) -> tuple[Site, ...]:
        """Breadth first, by direct calls and jumps."""
        known = self._known()
        callers = self._symbols.specialised(by) if by else (start, *known)
        seen, queue = {start}, [(start, tuple[int, ...]())]
        while queue:
            at, way = queue.pop(0)
            last = None if at not in callers else self._edge(at, function) if function else self._pointer(at, after)
            if last is not None:
                return self._sites((*way, *last))
            for following in known:
                edge = None if following in seen else self._edge(at, following)
                if edge is not None:
                    seen.add(following)
                    queue.append((following, (*way, *edge)))
        return ()

    def _known(self) -> tuple[int, ...]:
        """The functions of the loader that there are."""
        if not self._functions:
            self._functions = tuple(
                address for name in MODULE_FUNCTIONS for address in self._symbols.specialised(name)
            )
        return self._functions

    def _pointer(self, at: int, after: tuple[str, ...]) -> tuple[int, ...] | None:
        """The address behind a call through a pointer."""
        pieces = self._pieces(at)
        calls = [one for piece in pieces for one in self._abi.indirect_calls(self._calls, piece.start, piece.code)]
        if after:
            before = [pieces[0].branches.behind_call(self._symbols.get(name) or 0) for name in after]
            first = next((one for one in before if one is not None), None)
            calls = [one for one in calls if first is not None and one > first][:1]
        return (calls[0],) if len(calls) == 1 else None

    def _edge(self, at: int, function: int) -> tuple[int, ...] | None:
        """The address behind the call of a function, nothing for a jump to it; None if there is neither."""
        pieces = self._pieces(at)
        behind = next((one for piece in pieces if (one := piece.branches.behind_call(function)) is not None), None)
        if behind is not None:
            return (behind,)
        return () if any(function in piece.branches.jumps for piece in pieces) else None

    def _pieces(self, function: int) -> tuple[Piece, ...]:
        """The code of a function, and what the compiler has put elsewhere as it is rarely run."""
        found = self._pieces_of.get(function)
        if found is None:
            located = self._symbols.symbol_at(function)
            rare = None if located is None else self._symbols.get(f"{located.name}.cold")
            starts = [function] if rare is None else [function, rare]
            found = self._pieces_of[function] = tuple(self._piece(start) for start in starts)
        return found

    def _piece(self, start: int) -> Piece:
        located = self._symbols.symbol_at(start)
        size = 0 if located is None else min(located.start + located.size - start, _CODE_LIMIT)
        code = self._cpu.read(start, size)
        return Piece(start, code, self._abi.branches(code, start))

    def _sites(self, addresses: tuple[int, ...]) -> tuple[Site, ...]:
        sites = [self._abi.site(self._cpu, self._symbols, address) for address in addresses]
        known = tuple(site for site in sites if site is not None)
        return known if len(known) == len(sites) else ()
