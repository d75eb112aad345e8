"""A kernel that does not run: what can be told from its image alone.

Allocations are invented addresses, the log is a list, and no guest code is executed. So a dry load says
what the loader would say, up to the moment when the module's own code would start.
"""

# ruff: noqa: ARG002  (what a running kernel is asked has arguments that one on paper has no use for)

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from kodojo.errors import ImageError, LogRecord, UnmodelledError, decode
from kodojo.image.architecture import architecture_named
from kodojo.image.tree import fold
from kodojo.loader.described_modules import DescribedModules
from kodojo.loader.dry_formation import mod_sysfs_setup, static_call_add_module, trace_module_add_events
from kodojo.loader.dry_parameters import NOARG, TYPES, set_value
from kodojo.loader.kernel_symbol import ExportTable, kernel_symbols, known_address
from kodojo.loader.module_memory import find_place, read_bytes
from kodojo.loader.parameters import KernelParam, kernel_params
from kodojo.loader.refusal import would_damage
from kodojo.loader.target import Errno, FileLoad, KernelErrno, Module, ModuleState, Region, Symbol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo

__all__ = ["DryTarget", "Resident"]

USER_START = {32: 0x10000000, 64: 0x7F0000000000}  # by the bits of an address
PERCPU_OFFSET = 0x30000
PERCPU_MODULE_RESERVE = 8 << 10
MODULES_VSIZE = 128 << 20  # arm64
INT_MAX = (1 << 31) - 1

LINKED = (
    "list.next", "list.prev", "source_list.next", "source_list.prev", "target_list.next", "target_list.prev",
    "refcnt.counter",
)  # fmt: skip
"""Members of struct module that are not zero once a module has its place in the list."""
LOCKDOWN_REASONS = {
    "LOCKDOWN_MODULE_SIGNATURE": "unsigned module loading",
    "LOCKDOWN_MODULE_PARAMETERS": "unsafe module parameters",
}
"""What may be forbidden (``security/security.c: lockdown_reasons``)."""

MEMORY = 512 << 20
"""Bytes of RAM that the machine is said to have: nothing larger can be allocated."""


class Resident(NamedTuple):
    """What a module that was loaded leaves behind: what modules that come after it can notice of it.

    :param end: of the memory of modules by then.
    :param taints: of the kernel. :param printed: the lines that a kernel prints once only.
    """

    mod: Module
    exports: tuple[ExportTable, ExportTable]
    end: int
    taints: int
    printed: frozenset[str]
    lock_debugging: bool


