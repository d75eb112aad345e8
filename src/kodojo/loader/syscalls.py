"""The three system calls (``kernel/module/main.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import LoadError, UnloadError, decode, encode
from kodojo.image.architecture import architecture_named
from kodojo.loader import delete_module
from kodojo.loader.decompress import module_decompress
from kodojo.loader.load_info import (
    MODULE_INIT_COMPRESSED_FILE,
    MODULE_INIT_IGNORE_MODVERSIONS,
    MODULE_INIT_IGNORE_VERMAGIC,
    LoadInfo,
)
from kodojo.loader.load_module import complete_refusals, load_module
from kodojo.loader.refusal import refuse
from kodojo.loader.steps import Steps
from kodojo.loader.target import Errno, FileLoad, KernelErrno

if TYPE_CHECKING:
    from kodojo.loader.target import Module, Target

__all__ = [
    "MODULE_INIT_COMPRESSED_FILE",
    "MODULE_INIT_IGNORE_MODVERSIONS",
    "MODULE_INIT_IGNORE_VERMAGIC",
    "may_init_module",
    "sys_delete_module",
    "sys_finit_module",
    "sys_init_module",
]

CAP_SYS_MODULE = 16
ULONG_MAX = (1 << 64) - 1
UINT_MAX = (1 << 32) - 1

KNOWN_FLAGS = MODULE_INIT_IGNORE_MODVERSIONS | MODULE_INIT_IGNORE_VERMAGIC | MODULE_INIT_COMPRESSED_FILE


def may_init_module(target: Target) -> dict[str, int | str]:
    """Only a caller with CAP_SYS_MODULE, and only while loading is not switched off for good.

    Source: ``kernel/module/main.c: may_init_module``.
    """
    if not target.capable(CAP_SYS_MODULE):
        raise refuse(
            "caller",
            Errno.EPERM,
            "no-capability",
            "the caller has not the capability CAP_SYS_MODULE",
            "Load modules as root.",
        )
    if target.modules_disabled():
        raise refuse(
            "caller",
            Errno.EPERM,
            "modules-disabled",
            "loading and removing modules was switched off (kernel.modules_disabled or nomodule)",
            "It cannot be switched on again: boot the machine anew.",
        )
    return {"CAP_SYS_MODULE": "yes", "modules_disabled": "no"}


def sys_init_module(target: Target, umod: int, length: int, uargs: int, steps: Steps | None = None) -> Module:
    """``init_module(umod, len, uargs)``: load the image in the caller's memory.

    :param umod: address of the image (``void __user *``).
    :param length: its size in bytes, as the caller claims.
    :param uargs: address of the argument string (``const char __user *``).
    """
    steps = Steps() if steps is None else steps
    length &= ULONG_MAX
    with target.system_call("init_module", umod, length, uargs), complete_refusals(target, steps):
        steps.run(may_init_module, target)
        steps.begin("copy_module_from_user", address=umod, size=length)
        info = copy_module_from_user(target, umod, length)
        return load_module(target, info, uargs, 0, steps)


def copy_module_from_user(target: Target, umod: int, length: int) -> LoadInfo:
    """Copy the image into kernel memory (``kernel/module/main.c: copy_module_from_user``)."""
    if length < architecture_named(target.image.architecture).format.ehdr.itemsize:
        raise refuse(
            "image",
            Errno.ENOEXEC,
            "image-too-short",
            f"{length} bytes are less than an ELF header",
            "Pass the whole file.",
        )
    target.security_kernel_load_data()
    address = target.vmalloc(length)
    try:
        data = target.copy_from_user(address, umod, length)
        target.security_kernel_post_load_data(address, length)
    except KernelErrno:
        target.vfree(address)
        raise
    return LoadInfo(data, address, 0)


def sys_finit_module(target: Target, fd: int, uargs: int, flags: int, steps: Steps | None = None) -> Module:
    """``finit_module(fd, uargs, flags)``: load the file behind a descriptor.

    :param flags: ``MODULE_INIT_*``.
    """
    steps = Steps() if steps is None else steps
    fd, flags = c_int(fd), flags & UINT_MAX
    with target.system_call("finit_module", fd, uargs, flags), complete_refusals(target, steps):
        steps.run(may_init_module, target)
        if flags & ~KNOWN_FLAGS:
            raise refuse(
                "finit_module",
                Errno.EINVAL,
                "unknown-flags",
                f"the flags {flags:#x} have bits that no kernel knows",
                "Known are 1 (ignore symbol versions), 2 (ignore version magic) and 4 (compressed file).",
            )
        return idempotent_init_module(target, fd, uargs, flags, steps)


def c_int(value: int) -> int:
    """What becomes of a number in a system call's argument of the C type ``int``."""
    return ((value & UINT_MAX) ^ (1 << 31)) - (1 << 31)


