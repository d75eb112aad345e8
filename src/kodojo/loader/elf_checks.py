"""Is the file well formed? The kernel's checks of ELF header, section headers and names, in its order.

Kernels differ in what they check and when; which of three variants a kernel has is read off its messages:

- 6.1: ``elf_validity_check``; sections are searched for by ``setup_load_info`` afterwards;
- 6.4 to 6.12: ``elf_validity_cache_copy`` in one piece, which counts the special sections in the same loop;
- later (and 6.12.117): the same split into ``elf_validity_cache_sechdrs``, ``..._secstrings`` and so on.

What no kernel checks, this does not check either: alignment, overlap, the bounds of symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from kodojo.errors import Detail
from kodojo.image.architecture import architecture_named, describe_elf
from kodojo.image.compression import compression_of
from kodojo.image.payload import KMOD_KNOWS
from kodojo.loader.load_info import SHF_ALLOC, SHT_NOBITS, SHT_NULL, SHT_SYMTAB
from kodojo.loader.refusal import BUILD_AGAIN, STRIPPED, refuse
from kodojo.loader.struct_module import Outline, struct_module
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Target

__all__ = ["check_section_names", "elf_validity_check"]

EI_CLASS = 4
EI_DATA = 5
ET_REL = 1
EF_ARM_EABI_MASK = 0xFF000000
EF_ARM_APCS_26 = 8
SHT_STRTAB = 3
MODINFO = b".modinfo"
THIS_MODULE = b".gnu.linkonce.this_module"

# Messages by which a kernel is known to have the checks that print them.
COUNTS_SECTIONS = b"Only one .modinfo section must exist."
SPLIT = b"Invalid ELF section name table type"
ASKS_FOR_ABI = b"Invalid module architecture in ELF header"

BUILD_FOR_KERNEL = "Build the module against the headers of exactly this kernel."


def elf_validity_check(target: Target, info: LoadInfo) -> None:
    """Refuse a file that is not a well-formed module; afterwards ``header`` and ``sechdrs`` are set.

    Where the kernel finds name, .modinfo, symbol table and struct module in the same function, they are set
    as well. Source: ``kernel/module/main.c: elf_validity_check`` (6.1), ``elf_validity_cache_copy`` (6.12).
    """
    if target.image.has_text(SPLIT):
        elf_validity_cache_sechdrs(target, info)
        elf_validity_cache_secstrings(target, info)
        elf_validity_cache_index_info(target, info)
        elf_validity_cache_index_mod(target, info)
        elf_validity_cache_index_sym(target, info)
        elf_validity_cache_index_str(target, info)
        return
    elf_validity_ehdr(target, info)
    _cache_section_table(target, info)
    _check_name_table(target, info)
    _check_section_zero(target, info)
    if target.image.has_text(COUNTS_SECTIONS):
        _check_and_count_sections(target, info)
    else:
        _check_sections(target, info)


def check_section_names(info: LoadInfo) -> None:
    """DamageError for a section name outside the file.

    Only some kernels refuse them before they compare all names (``module_finalize``).
    """
    for index, name in enumerate(info.section_names()):
        if name is None and index:
            info.section_name(index)


# -- the three variants in pieces -----------------------------------------------------------------------


def elf_validity_ehdr(target: Target, info: LoadInfo) -> None:
    """The ELF header (``kernel/module/main.c: elf_validity_ehdr``; 6.1: the start of elf_validity_check)."""
    info.format = architecture_named(target.image.architecture).format
    ehdr = info.format.ehdr
    if info.length < ehdr.itemsize:
        _fail(
            target,
            info,
            f"Invalid ELF header len {info.length}",
            "elf-too-short",
            f"the file has only {info.length} bytes, an ELF header alone has {ehdr.itemsize}",
        )
    info.header = np.frombuffer(info.data, ehdr, 1)[0]
    if info.data[:4] != b"\x7fELF":
        _fail(
            target,
            info,
            "Invalid ELF header magic: != \x7fELF",
            "elf-magic",
            "the file does not begin as an ELF file does",
            _magic_hint(info.data),
        )
    kind = int(info.header["e_type"])
    if kind != ET_REL:
        _check_byte_order(target, info, kind)
        _fail(
            target,
            info,
            f"Invalid ELF header type: {kind} != {ET_REL}",
            "elf-type",
            f"the file is {_type_name(kind)}, not a relocatable object",
            "Give the .ko file that kbuild makes.",
        )
    _check_machine(target, info)


def _check_machine(target: Target, info: LoadInfo) -> None:
    """``elf_check_arch``, and in later kernels ``module_elf_check_arch``.

    Where it does not look at the class of the file, the size of the section headers is wrong instead.
    """
    architecture = architecture_named(target.image.architecture)
    machine = int(info.header["e_machine"])
    accepted = machine in architecture.machines
    if accepted and architecture.name == "armv7l":
        accepted = _arm_accepts(int(info.header["e_entry"]), int(info.header["e_flags"]))
    if accepted and architecture.class_checked:
        accepted = info.data[EI_CLASS] == (1 if info.format.bits == 32 else 2)
    if not accepted:
        _fail_architecture(target, info, f"Invalid architecture in ELF header: {machine}")
    # Only powerpc has a rule of its own in module_elf_check_arch.
    if architecture.name == "ppc64le" and target.image.has_text(ASKS_FOR_ABI):
        abi = int(info.header["e_flags"]) & 3
        second = target.image.config.enabled("PPC64_ELF_ABI_V2")
        if (abi == 2) != second or abi == 3:
            _fail_architecture(target, info, f"Invalid module architecture in ELF header: {machine}")


def _arm_accepts(entry: int, flags: int) -> bool:
    """Code of ARM or Thumb, and an ABI that the kernel runs (``arch/arm/kernel/elf.c: elf_check_arch``)."""
    if entry & 1 == 0 and entry & 3:
        return False
    if flags & EF_ARM_EABI_MASK:
        return True
    # Of an old file: APCS of 26 bits needs a CPU of that time; those of today have VFP.
    return not flags & EF_ARM_APCS_26


def _check_byte_order(target: Target, info: LoadInfo, kind: int) -> None:
    """The kernel says that the type is wrong where it is the byte order: a module for another architecture."""
    if info.data[EI_DATA] != (1 if info.format.little else 2):
        _fail_architecture(target, info, f"Invalid ELF header type: {kind} != {ET_REL}")


def _fail_architecture(target: Target, info: LoadInfo, text: str) -> NoReturn:
    _fail(
        target,
        info,
        text,
        "elf-architecture",
        f"the module is for {describe_elf(info.data)}, the kernel is for {target.image.architecture}",
        "Take the module built for this architecture, or the kernel of the module's.",
    )


def elf_validity_cache_sechdrs(target: Target, info: LoadInfo) -> None:
    """Header and section headers (``kernel/module/main.c: elf_validity_cache_sechdrs``)."""
    elf_validity_ehdr(target, info)
    _cache_section_table(target, info)
    _check_section_zero(target, info)
    bad = np.flatnonzero(_has_contents(info) & _outside(info))
    if len(bad):
        _fail_section(target, info, int(bad[0]))


def elf_validity_cache_secstrings(target: Target, info: LoadInfo) -> None:
    """The table of section names (``kernel/module/main.c: elf_validity_cache_secstrings``)."""
    _check_name_table(target, info)
    types = info.sechdrs["sh_type"]
    bad = np.flatnonzero((types != SHT_NULL) & (info.sechdrs["sh_name"] >= _name_table_size(info)))
    if len(bad):
        _fail_section_name(target, info, int(bad[0]))


def elf_validity_cache_index_info(target: Target, info: LoadInfo) -> None:
    """At most one .modinfo (``kernel/module/main.c: elf_validity_cache_index_info``)."""
    index = info.find_any_unique_sec(MODINFO)
    if index < 0:
        _fail_two_modinfo(target, info)
    _cache_modinfo(info, index)


def elf_validity_cache_index_mod(target: Target, info: LoadInfo) -> None:
    """Exactly one struct module of the right size (``main.c: elf_validity_cache_index_mod``)."""
    index = info.find_any_unique_sec(THIS_MODULE)
    if index <= 0:
        _fail_this_module_count(target, info, -index, "Exactly")
    if info.sechdrs["sh_type"][index] == SHT_NOBITS:
        _fail(
            target,
            info,
            f"module {info.label}: .gnu.linkonce.this_module section must have a size set",
            "no-this-module",
            "struct module has no contents in the file",
        )
    _check_this_module(target, info, index)


def elf_validity_cache_index_sym(target: Target, info: LoadInfo) -> None:
    """Exactly one symbol table (``kernel/module/main.c: elf_validity_cache_index_sym``)."""
    tables = np.flatnonzero(info.sechdrs["sh_type"] == SHT_SYMTAB)
    _cache_symtab(target, info, tables[tables != 0])


def elf_validity_cache_index_str(target: Target, info: LoadInfo) -> None:
    """The names of its symbols (``kernel/module/main.c: elf_validity_cache_index_str``)."""
    link = int(info.sechdrs["sh_link"][info.index.sym])
    if not 0 < link < len(info.sechdrs):
        _fail_link(target, info, link)
    kind = int(info.sechdrs["sh_type"][link])
    if kind != SHT_STRTAB:
        _fail(
            target,
            info,
            f"Invalid ELF symbol string table type: {kind}",
            "elf-symbol-strings",
            f"the symbol table's names are said to be in section {link}, which is no string table",
        )
    info.index.str = link


def _cache_section_table(target: Target, info: LoadInfo) -> None:
    header = info.header
    shdr = info.format.shdr
    if header["e_shentsize"] != shdr.itemsize:
        _fail(
            target,
            info,
            "Invalid ELF section header size",
            "elf-section-header-size",
            f"section headers are said to have {header['e_shentsize']} bytes, not {shdr.itemsize}",
        )
    start, count = int(header["e_shoff"]), int(header["e_shnum"])
    if start >= info.length or count * shdr.itemsize > info.length - start:
        _fail(
            target,
            info,
            "Invalid ELF section header overflow",
            "elf-section-table",
            f"{count} section headers at offset {start} are not inside the file of {info.length} bytes",
            "The file is cut off or damaged: fetch or build it again.",
        )
    info.sechdrs = np.frombuffer(info.data, shdr, count, start).copy() if count else np.zeros(0, shdr)


def _check_name_table(target: Target, info: LoadInfo) -> None:
    """Order and tests of both generations; the table's own bounds and type are each tested by one of them."""
    index, count = int(info.header["e_shstrndx"]), len(info.sechdrs)
    if not 0 < index < count:
        _fail(
            target,
            info,
            f"Invalid ELF section name index: {index} || e_shstrndx ({index}) >= e_shnum ({count})",
            "elf-section-names",
            f"section names are said to be in section {index} of {count}",
        )
    kind = int(info.sechdrs["sh_type"][index])
    if target.image.has_text(SPLIT):
        if kind != SHT_STRTAB:
            _fail(
                target,
                info,
                f"Invalid ELF section name table type: {kind}",
                "elf-section-names",
                f"section names are said to be in section {index}, which is no string table",
            )
    elif _outside(info)[index]:
        _fail(
            target,
            info,
            f"Invalid ELF section hdr(type {kind})",
            "elf-section-names",
            "the table of section names is not inside the file",
        )
    _check_name_table_contents(target, info, index)


