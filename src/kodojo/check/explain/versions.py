"""Version checksums: which differ, and what has changed that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kodojo.check.explain.changes import Changes, TypeChange
from kodojo.check.explain.dwarf import DwarfTypes
from kodojo.errors import Detail, ImageError, KodojoError
from kodojo.image.btf import Btf
from kodojo.image.type_graph import BtfTypes
from kodojo.kmod.elf_parts import NotElfError, section_content

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal
    from kodojo.image.image import Image
    from kodojo.image.type_graph import TypeGraph

__all__ = ["module_layout_crc", "symbol_version"]

MOST_SYMBOLS = 40
"""Symbols whose types are compared; where more have changed, it is another kernel altogether."""

LAYOUT = ("module", "modversion_info", "kernel_param", "kernel_symbol", "tracepoint")
"""What ``module_layout`` has for parameters, and so is in its checksum (``kernel/module/version.c``)."""


@dataclass(frozen=True)
class Source:
    """Where the module's side of the types is from."""

    types: TypeGraph
    name: str


def symbol_version(case: Case, problem: Refusal) -> Refusal:
    """The structures that have changed, then every symbol with its checksums, its prototype and what it leads to."""
    details = [_with_checksums(detail) for detail in problem.details]
    source = _source(case, problem)
    if source is None:
        return replace(problem, hint=_hint(case, problem), details=(*details, _no_types(case)))
    changes = Changes(source.types, BtfTypes(case.image.btf))
    types: dict[str, TypeChange] = {}
    for number, detail in enumerate(details[:MOST_SYMBOLS]):
        with suppress(ImageError):  # one side's types are damaged there
            found = changes.reachable(detail.subject)
            types |= {change.name: change for change in found}
            details[number] = replace(detail, more=tuple(_symbol_lines(changes, detail.subject, found)))
    return replace(problem, hint=_hint(case, problem), details=(*_type_details(types.values(), source), *details))


def module_layout_crc(case: Case, problem: Refusal) -> Refusal:
    """Both checksums, and the structures that module and kernel share."""
    details = tuple(_with_checksums(detail) for detail in problem.details)
    source = _source(case, problem)
    if source is None:
        return replace(problem, hint=_hint(case, problem), details=(*details, _no_types(case)))
    new = BtfTypes(case.image.btf)
    changes = Changes(source.types, new)
    pairs = ((source.types.tag(name), new.tag(name)) for name in LAYOUT)
    found = [changes.of_type((old, now)) for old, now in pairs if old is not None and now is not None]
    types = [change for change in found if change is not None]
    return replace(problem, hint=_hint(case, problem), details=(*_type_details(types, source), *details))


def _with_checksums(detail: Detail) -> Detail:
    facts = detail.facts
    owner = facts.get("owner", "vmlinux")
    whose = "the kernel" if owner == "vmlinux" else f"module {owner}"
    if "crc" not in facts:
        return replace(detail, text="the module has no checksum for it")
    return replace(detail, text=f"{facts['crc']:#010x} in the module, {facts['kernel crc']:#010x} in {whose}")


def _hint(case: Case, problem: Refusal) -> str:
    if not case.release or case.release == case.image.release:
        return problem.hint
    return f"Build the module for {case.image.release}: it was built for {case.release}."


# -- what the types were when the module was built --------------------------------------------------------


def _source(case: Case, problem: Refusal) -> Source | None:
    """The kernel that the module was built for if its checksums say so, else what the module has of its own.

    None if there is neither, or nothing to compare it with.
    """
    if "types" not in case.image.describes:
        return None
    old = case.built_for
    if old is not None and _same_checksums(old, problem.details):
        with suppress(KodojoError):
            return Source(BtfTypes(old.btf), old.release)
    with suppress(ImageError):
        return Source(DwarfTypes(case.content), "the module's debugging information")
    with suppress(ImageError, NotElfError):
        btf = section_content(case.content, b".BTF")
        if btf and section_content(case.content, b".BTF.base") is None:
            types = BtfTypes(Btf(btf))
            if types.tag("module") is not None:  # else it only has what it adds to its kernel's types
                return Source(types, "the module's BTF")
    return None


def _same_checksums(image: Image, details: Iterable[Detail]) -> bool:
    """Whether the kernel has the checksums that the module has: only then are its types what the module saw."""
    pairs = [(image.exports.get(detail.subject), detail.facts.get("crc")) for detail in details]
    return all(export is None or export.crc == crc for export, crc in pairs)


def _no_types(case: Case) -> Detail:
    if "types" not in case.image.describes:
        return Detail("what has changed", "cannot be told: the types of this kernel are not known")
    text = "cannot be told: the module has no description of its types"
    more = ["a module that is built with -g and not stripped has one (reading it takes: pip install 'kodojo[dwarf]')"]
    if case.release and case.release != case.image.release:
        more.append(f"or add the kernel that it was built for: kodojo kernel add {case.release}")
    return Detail("what has changed", text, more=tuple(more))


def _symbol_lines(changes: Changes, symbol: str, found: list[TypeChange]) -> Iterator[str]:
    declared = changes.of_prototype(symbol)
    if declared is not None:
        yield f"was {declared[0]}"
        yield f"is  {declared[1]}"
    if found:
        yield f"leads to {', '.join(change.name for change in found)} (see above)"
    elif declared is None and changes.old.symbol(symbol) is not None and changes.new.symbol(symbol) is not None:
        yield "the types that it leads to are the same; what differs is not to be seen in types, an attribute maybe"


def _type_details(types: Iterable[TypeChange], source: Source) -> Iterator[Detail]:
    for change in types:
        sizes = f"{change.old_size} bytes, now {change.new_size}"
        text = sizes if change.old_size != change.new_size else f"{change.old_size} bytes as before"
        facts: dict[str, int | str] = {
            "size": change.old_size,
            "kernel size": change.new_size,
            "compared with": source.name,
        }
        yield Detail(change.name, f"has changed: {text} (compared with {source.name})", facts, change.lines)
