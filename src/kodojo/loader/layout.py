"""Where every section of a module goes, and the bytes that go there.

Kernels have one of two schemes, told apart by the members of ``struct module``: ``core_layout`` and
``init_layout`` (6.1), each of them one allocation whose parts begin on pages of their own; or ``mem[]``
(6.4), one allocation for each kind of memory. In both, ``sh_entsize`` of a section is where it goes, as
the kernel's own functions expect it that read the section headers later.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kodojo.errors import Detail, MissingInformationError, UnmodelledError, decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.load_info import SHF_ALLOC, SHT_NOBITS
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.relocate import module_frob_arch_sections, module_init_sections
from kodojo.loader.struct_module import struct_module
from kodojo.loader.target import Errno, KernelErrno, Memory, Module, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.image.image import Image
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Target

__all__ = [
    "layout_and_allocate",
    "layout_sections",
    "layout_symtab",
    "module_enforce_rwx_sections",
    "move_module",
]

SHF_WRITE = 1
SHF_EXECINSTR = 4
SHF_RO_AFTER_INIT = 0x00200000
INIT_BIT = 1  # from the top of sh_entsize: in the init region
TYPE_BITS = 4  # the highest of sh_entsize: in this one of seven regions
SIZE_MASK = 0xFFFFFFFF  # the kernel counts sizes of regions in unsigned int
RO_AFTER_INIT_PASS = 2

MOD_MEM_TYPE = {
    "MOD_TEXT": 0, "MOD_DATA": 1, "MOD_RODATA": 2, "MOD_RO_AFTER_INIT": 3,
    "MOD_INIT_TEXT": 4, "MOD_INIT_DATA": 5, "MOD_INIT_RODATA": 6,
}  # fmt: skip
"""The numbers of a kernel that does not describe its types (``include/linux/module.h``)."""


class Scheme(NamedTuple):
    """How a kernel divides module memory.

    :param marks: the kinds of regions in order of allocation; the bits that mark them in ``sh_entsize``.
    :param core: the region for each of the five passes; ``init`` likewise.
    :param symbols: the region for the symbols that stay; ``init_symbols`` for all of them during init.
    :param merged: do the passes share a region, and have parts of it on pages of their own?
    :param shift: of the bits that mark a region in ``sh_entsize``.
    :param page_size: of the kernel, in bytes.
    """

    marks: dict[Memory, int]
    core: tuple[Memory, ...]
    init: tuple[Memory, ...]
    symbols: Memory
    init_symbols: Memory
    merged: bool
    shift: int
    page_size: int


def _two_regions(bits: int, page_size: int) -> Scheme:
    shift = bits - INIT_BIT
    marks = {Memory.CORE: 0, Memory.INIT: 1 << shift}
    core, init = (Memory.CORE,) * 5, (Memory.INIT,) * 5
    return Scheme(marks, core, init, Memory.CORE, Memory.INIT, True, shift, page_size)


def _seven_regions(image: Image, bits: int, page_size: int) -> Scheme:
    try:
        numbers = image.btf.enumerators("mod_mem_type")
    except MissingInformationError:
        numbers = MOD_MEM_TYPE
    shift = bits - TYPE_BITS
    kinds = {kind: numbers[f"MOD_{kind.name}"] for kind in Memory if f"MOD_{kind.name}" in numbers}
    marks = {kind: number << shift for kind, number in sorted(kinds.items(), key=lambda item: item[1])}
    core = (Memory.TEXT, Memory.RODATA, Memory.RO_AFTER_INIT, Memory.DATA, Memory.DATA)
    # Nothing in init memory is read-only after init: such a section has to wait for the next pass, for data
    # (and the kernel prints a warning, once).
    init = (Memory.INIT_TEXT, Memory.INIT_RODATA, Memory.INIT_DATA, Memory.INIT_DATA, Memory.INIT_DATA)
    return Scheme(marks, core, init, Memory.DATA, Memory.INIT_DATA, False, shift, page_size)


@lru_cache(maxsize=4)
def _scheme(image: Image) -> Scheme:
    module, architecture = struct_module(image), architecture_named(image.architecture)
    bits, page_size = architecture.format.bits, architecture.page_size
    if module.has("mem"):
        return _seven_regions(image, bits, page_size)
    if module.has("core_layout") and not module.has("data_layout"):
        return _two_regions(bits, page_size)
    raise UnmodelledError(f"kernel {image.release} divides module memory in a way not modelled yet")


def layout_and_allocate(target: Target, mod: Module, info: LoadInfo) -> dict[str, int | str]:
    """Decide where every section goes, allocate, copy; the module then is at its final place.

    Facts: the sizes of the regions in bytes.

    ``check_modinfo``, with which 6.1 begins this function, is a step of its own.
    Source: ``kernel/module/main.c: layout_and_allocate``.
    """
    _check_headers_apart(info)
    mod.regions = _empty_regions(target, info)
    module_frob_arch_sections(target, mod, info)
    module_enforce_rwx_sections(target, mod, info)
    flags = info.sechdrs["sh_flags"]
    flags[info.index.pcpu] &= np.uint64(info.format.mask ^ SHF_ALLOC)  # per-CPU data is allocated separately
    for name in (b".data..ro_after_init", b"__jump_table"):
        index = info.find_sec(name)
        if index:
            flags[index] |= np.uint64(SHF_RO_AFTER_INIT)
    layout_sections(target, mod, info)
    if target.image.config.enabled("KALLSYMS"):
        layout_symtab(target, mod, info)
    move_module(target, mod, info)
    return {kind.value: region.size for kind, region in mod.regions.items() if region.size}


def _check_headers_apart(info: LoadInfo) -> None:
    """The kernel makes notes in the section headers and in struct module, both in its copy of the file."""
    section = info.sechdrs[info.index.mod]
    start, table = int(section["sh_offset"]), int(info.header["e_shoff"])
    if start < table + info.sechdrs.nbytes and table < start + int(section["sh_size"]):
        raise would_damage(info.label, "struct module and the section headers share bytes of the file")


def module_enforce_rwx_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Refuse sections that are writable and executable.

    Source: ``kernel/module/strict_rwx.c: module_enforce_rwx_sections``.
    """
    if not target.image.config.enabled("STRICT_MODULE_RWX"):
        return
    both = np.uint64(SHF_WRITE | SHF_EXECINSTR)
    bad = np.flatnonzero((info.sechdrs["sh_flags"] & both) == both)
    if not len(bad):
        return
    index = int(bad[0])
    name = decode(info.section_name(index))
    target.printk(3, f"{mod.name}: section {name} (index {index}) has invalid WRITE|EXEC flags")
    why = f"section {name} is both writable and executable"
    hint = "Keep code out of writable sections: check section attributes and assembly of the module."
    details = [Detail(decode(info.section_name(index)), facts={"section": index}) for index in map(int, bad)]
    info.steps.refused(refuse(mod.name, Errno.ENOEXEC, "writable-executable-section", why, hint, *details))