def _check_name_table_contents(target: Target, info: LoadInfo, index: int) -> None:
    start, size = int(info.sechdrs["sh_offset"][index]), int(info.sechdrs["sh_size"][index])
    if size == 0:
        _fail(
            target,
            info,
            "empty section name table",
            "elf-section-names",
            "the table of section names is empty",
        )
    if info.data[start + size - 1] != 0:
        _fail(
            target,
            info,
            "ELF Spec violation: section name table isn't null terminated",
            "elf-section-names",
            "the table of section names does not end with a NUL byte",
        )
    info.secstrings = start


def _check_section_zero(target: Target, info: LoadInfo) -> None:
    if len(info.sechdrs):
        zero = info.sechdrs[0]
    else:  # none is declared, and one kernel looks nevertheless
        start = int(info.header["e_shoff"])
        if start + info.format.shdr.itemsize > len(info.data):
            raise info.damage("there are no section headers, and the kernel reads one behind the end of the file")
        zero = np.frombuffer(info.data, info.format.shdr, 1, start)[0]
    if zero["sh_type"] != SHT_NULL or zero["sh_size"] or zero["sh_addr"]:
        kind = _signed(zero["sh_type"])
        _fail(
            target,
            info,
            f"ELF Spec violation: section 0 type({kind})!=SH_NULL or non-zero len or addr",
            "elf-section-zero",
            "the first section header is not the empty one that ELF demands",
        )


