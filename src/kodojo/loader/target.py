"""What a loader asks of a kernel: the only door between the loader and the kernel it loads into.

Two classes satisfy :class:`Target`. :class:`kodojo.loader.dry.DryTarget` answers from a kernel image
alone: nothing runs, allocations are invented addresses, and the log is a Python list.
:class:`kodojo.kernel.target.BootedTarget` answers from a booted kernel: allocations are made by that
kernel, the lists are its own, and whatever the C code calls in other subsystems is called there.

A method that names a kernel function does what that function does in a real load. Python decides;
the target is asked for facts and told what to do. Addresses are guest virtual addresses. Text is
``str`` decoded from the kernel's bytes by :func:`kodojo.errors.decode`, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kodojo.errors import LoadError, LogRecord
    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo

__all__ = ["Errno", "FileLoad", "KernelErrno", "Memory", "Module", "ModuleState", "Region", "Symbol", "Target"]


class Errno(IntEnum):
    """The errno numbers that the loader returns (asm-generic; the same on every architecture it knows)."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENOEXEC = 8
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EINVAL = 22
    ETXTBSY = 26
    EFBIG = 27
    ENOSPC = 28
    EROFS = 30
    ERANGE = 34
    ENAMETOOLONG = 36
    ENODATA = 61
    ETIME = 62
    ENOPKG = 65
    EBADMSG = 74
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    ENOKEY = 126
    EKEYREJECTED = 129


class KernelErrno(Exception):  # noqa: N818  it is an answer, not yet an error
    """The target's kernel answered a request with an errno; the loader decides what becomes of it.

    :param errno: positive.
    """

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


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

    @property
    def is_init(self) -> bool:
        return self.value.startswith("init")


@dataclass(slots=True)
class Region:
    """One allocation of module memory, and the bytes that the loader builds for it.

    :param base: address in the kernel; 0 while not allocated (and for ever, if ``size`` is 0).
    :param size: bytes as counted by the kernel (two regions: rounded up to pages; seven: not rounded).
    :param text_size: with ``ro_size`` and ``ro_after_init_size``: ends of the parts of a CORE or INIT region.
    :param data: what belongs there; the loader relocates in it, :meth:`Target.commit` writes it.
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
    :param init: address of its init function, 0 if it has none; likewise ``exit``.
    :param args: address of the kernel's copy of its argument string, 0 if there is none (yet).
    :param percpu: offset of its per-CPU data.
    :param arch: what the relocations of the architecture keep in mind (``struct mod_arch_specific``).
    :param uses: modules whose symbols it uses, in the order in which they were first used.
    """

    name: str
    state: ModuleState = ModuleState.UNFORMED
    address: int = 0
    taints: int = 0
    using_gplonly_symbols: bool = False
    sig_ok: bool = False
    klp: bool = False
    async_probe_requested: bool = False
    init: int = 0
    exit: int = 0
    regions: dict[Memory, Region] = field(default_factory=dict)
    args: int = 0
    percpu: int = 0
    percpu_size: int = 0
    arch: object = None
    uses: list[Module] = field(default_factory=list)


class Symbol(NamedTuple):
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


@dataclass(slots=True)
class FileLoad:
    """A load of a file, which others may join (``kernel/module/main.c: struct idempotent``).

    :param ended: ``module`` or ``refusal`` says how.
    """

    ended: bool = False
    module: Module | None = None
    refusal: LoadError | KernelErrno | None = None


