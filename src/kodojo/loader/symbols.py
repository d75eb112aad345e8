"""Symbols: every entry of the symbol table becomes an address (``kernel/module/main.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import Detail, LoadError, decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.kernel_symbol import kernel_symbols
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno, KernelErrno, ModuleState
from kodojo.loader.version import check_version, version_facts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Symbol, Target

__all__ = [
    "inherit_taint",
    "ref_module",
    "resolve_symbol",
    "resolve_symbol_wait",
    "simplify_symbols",
    "verify_exported_symbols",
    "verify_namespace_is_imported",
]

SHN_UNDEF = 0
SHN_LIVEPATCH = 0xFF20
SHN_ABS = 0xFFF1
SHN_COMMON = 0xFFF2
STB_WEAK = 2
TAINT_PROPRIETARY_MODULE = 0

WAIT_SECONDS = 30.0
"""How long a symbol of a module that is still loading is waited for."""


def simplify_symbols(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Give every symbol its address; all problems are logged, the last one decides the errno.

    Facts: how many symbols were looked up, and in which modules they were found.
    Source: ``kernel/module/main.c: simplify_symbols``.
    """
    symbols = info.symbols
    shndx = symbols["st_shndx"].astype(np.int64)
    defined = _defined(shndx, len(info.sechdrs))
    bases = info.sechdrs["sh_addr"].astype(np.uint64)  # a copy
    if info.index.pcpu:
        bases[info.index.pcpu] = mod.percpu
    symbols["st_value"][defined] += bases[shndx[defined]]

    failures: list[LoadError] = []
    looked_up = 0
    silent = defined | (shndx == SHN_ABS) | (shndx == SHN_LIVEPATCH)
    silent[:1] = True
    (others,) = np.nonzero(~silent)
    entries = zip(others.tolist(), shndx[others].tolist(), info.symbol_names(others), strict=True)
    for index, section, name in entries:
        if section == SHN_UNDEF:
            looked_up += 1
            error = _undefined_symbol(target, mod, info, index, name)
        elif section == SHN_COMMON:
            error = _common_symbol(target, mod, name)
        else:
            error = _invalid_section_index(target, mod, info, index, name)
        if error is not None:
            info.steps.also(error)
            failures.append(error)
    if failures:
        raise info.steps.all_of(failures)
    return {
        "symbols": len(symbols),
        "looked up": looked_up,
        "uses": ", ".join(owner.name for owner in mod.uses) or "the kernel only",
    }


def _defined(shndx: NDArray[np.int64], sections: int) -> NDArray[np.bool_]:
    """The entries that belong to a section: their values are offsets there."""
    special = (shndx == SHN_ABS) | (shndx == SHN_COMMON) | (shndx == SHN_LIVEPATCH) | (shndx == SHN_UNDEF)
    defined: NDArray[np.bool_] = ~special & (shndx < sections)
    defined[:1] = False
    return defined


def _common_symbol(target: Target, mod: Module, name: bytes) -> LoadError | None:
    if name.startswith(b"__gnu_lto"):
        return None
    target.printk(4, f"{mod.name}: please compile with -fno-common")
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "common-symbol",
        f"{decode(name)} is a common symbol: a variable that no object file claims",
        "Compile with -fno-common.",
        Detail(decode(name)),
    )


def _invalid_section_index(target: Target, mod: Module, info: LoadInfo, index: int, raw: bytes) -> LoadError:
    name = decode(raw)
    section = int(info.symbols["st_shndx"][index])
    largest = len(info.sechdrs) - 1
    target.printk(3, f"{mod.name}: Symbol {name} has an invalid section index {section} (max {largest})")
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "symbol-section-index",
        f"symbol {name} says it is in section {section}, but the last one is {largest}",
        "The file is damaged, or has more sections than the kernel supports: build it again.",
        Detail(name, facts={"symbol": index, "section": section, "last section": largest}),
    )


def ignore_undef_symbol(architecture: str, name: bytes) -> bool:
    """Symbols that may stay undefined (``kernel/module/main.c: ignore_undef_symbol``)."""
    return architecture_named(architecture).name in ("x86_64", "i686") and name == b"_GLOBAL_OFFSET_TABLE_"


