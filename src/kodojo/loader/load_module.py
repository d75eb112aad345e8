"""The straight line from an image in memory to a live module (``kernel/module/main.c: load_module``)."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from kodojo.errors import DamageError, LoadError, MachineError, MachineFault, decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.delete_module import free_module, module_regions
from kodojo.loader.elf_checks import elf_validity_check
from kodojo.loader.kernel_errnos import errno_meaning
from kodojo.loader.layout import layout_and_allocate
from kodojo.loader.load_info import (
    MODULE_INIT_IGNORE_MODVERSIONS,
    MODULE_INIT_IGNORE_VERMAGIC,
    rewrite_section_headers,
    setup_load_info,
)
from kodojo.loader.modinfo import (
    blacklisted,
    check_export_symbol_versions,
    check_modinfo,
    module_augment_kernel_taints,
    setup_modinfo,
    taints_late,
)
from kodojo.loader.module_list import add_unformed_module, module_patient_check_exists
from kodojo.loader.module_memory import read_word
from kodojo.loader.module_sections import find_module_sections
from kodojo.loader.parameters import parse_args
from kodojo.loader.refusal import BUILD_AGAIN, refuse
from kodojo.loader.relocate import apply_relocations, module_finalize, store_mod_arch
from kodojo.loader.signature import SignatureCapabilities, TrustedKeys, module_sig_check
from kodojo.loader.steps import Steps
from kodojo.loader.struct_module import struct_module
from kodojo.loader.symbols import simplify_symbols, verify_exported_symbols
from kodojo.loader.target import Errno, KernelErrno, Module, ModuleState
from kodojo.loader.version import check_modstruct_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.struct_module import StructModule
    from kodojo.loader.target import Target

__all__ = [
    "complete_formation",
    "complete_refusals",
    "do_init_module",
    "load_module",
    "percpu_modalloc",
    "post_relocation",
    "prepare_coming_module",
    "strndup_user",
]


def load_module(target: Target, info: LoadInfo, uargs: int, flags: int, steps: Steps | None = None) -> Module:
    """Load the module whose image is in ``info``; it is LIVE then (COMING where no code can run).

    Raises LoadError, after everything was undone that the kernel undoes.

    :param uargs: address of the argument string in user memory (``const char __user *``).
    :param flags: of finit_module.
    """
    steps = Steps() if steps is None else steps
    info.flags, info.steps = flags, steps
    with complete_refusals(target, steps):
        mod = form_module(target, info, uargs, steps)
        steps.begin("free_copy", address=info.address)
        target.vfree(info.address)
        if target.runs_code:
            do_init_module(target, mod, steps)
    return mod


def form_module(target: Target, info: LoadInfo, uargs: int, steps: Steps) -> Module:
    """Everything before init. What fails undoes what came before it, in the reverse order."""
    run, check = steps.run, steps.check
    with first_fault(), ExitStack() as undo, unwinding(undo):
        undo.callback(target.vfree, info.address)
        with auditing_failure(target, info):
            mod = early_checks(target, info, steps)
            run(layout_and_allocate, target, mod, info)
            steps.note(**placement(mod), symoffs=info.symoffs, stroffs=info.stroffs)
        undo.callback(module_deallocate, target, mod)
        run(add_unformed_module, target, mod)
        undo.callback(unlink_mod, target, mod)

        run(module_augment_kernel_taints, target, mod, info)
        check(percpu_modalloc, target, mod, info)
        run(target.module_unload_init, mod)
        undo.callback(target.module_unload_free, mod)
        check(find_module_sections, target, mod, info)
        check(check_export_symbol_versions, target, mod, info)
        run(setup_modinfo, target, mod, info)
        undo.callback(free_modinfo, target, mod)

        check(simplify_symbols, target, mod, info)
        with committing(target, mod, info):
            run(apply_relocations, target, mod, info)
        run(post_relocation, target, mod, info)
        undo.callback(target.module_arch_cleanup, mod)

        args = run(strndup_user, target, mod, uargs)
        undo.callback(ddebug_cleanup, target, mod)
        run(target.dynamic_debug_setup, mod, info)
        run(target.ftrace_module_init, mod)
        run(complete_formation, target, mod, info)
        undo.callback(bug_cleanup, target, mod)

        run(prepare_coming_module, target, mod)
        undo.callback(coming_cleanup, target, mod)
        check(parse_args, target, mod, info, args)
        run(target.mod_sysfs_setup, mod, info)
        if mod.klp:
            undo.callback(target.mod_sysfs_teardown, mod)
            run(target.copy_module_elf, mod, info)
        steps.conclude()
    return mod


def early_checks(target: Target, info: LoadInfo, steps: Steps) -> Module:
    """What is tested before any memory is taken (6.12: the start of load_module, and ``early_mod_check``)."""
    run, check = steps.run, steps.check
    steps.begin("module_sig_check", size=len(info.data))
    steps.note(**check_signature(target, info))
    run(elf_validity_check, target, info)
    steps.note(sections=len(info.sechdrs))
    run(setup_load_info, target, info)
    steps.note(**indices(info))
    check(blacklisted, target, info)
    run(rewrite_section_headers, info)
    mod = Module(
        name=decode(info.module_name),
        taints=info.struct_member(target.image, "taints"),
        klp=bool(info.struct_member(target.image, "klp")),
        using_gplonly_symbols=bool(info.struct_member(target.image, "using_gplonly_symbols")),
        percpu=info.struct_member(target.image, "percpu"),
    )
    check(check_modstruct_version, target, mod, info)
    check(check_modinfo, target, mod, info)
    steps.note(vermagic=decode(info.get_modinfo(b"vermagic") or b""))
    if taints_late(target):
        run(module_patient_check_exists, target, mod.name)
    return mod


def placement(mod: Module) -> dict[str, int | str]:
    """Where the module's memory is, for the record."""
    facts: dict[str, int | str] = {"struct module": mod.address}
    for kind, region in mod.regions.items():
        if region.size:
            facts[f"{kind.value} address"] = region.base
            facts[f"{kind.value} size"] = region.size
    return facts


