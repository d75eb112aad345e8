"""Damaged files: which field says what, where it is, and what it should say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kodojo.errors import Detail, decode
from kodojo.image.architecture import architecture_named
from kodojo.image.elf import Format

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal

__all__ = ["FIELDS", "header_field", "struct_module_size"]

FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # slug: fields of the ELF header, fields of the header of the section that is meant
    "elf-magic": (("e_ident",), ()),
    "elf-type": (("e_type",), ()),
    "elf-architecture": (("e_machine",), ()),
    "elf-section-header-size": (("e_shentsize",), ()),
    "elf-section-table": (("e_shoff", "e_shnum"), ()),
    "elf-section-names": (("e_shstrndx",), ("sh_type", "sh_offset", "sh_size")),
    "elf-section-zero": (("e_shoff",), ("sh_type", "sh_size", "sh_addr")),
    "elf-section-bounds": ((), ("sh_offset", "sh_size")),
    "elf-section-name-offset": ((), ("sh_name",)),
    "elf-symbol-strings": ((), ("sh_link",)),
}
SHT_SYMTAB = 2
EI_DATA = 5


def header_field(case: Case, problem: Refusal) -> Refusal:
    """The fields that the kernel objects to: what they say, and at which offset of the file."""
    data = case.content
    header_fields, section_fields = FIELDS[problem.slug]
    elf_format = architecture_named(case.image.architecture).format  # as the kernel reads it, whatever the file is
    if len(data) < elf_format.ehdr.itemsize:
        return problem
    header = np.frombuffer(data, elf_format.ehdr, 1)[0]
    details = [_of_header(header, name, len(data)) for name in header_fields]
    if problem.slug == "elf-architecture" and data[EI_DATA] != (1 if elf_format.little else 2):
        details = [_of_byte_order(data)]
    sections = _headers(header, data, elf_format)
    for index in _sections(problem, header, sections):
        details += _of_section(header, sections, index, section_fields, data)
    return replace(problem, details=tuple(details) or problem.details)


def _of_byte_order(data: bytes) -> Detail:
    """The kernel does not look at it, and finds the numbers behind it wrong."""
    order = {1: "little-endian", 2: "big-endian"}.get(data[EI_DATA], "no byte order that there is")
    text = f"byte {EI_DATA:#x} of the file is {data[EI_DATA]}: {order}, which this kernel's processors are not"
    return Detail("EI_DATA", text, {"offset": EI_DATA, "value": data[EI_DATA], "file size": len(data)})


def _of_header(header: np.void, name: str, length: int) -> Detail:
    offset = header.dtype.fields[name][1] if header.dtype.fields else 0
    value = header[name]
    shown = bytes(value).hex(" ") if name == "e_ident" else f"{int(value)} ({int(value):#x})"
    facts: dict[str, int | str] = {"offset": offset, "file size": length}
    if name != "e_ident":
        facts["value"] = int(value)
    return Detail(name, f"at offset {offset:#x} of the file is {shown}", facts)


def _sections(problem: Refusal, header: np.void, sections: np.ndarray) -> list[int]:
    """The sections that the refusal is about."""
    named = [int(detail.facts["section"]) for detail in problem.details if "section" in detail.facts]
    if named or not FIELDS[problem.slug][1]:
        return named
    if problem.slug == "elf-section-names":
        return [int(header["e_shstrndx"])]
    if problem.slug == "elf-symbol-strings":
        return [int(index) for index in np.flatnonzero(sections["sh_type"] == SHT_SYMTAB)[:1]]
    return [0]


def _headers(header: np.void, data: bytes, elf_format: Format) -> np.ndarray:
    start, count, shdr = int(header["e_shoff"]), int(header["e_shnum"]), elf_format.shdr
    fits = max(0, len(data) - start) // shdr.itemsize
    return np.frombuffer(data, shdr, min(count, fits), start) if min(count, fits) else np.zeros(0, shdr)


def _of_section(
    header: np.void, sections: np.ndarray, index: int, fields: tuple[str, ...], data: bytes
) -> list[Detail]:
    if not 0 <= index < len(sections):
        return []
    name = _name(header, sections, index, data)
    place = int(header["e_shoff"]) + index * sections.dtype.itemsize
    details = []
    for field in fields:
        offset = place + (sections.dtype.fields[field][1] if sections.dtype.fields else 0)
        value = int(sections[index][field])
        text = f"at offset {offset:#x} of the file is {value} ({value:#x})"
        if field == "sh_size":
            end = int(sections[index]["sh_offset"]) + value
            text += f": it would end at {end}, the file has {len(data)} bytes"
        facts: dict[str, int | str] = {"section": index, "name": name, "offset": offset, "value": value}
        details.append(Detail(f"{field} of section {index} ({name or 'no name'})", text, facts))
    return details


def _name(header: np.void, sections: np.ndarray, index: int, data: bytes) -> str:
    table = int(header["e_shstrndx"])
    if table >= len(sections):
        return ""
    start = int(sections[table]["sh_offset"]) + int(sections[index]["sh_name"])
    end = data.find(b"\0", start, start + 256)
    return decode(data[start:end]) if end > start else ""


def struct_module_size(case: Case, problem: Refusal) -> Refusal:
    """What another size usually comes from."""
    facts = problem.details[0].facts
    text = f"{facts['size']} bytes in the module, {facts['kernel size']} in {case.image.release}"
    more = ["struct module grows and shrinks with options such as CONFIG_LIVEPATCH, TRACING, JUMP_LABEL, BTF, KUNIT"]
    if case.release and case.release != case.image.release:
        more.append(f"the module was built for {case.release}, another kernel: no wonder")
    elif case.release:
        more.append("the release is the same: another configuration, or a patch of the kernel, made the difference")
    return replace(problem, details=(replace(problem.details[0], text=text, more=tuple(more)),))
