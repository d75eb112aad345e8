"""What a loader asks of a kernel: the only door between the loader and the kernel it loads into.

Two classes satisfy :class:`Target`. :class:`kodojo.loader.dry.DryTarget` answers from a kernel image
alone: nothing runs, allocations are invented addresses, and the log is a Python list.
:class:`kodojo.kernel.target.BootedTarget` answers from a booted kernel: allocations are made by that
kernel, the lists are its own, and whatever the C code calls in other subsystems is called there.

A method that names a kernel function does what that function does in a real load. Python decides;
the target is asked for facts and told what to do. Addresses are guest virtual addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo

__all__ = ["Memory", "Module", "ModuleState", "NoMemoryError", "Region", "Symbol", "Target", "UserFaultError"]


class ModuleState(IntEnum):
    """``enum module_state`` (include/linux/module.h)."""

    LIVE = 0
    COMING = 1
    GOING = 2
    UNFORMED = 3


class Memory(Enum):
    """The kinds of module memory, named as ``enum mod_mem_type``; CORE and INIT where a kernel has two."""

    CORE = "core"
    INIT = "init"
    TEXT = "text"
    DATA = "data"
    RODATA = "rodata"
    RO_AFTER_INIT = "ro_after_init"
    INIT_TEXT = "init_text"
    INIT_DATA = "init_data"
    INIT_RODATA = "init_rodata"


class UserFaultError(Exception):
    """The caller's memory cannot be read there (becomes EFAULT)."""


class NoMemoryError(Exception):
    """The kernel's allocator returned NULL (becomes ENOMEM)."""


@dataclass(slots=True)
class Region:
    """One allocation of module memory, and the bytes that the loader builds for it.

    :param base: address in the kernel; 0 while not allocated.
    :param size: bytes as counted by the kernel (6.1: rounded up to pages; 6.12: not rounded).
    :param data: what will be written there; kept by the loader until :meth:`Target.commit`.
    """

    kind: Memory
    size: int = 0
    base: int = 0
    text_size: int = 0
    ro_size: int = 0
    ro_after_init_size: int = 0
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True, eq=False)
class Module:
    """A module as the loader sees it; the truth about a booted kernel's modules is in that kernel.

    :param address: of its ``struct module``.
    :param taints: mask of the module's own taints (bit numbers of kernel/panic.c: taint_flags).
    """

    name: str
    state: ModuleState
    address: int = 0
    taints: int = 0
    using_gplonly_symbols: bool = False
    sig_ok: bool = False
    klp: bool = False
    async_probe_requested: bool = False
    init: int = 0
    exit: int = 0
    regions: dict[Memory, Region] = field(default_factory=dict)
    percpu: int = 0
    percpu_size: int = 0
    uses: list[Module] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Symbol:
    """An export that was found.

    :param crc: None where the exporter has no CRC for it.
    :param namespace: None where there is none; may be an empty string (kernel 6.1).
    :param owner: None for the kernel itself.
    """

    name: str
    address: int
    crc: int | None
    gpl: bool
    namespace: str | None
    owner: Module | None