def idempotent_init_module(target: Target, fd: int, uargs: int, flags: int, steps: Steps) -> Module:
    """Load a file, unless somebody is loading that very file now: then wait, and answer what they are answered.

    Source: ``kernel/module/main.c: idempotent_init_module`` (since 6.5).
    """
    steps.begin("kernel_read_file", fd=fd)
    if "types" not in target.image.describes or not target.image.btf.has("idempotent"):
        return init_module_from_file(target, fd, uargs, flags, steps)
    load, first = target.begin_load(fd)
    if not first:
        return result_of_other(target, load)
    try:
        load.module = init_module_from_file(target, fd, uargs, flags, steps)
    except (LoadError, KernelErrno) as error:
        load.refusal = error
        raise
    finally:
        target.end_load(load)
    return load.module


def result_of_other(target: Target, load: FileLoad) -> Module:
    """Wait for somebody else's load of the same file, and answer what that was answered.

    Source: ``kernel/module/main.c: idempotent_wait_for_completion``.
    """
    target.wait_for_load(load)
    if isinstance(load.refusal, LoadError):
        raise type(load.refusal)(load.refusal.message, load.refusal.refusal) from load.refusal
    if load.module is None:
        raise KernelErrno(load.refusal.errno if load.refusal is not None else Errno.EINTR)
    return load.module


def init_module_from_file(target: Target, fd: int, uargs: int, flags: int, steps: Steps) -> Module:
    """Read the file, decompress it where that is asked for, and load it.

    Source: ``kernel/module/main.c: init_module_from_file``, up to 6.4 part of ``finit_module``.
    """
    address, data = target.kernel_read_file(fd)
    steps.note(size=len(data), address=address)
    if flags & MODULE_INIT_COMPRESSED_FILE:
        steps.begin("module_decompress")
        try:
            data = module_decompress(target, data)
        finally:
            target.vfree(address)
        address = target.copy_to_kernel(data)
        steps.note(size=len(data), address=address)
    return load_module(target, LoadInfo(data, address, flags), uargs, flags, steps)


def sys_delete_module(target: Target, name: str | bytes | int, flags: int) -> None:
    """``delete_module(name, flags)``: remove a module.

    Raises UnloadError.

    :param name: the text, or where it is in user memory; the kernel reads it up to the first NUL.
    :param flags: O_TRUNC forces where the kernel can; O_NONBLOCK changes nothing.
    """
    with target.system_call("delete_module", name if isinstance(name, int) else 0, flags):
        delete_module.delete_module(target, name_of_module(target, name), flags & UINT_MAX)


def name_of_module(target: Target, name: str | bytes | int) -> str:
    """What the caller wants to be removed, if it may remove modules; see :func:`sys_delete_module`."""
    try:
        may_init_module(target)
    except LoadError as error:
        raise UnloadError(f"removing modules: {error.why}", error.errno, hint=error.hint) from error
    longest = architecture_named(target.image.architecture).module_name_len
    if isinstance(name, int):
        try:
            raw = target.strncpy_from_user(name, longest)
        except KernelErrno as answer:
            raise UnloadError(f"the name at {name:#x} cannot be read", answer.errno) from answer
    else:
        raw = (encode(name) if isinstance(name, str) else name).partition(b"\0")[0]
    if not 0 < len(raw) < longest:
        raise UnloadError(f"no module has a name of {len(raw)} bytes", Errno.ENOENT)
    return decode(raw)