def indices(info: LoadInfo) -> dict[str, int | str]:
    """The sections that struct load_info points to, for the record."""
    index, headers = info.index, info.sechdrs
    return {
        "name": decode(info.module_name),
        "sechdrs": int(info.header["e_shoff"]),
        "secstrings": info.secstrings,
        "strtab": int(headers[index.str]["sh_offset"]),
        "sym": index.sym,
        "str": index.str,
        "mod": index.mod,
        "vers": index.vers,
        "info": index.info,
        "pcpu": index.pcpu,
    }


# -- stages that are small enough to stand here -------------------------------------------------------


def check_signature(target: Target, info: LoadInfo) -> dict[str, int | str]:
    """Verify the signature, if there is one, and cut it off; ask lockdown if it is not valid.

    Source: ``kernel/module/signing.c: module_sig_check``.
    """
    if not target.image.config.enabled("MODULE_SIG"):
        return {"signature": "not looked at by this kernel"}
    keys, capabilities = _trust(target.image)
    result = module_sig_check(
        info.data,
        keys,
        capabilities,
        mangled=bool(info.flags & (MODULE_INIT_IGNORE_MODVERSIONS | MODULE_INIT_IGNORE_VERMAGIC)),
        sig_enforce=target.is_module_sig_enforced(),
    )
    if result.verification == Errno.ENOKEY and "keys" not in target.image.describes:
        target.image.cannot_check(
            f"signature: which keys the kernel trusts is not known, so not that of {result.signer}"
        )
        result = replace(result, errno=0, sig_ok=True, log=(), slug="not verified")
    for record in result.log:
        target.printk(record.level, record.text)
    info.length, info.sig_ok = result.length, result.sig_ok
    if result.errno:
        info.steps.refused(refuse("module", Errno(result.errno), result.slug, result.why, result.hint))
    if result.ask_lockdown:
        try:
            target.security_locked_down("LOCKDOWN_MODULE_SIGNATURE")
        except KernelErrno:
            info.steps.refused(
                refuse(
                    "module",
                    Errno.EPERM,
                    "locked-down",
                    f"the kernel is locked down, and the module has no valid signature: {result.why}",
                    "Sign the module with a key that this kernel trusts.",
                )
            )
    return {"length": info.length, "signature": result.signer or result.slug}