class DryTarget:
    """A kernel image that modules are loaded into without running anything.

    :param capabilities: what the caller may do; None for everything.
    :param module_blacklist: as ``module_blacklist=`` on the kernel's command line.
    :param sig_enforce: as ``module.sig_enforce=1`` there.
    :param lockdown: whether it is locked down (for modules ``integrity`` and ``confidentiality`` are the same).
    """

    runs_code = False

    def __init__(
        self,
        image: Image,
        *,
        capabilities: frozenset[int] | None = None,
        module_blacklist: str = "",
        sig_enforce: bool = False,
        lockdown: bool = False,
    ) -> None:
        self.image = image.for_dry_load()
        self.capabilities = capabilities
        self.log: list[LogRecord] = []
        self.taints = 0
        self.allocations: dict[int, int] = {}
        """Address -> size of everything allocated and not freed, module memory included."""
        self.unchecked: list[str] = []
        """Parameters whose setter is the module's own code: their values could not be checked."""
        self._blacklist = module_blacklist
        self._sig_enforce = sig_enforce
        self._lockdown = lockdown
        self._printed: set[str] = set()
        self._lock_debugging = True
        self._modules: list[Module] = []
        self._fields: dict[Module, dict[str, int]] = {}
        self._infos: dict[Module, LoadInfo] = {}
        self._exports: dict[tuple[Module, str], ExportTable] = {}
        self._params: dict[Module, list[KernelParam]] = {}
        self._user: dict[int, bytes] = {}
        self._files: dict[int, bytes] = {}
        self._architecture = architecture_named(self.image.architecture)
        self._page_size = self._architecture.page_size
        self._module_next, self._module_end = module_area(self.image)
        self._vmalloc_next = self._architecture.vmalloc
        self._user_next = USER_START[self._architecture.format.bits]
        self._percpu_start = percpu_start(self.image)
        self._percpu_used = 0
        self._described = DescribedModules(self.image)
        places = {name: known_address(self.image, name) for name in TYPES}
        self._param_ops = {address: name for name, address in places.items() if address is not None}

    # -- modules that were loaded into another copy of the same kernel --------------------------------
    def resident(self, mod: Module) -> Resident:
        """What stays of a module; its memory does not, so that thousands can be kept."""
        exports = self._export_table(mod, ""), self._export_table(mod, "gpl_")
        mod.regions = {}
        return Resident(mod, exports, self._module_next, self.taints, frozenset(self._printed), self._lock_debugging)

    def adopt(self, resident: Resident) -> None:
        """Have a module as if it had been loaded here."""
        self._modules.insert(0, resident.mod)
        # What is loaded now must not seem to lie where the other one is: its tables may point there.
        self._module_next = max(self._module_next, resident.end)
        self._exports[resident.mod, ""], self._exports[resident.mod, "gpl_"] = resident.exports
        self.taints |= resident.taints
        self._printed |= resident.printed
        self._lock_debugging &= resident.lock_debugging
        self._percpu_used += resident.mod.percpu_size

    # -- the user's side: memory and files of the calling process -------------------------------------
    def user_copy(self, data: bytes) -> int:
        """Put bytes into the caller's memory; their address. A guard page follows."""
        address = self._user_next
        self._user[address] = data
        self._user_next += self._pages(len(data)) + self._page_size
        return address

    def open_file(self, content: bytes) -> int:
        """Open a file with that content for reading; its descriptor."""
        fd = 3 + len(self._files)
        self._files[fd] = content
        return fd

    # -- who is asking, and what is allowed -----------------------------------------------------------
    def system_call(self, name: str, *arguments: int) -> AbstractContextManager[None]:
        return nullcontext()

    def capable(self, capability: int) -> bool:
        return self.capabilities is None or capability in self.capabilities

    def modules_disabled(self) -> bool:
        return False

    def is_module_sig_enforced(self) -> bool:
        return self._sig_enforce or self.image.config.enabled("MODULE_SIG_FORCE")

    def security_locked_down(self, reason: str) -> None:
        if self._lockdown:
            self.printk(5, f"Lockdown: insmod: {LOCKDOWN_REASONS[reason]} is restricted; see man kernel_lockdown.7")
            raise KernelErrno(Errno.EPERM)

    def security_kernel_load_data(self) -> None: ...

    def security_kernel_post_load_data(self, address: int, size: int) -> None: ...

    def module_blacklist(self) -> str:
        return self._blacklist

    def spectre_v2_unsafe(self) -> bool:
        return False  # which mitigation is active depends on the CPU

    # -- the log and the taints -----------------------------------------------------------------------
    def printk(self, level: int, text: str) -> None:
        self.log.extend(LogRecord(level, line) for line in text.split("\n"))

    def printk_once(self, key: str, level: int, text: str) -> None:
        if key not in self._printed:
            self._printed.add(key)
            self.printk(level, text)

    def log_mark(self) -> int:
        return len(self.log)

    def log_since(self, mark: int) -> tuple[LogRecord, ...]:
        return tuple(self.log[mark:])

    def hashed_pointer(self, address: int) -> str:
        return "(____ptrval____)"

    def dump_stack(self) -> None: ...

    def test_taint(self, bit: int) -> bool:
        return bool(self.taints >> bit & 1)

    def add_taint(self, bit: int, *, lockdep_ok: bool) -> None:
        if not lockdep_ok and self._lock_debugging:
            self._lock_debugging = False
            self.printk(4, "Disabling lock debugging due to kernel taint")
        self.taints |= 1 << bit

    # -- memory ---------------------------------------------------------------------------------------
    def vmalloc(self, size: int, *, warn: bool = False) -> int:
        if size > MEMORY:
            raise KernelErrno(Errno.ENOMEM)
        address = self._vmalloc_next
        self._vmalloc_next += self._pages(size) + self._page_size
        self.allocations[address] = size
        return address

    def vfree(self, address: int) -> None:
        self.allocations.pop(address, None)

    kfree = vfree

    def copy_from_user(self, to: int, source: int, size: int) -> bytes:
        data = self._user_bytes(source)
        if len(data) < size:
            raise KernelErrno(Errno.EFAULT)
        return data[:size]

    def _user_bytes(self, address: int) -> bytes:
        for start, data in self._user.items():
            if start <= address < start + len(data):
                return data[address - start :]
        return b""

    def begin_load(self, fd: int) -> tuple[FileLoad, bool]:
        """Nothing runs, so nothing asks for a file while it is being loaded."""
        if fd not in self._files:
            raise KernelErrno(Errno.EBADF)
        return FileLoad(), True

    def end_load(self, load: FileLoad) -> None: ...

    def wait_for_load(self, load: FileLoad) -> None: ...

    def kernel_read_file(self, fd: int) -> tuple[int, bytes]:
        content = self._files.get(fd)
        if content is None:
            raise KernelErrno(Errno.EBADF)
        if not content:
            raise KernelErrno(Errno.EINVAL)
        if len(content) > INT_MAX:
            raise KernelErrno(Errno.EFBIG)
        return self.vmalloc(len(content)), content

    def copy_to_kernel(self, data: bytes) -> int:
        return self.vmalloc(len(data))

    def strndup_user(self, source: int) -> tuple[int, bytes]:
        text, end, _rest = self._user_bytes(source).partition(b"\0")
        if not end:
            raise KernelErrno(Errno.EFAULT)
        return self.vmalloc(len(text) + 1), text

    def strncpy_from_user(self, source: int, limit: int) -> bytes:
        return self._user_bytes(source).partition(b"\0")[0][:limit]

    def module_alloc(self, regions: Sequence[Region]) -> None:
        regions = [region for region in regions if region.size]
        total = sum(self._pages(region.size) + self._page_size for region in regions)
        if total > min(MEMORY, self._module_end - self._module_next):
            if self.image.has_text(b"execmem: unable to allocate memory"):
                self.printk(4, "execmem: unable to allocate memory")
            raise KernelErrno(Errno.ENOMEM)
        for region in regions:
            region.base = self._module_next
            self.allocations[region.base] = region.size
            self._module_next += self._pages(region.size) + self._page_size

    def module_memfree(self, regions: Iterable[Region]) -> None:
        for region in regions:
            self.allocations.pop(region.base, None)

    def regions_of(self, mod: Module) -> list[Region]:
        return list(mod.regions.values())

    def place_module(self, mod: Module, info: LoadInfo) -> None:
        self._fields.setdefault(mod, {})
        region, offset = info.placement[info.index.mod]
        struct = bytes(region.data[offset : offset + int(info.sechdrs["sh_size"][info.index.mod])])
        name = 3 * info.format.word
        unnamed = struct[:name] + struct[name + self._architecture.module_name_len :]
        if "types" not in self.image.describes and any(unnamed):
            self.image.cannot_check(
                "struct module in the file is not empty: which of its members are set is not known"
            )

    def struct_module(self, mod: Module) -> bytes:
        """What the file has there, what has been entered since, and something where lists and counters are."""
        if "types" not in self.image.describes:
            return b""
        struct = self.image.btf.struct("module")
        content = bytearray(read_bytes(mod, mod.address, struct.size))
        values = dict.fromkeys(LINKED, 1) | {"state": mod.state.value} | self._fields[mod]
        for path, value in values.items():
            if struct.has(path):
                member = struct.field(path)
                place = slice(member.offset, member.offset + member.size)
                number = value & (1 << 8 * member.size) - 1
                content[place] = number.to_bytes(member.size, self._architecture.format.byteorder)
        return bytes(content)

    def commit(self, mod: Module, info: LoadInfo) -> None:
        self._infos[mod] = info

    def percpu_modalloc(self, mod: Module, size: int, align: int) -> int:
        start = -(-self._percpu_used // max(align, 1)) * max(align, 1)
        if start + size > PERCPU_MODULE_RESERVE:
            return 0
        self._percpu_used = start + size
        return self._percpu_start + start

    def percpu_modcopy(self, mod: Module, data: bytes) -> None: ...

    def percpu_modfree(self, mod: Module) -> None: ...

    # -- struct module and the list of modules --------------------------------------------------------
    def set_field(self, mod: Module, member: str, value: int) -> None:
        self._fields.setdefault(mod, {})[member] = value

    def set_string(self, mod: Module, member: str, text: bytes | None) -> None:
        self.set_field(mod, member, int(text is not None))

    def set_state(self, mod: Module, state: ModuleState) -> None:
        mod.state = state

    def modules(self) -> list[Module]:
        return self._modules

    def find_symbol(self, name: str, *, gplok: bool) -> Symbol | None:
        export = self.image.exports.find(name, gplok=gplok)
        if export is not None:
            return Symbol(name, export.address, export.crc, export.gpl, export.namespace, None)
        prefixes = ("", "gpl_")[: 1 + gplok]
        for mod in self._modules:
            if mod.state != ModuleState.UNFORMED:
                for prefix in prefixes:
                    symbol = self._export_table(mod, prefix).find(name)
                    if symbol is not None:
                        return symbol
        # Names that the module itself exports are looked up when its tables are there; only then are they.
        resolving = not any(mod.state == ModuleState.UNFORMED and mod in self._infos for mod in self._modules)
        return self._described.presume(name, gplok=gplok) if self._described.active and resolving else None

    def stand_in(self, names: Iterable[str]) -> None:
        """Let modules count as loaded whose files are not there, if the image describes what modules export."""
        loaded = {mod.name for mod in self._modules}
        wanted = [name for name in map(fold, names) if name not in loaded]
        if self._described.active and wanted:
            for mod, exports in self._described.stand_ins(wanted):
                self._exports[mod, ""], self._exports[mod, "gpl_"] = exports
                self._modules.insert(0, mod)

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Modules that count as loaded though nobody knows what they are, or whether they would load."""
        return self._described.unlisted

    def _export_table(self, mod: Module, prefix: str) -> ExportTable:
        if (mod, prefix) not in self._exports:
            fields = self._fields[mod]
            start, count, crcs = (fields.get(name.format(prefix), 0) for name in ("{}syms", "num_{}syms", "{}crcs"))
            known: Sequence[int | None] = [None] * count
            if crcs:
                known = [self._u32(read_bytes(mod, crcs + 4 * index, 4)) for index in range(count)]
            self._exports[mod, prefix] = kernel_symbols(self.image).table(mod, start, known, gpl=bool(prefix))
        return self._exports[mod, prefix]

    def _u32(self, data: bytes) -> int:
        return int.from_bytes(data, self._architecture.format.byteorder)

    def _pages(self, size: int) -> int:
        """``size`` rounded up to pages."""
        return -(-size // self._page_size) * self._page_size

    def module_mutex(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add_unformed_module(self, mod: Module) -> None:
        self._modules.insert(0, mod)

    def unlink_module(self, mod: Module) -> None:
        self._modules.remove(mod)

    def wait_for_module(self, mod: Module, seconds: float) -> None:
        """Nothing can change while nothing runs."""
        raise KernelErrno(Errno.EINTR)

    def wait_for_name(self, name: str) -> None:
        raise KernelErrno(Errno.EINTR)

    def wake_module_wq(self) -> None: ...

    def audit_log_kern_module(self, name: str) -> None: ...

    def ref_module(self, user: Module, owner: Module) -> None:
        if owner.state == ModuleState.GOING:
            raise KernelErrno(Errno.ENOENT)

    def module_unload_init(self, mod: Module) -> None: ...

    def module_unload_free(self, mod: Module) -> None:
        mod.uses.clear()

    # -- formation: nothing patches, nothing is told --------------------------------------------------
    def sort_extable(self, mod: Module) -> None: ...

    def add_kallsyms(self, mod: Module, info: LoadInfo) -> None: ...

    def module_finalize(self, mod: Module, info: LoadInfo) -> None: ...

    def module_arch_cleanup(self, mod: Module) -> None: ...

    def ftrace_module_init(self, mod: Module) -> None: ...

    def ftrace_release_mod(self, mod: Module) -> None: ...

    def dynamic_debug_setup(self, mod: Module, info: LoadInfo) -> None: ...

    def dynamic_debug_remove(self, mod: Module) -> None: ...

    def module_bug_finalize(self, mod: Module, info: LoadInfo) -> None: ...

    def module_bug_cleanup(self, mod: Module) -> None: ...

    def module_check_misalignment(self, mod: Module) -> bool:
        return False  # what a relocation does to struct module is not seen here

    def protect_module(self, mod: Module) -> None: ...

    def ftrace_module_enable(self, mod: Module) -> None: ...

    def klp_module_coming(self, mod: Module) -> None:
        if mod.name == "vmlinux" and self.image.config.enabled("LIVEPATCH"):
            self.printk(3, "livepatch: vmlinux.ko: invalid module name")
            raise KernelErrno(Errno.EINVAL)

    def klp_module_going(self, mod: Module) -> None: ...

    def notify_coming(self, mod: Module) -> None:
        fields = self._fields[mod]
        trace_module_add_events(self, mod, fields.get("num_trace_events", 0))
        sites = fields.get("static_call_sites", 0), fields.get("num_static_call_sites", 0)
        static_call_add_module(self, mod, self._infos[mod], *sites)

    def notify(self, mod: Module, state: ModuleState) -> None: ...

    def synchronize_rcu(self) -> None: ...

    # -- parameters -----------------------------------------------------------------------------------
    def set_parameter(self, mod: Module, index: int, value: bytes | None, offset: int) -> int:
        param = self._kernel_params(mod)[index]
        errno = set_value(self, mod, param, value, self._param_ops)
        if errno is None:
            self.unchecked.append(decode(param.name))
        return -(errno or 0)

    def warn_after_dashes(self, mod: Module, address: int) -> None:
        """No setter that is known returns a positive number."""
        raise UnmodelledError(f"{mod.name}: a parameter's setter returned {address}")

    def _kernel_params(self, mod: Module) -> list[KernelParam]:
        if mod not in self._params:
            self._params[mod] = kernel_params(mod, self._infos[mod])
        return self._params[mod]

    def parameter_flags(self, mod: Module, index: int) -> tuple[int, int]:
        param = self._kernel_params(mod)[index]
        known = self._param_ops.get(param.ops)
        if known is not None:
            return int(known in NOARG), param.flags
        return self._u32(self._kernel_bytes(mod, param.ops, 4)), param.flags

    def _kernel_bytes(self, mod: Module, address: int, size: int) -> bytes:
        """Memory of a module or of the kernel. DamageError if there is nothing."""
        for other in self._modules:
            if find_place(other, address, size) is not None:
                return read_bytes(other, address, size)
        if "kernel" not in self.image.describes:
            return bytes(size)
        try:
            return self.image.elf.read(address, size)
        except ImageError:
            why = f"the operations of a parameter are at {address:#x}, where there is nothing"
            raise would_damage(mod.name, why) from None

    def dyndbg_parameter(self, mod: Module, name: bytes, value: bytes | None, offsets: tuple[int, int]) -> bool:
        head, dot, tail = name.partition(b".")
        return (tail if dot else head) == b"dyndbg"

    def async_probe_default(self) -> bool:
        return False

    def destroy_params(self, mod: Module) -> None: ...

    # -- sysfs, init, exit ----------------------------------------------------------------------------
    def mod_sysfs_setup(self, mod: Module, info: LoadInfo) -> None:
        mod_sysfs_setup(self, mod, info, self._kernel_params(mod))

    def mod_sysfs_teardown(self, mod: Module) -> None: ...

    def copy_module_elf(self, mod: Module, info: LoadInfo) -> None: ...

    def free_module_elf(self, mod: Module) -> None: ...

    def allocate_initfree(self, mod: Module) -> int:
        return 0

    def do_mod_ctors(self, mod: Module) -> None: ...

    def do_one_initcall(self, mod: Module) -> int:
        return 0

    def after_init(self, mod: Module, initfree: int) -> None:
        self.module_memfree(region for region in mod.regions.values() if region.kind.is_init)

    def wait_for_async(self) -> None: ...

    def call_exit(self, mod: Module) -> None: ...

    # -- removal --------------------------------------------------------------------------------------

    def try_release_module_ref(self, mod: Module) -> int:
        return len(self.users(mod))

    def users(self, mod: Module) -> list[Module]:
        return [user for user in self._modules if mod in user.uses]

    def record_unload(self, mod: Module) -> None: ...

    def module_put(self, mod: Module) -> None: ...


def percpu_start(image: Image) -> int:
    """Where per-CPU data of modules begins: as a pointer that a CPU's own offset is added to.

    That of the kernel begins at 0 on x86-64, and where it is in the kernel elsewhere.
    """
    architecture = architecture_named(image.architecture)
    if architecture.name == "x86_64":
        return PERCPU_OFFSET
    return (image.kallsyms.get("__per_cpu_start") or architecture.text) + PERCPU_OFFSET


def module_area(image: Image) -> tuple[int, int]:
    """Where a kernel without randomized addresses puts modules: near its code, where branches reach it."""
    architecture = architecture_named(image.architecture)
    first, end = architecture.modules
    if architecture.name == "aarch64":
        etext = image.kallsyms.get("_etext")
        return (first, end) if etext is None else (etext - MODULES_VSIZE & ~0xFFFF, etext)
    return first, end