class Target(Protocol):
    """A kernel to load modules into.

    Methods that can fail raise :class:`KernelErrno`. Nothing here raises LoadError: the loader does.
    """

    image: Image
    """The kernel's files: vermagic, config, types, exports, keys, message texts."""

    runs_code: bool
    """False where nothing is executed: :func:`load_module` ends before init, the module still COMING."""

    def system_call(self, name: str, *arguments: int) -> AbstractContextManager[None]:
        """In the ``with`` block the caller is inside of this system call, which returns at its end.

        A LoadError, UnloadError or KernelErrno is what it returns; after any other exception it does not return.
        """

    # -- who is asking, and what is allowed (sys_init_module, module_sig_check) ----------------------
    def capable(self, capability: int) -> bool:
        """``capable(CAP_...)`` of the current task, in the initial user namespace (CAP_SYS_MODULE is 16)."""

    def modules_disabled(self) -> bool:
        """The sysctl ``kernel.modules_disabled``."""

    def is_module_sig_enforced(self) -> bool:
        """``module.sig_enforce``."""

    def security_locked_down(self, reason: str) -> None:
        """May raise KernelErrno(EPERM), having logged the kernel's own ``Lockdown:`` line.

        :param reason: member of ``enum lockdown_reason``, for instance ``LOCKDOWN_MODULE_SIGNATURE``.
        """

    def security_kernel_load_data(self) -> None:
        """Hook before an image is copied from user memory (LOADING_MODULE, with contents)."""

    def security_kernel_post_load_data(self, address: int, size: int) -> None:
        """Hook after it was copied to ``address``."""

    def module_blacklist(self) -> str:
        """The text of ``module_blacklist=``, empty if not given."""

    def spectre_v2_unsafe(self) -> bool:
        """``!retpoline_module_ok(false)``: a mitigation is active that a module without retpolines defeats.

        Sets the kernel's ``spectre_v2_bad_module`` and logs its own line when it is.
        """

    # -- the log and the taints ---------------------------------------------------------------------
    def printk(self, level: int, text: str) -> None:
        """Print a record; ``text`` has no trailing newline and may have several lines."""

    def printk_once(self, key: str, level: int, text: str) -> None:
        """As :meth:`printk`, once since boot for each ``key``."""

    def log_mark(self) -> int:
        """A point in the log."""

    def log_since(self, mark: int) -> tuple[LogRecord, ...]:
        """What was printed after it."""

    def hashed_pointer(self, address: int) -> str:
        """What ``%p`` prints for it."""

    def dump_stack(self) -> None:
        """Print registers and backtrace, as do_init_module does when init returns a positive number."""

    def test_taint(self, bit: int) -> bool: ...

    def add_taint(self, bit: int, *, lockdep_ok: bool) -> None:
        """Taint the kernel (kernel/panic.c: add_taint, with its own log line)."""

    # -- memory -------------------------------------------------------------------------------------
    def vmalloc(self, size: int, *, warn: bool = False) -> int:
        """Temporary kernel memory.

        :param warn: whether the kernel says in its log when it has not as much.
        """

    def vfree(self, address: int) -> None: ...

    def copy_from_user(self, to: int, source: int, size: int) -> bytes:
        """Copy into kernel memory at ``to``; the bytes. KernelErrno(EFAULT) if a part is unreadable."""

    def begin_load(self, fd: int) -> tuple[FileLoad, bool]:
        """The load of a descriptor's file that is under way, and whether it begins with this call.

        KernelErrno(EBADF) if it is not open for reading.
        """

    def end_load(self, load: FileLoad) -> None:
        """Nobody joins this load any more; those who have get its result."""

    def wait_for_load(self, load: FileLoad) -> None:
        """Sleep until somebody else's load has ended."""

    def kernel_read_file(self, fd: int) -> tuple[int, bytes]:
        """Read the whole file behind a descriptor into temporary kernel memory (fs/kernel_read_file.c).

        Address and content. EBADF comes from here, too.
        """

    def copy_to_kernel(self, data: bytes) -> int:
        """Put bytes into temporary kernel memory; their address."""

    def strndup_user(self, source: int) -> tuple[int, bytes]:
        """Copy a string from user memory: address of the kernel's copy, and its bytes without NUL."""

    def strncpy_from_user(self, source: int, limit: int) -> bytes:
        """A string in user memory without its NUL; ``limit`` bytes if it is longer. EFAULT."""

    def kfree(self, address: int) -> None: ...

    def module_alloc(self, regions: Sequence[Region]) -> None:
        """Allocate every region of nonzero size in the given order and set ``base``.

        ENOMEM with nothing left allocated; the kernel prints its own warnings.
        """

    def module_memfree(self, regions: Iterable[Region]) -> None: ...

    def regions_of(self, mod: Module) -> list[Region]:
        """The module's regions as its ``struct module`` has them now."""

    def place_module(self, mod: Module, info: LoadInfo) -> None:
        """The end of move_module: ``struct module`` now is at ``mod.address``; region sizes and bases are in it."""

    def struct_module(self, mod: Module) -> bytes:
        """The bytes of ``struct module`` as they are in the kernel's memory now; empty where there is none."""

    def commit(self, mod: Module, info: LoadInfo) -> None:
        """Write all regions' bytes to their places."""

    def percpu_modalloc(self, mod: Module, size: int, align: int) -> int:
        """Reserve per-CPU space; the offset, or 0 if there is none left."""

    def percpu_modcopy(self, mod: Module, data: bytes) -> None: ...

    def percpu_modfree(self, mod: Module) -> None: ...

    # -- struct module and the list of modules ------------------------------------------------------
    def set_field(self, mod: Module, member: str, value: int) -> None:
        """``mod->member = value``; ``member`` may be a path (``kallsyms``, ``mem[3].base``)."""

    def set_string(self, mod: Module, member: str, text: bytes | None) -> None:
        """``mod->member = kstrdup(text)`` (version, srcversion); None frees it."""

    def set_state(self, mod: Module, state: ModuleState) -> None:
        """Under module_mutex; also in ``mod.state``."""

    def modules(self) -> list[Module]:
        """The kernel's list ``modules``, head (newest) first, UNFORMED ones included.

        The same object each time for the same module.
        """

    def find_symbol(self, name: str, *, gplok: bool) -> Symbol | None:
        """The first hit: the kernel's, then that of a module from the list's head on, UNFORMED ones left out.

        Source: ``kernel/module/main.c: find_symbol``.
        """

    def module_mutex(self) -> AbstractContextManager[None]:
        """Hold ``module_mutex`` in the ``with`` block: nobody else changes the list."""

    def add_unformed_module(self, mod: Module) -> None:
        """Insert at the list's head and in the address tree (``mod_update_bounds``, ``mod_tree_insert``).

        The caller holds the mutex.
        """

    def unlink_module(self, mod: Module) -> None:
        """Remove from list and tree, not from the bug list (:meth:`module_bug_cleanup`); wait for readers."""

    def wait_for_module(self, mod: Module, seconds: float) -> None:
        """Sleep until ``mod`` is LIVE, GOING or gone, at most ``seconds`` of guest time.

        KernelErrno(EINTR) where nothing can ever change it.
        """

    def wait_for_name(self, name: str) -> None:
        """Sleep until no module of that name is on its way in or out; the mutex, held here, is released meanwhile.

        KernelErrno(EINTR) where nothing can ever change it.
        """

    def wake_module_wq(self) -> None: ...

    def audit_log_kern_module(self, name: str) -> None: ...

    def ref_module(self, user: Module, owner: Module) -> None:
        """Record the use and take the reference, once for each pair. ENOENT (owner going), ENOMEM."""

    def module_unload_init(self, mod: Module) -> None:
        """Empty user lists; the counter starts at 2 (base and loading)."""

    def module_unload_free(self, mod: Module) -> None:
        """Drop the references to used modules."""

    # -- formation: the kernel's own functions do the work -------------------------------------------
    def sort_extable(self, mod: Module) -> None: ...

    def add_kallsyms(self, mod: Module, info: LoadInfo) -> None: ...

    def module_finalize(self, mod: Module, info: LoadInfo) -> None:
        """The architecture's patching (arch/x86/kernel/module.c: module_finalize)."""

    def module_arch_cleanup(self, mod: Module) -> None: ...

    def ftrace_module_init(self, mod: Module) -> None: ...

    def ftrace_release_mod(self, mod: Module) -> None: ...

    def dynamic_debug_setup(self, mod: Module, info: LoadInfo) -> None:
        """Where the kernel does it in load_module (6.1); elsewhere a notifier does it and this does nothing."""

    def dynamic_debug_remove(self, mod: Module) -> None: ...

    def module_bug_finalize(self, mod: Module, info: LoadInfo) -> None: ...

    def module_bug_cleanup(self, mod: Module) -> None: ...

    def module_check_misalignment(self, mod: Module) -> bool:
        """Whether regions do not consist of pages, with the kernel's WARN; False where it does not look."""

    def protect_module(self, mod: Module) -> None:
        """``module_enable_ro/nx/x`` of complete_formation; RO_AFTER_INIT stays writable."""

    def ftrace_module_enable(self, mod: Module) -> None: ...

    def klp_module_coming(self, mod: Module) -> None: ...

    def klp_module_going(self, mod: Module) -> None: ...

    def notify_coming(self, mod: Module) -> None:
        """MODULE_STATE_COMING through the chain, robustly: on failure those already called see GOING."""

    def notify(self, mod: Module, state: ModuleState) -> None:
        """LIVE or GOING through the chain."""

    def synchronize_rcu(self) -> None: ...

    # -- parameters ---------------------------------------------------------------------------------
    def set_parameter(self, mod: Module, index: int, value: bytes | None, offset: int) -> int:
        """``ops->set`` of the index-th ``struct kernel_param`` under the parameter lock: what it returns.

        :param value: None where the argument has no ``=``.
        :param offset: of the value in the argument string.
        """

    def warn_after_dashes(self, mod: Module, address: int) -> None:
        """Report arguments after ``--``, which are at this address: what a setter returned that is no errno."""

    def parameter_flags(self, mod: Module, index: int) -> tuple[int, int]:
        """``ops->flags`` (1: may be without value) and ``flags`` (1: unsafe, 2: hardware) of the parameter."""

    def dyndbg_parameter(self, mod: Module, name: bytes, value: bytes | None, offsets: tuple[int, int]) -> bool:
        """``ddebug_dyndbg_module_param_cb``: True if it took the parameter.

        :param offsets: of name and value in the argument string.
        """

    def async_probe_default(self) -> bool:
        """``module.async_probe``; False where the kernel has no such parameter."""

    def destroy_params(self, mod: Module) -> None: ...

    # -- sysfs, init, exit --------------------------------------------------------------------------
    def mod_sysfs_setup(self, mod: Module, info: LoadInfo) -> None: ...

    def mod_sysfs_teardown(self, mod: Module) -> None: ...

    def copy_module_elf(self, mod: Module, info: LoadInfo) -> None:
        """Livepatch modules only."""

    def free_module_elf(self, mod: Module) -> None: ...

    def allocate_initfree(self, mod: Module) -> int:
        """A ``struct mod_initfree`` for the module's init memory; ENOMEM."""

    def do_mod_ctors(self, mod: Module) -> None:
        """Call the module's constructors, in kernels that were built to have such."""

    def do_one_initcall(self, mod: Module) -> int:
        """Run ``mod->init`` (blacklist, checks of preemption and interrupts included): its value as C int."""

    def after_init(self, mod: Module, initfree: int) -> None:
        """What do_init_module does after the LIVE notifiers.

        KOBJ_ADD uevent, waiting for asynchronous work, ftrace, trimming of the exception table, kallsyms,
        RO_AFTER_INIT, freeing the init memory. The initial reference is dropped.
        """

    def wait_for_async(self) -> None:
        """``async_synchronize_full``."""

    def call_exit(self, mod: Module) -> None:
        """``mod->exit()``."""

    # -- removal ------------------------------------------------------------------------------------

    def try_release_module_ref(self, mod: Module) -> int:
        """Drop the base reference: 0 if it was the last; otherwise it is taken back and the rest returned."""

    def users(self, mod: Module) -> list[Module]:
        """``source_list``: the modules that use it, newest user first."""

    def record_unload(self, mod: Module) -> None:
        """``last_unloaded_module`` (name and taints)."""

    def module_put(self, mod: Module) -> None: ...