# -- sizes and offsets ------------------------------------------------------------------------------------


def _align(size: int, alignment: int) -> int:
    """``ALIGN`` of an unsigned int: an alignment that is no power of two gives what the C macro gives."""
    mask = ((alignment or 1) - 1) & SIZE_MASK
    return (size + mask) & ~mask & SIZE_MASK


def _strict_align(target: Target, size: int) -> int:
    page_size = _scheme(target.image).page_size
    return _align(size, page_size) if target.image.config.enabled("STRICT_MODULE_RWX") else size


def _place(info: LoadInfo, region: Region, mark: int, index: int, size: int, alignment: int) -> None:
    """``module_get_offset``, ``module_get_offset_and_type``: the next free place in a region."""
    offset = _align(region.size, alignment)
    region.size = (offset + size) & SIZE_MASK
    info.sechdrs["sh_entsize"][index] = offset | mark
    info.placement[index] = (region, offset)


def _empty_regions(target: Target, info: LoadInfo) -> dict[Memory, Region]:
    """The kernel counts on from what the file's own struct module has there: 0, unless the file is damaged."""
    scheme = _scheme(target.image)
    return {
        kind: Region(kind, info.struct_member(target.image, f"{_member(scheme, kind)}.size")) for kind in scheme.marks
    }