@lru_cache(maxsize=4)
def _trust(image: Image) -> tuple[TrustedKeys, SignatureCapabilities]:
    return TrustedKeys.from_image(image), SignatureCapabilities.from_image(image)


def percpu_modalloc(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Reserve per-CPU memory (``kernel/module/main.c: percpu_modalloc``)."""
    section = info.sechdrs[info.index.pcpu]
    size, align = int(section["sh_size"]), int(section["sh_addralign"])
    if not size:
        return {"size": 0}
    page_size = architecture_named(target.image.architecture).page_size
    if align > page_size:
        # The format is %li
        bits = info.format.bits
        signed = align - (1 << bits) if align >> bits - 1 else align
        target.printk(4, f"{mod.name}: per-cpu alignment {signed} > {page_size}")
        align = page_size
    mod.percpu = target.percpu_modalloc(mod, size, align)
    if not mod.percpu:
        target.printk(4, f"{mod.name}: Could not allocate {size} bytes percpu data")
        raise refuse(
            mod.name,
            Errno.ENOMEM,
            "per-cpu-memory",
            f"the kernel has no {size} bytes of per-CPU memory left for modules",
            "Allocate large per-CPU data with alloc_percpu().",
        )
    mod.percpu_size = size
    return {"size": size, "offset": mod.percpu}


def post_relocation(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """The module's bytes are final: what works on them in place follows.

    Source: ``kernel/module/main.c: post_relocation``.
    """
    module = struct_module(target.image)
    mod.init = struct_pointer(mod, info, module, "init")
    mod.exit = struct_pointer(mod, info, module, "exit") if module.has("exit") else 0
    target.sort_extable(mod)
    if mod.percpu:
        target.percpu_modcopy(mod, bytes(info.section_file_data(info.index.pcpu)))
    target.add_kallsyms(mod, info)
    store_mod_arch(target, mod)
    module_finalize(target, mod, info)
    target.module_finalize(mod, info)
    return {"init": mod.init, "exit": mod.exit}


def struct_pointer(mod: Module, info: LoadInfo, struct: StructModule, member: str) -> int:
    """A pointer in the module's ``struct module``; 0 if nothing tells where it is."""
    field = struct.field(member)
    return read_word(mod, mod.address + field.offset, info.format) if field.size else 0


def strndup_user(target: Target, mod: Module, uargs: int) -> bytes:
    """Copy the argument string, which must be readable by now (``mm/util.c: strndup_user``)."""
    try:
        mod.args, text = target.strndup_user(uargs)
    except KernelErrno as answer:
        if answer.errno != Errno.EFAULT:
            raise
        raise refuse(
            mod.name,
            Errno.EFAULT,
            "bad-argument-pointer",
            f"the argument string is at {uargs:#x}, where the caller has no readable memory",
            "Pass an empty string, not NULL, where there are no arguments.",
        ) from answer
    target.set_field(mod, "args", mod.args)
    return text


def complete_formation(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """The module is whole: protect its memory, and let everybody see it.

    Source: ``kernel/module/main.c: complete_formation``.
    """
    exports = verify_exported_symbols(target, mod, info)
    target.module_bug_finalize(mod, info)
    if target.module_check_misalignment(mod):
        raise refuse(
            mod.name,
            Errno.EINVAL,
            "module-memory-misaligned",
            "its memory does not begin and end with pages: something has overwritten its struct module",
            BUILD_AGAIN,
        )
    try:
        target.protect_module(mod)
    except KernelErrno:
        target.module_bug_cleanup(mod)
        raise
    target.set_state(mod, ModuleState.COMING)
    return {"exports": exports, "state": "COMING"}


def prepare_coming_module(target: Target, mod: Module) -> None:
    """Tell the subsystems that watch modules; each may refuse.

    Source: ``kernel/module/main.c: prepare_coming_module``.
    """
    target.ftrace_module_enable(mod)
    target.klp_module_coming(mod)
    try:
        target.notify_coming(mod)
    except KernelErrno:
        target.klp_module_going(mod)
        raise


# -- init ---------------------------------------------------------------------------------------------


def do_init_module(target: Target, mod: Module, steps: Steps) -> None:
    """Run the module's init function and make it LIVE; or remove it again, if init says so.

    Raises LoadError with the errno that init returned. Source: ``kernel/module/main.c: do_init_module``.
    """
    steps.begin("do_init_module", address=mod.init)
    try:
        initfree = target.allocate_initfree(mod)
    except KernelErrno:
        remove_failed(target, mod)
        raise
    target.do_mod_ctors(mod)
    result = target.do_one_initcall(mod) if mod.init else 0
    steps.note(returned=result)
    if result < 0:
        target.kfree(initfree)
        remove_failed(target, mod)
        raise refuse(
            mod.name,
            -result,
            "init-failed",
            f"its init function returned {result}{errno_meaning(-result)}",
            "The lines that it logged, if any, may say why; on a machine without the hardware this is usual.",
        )
    if result > 0:
        target.printk(
            4,
            f"do_init_module: '{mod.name}'->init suspiciously returned {result},"
            " it should follow 0/-E convention\n"
            "do_init_module: loading module anyway...",
        )
        target.dump_stack()
    steps.begin("live", core=memory_size(mod, init=False), freed=memory_size(mod, init=True))
    target.set_state(mod, ModuleState.LIVE)
    target.notify(mod, ModuleState.LIVE)
    target.after_init(mod, initfree)
    for region in mod.regions.values():
        if region.kind.is_init:
            region.base = region.size = region.text_size = region.ro_size = region.ro_after_init_size = 0
            region.data = bytearray()
    target.wake_module_wq()


def remove_failed(target: Target, mod: Module) -> None:
    """What do_init_module does with a module whose init failed. Its exit function is not called."""
    target.set_state(mod, ModuleState.GOING)
    target.synchronize_rcu()
    target.module_put(mod)
    target.notify(mod, ModuleState.GOING)
    target.klp_module_going(mod)
    target.ftrace_release_mod(mod)
    free_module(target, mod)
    target.wake_module_wq()


def memory_size(mod: Module, *, init: bool) -> int:
    """Bytes of the module's memory of one of the two lifetimes."""
    return sum(region.size for region in mod.regions.values() if region.kind.is_init == init)


# -- undoing: the labels at the end of load_module ----------------------------------------------------


@contextmanager
def committing(target: Target, mod: Module, info: LoadInfo) -> Iterator[None]:
    """Write the module's bytes to its memory, whether they became complete or not.

    The kernel works there from the start, and what a relocation does to ``struct module`` it finds when it
    undoes what came before. A file that would damage the kernel damages nothing, however.
    """
    try:
        yield
    except DamageError:
        raise
    except LoadError:
        target.commit(mod, info)
        raise
    target.commit(mod, info)


@contextmanager
def unwinding(undo: ExitStack) -> Iterator[None]:
    """Undo after a refusal, and only then: a kernel that oopsed undoes nothing."""
    try:
        yield
    except (LoadError, KernelErrno):
        raise
    except BaseException:
        undo.pop_all()
        raise
    undo.pop_all()


@contextmanager
def first_fault() -> Iterator[None]:
    """A kernel that oopses while it undoes something undoes nothing more: it is the oops that is told."""
    try:
        yield
    except MachineError as error:
        fault = error
        context: BaseException | None = error
        while context is not None:
            if isinstance(context, MachineFault):
                fault = context
            context = context.__context__
        if fault is error:
            raise
        raise fault from error


@contextmanager
def auditing_failure(target: Target, info: LoadInfo) -> Iterator[None]:
    """Audit a module that failed before it had memory, in kernels that audit such failures."""
    try:
        yield
    except (LoadError, KernelErrno):
        if taints_late(target):
            target.audit_log_kern_module("?" if info.name_offset is None else info.name_in_file)
        raise
    target.audit_log_kern_module(info.name_in_file if taints_late(target) else decode(info.module_name))


def module_deallocate(target: Target, mod: Module) -> None:
    """Free the module's memory (``kernel/module/main.c: module_deallocate``)."""
    if mod.percpu:
        target.percpu_modfree(mod)
    target.module_memfree(module_regions(target, mod))


def unlink_mod(target: Target, mod: Module) -> None:
    """Give the place in the list up, and tell those who wait for it."""
    target.unlink_module(mod)
    target.wake_module_wq()


def free_modinfo(target: Target, mod: Module) -> None:
    """Free the texts of setup_modinfo (``kernel/module/main.c: free_modinfo``)."""
    for field in ("version", "srcversion"):
        target.set_string(mod, field, None)


def ddebug_cleanup(target: Target, mod: Module) -> None:
    """Forget the places that can be traced, the debug messages, and the arguments."""
    target.ftrace_release_mod(mod)
    target.dynamic_debug_remove(mod)
    target.synchronize_rcu()
    target.kfree(mod.args)


def bug_cleanup(target: Target, mod: Module) -> None:
    """The module is on its way out; its BUG() table is forgotten."""
    target.set_state(mod, ModuleState.GOING)
    target.module_bug_cleanup(mod)


def coming_cleanup(target: Target, mod: Module) -> None:
    """Tell everybody who heard that the module is coming that it is going."""
    target.set_state(mod, ModuleState.GOING)
    target.destroy_params(mod)
    target.notify(mod, ModuleState.GOING)
    target.klp_module_going(mod)


# -- refusals -----------------------------------------------------------------------------------------

ANSWERS: dict[int, tuple[str, str, str]] = {
    Errno.ENOMEM: ("out-of-memory", "the kernel has not enough memory", "Give the machine more memory."),
    Errno.EFAULT: ("bad-address", "the caller's memory is not readable there", "Check pointer and length."),
    Errno.EBADF: (
        "bad-descriptor",
        "the descriptor is not open for reading",
        "Open the file with O_RDONLY first.",
    ),
    Errno.EACCES: (
        "security-module",
        "a security module of the kernel forbids it",
        "See its log and policy.",
    ),
    Errno.EPERM: ("not-permitted", "the kernel's policy forbids it", "See the kernel's log."),
    Errno.EOPNOTSUPP: (
        "no-decompression",
        "this kernel cannot decompress modules itself",
        "Decompress the file first, as modprobe and insmod do.",
    ),
    Errno.ETXTBSY: ("file-busy", "the file is open for writing", "Close it first."),
    Errno.EFBIG: ("file-too-large", "the file is larger than 2 GiB", "Strip it."),
}
"""What an errno means that the target's kernel gave, where the loader knows no more than that."""


@contextmanager
def complete_refusals(target: Target, steps: Steps) -> Iterator[None]:
    """Give every refusal that passes the step it came from, and the lines that the kernel has printed."""
    mark = target.log_mark()
    try:
        try:
            yield
        except KernelErrno as answer:
            raise _answered(steps.current, answer.errno) from answer
    except LoadError as error:
        refusal = error.refusal
        error.refusal = replace(refusal, step=refusal.step or steps.current, log=target.log_since(mark))
        raise


def _answered(step: str, errno: int) -> LoadError:
    if (step, errno) == ("kernel_read_file", Errno.EINVAL):
        return refuse(
            step, errno, "empty-file", "the file is empty, or is no regular file", "Build or fetch it again."
        )
    slug, why, hint = ANSWERS.get(errno) or (
        "kernel-refused",
        f"the kernel's own {step} answered -{errno}",
        "",
    )
    return refuse(step, errno, slug, why, hint)
