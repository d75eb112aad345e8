"""The kernel's list of modules: who may enter it (``kernel/module/main.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import encode
from kodojo.image.architecture import architecture_named
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno, KernelErrno, ModuleState

if TYPE_CHECKING:
    from kodojo.loader.target import Module, Target

__all__ = ["add_unformed_module", "find_module", "find_module_all", "module_patient_check_exists"]


def find_module_all(target: Target, name: str, *, even_unformed: bool) -> Module | None:
    """The module of exactly that name (``kernel/module/main.c: find_module_all``)."""
    for mod in target.modules():
        if mod.name == name and (even_unformed or mod.state != ModuleState.UNFORMED):
            return mod
    return None


def find_module(target: Target, name: str) -> Module | None:
    """The module of exactly that name, unless it is not yet, or no longer, whole."""
    return find_module_all(target, name, even_unformed=False)


def module_patient_check_exists(target: Target, name: str) -> None:
    """Refuse a name that is taken; one that is just being loaded or freed is waited for.

    Source: ``kernel/module/main.c: module_patient_check_exists``, in 6.1 part of ``add_unformed_module``.
    """
    with target.module_mutex():
        _patient_check_exists(target, name)


def _patient_check_exists(target: Target, name: str) -> None:
    """What :func:`module_patient_check_exists` does with the mutex held."""
    old = find_module_all(target, name, even_unformed=True)
    if old is None:
        return
    if old.state in (ModuleState.COMING, ModuleState.UNFORMED):
        try:
            target.wait_for_name(name)
        except KernelErrno as answer:
            raise refuse(
                name,
                Errno.EINTR,
                "wait-interrupted",
                f"a module named {name} is being loaded, and a signal ended the wait for it",
                "Try again.",
            ) from answer
        old = find_module_all(target, name, even_unformed=True)
    if old is not None and old.state == ModuleState.LIVE:
        raise refuse(
            name,
            Errno.EEXIST,
            "already-loaded",
            f"a module named {name} is loaded",
            f"Remove it first (rmmod {name}), or leave it as it is.",
        )
    raise refuse(
        name,
        Errno.EBUSY,
        "same-name-busy",
        f"another module named {name} is going, or has just failed to load",
        "Try again.",
    )


def add_unformed_module(target: Target, mod: Module) -> None:
    """Take a place at the head of the list, so that no other module of that name can.

    Source: ``kernel/module/main.c: add_unformed_module``.
    """
    target.set_state(mod, ModuleState.UNFORMED)
    longest = architecture_named(target.image.architecture).module_name_len
    if _counts_name_in_bounds(target) and len(encode(mod.name)) >= longest:
        raise would_damage(mod.name, f"the name in struct module does not end within its {longest} bytes")
    with target.module_mutex():
        _patient_check_exists(target, mod.name)
        target.add_unformed_module(mod)


def _counts_name_in_bounds(target: Target) -> bool:
    """Whether this function itself measures the name, a member of known size, and panics if it has no end.

    Since 6.4 another function does, which gets a pointer and so has no size to check; in the same release
    ``struct module`` got its array ``mem``.
    """
    image = target.image
    return not struct_module(image).has("mem") and image.config.enabled("FORTIFY_SOURCE")