def layout_sections(target: Target, mod: Module, info: LoadInfo) -> None:
    """Give every section that is to be loaded a region and an offset there.

    Source: ``kernel/module/main.c: layout_sections``.
    """
    scheme = _scheme(target.image)
    info.sechdrs["sh_entsize"] = info.format.mask
    passes = _passes(info.sechdrs["sh_flags"])
    prefixes = module_init_sections(target)
    todo: dict[tuple[bool, int], list[int]] = {}
    for index, number in enumerate(passes.tolist()):
        if number >= 0:
            init = info.section_name(index).startswith(prefixes)
            late = init and number == RO_AFTER_INIT_PASS and not scheme.merged
            todo.setdefault((init, number + late), []).append(index)
    sizes, alignments = info.sechdrs["sh_size"].tolist(), info.sechdrs["sh_addralign"].tolist()
    for init, kinds in ((False, scheme.core), (True, scheme.init)):
        for number, kind in enumerate(kinds):
            region = mod.regions[kind]
            for index in todo.get((init, number), ()):
                _place(info, region, scheme.marks[kind], index, sizes[index], alignments[index])
            if scheme.merged:
                _end_part(target, region, number, init=init)


def _passes(flags: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """The first of the five passes that takes each section: code, read-only, read-only after init, rest.

    -1 for sections that are not loaded.
    """
    alloc = (flags & np.uint64(SHF_ALLOC)) != 0
    takes = [
        alloc & ((flags & np.uint64(SHF_EXECINSTR)) != 0),
        alloc & ((flags & np.uint64(SHF_WRITE)) == 0),
        alloc & ((flags & np.uint64(SHF_RO_AFTER_INIT)) != 0),
        alloc & ((flags & np.uint64(SHF_WRITE)) != 0),
        alloc,
    ]
    passes = np.full(len(flags), -1)
    for number in reversed(range(5)):
        passes[takes[number]] = number
    return passes


def _end_part(target: Target, region: Region, number: int, *, init: bool) -> None:
    """The end of a pass where all share a region: the next part begins on a new page."""
    if number == 2 and init:
        region.ro_after_init_size = region.ro_size
        return
    if number == 3:
        return
    region.size = _strict_align(target, region.size)
    if number == 0:
        region.text_size = region.size
    elif number == 1:
        region.ro_size = region.size
    elif number == 2:
        region.ro_after_init_size = region.size


def layout_symtab(target: Target, mod: Module, info: LoadInfo) -> None:
    """Room for all symbols during init, and for those that stay afterwards.

    Source: ``kernel/module/kallsyms.c: layout_symtab``.
    """
    scheme = _scheme(target.image)
    core, init = mod.regions[scheme.symbols], mod.regions[scheme.init_symbols]
    init_mark = scheme.marks[scheme.init_symbols]
    symsect = info.sechdrs[info.index.sym]
    _load_at_end(info, init, init_mark, info.index.sym)

    kept = _core_symbols(target, mod, info, scheme)
    names = _string_sizes(info, info.symbols["st_name"][kept])
    info.symoffs = _align(core.size, int(symsect["sh_addralign"]))
    info.stroffs = (info.symoffs + len(names) * info.format.sym.itemsize) & SIZE_MASK
    info.core_typeoffs = (info.stroffs + int(names.sum())) & SIZE_MASK
    core.size = (info.core_typeoffs + len(names)) & SIZE_MASK
    if scheme.merged:
        core.size = _strict_align(target, core.size)

    _load_at_end(info, init, init_mark, info.index.str)
    info.mod_kallsyms_init_off = _align(init.size, info.format.word)
    info.init_typeoffs = (info.mod_kallsyms_init_off + _kallsyms_size(target.image)) & SIZE_MASK
    init.size = (info.init_typeoffs + len(info.symbols)) & SIZE_MASK
    if scheme.merged:
        init.size = _strict_align(target, init.size)


def _kallsyms_size(image: Image) -> int:
    """``sizeof(struct mod_kallsyms)``: three pointers and a number, unless the kernel's types say otherwise."""
    try:
        return image.btf.struct("mod_kallsyms").size
    except MissingInformationError:
        return 4 * architecture_named(image.architecture).format.word


def _load_at_end(info: LoadInfo, region: Region, mark: int, index: int) -> None:
    section = info.sechdrs[index]
    info.sechdrs["sh_flags"][index] |= np.uint64(SHF_ALLOC)
    _place(info, region, mark, index, int(section["sh_size"]), int(section["sh_addralign"]))


def _core_symbols(target: Target, mod: Module, info: LoadInfo, scheme: Scheme) -> NDArray[np.bool_]:
    """Which symbols stay after init (``kernel/module/kallsyms.c: is_core_symbol``)."""
    symbols = info.symbols
    if mod.klp:
        return np.ones(len(symbols), np.bool_)
    flags = info.sechdrs["sh_flags"]
    places = info.sechdrs["sh_entsize"].astype(np.uint64) >> np.uint64(scheme.shift)
    stays = (flags & np.uint64(SHF_ALLOC)) != 0
    for kind, mark in scheme.marks.items():
        if kind.is_init:
            stays &= places != np.uint64(mark >> scheme.shift)
    if target.image.config.enabled("KALLSYMS_ALL"):
        stays[info.index.pcpu] = True
    else:
        stays &= (flags & np.uint64(SHF_EXECINSTR)) != 0
    shndx = symbols["st_shndx"].astype(np.int64)
    inside = (shndx != 0) & (shndx < len(info.sechdrs)) & (symbols["st_name"] != 0)
    kept: NDArray[np.bool_] = inside & stays[np.where(inside, shndx, 0)]
    kept[:1] = True
    return kept


def _string_sizes(info: LoadInfo, offsets: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The lengths of symbol names with their NULs. DamageError for names outside the file.

    One search through the part of the file that holds them, however long and many they are.
    """
    if not len(offsets):
        return np.zeros(0, np.int64)
    start = info.strtab
    largest = start + int(offsets.max())
    end = info.data.find(b"\0", largest)
    if largest >= len(info.data) or end < 0:
        raise info.damage("the name of a symbol is outside the file")
    (ends,) = np.nonzero(np.frombuffer(info.data, np.uint8, end + 1 - start, start) == 0)
    sizes: NDArray[np.int64] = ends[np.searchsorted(ends, offsets)] - offsets.astype(np.int64) + 1
    return sizes


# -- the final place --------------------------------------------------------------------------------------


def move_module(target: Target, mod: Module, info: LoadInfo) -> None:
    """Allocate the regions, and copy every section to its place.

    KernelErrno(ENOMEM) if the kernel has no room. Source: ``kernel/module/main.c: move_module``.
    """
    regions = list(mod.regions.values())
    scheme = _scheme(target.image)
    if not scheme.merged:  # where regions are many, the kernel rounds them only now
        for region in regions:
            rounded = _align(region.size, scheme.page_size)
            if region.size and not rounded:
                raise KernelErrno(Errno.ENOMEM)
            region.size = rounded
    target.module_alloc(regions)
    try:
        for region in regions:
            region.data = bytearray(region.size)
        copy = io.BytesIO(info.data)  # whose content is taken without one more copy: modules may be large
        with copy.getbuffer() as content:
            _fill_struct_module(target, mod, info, content)
            _copy_sections(info, content)
        info.data = copy.getvalue()
        _find_struct_module(target, mod, info)
        target.place_module(mod, info)
    except BaseException:
        target.module_memfree(regions)
        raise
    if info.index.sym in info.placement:
        region, offset = info.placement[info.index.sym]
        info.symbols = np.frombuffer(region.data, info.format.sym, len(info.symbols), offset)


def _fill_struct_module(target: Target, mod: Module, info: LoadInfo, content: memoryview) -> None:
    """Enter what is known so far into the struct module in the temporary copy, as the kernel does.

    Whatever is copied or read from there later finds it, and the section headers as they are now.

    :param content: of the temporary copy.
    """
    start = int(info.sechdrs["sh_offset"][info.index.mod])
    struct = struct_module(target.image)
    values = {path: value for path, value in (("taints", mod.taints), ("klp", int(mod.klp))) if value}
    for kind, region in mod.regions.items():
        values |= _region_fields(target, kind, region)
    for path, value in values.items():
        field = struct.field(path)
        place = start + field.offset
        if not field.size:  # where it is is not known
            continue
        if place + field.size > len(content):
            raise info.damage("struct module reaches beyond the end of the file")
        content[place : place + field.size] = value.to_bytes(field.size, info.format.byteorder)
    headers = info.sechdrs.tobytes()
    place = int(info.header["e_shoff"])
    content[place : place + len(headers)] = headers


def _copy_sections(info: LoadInfo, content: memoryview) -> None:
    sechdrs = info.sechdrs
    types, sizes, offsets = (sechdrs[name].tolist() for name in ("sh_type", "sh_size", "sh_offset"))
    headers = int(info.header["e_shoff"])
    format_ = info.format
    sh_addr = headers + format_.sh_addr
    for index in map(int, np.flatnonzero((sechdrs["sh_flags"] & np.uint64(SHF_ALLOC)) != 0)):
        region, offset = info.placement[index]
        size, start = sizes[index], offsets[index]
        if types[index] != SHT_NOBITS:
            if offset + size > len(region.data):  # sizes have 32 bits, and have wrapped around
                raise info.damage(f"section {index} does not fit into the memory that is allocated for it")
            if start + size > len(content):
                raise info.damage(f"the contents of section {index} are not in the file")
            memoryview(region.data)[offset : offset + size] = content[start : start + size]
        address = (region.base + offset) & format_.mask
        sechdrs["sh_addr"][index] = address
        place = sh_addr + index * format_.shdr.itemsize
        content[place : place + format_.word] = address.to_bytes(format_.word, format_.byteorder)


def _find_struct_module(target: Target, mod: Module, info: LoadInfo) -> None:
    """From now on the struct module at its final place counts, with what has arrived there."""
    index = info.index.mod
    region, offset = info.placement[index]
    struct = struct_module(target.image)
    if info.sechdrs["sh_type"][index] == SHT_NOBITS or offset + struct.size > len(region.data):
        raise info.damage("the section .gnu.linkonce.this_module does not contain a struct module")
    mod.address = region.base + offset
    taints = struct.field("taints")
    if not taints.size:  # where it is is not known
        return
    mod.taints = int.from_bytes(region.data[offset + taints.offset :][: taints.size], info.format.byteorder)


def _member(scheme: Scheme, kind: Memory) -> str:
    """The member of struct module that describes a region."""
    return f"{kind.value}_layout" if scheme.merged else f"mem[{scheme.marks[kind] >> scheme.shift}]"


def _region_fields(target: Target, kind: Memory, region: Region) -> dict[str, int]:
    """The fields of struct module that describe a region."""
    scheme = _scheme(target.image)
    member = _member(scheme, kind)
    fields = {f"{member}.base": region.base, f"{member}.size": region.size}
    if scheme.merged:
        for name in ("text_size", "ro_size", "ro_after_init_size"):
            fields[f"{member}.{name}"] = getattr(region, name)
    return fields
