"""insmod: how kmod brings a module's file into the kernel. Whoever loads a module, dry or not, comes through here.

Which system call it is depends on the file, and on kmod. A file that is not compressed goes to ``finit_module()``
as it is. A compressed one is unpacked in user space and goes to ``init_module()``: that is what :func:`insmod` does.
From version 31 on (``libkmod/libkmod-module.c: do_finit_module``) kmod leaves the unpacking to a kernel that can do
it (``/sys/module/compression``), whose decoder takes less; and from version 34 on it takes less of zstd itself. Where
that would make a difference, :func:`other_answers` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kodojo.errors import KodojoError, LoadError, encode
from kodojo.loader.decompress import kernel_compression, module_decompress
from kodojo.loader.force import without_version_facts
from kodojo.loader.load_module import complete_refusals
from kodojo.loader.ordinary import is_ordinary, is_whole_frame
from kodojo.loader.refusal import refuse
from kodojo.loader.syscalls import sys_finit_module, sys_init_module
from kodojo.loader.target import Errno, KernelErrno

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from kodojo.image.image import Image
    from kodojo.image.payload import Payload
    from kodojo.loader.steps import Steps
    from kodojo.loader.target import Module, Target

__all__ = ["Process", "insmod", "other_answers"]

_AS_KBUILD = {
    "xz": "Compress it as the kernel's build does: xz --check=crc32 --lzma2=dict=1MiB",
    "zstd": "Compress the whole module at once: zstd module.ko",
    "gzip": "Compress the whole module at once: gzip -n module.ko",
}
_XZ_CHECKS = {4: "CRC64", 10: "SHA-256"}


class Process(Protocol):
    """insmod as a process of the kernel: what it has in its memory, and its open files, for a ``with`` block each."""

    def string(self, text: bytes) -> AbstractContextManager[int]:
        """The address of a copy of ``text`` and a NUL."""
        ...

    def memory(self, data: bytes) -> AbstractContextManager[int]:
        """The address of a copy of ``data``."""
        ...

    def file(self, payload: Payload) -> AbstractContextManager[int]:
        """A descriptor of the module's file, open for reading."""
        ...


def insmod(
    target: Target, process: Process, payload: Payload, arguments: str, steps: Steps, flags: int = 0
) -> Module:
    """Load the module in a file.

    :param arguments: what comes after the file's name, joined with blanks.
    :param flags: MODULE_INIT_IGNORE_*, by which loading is forced.
    :raises LoadError: the kernel refuses it, or kmod gives up on the file.

    Source: ``libkmod/libkmod-module.c: kmod_module_insert_module``.
    """
    with process.string(encode(arguments)) as uargs:
        steps.begin("insmod", arguments=arguments, file=payload.name)
        if payload.problem:
            with complete_refusals(target, steps):
                slug = "damaged-compression" if payload.compression else "file-too-short"
                raise refuse(payload.name, Errno.EINVAL, slug, payload.problem, payload.hint)
        if payload.compression:
            content = without_version_facts(payload.content, flags)
            steps.note(compression=payload.compression, unpacked=len(content), enters="init_module")
            with process.memory(content) as umod:
                return sys_init_module(target, umod, len(content), uargs, steps)
        steps.note(size=len(payload.content), enters="finit_module")
        with process.file(payload) as fd:
            return sys_finit_module(target, fd, uargs, flags, steps)


def other_answers(image: Image, payload: Payload) -> tuple[str, ...]:
    """What to know of a compressed file that other versions of kmod, or the kernel itself, make something else of.

    A sentence each, with what to do about it.
    """
    if not payload.packed:
        return ()
    sentences = []
    if payload.ignored and not payload.problem:
        sentences.append(
            f"{payload.ignored} bytes follow the {payload.compression} data. Nobody looks at them: if they are a "
            "signature, it does not count"
        )
    try:
        kind = kernel_compression(image.config)
    except KodojoError:  # a kernel that is described without its configuration
        kind = ""
    if kind == payload.compression:
        difference = "" if is_ordinary(payload) else _of_kernel(image, payload)
    else:
        difference = _of_newer_kmod(payload)
    return (*sentences, difference) if difference else tuple(sentences)


def _of_kernel(image: Image, payload: Payload) -> str:
    """What the kernel's decoder makes of a file, where that is not what kmod makes of it."""
    from kodojo.loader.dry import DryTarget  # noqa: PLC0415  a kernel that runs has no other use for it

    kind = payload.compression
    before = "kmod 31 and newer leave the unpacking of this file to the kernel, "
    older = "kmod 30 and older refuse it" if payload.problem else "kmod 30 and older unpack it themselves"
    try:
        content = module_decompress(DryTarget(image), payload.packed)
    except LoadError as error:
        if payload.problem:
            return ""  # it is refused either way
        text = error.log[-1].text if error.log else error.why.rpartition(": ")[2]
        return f'{before}which refuses it: EINVAL, "{text}"{_because(payload)}; {older}. {_AS_KBUILD[kind]}'
    except KernelErrno as answer:
        name = Errno(answer.errno).name
        return f"{before}which has not the memory for it: {name}; {older}. {_AS_KBUILD[kind]}"
    except KodojoError as error:
        return f"{before}and what that makes of it is not known ({error.message}); {older}"
    if payload.problem:
        return f"{before}which takes {len(content)} bytes out of it and does not look at what is wrong; {older}"
    if content == payload.content:
        return ""
    return (
        f"{before}which takes {len(content)} of the {len(payload.content)} bytes in it, as its decoder ends with the "
        f"first stream; {older}. "
        f"{_AS_KBUILD[kind]}"
    )


def _because(payload: Payload) -> str:
    check = _XZ_CHECKS.get(payload.packed[7] & 15) if payload.compression == "xz" else None
    return f" (its integrity check is {check}, and the kernel has CRC32 only)" if check else ""


def _of_newer_kmod(payload: Payload) -> str:
    """What user space of other versions makes of it."""
    if payload.compression != "zstd" or payload.problem or is_whole_frame(payload):
        return ""
    return (
        "kmod 34 and newer refuse this file (EINVAL), because it is not one whole zstd frame that says how many "
        f"bytes are in it; kmod 33 and older unpack it. {_AS_KBUILD['zstd']}"
    )