def _check_sections(target: Target, info: LoadInfo) -> None:
    """6.1: symbol tables need a string table, contents have to be in the file, loaded sections need names."""
    sechdrs = info.sechdrs
    contents = _has_contents(info)
    bad_link = contents & _bad_link(info)
    outside = contents & _outside(info)
    bad_name = contents & _bad_name(info)
    bad = np.flatnonzero(bad_link | outside | bad_name)
    if not len(bad):
        return
    index = int(bad[0])
    if bad_link[index]:
        _fail_link(target, info, int(sechdrs["sh_link"][index]))
    if outside[index]:
        _fail_section(target, info, index)
    _fail_section_name(target, info, index)


def _check_and_count_sections(target: Target, info: LoadInfo) -> None:
    """6.4 to 6.12: the same, and special sections are counted on the way, by names not checked yet."""
    contents = _has_contents(info)
    fatal = contents & (_bad_link(info) | _outside(info) | _bad_name(info))
    last = int(np.argmax(fatal)) if fatal.any() else len(fatal)
    names = info.section_names()
    counted = [int(index) for index in np.flatnonzero(contents[:last])]
    compared = [*counted, last] if last < len(fatal) and not (_bad_link(info) | _outside(info))[last] else counted
    for index in compared:
        if names[index] is None:
            info.section_name(index)  # DamageError
    _check_sections(target, info)

    modinfo = [index for index in counted if names[index] == MODINFO]
    if len(modinfo) > 1:
        _fail_two_modinfo(target, info)
    _cache_modinfo(info, sum(modinfo))
    _cache_symtab(target, info, np.flatnonzero(contents & (info.sechdrs["sh_type"] == SHT_SYMTAB)))
    info.index.str = int(info.sechdrs["sh_link"][info.index.sym])
    modules = [index for index in counted if names[index] == THIS_MODULE]
    if len(modules) != 1:
        _fail_this_module_count(target, info, len(modules), "Only")
    _check_this_module(target, info, modules[0])


