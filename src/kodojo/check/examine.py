"""What has to be known of modules before any of them is checked: who needs whom."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from kodojo.check.sources import Packing
from kodojo.errors import ImageError, InputError, decode
from kodojo.image.architecture import architecture_of_module
from kodojo.image.tree import fold, module_name
from kodojo.kmod.elf_parts import NotElfError, Parts, modinfo_strings, module_parts
from kodojo.loader.ordinary import makes_no_difference

if TYPE_CHECKING:
    from kodojo.check.sources import GivenModule, Spool
    from kodojo.durable import Progress

__all__ = ["Examined", "examine"]

_MANY = 4  # modules; fewer are read before threads have started
_NEVER_LARGE = 256 << 10  # bytes of a file: what comes out of it is less than from where the ratio counts
_one_at_a_time = Lock()


class Examined(NamedTuple):
    """A module, and what it says about itself as far as that could be read.

    :param module: unpacked by now, so that this is done once however many kernels there are.
    :param name: as the kernel would call it.
    :param depends: the modules that it names.
    :param release: of the kernel that it was built for, empty if it does not say.
    :param architecture: that it is for, as ``uname -m`` says; empty for one that kodojo does not know.
    :param exports: symbols. :param undefined: symbols that it needs.
    """

    module: GivenModule
    name: str
    depends: tuple[str, ...] = ()
    release: str = ""
    architecture: str = ""
    exports: tuple[bytes, ...] = ()
    undefined: tuple[bytes, ...] = ()


def examine(modules: Sequence[GivenModule], spool: Spool, progress: Progress | None = None) -> list[Examined]:
    """Read every module once. What is damaged is examined as far as it goes: the kernels will say what they think.

    :raises KodojoError: the spool is full.
    """
    found = []
    for examined in _each(lambda module: _examine(module, spool), modules):
        found.append(examined)
        if progress is not None:
            progress(len(found), len(modules), "reading the modules")
    return found


def _each(function: Callable[[GivenModule], Examined], modules: Sequence[GivenModule]) -> Iterator[Examined]:
    if len(modules) < _MANY:
        yield from map(function, modules)
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  the decompressors let others run meanwhile

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(function, modules)


def _examine(module: GivenModule, spool: Spool) -> Examined:
    """Examine a module; those that may become large one at a time."""
    name = module_name(module.label) or fold(os.path.basename(module.label).partition(".")[0])  # noqa: PTH119
    try:
        with _one_at_a_time if _may_be_large(module) else nullcontext():
            return _read(module, name, spool)
    except ImageError as error:
        return Examined(module._replace(problem=_about(module, error), hint=error.hint), name)
    except InputError as error:
        return Examined(module._replace(problem=error.message, hint=error.hint), name)
    except MemoryError:
        hint = "allow this process more (ulimit -v), or check it on a larger computer"
        return Examined(module._replace(problem=f"{module.label}: not enough memory to read it", hint=hint), name)


def _may_be_large(module: GivenModule) -> bool:
    try:
        return os.stat(module.path).st_size > _NEVER_LARGE  # noqa: PTH116  for speed: there are thousands
    except (OSError, ValueError):
        return False


def _about(module: GivenModule, error: ImageError) -> str:
    """What is wrong, with the name of the file."""
    return error.message if error.message.startswith(module.label) else f"{module.label}: {error.message}"


def _read(module: GivenModule, name: str, spool: Spool) -> Examined:
    payload = module.read()
    content = payload.content
    if payload.problem:  # the verdicts will say so
        return Examined(module, name)
    if payload.compression:
        file = None if makes_no_difference(payload) else module.path
        path = spool.unpack(content, len(payload.packed))
        module = module._replace(path=path, packing=Packing.of(payload, file))
    known = architecture_of_module(content)
    architecture = known.name if known is not None else ""
    try:
        parts = module_parts(content)
    except NotElfError:
        return Examined(module, name, architecture=architecture)
    return _known(module, name, architecture, parts)


def _known(module: GivenModule, name: str, architecture: str, parts: Parts) -> Examined:
    facts = {key: value for key, _, value in (entry.partition(b"=") for entry in modinfo_strings(parts.modinfo))}
    return Examined(
        module,
        fold(decode(facts[b"name"])) if b"name" in facts else name,
        tuple(fold(name) for name in decode(facts.get(b"depends", b"")).split(",") if name),
        decode(facts.get(b"vermagic", b"").partition(b" ")[0]),
        architecture,
        parts.exports,
        parts.undefined,
    )
