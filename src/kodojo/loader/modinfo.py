"""What ``.modinfo`` says, and what the kernel makes of it: refusals, taints, strings for sysfs.

6.1 tests everything early, in ``check_modinfo``; later kernels taint only when the module has its place in
the list (``module_augment_kernel_taints``), so that a module that is loaded twice taints once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import Detail, decode, encode
from kodojo.loader.kernel_symbol import kernel_symbols
from kodojo.loader.load_info import MODULE_INIT_IGNORE_VERMAGIC
from kodojo.loader.refusal import refuse
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno
from kodojo.loader.version import add_taint_module, same_magic, try_to_force_load

if TYPE_CHECKING:
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = [
    "blacklisted",
    "check_export_symbol_versions",
    "check_modinfo",
    "module_augment_kernel_taints",
    "setup_modinfo",
    "taints_late",
]

TAINT_PROPRIETARY_MODULE = 0
TAINT_CRAP = 10
TAINT_OOT_MODULE = 12
TAINT_UNSIGNED_MODULE = 13
TAINT_LIVEPATCH = 15
TAINT_TEST = 18

GPL_COMPATIBLE = frozenset(
    {
        b"GPL",
        b"GPL v2",
        b"GPL and additional rights",
        b"Dual BSD/GPL",
        b"Dual MIT/GPL",
        b"Dual MPL/GPL",
    }
)
"""``include/linux/license.h: license_is_gpl_compatible``."""

NO_LIVEPATCH = "module is marked as livepatch module, but livepatch support is disabled"
TEST_MODULE = "loading test module taints kernel."
PROPRIETARY_IN_DISGUISE = ("driverloader", "lve")


def blacklisted(target: Target, info: LoadInfo) -> None:
    """Refuse a module that ``module_blacklist=`` names (``kernel/module/main.c: blacklisted``)."""
    names = encode(target.module_blacklist()).split(b",")
    if not names[-1]:
        names.pop()  # the kernel stops at the end of the string
    if not names or info.name not in names:
        return
    target.printk(3, f"Module {info.label} is blacklisted")
    raise refuse(
        info.label,
        Errno.EPERM,
        "module-blacklisted",
        f"the kernel was started with module_blacklist={target.module_blacklist()}",
        "Start the kernel without it, or load another module.",
        Detail(info.label),
    )


def check_modinfo(target: Target, mod: Module, info: LoadInfo) -> None:
    """Refuse a module for another kernel, or a livepatch if there are none; in 6.1 taint as well.

    Source: ``kernel/module/main.c: check_modinfo``.
    """
    _check_vermagic(target, mod, info)
    if taints_late(target):
        _set_livepatch_module(target, mod, info)
        return
    _check_origin(target, mod, info)
    _set_livepatch_module(target, mod, info)
    _taint_livepatch(target, mod)
    _taint_license(target, mod, info)
    _taint_test(target, mod, info)


def module_augment_kernel_taints(target: Target, mod: Module, info: LoadInfo) -> None:
    """Taint the kernel as the module deserves; in 6.1 only for a missing signature.

    Source: ``kernel/module/main.c: module_augment_kernel_taints``, in 6.1 ``load_module``.
    """
    if not taints_late(target):
        _taint_unsigned(target, mod, info)
        return
    before = target.test_taint(TAINT_PROPRIETARY_MODULE)
    _check_origin(target, mod, info)
    _taint_livepatch(target, mod)
    _taint_license(target, mod, info)
    _taint_test(target, mod, info)
    _taint_unsigned(target, mod, info)
    _taint_by_name(target, mod, before=before)


def check_export_symbol_versions(target: Target, mod: Module, info: LoadInfo) -> None:
    """Exports should have checksums; in 6.1 modules with special names are tainted first.

    Source: ``kernel/module/main.c: check_export_symbol_versions``, in 6.1
    ``check_module_license_and_versions``.
    """
    if not taints_late(target):
        _taint_by_name(target, mod, before=target.test_taint(TAINT_PROPRIETARY_MODULE))
    if not target.image.config.enabled("MODVERSIONS"):
        return
    size = kernel_symbols(target.image).size
    for suffix in (b"", b"_gpl"):
        _, symbols = info.section_objs(b"__ksymtab" + suffix, size)
        crcs, _ = info.section_objs(b"__kcrctab" + suffix, 4)
        if not symbols & 0xFFFFFFFF or crcs:
            continue
        if try_to_force_load(target, mod, "no versions for exported symbols"):
            return
        raise refuse(
            mod.name,
            Errno.ENOEXEC,
            "exports-without-crc",
            "the module exports symbols without version checksums, and this kernel does not load by force",
            "Build it with CONFIG_MODVERSIONS, against this kernel's headers.",
        )


def setup_modinfo(target: Target, mod: Module, info: LoadInfo) -> None:
    """Keep version and srcversion for sysfs (``kernel/module/main.c: setup_modinfo``)."""
    for member in ("version", "srcversion"):
        text = info.get_modinfo(member.encode())
        if text is None:
            target.set_field(mod, member, 0)  # whatever the file's struct module has there
        else:
            target.set_string(mod, member, text)


# -- the tests one by one ---------------------------------------------------------------------------------


def taints_late(target: Target) -> bool:
    """Whether this kernel taints only for modules that got into its list.

    Linux 6.4 brought that (064f4536d139), in functions that compilers inline, and in the same release gave
    ``struct module`` its array ``mem`` (ac3b43283923).
    """
    return struct_module(target.image).has("mem")


def _check_vermagic(target: Target, mod: Module, info: LoadInfo) -> None:
    modmagic = info.get_modinfo(b"vermagic")
    if info.flags & MODULE_INIT_IGNORE_VERMAGIC:
        modmagic = None
    if modmagic is None:
        if try_to_force_load(target, mod, "bad vermagic"):
            return
        why = "the module does not say for which kernel it was built, and this kernel does not load by force"
        hint = "Build the module against the headers of exactly this kernel."
        info.steps.refused(refuse(info.label, Errno.ENOEXEC, "vermagic-missing", why, hint))
        return
    if "vermagic" not in target.image.describes:
        target.image.cannot_check("version magic: the description does not say for which release it is")
        return
    vermagic = target.image.vermagic
    if same_magic(modmagic, encode(vermagic), has_crcs=bool(info.index.vers)):
        return
    target.printk(3, f"{info.label}: version magic '{decode(modmagic)}' should be '{vermagic}'")
    why = f"the module was built for '{decode(modmagic).rstrip()}', this kernel is '{vermagic.rstrip()}'"
    hint = "Build the module against the headers of this kernel, or load it into the kernel it was built for."
    both = Detail("vermagic", facts={"module": decode(modmagic), "kernel": vermagic})
    info.steps.refused(refuse(info.label, Errno.ENOEXEC, "vermagic-mismatch", why, hint, both))


def _check_origin(target: Target, mod: Module, info: LoadInfo) -> None:
    """Out of tree, without retpolines, staging: in this order in all kernels."""
    if not info.has_modinfo(b"intree"):
        if not target.test_taint(TAINT_OOT_MODULE):
            target.printk(4, f"{mod.name}: loading out-of-tree module taints kernel.")
        add_taint_module(target, mod, TAINT_OOT_MODULE, lockdep_ok=True)
    if (
        not info.has_modinfo(b"retpoline")
        and target.image.kallsyms.get("retpoline_module_ok") is not None
        and target.spectre_v2_unsafe()
    ):
        target.printk(4, f"{mod.name}: loading module not compiled with retpoline compiler.")
    if info.has_modinfo(b"staging"):
        add_taint_module(target, mod, TAINT_CRAP, lockdep_ok=True)
        target.printk(
            4,
            f"{mod.name}: module is from the staging directory, the quality is unknown, you have been warned.",
        )


def _set_livepatch_module(target: Target, mod: Module, info: LoadInfo) -> None:
    """Source: ``kernel/module/main.c: check_modinfo_livepatch``."""
    if not info.has_modinfo(b"livepatch"):
        return
    if not target.image.config.enabled("LIVEPATCH"):
        target.printk(3, f"{mod.name}: {NO_LIVEPATCH}")
        why = "the module is a livepatch, and this kernel was built without CONFIG_LIVEPATCH"
        hint = "Use a kernel that can be patched live."
        info.steps.refused(refuse(mod.name, Errno.ENOEXEC, "livepatch-unsupported", why, hint))
    mod.klp = True  # the layout takes it along into struct module


def _taint_livepatch(target: Target, mod: Module) -> None:
    if not mod.klp:
        return
    add_taint_module(target, mod, TAINT_LIVEPATCH, lockdep_ok=True)
    target.printk_once("TAINT_LIVEPATCH", 5, f"{mod.name}: tainting kernel with TAINT_LIVEPATCH")


def _taint_license(target: Target, mod: Module, info: LoadInfo) -> None:
    """Source: ``kernel/module/main.c: set_license``, later ``module_license_taint_check``."""
    license_ = info.get_modinfo(b"license")
    if license_ is None:
        license_ = b"unspecified"
    if license_ in GPL_COMPATIBLE:
        return
    if not target.test_taint(TAINT_PROPRIETARY_MODULE):
        target.printk(4, f"{mod.name}: module license '{decode(license_)}' taints kernel.")
    add_taint_module(target, mod, TAINT_PROPRIETARY_MODULE, lockdep_ok=False)


def _taint_test(target: Target, mod: Module, info: LoadInfo) -> None:
    if not info.has_modinfo(b"test") or not target.image.has_text(b"%s: " + TEST_MODULE.encode()):
        return
    if not target.test_taint(TAINT_TEST):
        target.printk(4, f"{mod.name}: {TEST_MODULE}")
    add_taint_module(target, mod, TAINT_TEST, lockdep_ok=True)


def _taint_unsigned(target: Target, mod: Module, info: LoadInfo) -> None:
    if not target.image.config.enabled("MODULE_SIG"):
        return
    mod.sig_ok = info.sig_ok
    target.set_field(mod, "sig_ok", int(info.sig_ok))
    if mod.sig_ok:
        return
    target.printk_once(
        "TAINT_UNSIGNED_MODULE",
        5,
        f"{mod.name}: module verification failed: signature and/or required key missing - tainting kernel",
    )
    add_taint_module(target, mod, TAINT_UNSIGNED_MODULE, lockdep_ok=True)


def _taint_by_name(target: Target, mod: Module, *, before: bool) -> None:
    """Modules that pretend to be free, and one that is free but loads others that are not.

    :param before: was the kernel proprietary before? If it is only now, it is said.
    """
    if mod.name == "ndiswrapper":
        target.add_taint(TAINT_PROPRIETARY_MODULE, lockdep_ok=False)
    if mod.name in PROPRIETARY_IN_DISGUISE:
        add_taint_module(target, mod, TAINT_PROPRIETARY_MODULE, lockdep_ok=False)
    if not before and target.test_taint(TAINT_PROPRIETARY_MODULE):
        target.printk(4, f"{mod.name}: module license taints kernel.")
