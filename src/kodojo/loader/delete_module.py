"""Removing a module (``kernel/module/main.c: delete_module, free_module``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import UnloadError
from kodojo.loader.module_list import find_module
from kodojo.loader.target import Errno, Memory, ModuleState

if TYPE_CHECKING:
    from kodojo.loader.target import Module, Region, Target

__all__ = ["delete_module", "free_module", "module_regions", "try_force_unload", "try_stop_module"]

O_TRUNC = 0x200
TAINT_FORCED_RMMOD = 3


def delete_module(target: Target, name: str, flags: int) -> None:
    """Remove a module by name; the caller's permission has been checked.

    Raises UnloadError: ENOENT, EAGAIN (in use), EBUSY (not LIVE, or no exit function).
    Source: ``kernel/module/main.c: delete_module``.
    """
    target.audit_log_kern_module(name)
    mod = find_module(target, name)
    if mod is None:
        raise UnloadError(f"no module named {name} is loaded", Errno.ENOENT, hint="lsmod lists the modules.")
    users = target.users(mod)
    if users:
        names = ", ".join(user.name for user in users)
        raise UnloadError(f"{name} is used by {names}", Errno.EAGAIN, hint=f"Remove first: {names}.")
    if mod.state != ModuleState.LIVE:
        raise UnloadError(f"{name} is not live: it is {mod.state.name.lower()}", Errno.EBUSY)
    if mod.init and not mod.exit and not try_force_unload(target, flags):
        hint = "Give it a module_exit(), or force it (rmmod -f)."
        raise UnloadError(f"{name} has no exit function and is permanent", Errno.EBUSY, hint=hint)
    try_stop_module(target, mod, flags)

    if mod.exit:
        target.call_exit(mod)
    target.notify(mod, ModuleState.GOING)
    target.klp_module_going(mod)
    target.ftrace_release_mod(mod)
    target.wait_for_async()
    target.record_unload(mod)
    free_module(target, mod)
    target.wake_module_wq()


def try_force_unload(target: Target, flags: int) -> bool:
    """Is removal by force asked for, and possible? It taints the kernel.

    Source: ``kernel/module/main.c: try_force_unload``.
    """
    if not flags & O_TRUNC or not target.image.config.enabled("MODULE_FORCE_UNLOAD"):
        return False
    target.add_taint(TAINT_FORCED_RMMOD, lockdep_ok=False)
    return True


def try_stop_module(target: Target, mod: Module, flags: int) -> None:
    """Drop the base reference and make the module GOING; UnloadError(EAGAIN) if somebody holds one.

    Source: ``kernel/module/main.c: try_stop_module``.
    """
    rest = target.try_release_module_ref(mod)
    if rest != 0 and not try_force_unload(target, flags):
        raise UnloadError(
            f"{mod.name} is in use: somebody holds a reference",
            Errno.EAGAIN,
            hint="Close what uses it: open files, network interfaces, mounted file systems.",
        )
    target.set_state(mod, ModuleState.GOING)


def free_module(target: Target, mod: Module) -> None:
    """Take a module to pieces (``kernel/module/main.c: free_module``)."""
    target.mod_sysfs_teardown(mod)
    target.set_state(mod, ModuleState.UNFORMED)  # stays in the list: nobody loads that name meanwhile
    target.dynamic_debug_remove(mod)
    target.module_arch_cleanup(mod)
    target.module_unload_free(mod)
    target.destroy_params(mod)
    if mod.klp:
        target.free_module_elf(mod)
    target.module_bug_cleanup(mod)
    target.unlink_module(mod)
    regions = module_regions(target, mod)
    target.module_memfree([region for region in regions if region.kind.is_init])
    if mod.args:
        target.kfree(mod.args)
    if mod.percpu:
        target.percpu_modfree(mod)
    target.module_memfree([region for region in regions if not region.kind.is_init])


def module_regions(target: Target, mod: Module) -> list[Region]:
    """The allocated regions in the order in which the kernel frees them.

    The one that has ``struct module`` in it comes last.
    """
    regions = [region for region in target.regions_of(mod) if region.base]
    return sorted(regions, key=lambda region: region.kind in (Memory.CORE, Memory.DATA))