class Target(Protocol):
    """A kernel to load modules into."""

    image: Image
    """The kernel's files: vermagic, config, types, exports, keys, message texts."""

    # -- who is asking, and what is allowed (sys_init_module, module_sig_check) ----------------------
    def capable(self, capability: int) -> bool:
        """``capable(CAP_...)`` of the current task, in the initial user namespace."""

    def modules_disabled(self) -> bool:
        """The sysctl ``kernel.modules_disabled``."""

    def is_module_sig_enforced(self) -> bool:
        """``module.sig_enforce``."""

    def security_locked_down(self, reason: str) -> int:
        """0, or the errno; the kernel logs its own ``Lockdown:`` line.

        :param reason: member of ``enum lockdown_reason``, for instance ``LOCKDOWN_MODULE_SIGNATURE``.
        """

    def security_hook(self, hook: str, *, contents: bool) -> int:
        """``kernel_load_data``, ``kernel_read_file`` and the like: 0 or the errno."""

    def module_blacklist(self) -> str:
        """The text of ``module_blacklist=``, empty if not given."""

    def initcall_blacklisted(self, address: int) -> bool:
        """Named in ``initcall_blacklist=``."""

    # -- the log and the taints ---------------------------------------------------------------------
    def printk(self, level: int, text: str) -> None:
        """Print a record; ``text`` has no trailing newline and may have several lines."""

    def printk_once(self, key: str, level: int, text: str) -> None:
        """As :meth:`printk`, once since boot for each ``key``."""

    def hashed_pointer(self, address: int) -> str:
        """What ``%p`` prints for it."""

    def tainted(self, bit: int) -> bool:
        """``test_taint(bit)``."""

    def add_taint(self, bit: int, *, lockdep_ok: bool) -> None:
        """Taint the kernel (kernel/panic.c: add_taint, with its own log line)."""

    # -- memory -------------------------------------------------------------------------------------
    def vmalloc(self, size: int) -> int:
        """Temporary kernel memory. Raises NoMemoryError."""

    def vfree(self, address: int) -> None: ...

    def copy_from_user(self, to: int, source: int, size: int) -> bytes:
        """Copy into kernel memory at ``to``; return the bytes. Raises UserFaultError."""

    def write_kernel(self, address: int, data: bytes) -> None:
        """Write to kernel memory that the loader owns (temporary copy, struct load_info)."""

    def strndup_user(self, source: int, limit: int) -> tuple[int, bytes]:
        """Copy a string: address of the kernel's copy, and its bytes without NUL.

        Raises UserFaultError, NoMemoryError.
        """

    def kfree(self, address: int) -> None: ...

    def module_alloc(self, mod_regions: Sequence[Region]) -> None:
        """Allocate every region of nonzero size in the given order and set ``base``.

        Raises NoMemoryError with nothing left allocated; the kernel prints its own warnings.
        """

    def module_memfree(self, regions: Iterable[Region]) -> None: ...

    def commit(self, mod: Module, info: LoadInfo) -> None:
        """Write all regions' bytes to their places (struct module as it now is in the kernel is kept)."""

    def percpu_modalloc(self, mod: Module, size: int, align: int) -> int:
        """Reserve per-CPU space; the offset, or 0 if there is none left."""

    def percpu_modcopy(self, mod: Module, data: bytes) -> None: ...

    def percpu_modfree(self, mod: Module) -> None: ...

    # -- struct module and the list of modules ------------------------------------------------------
    def set_field(self, mod: Module, member: str, value: int) -> None:
        """``mod->member = value``; ``member`` may be a path (``core_layout.size``, ``mem[3].base``)."""

    def set_pointer_string(self, mod: Module, member: str, text: bytes | None) -> None:
        """``mod->member = kstrdup(text)`` (version, srcversion); None frees it."""

    def modules(self) -> list[Module]:
        """The kernel's list ``modules``, head first, UNFORMED ones included."""

    def find_symbol(self, name: str, *, gplok: bool) -> Symbol | None:
        """kernel/module/main.c: find_symbol. First hit: kernel, then modules from the list's head."""

    def add_unformed_module(self, mod: Module) -> None:
        """Write struct module, insert it at the list's head and in the address tree."""

    def unlink_module(self, mod: Module) -> None:
        """Remove from list, tree and bug list; wait for readers."""

    def wait_for_module(self, mod: Module, seconds: float) -> None:
        """Sleep until ``mod`` changes its state, at most ``seconds`` (guest time)."""

    def wake_module_wq(self) -> None: ...

    def ref_module(self, user: Module, owner: Module) -> int:
        """Record the use and take the reference: 0 or the errno (ENOENT, ENOMEM)."""

    def module_unload_init(self, mod: Module) -> None: ...

    def module_unload_free(self, mod: Module) -> None: ...

    # -- post-relocation work done by the kernel's own functions --------------------------------------
    def find_module_sections(self, mod: Module, info: LoadInfo) -> None:
        """Note tables in struct module (field by field, as the C function does)."""

    def post_relocation(self, mod: Module, info: LoadInfo) -> int:
        """Sort the exception table, set up kallsyms, ``module_finalize``: 0 or the errno."""

    def ftrace_module_init(self, mod: Module) -> None: ...

    def dynamic_debug_setup(self, mod: Module, info: LoadInfo) -> None: ...

    def complete_formation(self, mod: Module, info: LoadInfo) -> int:
        """Register the bug table and protect the memory: 0 or the errno."""

    def prepare_coming_module(self, mod: Module) -> int:
        """ftrace, livepatch, COMING notifiers: 0 or the errno (unwound by itself)."""

    def set_parameter(self, mod: Module, index: int, value: bytes | None) -> int:
        """Call ``ops->set`` of the index-th ``struct kernel_param`` under the parameter lock: 0 or errno."""

    def dyndbg_parameter(self, mod: Module, name: bytes, value: bytes | None) -> bool:
        """``ddebug_dyndbg_module_param_cb``: True if it took the parameter."""

    def mod_sysfs_setup(self, mod: Module, info: LoadInfo) -> int: ...

    def mod_sysfs_teardown(self, mod: Module) -> None: ...

    def do_one_initcall(self, mod: Module) -> int:
        """Run ``mod->init`` (checks of preemption and interrupts included). Its return value as C int."""

    def do_exit_call(self, mod: Module) -> None: ...

    def module_live(self, mod: Module, info: LoadInfo) -> None:
        """All that follows a successful init, from the LIVE notifiers to freeing the init memory."""

    def unwind(self, mod: Module, step: str) -> None:
        """Undo, in the kernel, the one step named (a step of the unwinding table)."""