def _undefined_symbol(target: Target, mod: Module, info: LoadInfo, index: int, name: bytes) -> LoadError | None:
    try:
        symbol = resolve_symbol_wait(target, mod, info, name)
    except LoadError as error:
        _unknown_symbol(target, mod, name, error.errno)
        return error
    if symbol is not None:
        info.symbols["st_value"][index] = symbol.address
        return None
    weak = int(info.symbols["st_info"][index]) >> 4 == STB_WEAK
    if weak or ignore_undef_symbol(target.image.architecture, name):
        return None
    _unknown_symbol(target, mod, name, Errno.ENOENT)
    return _not_found(target, mod, name)


def _unknown_symbol(target: Target, mod: Module, name: bytes, errno: int) -> None:
    target.printk(4, f"{mod.name}: Unknown symbol {decode(name)} (err {-errno})")


def _not_found(target: Target, mod: Module, name: bytes) -> LoadError:
    text = decode(name)
    proprietary = mod.taints >> TAINT_PROPRIETARY_MODULE & 1
    if proprietary and target.find_symbol(text, gplok=True) is not None:
        return refuse(
            mod.name,
            Errno.ENOENT,
            "gpl-only-symbol",
            f"{text} is exported to GPL-compatible modules only, and this module is proprietary",
            'Declare the license that the code has, as in MODULE_LICENSE("GPL"), or do without the symbol.',
            Detail(text),
        )
    if mod.using_gplonly_symbols and target.find_symbol(text, gplok=True) is not None:
        return refuse(
            mod.name,
            Errno.ENOENT,
            "gpl-and-proprietary",
            f"{text} belongs to a proprietary module, and this module uses GPL-only symbols, too",
            "Use one or the other.",
            Detail(text),
        )
    return refuse(
        mod.name,
        Errno.ENOENT,
        "unknown-symbol",
        f"no symbol {text} is exported by the kernel or by a loaded module",
        "Load the module that exports it first (modprobe does it), or build against this kernel.",
        Detail(text),
    )


def resolve_symbol_wait(target: Target, mod: Module, info: LoadInfo, name: bytes) -> Symbol | None:
    """Find an export, waiting while the module that has it is still loading.

    Source: ``kernel/module/main.c: resolve_symbol_wait``.
    """
    owners: list[Module] = []
    try:
        return resolve_symbol(target, mod, info, name, owners)
    except LoadError as error:
        if error.errno != Errno.EBUSY:
            raise
    try:
        target.wait_for_module(owners[-1], WAIT_SECONDS)
    except KernelErrno:
        pass  # a signal ends the waiting; the kernel takes it for the end of the time
    else:
        try:
            return resolve_symbol(target, mod, info, name, owners)
        except LoadError as error:
            if error.errno != Errno.EBUSY:
                raise
    target.printk(4, f"{mod.name}: gave up waiting for init of module {owners[-1].name}.")
    raise _provider_busy(mod, name, owners[-1])


def resolve_symbol(target: Target, mod: Module, info: LoadInfo, name: bytes, owners: list[Module]) -> Symbol | None:
    """Find an export that the module may use, and take a reference to the module that has it.

    None if there is none. The owner is appended to ``owners``, whatever happens then.
    Source: ``kernel/module/main.c: resolve_symbol``.
    """
    gplok = not mod.taints >> TAINT_PROPRIETARY_MODULE & 1
    symbol = target.find_symbol(decode(name), gplok=gplok)
    if symbol is None:
        return None
    owner = symbol.owner
    if owner is not None:
        owners.append(owner)
    if symbol.gpl and not mod.using_gplonly_symbols:
        mod.using_gplonly_symbols = True
        target.set_field(mod, "using_gplonly_symbols", 1)
    if owner is not None and not inherit_taint(target, mod, owner, name):
        return None
    if not check_version(target, info, mod, name, symbol.crc):
        raise _version_mismatch(mod, info, symbol)
    if symbol.namespace:
        verify_namespace_is_imported(target, mod, info, symbol, symbol.namespace)
    if owner is not None and owner not in mod.uses:
        ref_module(target, mod, symbol, owner)
    return symbol


def _version_mismatch(mod: Module, info: LoadInfo, symbol: Symbol) -> LoadError:
    return refuse(
        mod.name,
        Errno.EINVAL,
        "symbol-version",
        f"{symbol.name} had another type when the module was built: its checksum differs from this kernel's",
        "Build the module against the headers of exactly this kernel.",
        Detail(symbol.name, facts=version_facts(info, symbol)),
    )


