"""What makes loaded bytes a module: patching, tables, protection, notifiers. The kernel's functions do it."""

from __future__ import annotations

from kodojo.image.elf import SHDR
from kodojo.kernel.memory import StructView
from kodojo.kernel.target.entry import EntryPart
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.refusal import would_damage
from kodojo.loader.target import KernelErrno, Memory, Module, ModuleState

__all__ = ["FormationPart"]

_NOTIFY_STOP_MASK = 0x8000
_INDICES = ("sym", "str", "mod", "vers", "info", "pcpu")
_LOCKING = ("kernel_param_lock", "mutex_lock")  # the former may be inlined
_DDEBUG_SIZE, _EXTABLE_SIZE = 56, 12


class FormationPart(EntryPart):
    """From relocated bytes to state COMING, and what undoes it."""

    def _give_headers(self, info: LoadInfo) -> int:
        """Section headers as they are now, in the temporary copy; their address."""
        headers = info.address + int(info.header["e_shoff"])
        self.memory.write(headers, info.sechdrs.astype(SHDR).tobytes())
        return headers

    def _load_info(self, mod: Module, info: LoadInfo) -> bytes:
        """A ``struct load_info`` for the stack, which is where the kernel has it."""
        strings = int(info.sechdrs[int(info.header["e_shstrndx"])]["sh_offset"])
        members = {
            "name": self.of(mod).address_of("name"),
            "mod": mod.address,
            "hdr": info.address,
            "len": info.length,
            "sechdrs": self._give_headers(info),
            "secstrings": info.address + strings,
            "strtab": info.address + info.strtab,
            "sig_ok": int(info.sig_ok),
        }
        for member in ("symoffs", "stroffs", "init_typeoffs", "core_typeoffs", "mod_kallsyms_init_off"):
            members[member] = getattr(info, member)
        for member in _INDICES:
            members[f"index.{member}"] = getattr(info.index, member)
        return self.packed("load_info", members)

    def sort_extable(self, mod: Module) -> None:
        view = self.of(mod)
        start = view.get("extable")
        self.call("sort_extable", start, start + _EXTABLE_SIZE * view.get("num_exentries"))

    def add_kallsyms(self, mod: Module, info: LoadInfo) -> None:
        self.call("add_kallsyms", mod.address, self._load_info(mod, info))

    def module_finalize(self, mod: Module, info: LoadInfo) -> None:
        self.checked("module_finalize", info.address, self._give_headers(info), mod.address)

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
        classes_size = self.image.btf.struct("ddebug_class_map").size
        classes, class_count = info.section_objs(b"__dyndbg_classes", classes_size)
        table = self.packed(
            "_ddebug_info",
            {"descs": address, "num_descs": count, "classes": classes, "num_classes": class_count},
        )
        self.call("ddebug_add_module", table, self.of(mod).address_of("name"))

    def dynamic_debug_remove(self, mod: Module) -> None:
        if self._dynamic_debug_is_ours():
            self.call("ddebug_remove_module", self.of(mod).address_of("name"))

    def module_bug_finalize(self, mod: Module, info: LoadInfo) -> None:
        self.call("module_bug_finalize", info.address, self._give_headers(info), mod.address)

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
            self.call_below(
                "blocking_notifier_call_chain_robust",
                self.symbol("module_notify_list"),
                ModuleState.COMING,
                ModuleState.GOING,
                mod.address,
            )
            & ~_NOTIFY_STOP_MASK
        )
        if value > 1:  # notifier_to_errno: NOTIFY_OK is 1
            raise KernelErrno(value - 1)

    def notify(self, mod: Module, state: ModuleState) -> None:
        live = state == ModuleState.LIVE
        chain = self.symbol("module_notify_list")
        self.call_below(
            "blocking_notifier_call_chain", chain, state, mod.address, by="do_init_module" if live else ""
        )

    def synchronize_rcu(self) -> None:
        self.call("synchronize_rcu")

    # -- sysfs ----------------------------------------------------------------------------------------
    def mod_sysfs_setup(self, mod: Module, info: LoadInfo) -> None:
        view = self.of(mod)
        load_info = self._load_info(mod, info)
        self.checked("mod_sysfs_setup", mod.address, load_info, view.get("kp"), view.get("num_kp"))

    def mod_sysfs_teardown(self, mod: Module) -> None:
        self.call("mod_sysfs_teardown", mod.address)

    def copy_module_elf(self, mod: Module, info: LoadInfo) -> None:
        self.checked("copy_module_elf", mod.address, self._load_info(mod, info))

    def free_module_elf(self, mod: Module) -> None:
        self.call("free_module_elf", mod.address)

    # -- init and after -------------------------------------------------------------------------------
    def allocate_initfree(self, mod: Module) -> int:
        free = self.memory.struct("mod_initfree", self.kmalloc(self.image.btf.struct("mod_initfree").size))
        for kind, region in self._regions(self.of(mod)).items():
            if kind.is_init:
                free.set("module_init" if kind is Memory.INIT else kind.value, region.base)
        return free.address

    def do_mod_ctors(self, mod: Module) -> None:
        if not self.image.btf.struct("module").has("ctors"):
            return
        view = self.of(mod)
        for index in range(view.get("num_ctors")):
            self.call(self.memory.u64(view.get("ctors") + 8 * index))

    def do_one_initcall(self, mod: Module) -> int:
        return self.call_below("do_one_initcall", mod.init)

    def after_init(self, mod: Module, initfree: int) -> None:
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
        self._protect_after_init(mod)
        self.call("mod_tree_remove_init", mod.address)
        self.call("module_arch_freeing_init", mod.address)
        self._forget_init(view)
        self._queue_for_freeing(self.memory.struct("mod_initfree", initfree))
        self.call("mutex_unlock", mutex)
        self.call("__wake_up", self.symbol("module_wq"), 3, 0, 0)

    def _protect_after_init(self, mod: Module) -> None:
        if self.call.has("module_enable_ro"):
            self.call("module_enable_ro", mod.address, 1)
            return
        value = self.call_int("module_enable_rodata_ro", mod.address, 1)
        if value:
            text = f"module_enable_rodata_ro_after_init() returned {value}"
            self.printk(4, f"{mod.name}: {text}, ro_after_init data might still be writable")

    def _forget_init(self, view: StructView) -> None:
        """Init memory is no part of the module any more."""
        module = self.image.btf.struct("module")
        if module.has("init_layout"):
            for member in ("base", "size", "ro_size", "ro_after_init_size", "text_size"):
                view.set(f"init_layout.{member}", 0)
        else:
            for name, number in self.image.btf.enumerators("mod_mem_type").items():
                if name.startswith("MOD_INIT_"):
                    view.set(f"mem[{number}].base", 0)
                    view.set(f"mem[{number}].size", 0)
        for member in ("btf_data", "btf_base_data"):
            if module.has(member):
                view.set(member, 0)

    def _queue_for_freeing(self, free: StructView) -> None:
        """The kernel's work queue frees it: ``llist_add`` to init_free_list, ``schedule_work`` if that was empty."""
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
        self.call_pointer(mod.exit)

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

    def set_parameter(self, mod: Module, index: int, value: bytes | None, offset: int) -> int:
        parameter = self._parameter(mod, index)
        owner = parameter.get("mod")
        setter = self._ops(mod, parameter).get("set")
        self.call("kernel_param_lock", owner)
        argument = self._argument(mod, value, offset)
        answer = self.call_pointer(setter, argument, parameter.address, by="parse_args", after=_LOCKING)
        self.call("kernel_param_unlock", owner)
        return answer

    def warn_after_dashes(self, mod: Module, address: int) -> None:
        name = self.of(mod).address_of("name")
        self.call("_printk", b"\x014%s: parameters '%s' after `--' ignored\n\0", name, address)

    def _argument(self, mod: Module, text: bytes | None, offset: int) -> int:
        """A part of the argument string, ended where it stands, as ``next_arg`` does it; 0 for None."""
        if text is None:
            return 0
        address = mod.args + offset
        self.memory.write(address + len(text), b"\0")
        return address

    def parameter_flags(self, mod: Module, index: int) -> tuple[int, int]:
        parameter = self._parameter(mod, index)
        return self._ops(mod, parameter).get("flags"), parameter.get("flags")

    def dyndbg_parameter(self, mod: Module, name: bytes, value: bytes | None, offsets: tuple[int, int]) -> bool:
        if not self.call.has("ddebug_dyndbg_module_param_cb"):
            return False
        answer = self.call_int(
            "ddebug_dyndbg_module_param_cb",
            self._argument(mod, name, offsets[0]),
            self._argument(mod, value, offsets[1]),
            self.of(mod).address_of("name"),
        )
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
