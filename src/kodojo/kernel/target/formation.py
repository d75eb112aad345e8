"""What makes loaded bytes a module: patching, tables, protection, notifiers. The kernel's functions do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kodojo.image.elf import SHDR
from kodojo.kernel.memory import StructView
from kodojo.kernel.target.base import Part, as_int
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.refusal import would_damage
from kodojo.loader.target import KernelErrno, Memory, Module, ModuleState

__all__ = ["FormationPart"]

_NOTIFY_STOP_MASK = 0x8000
_INDICES = ("sym", "str", "mod", "vers", "info", "pcpu")
_DDEBUG_SIZE, _EXTABLE_SIZE = 56, 12


class FormationPart(Part):
    """From relocated bytes to state COMING, and what undoes it."""

    @contextmanager
    def _load_info(self, mod: Module, info: LoadInfo) -> Iterator[StructView]:
        """A ``struct load_info`` in the kernel's memory, with section headers as they are now."""
        headers = info.address + int(info.header["e_shoff"])
        self.memory.write(headers, info.sechdrs.astype(SHDR).tobytes())
        size = self.image.btf.struct("load_info").size
        address = self.kmalloc(size)
        self.memory.write(address, bytes(size))
        view = self.memory.struct("load_info", address)
        strings = int(info.sechdrs[int(info.header["e_shstrndx"])]["sh_offset"])
        view.set("name", self.of(mod).address_of("name"))
        view.set("mod", mod.address)
        view.set("hdr", info.address)
        view.set("len", info.length)
        view.set("sechdrs", headers)
        view.set("secstrings", info.address + strings)
        view.set("strtab", info.address + int(info.sechdrs[info.index.str]["sh_offset"]))
        for member in ("symoffs", "stroffs", "init_typeoffs", "core_typeoffs", "mod_kallsyms_init_off"):
            view.set(member, getattr(info, member))
        view.set("sig_ok", int(info.sig_ok))
        for member in _INDICES:
            view.set(f"index.{member}", getattr(info.index, member))
        try:
            yield view
        finally:
            if self.call.stopped is None:
                self.kfree(address)

    def sort_extable(self, mod: Module) -> None:
        view = self.of(mod)
        start = view.get("extable")
        self.call("sort_extable", start, start + _EXTABLE_SIZE * view.get("num_exentries"))

    def add_kallsyms(self, mod: Module, info: LoadInfo) -> None:
        with self._load_info(mod, info) as guest:
            self.call("add_kallsyms", mod.address, guest.address)

    def module_finalize(self, mod: Module, info: LoadInfo) -> None:
        with self._load_info(mod, info) as guest:
            self.checked("module_finalize", guest.get("hdr"), guest.get("sechdrs"), mod.address)

    def module_arch_cleanup(self, mod: Module) -> None:
        self.call("module_arch_cleanup", mod.address)

    def ftrace_module_init(self, mod: Module) -> None:
        self.call("ftrace_module_init", mod.address)

    def ftrace_release_mod(self, mod: Module) -> None:
        self.call("ftrace_release_mod", mod.address)

    def ftrace_module_enable(self, mod: Module) -> None:
        self.call("ftrace_module_enable", mod.address)

    def _dynamic_debug_is_ours(self) -> bool:
        """Up to 6.3 ``load_module`` registers the table itself; then a notifier took over (commit 7deabd674988)."""
        return self.call.has("ddebug_remove_module")

    def dynamic_debug_setup(self, mod: Module, info: LoadInfo) -> None:
        if not self._dynamic_debug_is_ours():
            return
        address, count = info.section_objs(b"__dyndbg", _DDEBUG_SIZE)
        if not count:
            return
        with self._load_info(mod, info) as guest:
            classes_size = self.image.btf.struct("ddebug_class_map").size
            classes, class_count = info.section_objs(b"__dyndbg_classes", classes_size)
            guest.set("dyndbg.descs", address)
            guest.set("dyndbg.num_descs", count)
            guest.set("dyndbg.classes", classes)
            guest.set("dyndbg.num_classes", class_count)
            self.call("ddebug_add_module", guest.address_of("dyndbg"), self.of(mod).address_of("name"))

    def dynamic_debug_remove(self, mod: Module) -> None:
        if self._dynamic_debug_is_ours():
            self.call("ddebug_remove_module", self.of(mod).address_of("name"))

    def module_bug_finalize(self, mod: Module, info: LoadInfo) -> None:
        with self._load_info(mod, info) as guest:
            self.call("module_bug_finalize", guest.get("hdr"), guest.get("sechdrs"), mod.address)

    def module_bug_cleanup(self, mod: Module) -> None:
        self.call("module_bug_cleanup", mod.address)

    def module_check_misalignment(self, mod: Module) -> bool:
        name = "module_check_misalignment"
        return self.call.has(name) and bool(self.call(name, mod.address) & 0xFF)

    def protect_module(self, mod: Module) -> None:
        if self.call.has("module_enable_ro"):
            self.call("module_enable_ro", mod.address, 0)
            self.call("module_enable_nx", mod.address)
            self.call("module_enable_x", mod.address)
            return
        self.checked("module_enable_rodata_ro", mod.address, 0)
        self.checked("module_enable_data_nx", mod.address)
        self.checked("module_enable_text_rox", mod.address)

    def klp_module_coming(self, mod: Module) -> None:
        if self.call.has("klp_module_coming"):
            self.checked("klp_module_coming", mod.address)

    def klp_module_going(self, mod: Module) -> None:
        if self.call.has("klp_module_going"):
            self.call("klp_module_going", mod.address)

    def notify_coming(self, mod: Module) -> None:
        value = (
            as_int(
                self.call(
                    "blocking_notifier_call_chain_robust",
                    self.symbol("module_notify_list"),
                    ModuleState.COMING,
                    ModuleState.GOING,
                    mod.address,
                )
            )
            & ~_NOTIFY_STOP_MASK
        )
        if value > 1:  # notifier_to_errno: NOTIFY_OK is 1
            raise KernelErrno(value - 1)

    def notify(self, mod: Module, state: ModuleState) -> None:
        self.call("blocking_notifier_call_chain", self.symbol("module_notify_list"), state, mod.address)

    def synchronize_rcu(self) -> None:
        self.call("synchronize_rcu")

    # -- sysfs ----------------------------------------------------------------------------------------
    def mod_sysfs_setup(self, mod: Module, info: LoadInfo) -> None:
        view = self.of(mod)
        with self._load_info(mod, info) as guest:
            self.checked("mod_sysfs_setup", mod.address, guest.address, view.get("kp"), view.get("num_kp"))

    def mod_sysfs_teardown(self, mod: Module) -> None:
        self.call("mod_sysfs_teardown", mod.address)

    def copy_module_elf(self, mod: Module, info: LoadInfo) -> None:
        with self._load_info(mod, info) as guest:
            self.checked("copy_module_elf", mod.address, guest.address)

    def free_module_elf(self, mod: Module) -> None:
        self.call("free_module_elf", mod.address)

    # -- init and after -------------------------------------------------------------------------------
    def do_one_initcall(self, mod: Module) -> int:
        return self.call_int("do_one_initcall", mod.init)

    def after_init(self, mod: Module) -> None:
        view = self.of(mod)
        self.call(
            "kobject_uevent",
            view.address_of("mkobj.kobj"),
            self.image.btf.enumerators("kobject_action")["KOBJ_ADD"],
        )
        if not mod.async_probe_requested:
            self.call("async_synchronize_full")
        two_regions = Memory.INIT in mod.regions
        init = self._regions(view)[Memory.INIT if two_regions else Memory.INIT_TEXT]
        self.call("ftrace_free_mem", mod.address, init.base, init.base + init.size)
        mutex = self.symbol("module_mutex")
        self.call("mutex_lock", mutex)
        self.call("module_put", mod.address)
        self.call("trim_init_extable", mod.address)
        view.set("kallsyms", view.address_of("core_kallsyms"))
        if two_regions:
            self.call("module_enable_ro", mod.address, 1)
        else:
            self.call("module_enable_rodata_ro", mod.address, 1)
        self.call("mod_tree_remove_init", mod.address)
        self.call("module_arch_freeing_init", mod.address)
        self._forget_init(mod, view)
        self.call("mutex_unlock", mutex)
        self.call("__wake_up", self.symbol("module_wq"), 3, 0, 0)

    def _forget_init(self, mod: Module, view: StructView) -> None:
        """Init memory is no part of the module any more; the kernel's work queue frees it."""
        free = self.memory.struct("mod_initfree", self.kmalloc(self.image.btf.struct("mod_initfree").size))
        numbers = {} if Memory.INIT in mod.regions else self.image.btf.enumerators("mod_mem_type")
        for kind, region in self._regions(view).items():
            if not kind.is_init:
                continue
            if kind is Memory.INIT:
                free.set("module_init", region.base)
                for member in ("base", "size", "ro_size", "ro_after_init_size", "text_size"):
                    view.set(f"init_layout.{member}", 0)
            else:
                free.set(kind.value, region.base)
                view.set(f"mem[{numbers['MOD_' + kind.name]}].base", 0)
                view.set(f"mem[{numbers['MOD_' + kind.name]}].size", 0)
        for member in ("btf_data", "btf_base_data"):
            if self.image.btf.struct("module").has(member):
                view.set(member, 0)
        self._queue_for_freeing(free)

    def _queue_for_freeing(self, free: StructView) -> None:
        """``llist_add`` to init_free_list, and ``schedule_work`` if that was empty."""
        head = self.symbol("init_free_list")
        first = self.memory.u64(head)
        free.set("node.next", first)
        self.memory.put(head, 8, free.address_of("node"))
        if not first:
            # The C code leaves the choice of the processor to the queue; there is but one.
            queue = self.memory.u64(self.symbol("system_wq"))
            self.call("queue_work_on", 0, queue, self.symbol("init_free_wq"))

    def wait_for_async(self) -> None:
        self.call("async_synchronize_full")

    def call_exit(self, mod: Module) -> None:
        self.call(mod.exit)

    # -- parameters -----------------------------------------------------------------------------------
    def _parameter(self, mod: Module, index: int) -> StructView:
        size = self.image.btf.struct("kernel_param").size
        return self.memory.struct("kernel_param", self.of(mod).get("kp") + size * index)

    def _ops(self, mod: Module, parameter: StructView) -> StructView:
        """The parameter's operations. DamageError if there is nothing where they are said to be."""
        ops = parameter.get("ops")
        if self.call.cpu.translate(ops) is None:
            raise would_damage(mod.name, f"the operations of a parameter are at {ops:#x}, where there is nothing")
        return self.memory.struct("kernel_param_ops", ops)

    def set_parameter(self, mod: Module, index: int, value: bytes | None) -> int:
        parameter = self._parameter(mod, index)
        owner = parameter.get("mod")
        text = self.new_string(value) if value is not None else 0
        self.call("kernel_param_lock", owner)
        try:
            setter = self._ops(mod, parameter).get("set")
            answer = self.call_int(setter, text, parameter.address)
        finally:
            if self.call.stopped is None:
                self.call("kernel_param_unlock", owner)
            if text:
                self.kfree(text)
        return -answer if answer < 0 else 0

    def parameter_flags(self, mod: Module, index: int) -> tuple[int, int]:
        parameter = self._parameter(mod, index)
        return self._ops(mod, parameter).get("flags"), parameter.get("flags")

    def dyndbg_parameter(self, mod: Module, name: bytes, value: bytes | None) -> bool:
        if not self.call.has("ddebug_dyndbg_module_param_cb"):
            return False
        value_address = self.new_string(value) if value is not None else 0
        name_address = self.new_string(name)
        try:
            answer = self.call_int(
                "ddebug_dyndbg_module_param_cb", name_address, value_address, self.of(mod).address_of("name")
            )
        finally:
            self.kfree(name_address)
            if value_address:
                self.kfree(value_address)
        return answer == 0

    def async_probe_default(self) -> bool:
        address = self.image.kallsyms.get("async_probe")
        return address is not None and bool(self.memory.u8(address))

    def destroy_params(self, mod: Module) -> None:
        for index in range(self.of(mod).get("num_kp")):
            parameter = self._parameter(mod, index)
            free = self._ops(mod, parameter).get("free")
            if free:
                self.call(free, parameter.get("arg"))