def _provider_busy(mod: Module, name: bytes, owner: Module) -> LoadError:
    return refuse(
        mod.name,
        Errno.EBUSY,
        "provider-not-ready",
        f"{decode(name)} belongs to {owner.name}, which is still being loaded",
        f"Wait until {owner.name} is loaded.",
        Detail(decode(name), f"belongs to {owner.name}", {"owner": owner.name}),
    )


def inherit_taint(target: Target, mod: Module, owner: Module, name: bytes) -> bool:
    """Whoever uses a proprietary module's symbols is proprietary; False if it may not be.

    Source: ``kernel/module/main.c: inherit_taint``.
    """
    if not owner.taints >> TAINT_PROPRIETARY_MODULE & 1:
        return True
    text = decode(name)
    if mod.using_gplonly_symbols:
        target.printk(
            3,
            f"{mod.name}: module using GPL-only symbols uses symbols {text} from proprietary module {owner.name}.",
        )
        return False
    if not mod.taints >> TAINT_PROPRIETARY_MODULE & 1:
        target.printk(
            4,
            f"{mod.name}: module uses symbols {text} from proprietary module {owner.name}, inheriting taint.",
        )
        mod.taints |= 1 << TAINT_PROPRIETARY_MODULE
        target.set_field(mod, "taints", mod.taints)
    return True


def verify_namespace_is_imported(target: Target, mod: Module, info: LoadInfo, symbol: Symbol, namespace: str) -> None:
    """A symbol that has a namespace needs ``MODULE_IMPORT_NS``.

    Source: ``kernel/module/main.c: verify_namespace_is_imported``.
    """
    if namespace in (decode(value) for value in info.modinfo_values(b"import_ns")):
        return
    allowed = target.image.config.enabled("MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS")
    target.printk(
        4 if allowed else 3,
        f"{mod.name}: module uses symbol ({symbol.name}) from namespace {namespace}, but does not import it.",
    )
    if not allowed:
        raise refuse(
            mod.name,
            Errno.EINVAL,
            "namespace-not-imported",
            f"{symbol.name} is exported into the namespace {namespace}, which the module does not import",
            f"Add MODULE_IMPORT_NS({namespace}); to the source.",
            Detail(symbol.name, facts={"namespace": namespace}),
        )


def ref_module(target: Target, mod: Module, symbol: Symbol, owner: Module) -> None:
    """Record that a module uses another one, which it did not use before, and take a reference for the pair.

    Source: ``kernel/module/main.c: ref_module``.
    """
    if owner.state == ModuleState.COMING:
        raise _provider_busy(mod, symbol.name.encode("utf-8", "surrogateescape"), owner)
    try:
        target.ref_module(mod, owner)
    except KernelErrno as answer:
        raise refuse(
            mod.name,
            Errno(answer.errno),
            "provider-going" if answer.errno == Errno.ENOENT else "out-of-memory",
            f"{symbol.name} belongs to {owner.name}, which cannot be used: it is being removed"
            if answer.errno == Errno.ENOENT
            else f"the kernel has no memory to record the use of {owner.name}",
            f"Load {owner.name} again first." if answer.errno == Errno.ENOENT else "Free memory.",
        ) from answer
    mod.uses.append(owner)


def verify_exported_symbols(target: Target, mod: Module, info: LoadInfo) -> int:
    """No export may exist already; the number of exports.

    Source: ``kernel/module/main.c: verify_exported_symbols``.
    """
    count = 0
    table = kernel_symbols(target.image)
    for section in (b"__ksymtab", b"__ksymtab_gpl"):
        start, entries = info.section_objs(section, table.size)
        for raw in table.names(mod, start, entries):
            name = decode(raw)
            found = target.find_symbol(name, gplok=True)
            if found is not None:
                info.steps.refused(_duplicate_export(target, mod, name, found))
        count += entries
    return count


def _duplicate_export(target: Target, mod: Module, name: str, found: Symbol) -> LoadError:
    owner = found.owner.name if found.owner is not None else "kernel"
    target.printk(3, f"{mod.name}: exports duplicate symbol {name} (owned by {owner})")
    return refuse(
        mod.name,
        Errno.ENOEXEC,
        "duplicate-export",
        f"it exports {name}, which {owner} exports already",
        "Rename the symbol, or do not export it."
        if found.owner is None
        else f"Rename the symbol, or remove {owner} first.",
        Detail(name, f"{owner} exports it already", {"owner": owner}),
    )
