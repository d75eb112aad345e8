"""Version checksums (CRCs) of symbols, and the string that says for which kernel a module was built.

Source: ``kernel/module/version.c`` and the parts of ``kernel/module/main.c`` that force a load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import Detail, MissingInformationError, decode, encode
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Symbol, Target

__all__ = [
    "TAINT_FORCED_MODULE",
    "add_taint_module",
    "check_modstruct_version",
    "check_version",
    "same_magic",
    "try_to_force_load",
    "version_facts",
]

TAINT_FORCED_MODULE = 1


def add_taint_module(target: Target, mod: Module, bit: int, *, lockdep_ok: bool) -> None:
    """Taint the kernel and the module (``kernel/module/main.c: add_taint_module``)."""
    target.add_taint(bit, lockdep_ok=lockdep_ok)
    mod.taints |= 1 << bit
    if mod.address:  # before, the layout takes it along into struct module
        target.set_field(mod, "taints", mod.taints)


def try_to_force_load(target: Target, mod: Module, reason: str) -> bool:
    """May a module be loaded although something is missing? Taints, if so.

    :param reason: what is missing, as the kernel prints it.
    Source: ``kernel/module/main.c: try_to_force_load``.
    """
    if not target.image.config.enabled("MODULE_FORCE_LOAD"):
        return False
    if not target.test_taint(TAINT_FORCED_MODULE):
        target.printk(4, f"{mod.name}: {reason}: kernel tainted.")
    add_taint_module(target, mod, TAINT_FORCED_MODULE, lockdep_ok=False)
    return True


def check_version(target: Target, info: LoadInfo, mod: Module, name: bytes, crc: int | None) -> bool:
    """Has the symbol the same version checksum as when the module was built? Logs why not.

    :param name: of the symbol.
    :param crc: of the exporter (32 bits); None if it has none.
    Source: ``kernel/module/version.c: check_version``.
    """
    if not target.image.config.enabled("MODVERSIONS") or crc is None:
        return True
    if info.index.vers == 0:
        return try_to_force_load(target, mod, decode(name))
    if info.version_crcs is None:
        info.version_crcs = _read_versions(info)
    known = info.version_crcs.get(name)
    if known == crc:
        return True
    label, symbol = info.label, decode(name)
    if known is None:
        target.printk(4, f"{label}: no symbol version for {symbol}")
    else:
        target.printk(4, f"{label}: disagrees about version of symbol {symbol}")
    return False


def version_facts(info: LoadInfo, symbol: Symbol) -> dict[str, int | str]:
    """The two checksums of a symbol, and who exports it, for a refusal's details."""
    owner = symbol.owner.name if symbol.owner else "vmlinux"
    crcs = {"crc": (info.version_crcs or {}).get(encode(symbol.name)), "kernel crc": symbol.crc}
    return {"owner": owner, **{name: crc for name, crc in crcs.items() if crc is not None}}


def _read_versions(info: LoadInfo) -> dict[bytes, int]:
    """The contents of ``__versions``: the first entry of a name counts, and its crc is an unsigned long."""
    content = info.section_file_data(info.index.vers)
    word = info.format.word
    # struct modversion_info; its name has what is left of 64 bytes
    entry = np.dtype([("crc", f"{info.format.order}u{word}"), ("name", f"S{64 - word}")])
    count = len(content) // entry.itemsize
    if not count:
        return {}
    table = np.frombuffer(content, entry, count)
    names: list[bytes] = table["name"].tolist()
    start = int(info.sechdrs["sh_offset"][info.index.vers])
    for index in _unusual_names(content, count, word):
        names[index] = _c_string(info.data, start + index * entry.itemsize + word)
    return dict(zip(reversed(names), reversed(table["crc"].tolist()), strict=True))


def _unusual_names(content: memoryview, count: int, word: int) -> list[int]:
    """Entries whose name is not padded with NULs: it ends earlier than numpy thinks, or later."""
    rows = np.frombuffer(content, np.uint8, count * 64).reshape(count, -1)[:, word:]
    zero = rows == 0
    unusual = (zero[:, :-1] & ~zero[:, 1:]).any(axis=1) | ~zero[:, -1]
    return [int(index) for index in np.flatnonzero(unusual)]


def _c_string(data: bytes, start: int) -> bytes:
    """The name as strcmp sees it: it may go on after its own bytes. One without an end equals nothing."""
    end = data.find(b"\0", start)
    return data[start:end] if end >= 0 else data[start : start + 56] + b"\0"


def check_modstruct_version(target: Target, mod: Module, info: LoadInfo) -> None:
    """Refuse a module that was built with other definitions of the structures it shares with the kernel.

    Their common checksum is that of the otherwise useless function ``module_layout``.
    Source: ``kernel/module/version.c: check_modstruct_version``.
    """
    if not target.image.config.enabled("MODVERSIONS"):
        return
    symbol = target.find_symbol("module_layout", gplok=True)
    if symbol is None:
        raise MissingInformationError(f"kernel {target.image.release} does not export module_layout")
    if check_version(target, info, mod, b"module_layout", symbol.crc):
        return
    facts = version_facts(info, symbol)
    shared = "the structures that module and kernel share (struct module first of all)"
    raise refuse(
        info.label,
        Errno.ENOEXEC,
        "module-layout-crc",
        f"{shared} had other definitions when the module was built"
        if "crc" in facts
        else f"the module does not say which definitions it was built with of {shared}",
        "Build the module against the headers of exactly this kernel, with its Module.symvers.",
        Detail("module_layout", facts=facts),
    )


def same_magic(amagic: bytes, bmagic: bytes, *, has_crcs: bool) -> bool:
    """Are two version magics equal? With checksums the release, up to the first blank, does not matter.

    Source: ``kernel/module/version.c: same_magic``.
    """
    if has_crcs:
        amagic, bmagic = (b"".join(magic.partition(b" ")[1:]) for magic in (amagic, bmagic))
    return amagic == bmagic