# -- what several variants have in common ---------------------------------------------------------------


def _has_contents(info: LoadInfo) -> NDArray[np.bool_]:
    """Sections whose contents are in the file; never section 0."""
    types = info.sechdrs["sh_type"]
    contents: NDArray[np.bool_] = (types != SHT_NULL) & (types != SHT_NOBITS)
    contents[:1] = False
    return contents


def _outside(info: LoadInfo) -> NDArray[np.bool_]:
    """``validate_section_offset``: the end wraps around or is behind the image."""
    start, size = info.sechdrs["sh_offset"], info.sechdrs["sh_size"]
    end = start + size
    outside: NDArray[np.bool_] = (end < start) | (end > np.uint64(info.length))
    return outside


def _bad_link(info: LoadInfo) -> NDArray[np.bool_]:
    link = info.sechdrs["sh_link"]
    bad: NDArray[np.bool_] = (info.sechdrs["sh_type"] == SHT_SYMTAB) & ((link == 0) | (link >= len(info.sechdrs)))
    return bad


def _bad_name(info: LoadInfo) -> NDArray[np.bool_]:
    loaded = (info.sechdrs["sh_flags"] & np.uint64(SHF_ALLOC)) != 0
    bad: NDArray[np.bool_] = loaded & (info.sechdrs["sh_name"] >= _name_table_size(info))
    return bad


def _name_table_size(info: LoadInfo) -> np.unsignedinteger:
    size: np.unsignedinteger = info.sechdrs["sh_size"][int(info.header["e_shstrndx"])]
    return size


def _cache_modinfo(info: LoadInfo, index: int) -> None:
    if index:
        info.index.info = index
        info.name_offset = info.get_next_modinfo(b"name", None)


def _cache_symtab(target: Target, info: LoadInfo, tables: NDArray[np.intp]) -> None:
    if len(tables) != 1:
        target.printk(4, f"{info.label}: module has no symbols (stripped?)")
        raise refuse(
            info.label,
            Errno.ENOEXEC,
            "no-symbols",
            f"the file has {len(tables)} symbol tables; a module has one",
            BUILD_AGAIN if len(tables) else STRIPPED,
        )
    info.index.sym = int(tables[0])


