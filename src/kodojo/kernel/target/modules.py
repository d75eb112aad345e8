"""The kernel's doubly linked list ``modules``, its references and exports, in the guest's memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from kodojo.errors import DamagedMemoryError, FaultReport, LoadError, MachineHang, decode, encode
from kodojo.kernel.bounds import at_most, reading, walk
from kodojo.kernel.memory import StructView
from kodojo.kernel.target.base import GFP_KERNEL, Part
from kodojo.loader.target import Errno, FileLoad, KernelErrno, Module, ModuleState, Region, Symbol

__all__ = ["ModulesPart", "state_of"]

_LIST_POISON2 = 0xDEAD000000000122
_MASK = (1 << 64) - 1
_MODULE_NAME_LENGTH = 56
_KERNEL_SYMBOL = struct.Struct("<iii")
_SETTLED = (ModuleState.LIVE, ModuleState.GOING)
_MOST_EXPORTS = 1 << 18  # the kernel itself has a tenth of it
_MOST_NAMES = 1 << 24  # bytes


@dataclass(slots=True)
class _Exports:
    """What a module exports: name -> (address, crc, gpl, namespace)."""

    table: tuple[int, int, int, int]
    symbols: dict[str, tuple[int, int | None, bool, str | None]]


def state_of(view: StructView) -> ModuleState:
    """The state of a ``struct module``. Raises DamagedMemoryError."""
    return ModuleState(at_most(view.get("state"), max(ModuleState), "the state of a module"))


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


class ModulesPart(Part):
    """``modules``, ``module_use``, ``refcnt``, ``__ksymtab`` of modules."""

    _known: dict[int, Module]
    _exports: dict[int, _Exports]

    def _tables(self) -> dict[int, Module]:
        if not hasattr(self, "_known"):
            self._known = {}
            self._exports = {}
        return self._known

    # -- the list -------------------------------------------------------------------------------------
    def _addresses(self) -> Iterator[int]:
        """``struct module`` of each entry, from the head."""
        head = self.symbol("modules")
        offset = self.memory.field("module", "list").offset
        for node in walk(self.memory.u64(head), head, self.memory.u64, "the list of modules"):
            yield node - offset

    def modules(self) -> list[Module]:
        known = self._tables()
        current: dict[int, Module] = {}
        try:
            with reading("a module in the list of modules"):
                for address in self._addresses():
                    mod = known.get(address) or self._describe(address)
                    mod.state = state_of(self.of(mod))
                    current[address] = mod
        except DamagedMemoryError as error:
            error.found = tuple(current.values())
            raise
        self._known = current
        return list(current.values())

    def module_size(self, address: int) -> int:
        """Bytes of all its regions now."""
        return sum(region.size for region in self._regions(self.memory.struct("module", address)).values())

    def _describe(self, address: int) -> Module:
        """A module that the kernel loaded, or that an earlier process did."""
        view = self.memory.struct("module", address)
        mod = Module(decode(view.string("name")), state_of(view), address)
        mod.taints = view.get("taints")
        mod.using_gplonly_symbols = bool(view.get("using_gplonly_symbols"))
        mod.sig_ok = bool(view.get("sig_ok"))
        mod.init, mod.exit, mod.percpu = view.get("init"), view.get("exit"), view.get("percpu")
        mod.percpu_size = view.get("percpu_size")
        mod.klp = self.image.btf.struct("module").has("klp") and bool(view.get("klp"))
        mod.args = view.get("args")
        mod.regions = self._regions(view)
        return mod

    def regions_of(self, mod: Module) -> list[Region]:
        return list(self._regions(self.of(mod)).values())

    def set_field(self, mod: Module, member: str, value: int) -> None:
        self.of(mod).set(member, value)

    def set_string(self, mod: Module, member: str, text: bytes | None) -> None:
        view = self.of(mod)
        if text is None:
            self.kfree(view.get(member))
            view.set(member, 0)
        else:
            view.set(member, self.with_string("kstrdup", (), text, GFP_KERNEL))

    def set_state(self, mod: Module, state: ModuleState) -> None:
        mod.state = state
        if mod.address:
            self.of(mod).set("state", state)

    @contextmanager
    def module_mutex(self) -> Iterator[None]:
        mutex = self.symbol("module_mutex")
        self.call("mutex_lock", mutex)
        try:
            yield
        except (LoadError, DamagedMemoryError):
            self.call("mutex_unlock", mutex)
            raise
        self.call("mutex_unlock", mutex)

    def add_unformed_module(self, mod: Module) -> None:
        self._mod_update_bounds(mod)
        self._list_add(self.of(mod).address_of("list"), self.symbol("modules"))
        self.call("mod_tree_insert", mod.address)
        self._tables()[mod.address] = mod

    def _mod_update_bounds(self, mod: Module) -> None:
        """Widen the range of addresses in which module code is looked for (``mod_tree.addr_min/max``)."""
        tree = self.memory.struct("mod_tree_root", self.symbol("mod_tree"))
        for region in mod.regions.values():
            if region.base:
                tree.set("addr_min", min(tree.get("addr_min"), region.base))
                tree.set("addr_max", max(tree.get("addr_max"), region.base + region.size))

    def unlink_module(self, mod: Module) -> None:
        mutex = self.symbol("module_mutex")
        self.call("mutex_lock", mutex)
        entry = self.of(mod).address_of("list")
        self._list_del(entry)
        self.memory.put(entry + 8, 8, _LIST_POISON2)  # only backwards: readers may stand on it (list_del_rcu)
        self.call("mod_tree_remove", mod.address)
        self.call("synchronize_rcu")
        self.call("mutex_unlock", mutex)
        self._tables().pop(mod.address, None)
        self._exports.pop(mod.address, None)

    def wait_for_module(self, mod: Module, seconds: float) -> None:
        ticks = round(seconds * self._hertz)
        self._wait_until(lambda: all(other is not mod or other.state in _SETTLED for other in self.modules()), ticks)

    def wait_for_name(self, name: str) -> None:
        mutex = self.symbol("module_mutex")
        self.call("mutex_unlock", mutex)
        what = f"a load waits for the module {name}, which waits for that load"
        self._wait(lambda: all(other.name != name or other.state in _SETTLED for other in self.modules()), what)
        self.call("mutex_lock", mutex)

    def wait_for_load(self, load: FileLoad) -> None:
        self._wait(lambda: load.ended, "a load waits for another one of the same file, which waits for that load")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        """Sleep until something is done; the resting task, for which Python waits, not longer than it may.

        :raises MachineHang: it was waited for as long as a call may take.
        """
        if self.call.playing:
            while not self._wait_until(done, self._hertz):
                pass
        elif not self._wait_until(done, self.call.limit.ticks):
            report = FaultReport("modules that wait for each other", self.call.cpu.read_registers())
            raise MachineHang(what, report, survived=self.call.at_rest)

    def _wait_until(self, done: Callable[[], bool], ticks: int) -> bool:
        """Sleep tick by tick, in longer pauses after a second; whether it is done."""
        waited = 0
        while not done():
            if waited >= ticks:
                return False
            pause = 1 if waited < self._hertz else self._hertz // 10
            self.call("schedule_timeout_uninterruptible", pause)
            waited += pause
        return True

    @property
    def _hertz(self) -> int:
        return int(self.image.config.get("CONFIG_HZ", "250"))

    def wake_module_wq(self) -> None:
        self.call("__wake_up", self.symbol("module_wq"), 3, 0, 0)  # TASK_NORMAL, everybody

    # -- references -----------------------------------------------------------------------------------
    def module_unload_init(self, mod: Module) -> None:
        view = self.of(mod)
        for member in ("source_list", "target_list"):
            head = view.address_of(member)
            self.memory.write(head, struct.pack("<QQ", head, head))
        view.set("refcnt.counter", 2)
        self.call("__mutex_init", view.address_of("param_lock"), 0, 0)

    def _uses(self, mod: Module, head: str, link: str) -> Iterator[StructView]:
        """Each ``struct module_use`` of a list."""
        start = self.of(mod).address_of(head)
        offset = self.memory.field("module_use", link).offset
        for node in walk(self.memory.u64(start), start, self.memory.u64, f"the users of the module {mod.name}"):
            yield self.memory.struct("module_use", node - offset)

    def ref_module(self, user: Module, owner: Module) -> None:
        if any(use.get("source") == user.address for use in self._uses(owner, "source_list", "source_list")):
            return
        if not self.call("try_module_get", owner.address) & 0xFF:
            raise KernelErrno(Errno.ENOENT)
        try:
            use = self.memory.struct("module_use", self.kmalloc(self.image.btf.struct("module_use").size))
        except KernelErrno:
            self.module_put(owner)
            raise
        use.set("source", user.address)
        use.set("target", owner.address)
        self._list_add(use.address_of("source_list"), self.of(owner).address_of("source_list"))
        self._list_add(use.address_of("target_list"), self.of(user).address_of("target_list"))
        user.uses.append(owner)

    def _list_add(self, entry: int, head: int) -> None:
        first = self.memory.u64(head)
        self.memory.write(entry, struct.pack("<QQ", first, head))
        self.memory.put(first + 8, 8, entry)
        self.memory.put(head, 8, entry)

    def _list_del(self, entry: int) -> None:
        following, previous = struct.unpack("<QQ", self.memory.read(entry, 16))
        self.memory.put(following + 8, 8, previous)
        self.memory.put(previous, 8, following)

    def module_unload_free(self, mod: Module) -> None:
        for use in list(self._uses(mod, "target_list", "target_list")):
            self.call("module_put", use.get("target"))
            self._list_del(use.address_of("source_list"))
            self._list_del(use.address_of("target_list"))
            self.kfree(use.address)
        mod.uses.clear()

    def users(self, mod: Module) -> list[Module]:
        by_address = {other.address: other for other in self.modules()}
        return [by_address[source] for source in self._sources(mod) if source in by_address]

    def names_of_users(self, address: int) -> tuple[str, ...]:
        """Of those who use the ``struct module`` at an address, newest first (``print_unload_info``)."""
        mod = Module(decode(self.memory.struct("module", address).string("name")), ModuleState.LIVE, address)
        with reading(f"the users of the module {mod.name}"):
            return tuple(decode(self.memory.struct("module", each).string("name")) for each in self._sources(mod))

    def _sources(self, mod: Module) -> list[int]:
        """The ``struct module`` of each user."""
        return [use.get("source") for use in self._uses(mod, "source_list", "source_list")]

    def try_release_module_ref(self, mod: Module) -> int:
        view = self.of(mod)
        left = view.get("refcnt.counter") - 1
        if left < 0:
            # A module that has given away more references than it had: the kernel's own code has a BUG() for that.
            with self.user.string(encode(mod.name)) as name:
                self.user.syscall("delete_module", name, 0)
        if left:
            return left
        view.set("refcnt.counter", 0)
        return 0

    def module_put(self, mod: Module) -> None:
        self.call("module_put", mod.address)

    def record_unload(self, mod: Module) -> None:
        where = self.symbol("last_unloaded_module")
        self.memory.write(where, encode(mod.name)[: _MODULE_NAME_LENGTH - 1] + b"\0")
        letters = self._taint_letters(self.of(mod).get("taints"))
        flags = f"({letters})" if letters else ""
        self.memory.write(where + _MODULE_NAME_LENGTH + 1, flags.encode() + b"\0")  # the name has a byte to spare

    def _taint_letters(self, taints: int) -> str:
        """What /proc/modules and an oops show of them (``kernel/module/main.c: module_flags_taint``)."""
        size = self.image.btf.struct("taint_flag").size
        flags = [self.memory.struct("taint_flag", self.symbol("taint_flags") + size * bit) for bit in _bits(taints)]
        return "".join(chr(flag.get("c_true")) for flag in flags if flag.get("module"))

    # -- exports --------------------------------------------------------------------------------------
    def find_symbol(self, name: str, *, gplok: bool) -> Symbol | None:
        export = self.image.exports.find(name, gplok=gplok)
        if export is not None:
            return Symbol(name, export.address, export.crc, export.gpl, export.namespace, None)
        for mod in self.modules():
            if mod.state == ModuleState.UNFORMED:
                continue
            found = self._exported_by(mod).get(name)
            if found is not None and (gplok or not found[2]):
                address, crc, gpl, namespace = found
                return Symbol(name, address, crc, gpl, namespace, mod)
        return None

    def _exported_by(self, mod: Module) -> dict[str, tuple[int, int | None, bool, str | None]]:
        view = self.of(mod)
        table = (view.get("syms"), view.get("num_syms"), view.get("gpl_syms"), view.get("num_gpl_syms"))
        cached = self._exports.get(mod.address)
        if cached is None or cached.table != table:
            found: dict[str, tuple[int, int | None, bool, str | None]] = {}
            self._read_exports(table[2], table[3], view.get("gpl_crcs"), True, found)
            self._read_exports(table[0], table[1], view.get("crcs"), False, found)
            cached = self._exports[mod.address] = _Exports(table, found)
        return cached.symbols

    def _read_exports(
        self,
        table: int,
        count: int,
        crcs: int,
        gpl: bool,
        into: dict[str, tuple[int, int | None, bool, str | None]],
    ) -> None:
        """``struct kernel_symbol`` with relative references: each is relative to its own field."""
        if not count:
            return
        at_most(count, _MOST_EXPORTS, "symbols that a module exports")
        raw = self.memory.read(table, _KERNEL_SYMBOL.size * count)
        sums = np.frombuffer(self.memory.read(crcs, 4 * count), dtype="<u4") if crcs else None
        length = 0
        for index, (value, name, namespace) in enumerate(_KERNEL_SYMBOL.iter_unpack(raw)):
            entry = table + _KERNEL_SYMBOL.size * index
            text = decode(self.memory.string((entry + 4 + name) & _MASK))
            length = at_most(length + len(text), _MOST_NAMES, "bytes of names that a module exports")
            space = decode(self.memory.string((entry + 8 + namespace) & _MASK)) if namespace else None
            into[text] = ((entry + value) & _MASK, int(sums[index]) if sums is not None else None, gpl, space)