def _check_this_module(target: Target, info: LoadInfo, index: int) -> None:
    section = info.sechdrs[index]
    if not int(section["sh_flags"]) & SHF_ALLOC:
        _fail(
            target,
            info,
            f"module {info.label}: .gnu.linkonce.this_module must occupy memory during process execution",
            "this-module-not-allocated",
            "struct module would not be loaded: its section lacks the flag SHF_ALLOC",
        )
    struct = struct_module(target.image)
    expected = struct.size
    if not expected and isinstance(struct, Outline):
        target.image.cannot_check("struct module's size: the kernel has neither type information nor a module tree")
    if expected and int(section["sh_size"]) != expected:  # 0: the image does not know, and says so
        target.printk(
            3,
            f"module {info.label}: .gnu.linkonce.this_module section size must match"
            " the kernel's built struct module size at run time",
        )
        why = f"struct module has {int(section['sh_size'])} bytes in the module and {expected} in this kernel"
        sizes = Detail("struct module", facts={"size": int(section["sh_size"]), "kernel size": expected})
        info.steps.refused(refuse(info.label, Errno.ENOEXEC, "struct-module-size", why, BUILD_FOR_KERNEL, sizes))
    info.index.mod = index


# -- refusals -------------------------------------------------------------------------------------------


def _fail(
    target: Target, info: LoadInfo, text: str, slug: str, why: str, hint: str = BUILD_AGAIN, *details: Detail
) -> NoReturn:
    target.printk(3, text)
    raise refuse(info.label, Errno.ENOEXEC, slug, why, hint, *details)


def _fail_section(target: Target, info: LoadInfo, index: int) -> NoReturn:
    kind = int(info.sechdrs["sh_type"][index])
    _fail(
        target,
        info,
        f"Invalid ELF section in module (section {index} type {kind})",
        "elf-section-bounds",
        f"section {index} reaches beyond the end of the file",
        "The file is cut off or damaged: fetch or build it again.",
        _section(index),
    )


def _fail_section_name(target: Target, info: LoadInfo, index: int) -> NoReturn:
    kind = int(info.sechdrs["sh_type"][index])
    _fail(
        target,
        info,
        f"Invalid ELF section name in module (section {index} type {kind})",
        "elf-section-name-offset",
        f"the name of section {index} is not inside the table of names",
        BUILD_AGAIN,
        _section(index),
    )


def _section(index: int) -> Detail:
    return Detail(f"section {index}", facts={"section": index})


def _fail_link(target: Target, info: LoadInfo, link: int) -> NoReturn:
    shown, count = _signed(link), len(info.sechdrs)
    _fail(
        target,
        info,
        f"Invalid ELF sh_link!=SHN_UNDEF({shown}) or (sh_link({shown}) >= hdr->e_shnum({count})",
        "elf-symbol-strings",
        f"the symbol table's names are said to be in section {link} of {count}",
    )


def _fail_two_modinfo(target: Target, info: LoadInfo) -> NoReturn:
    _fail(
        target,
        info,
        COUNTS_SECTIONS.decode(),
        "two-modinfo-sections",
        "there is more than one section .modinfo",
    )


def _fail_this_module_count(target: Target, info: LoadInfo, count: int, word: str) -> NoReturn:
    why = f"there are {count} sections .gnu.linkonce.this_module"
    if not count:
        why = "the file has no struct module: it is an object file, not a module"
    _fail(
        target,
        info,
        f"module {info.label}: {word} one .gnu.linkonce.this_module section must exist.",
        "no-this-module",
        why,
        "Give the .ko file that kbuild links, not a .o file.",
    )


def _signed(value: int | np.uint32) -> int:
    """What ``%d`` prints for an unsigned 32-bit number."""
    return int(value) - (1 << 32) if int(value) >> 31 else int(value)


def _type_name(kind: int) -> str:
    names = {0: "of no type", 2: "a program", 3: "a shared library or program", 4: "a core dump"}
    return names.get(kind, f"of ELF type {kind}")


def _magic_hint(data: bytes) -> str:
    kind = compression_of(data)
    if kind in KMOD_KNOWS:
        return f"It is compressed with {kind}: decompress it first, as kmod does where the kernel cannot."
    if kind is not None:
        return f"It is compressed with {kind}, which neither kmod nor the kernel knows: decompress it first."
    archives = {
        b"!<arch>\n": "package",
        b"\xed\xab\xee\xdb": "package",
        b"07070": "cpio archive (an initramfs image)",
    }
    for magic, name in archives.items():
        if data.startswith(magic):
            return f"It is a {name}: kodojo check looks at the modules in it."
    return "Give the .ko file that kbuild makes."
