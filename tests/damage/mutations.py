"""Damage to modules: from a seed and a number always the same case."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kodojo.image.elf import EHDR, RELA, SHDR, SYM
from tests.damage.bases import MARKER, TRAILER, Base, Section

__all__ = ["KINDS", "Case", "make_case"]

Mutation = Callable[[random.Random, Base, bytearray], str]


@dataclass(frozen=True)
class Machine:
    """What there is to damage depends on the processor.

    :param known_types: of relocations, as modules have them; ``types``: those that have a meaning, and some more.
    :param struct_module: offsets of ``init`` and ``exit`` in ``struct module``, of both kernels.
    :param tables: sections that only this architecture's modules have.
    """

    known_types: tuple[int, ...]
    types: range
    struct_module: tuple[int, ...]
    tables: tuple[str, ...] = ()


MACHINES = {
    62: Machine((0, 1, 2, 4, 10, 11, 24), range(45), (312, 848, 1200)),
    183: Machine(
        (0, 257, 258, 260, 261, 275, 277, 282, 283, 286), range(256, 315), (312, 832, 1192),
        (".plt", ".init.plt", ".text.ftrace_trampoline", ".init.text.ftrace_trampoline", ".note.gnu.property",
         "__patchable_function_entries"),
    ),
}  # fmt: skip
"""By ``e_machine``."""
SPECIAL_INDICES = (0, 1, 0xFF00, 0xFF20, 0xFFF1, 0xFFF2, 0xFFFF)
SECTION_TYPES = (0, 1, 2, 3, 4, 7, 8, 9, 14, 0xFFFFFFFF)


@dataclass(frozen=True)
class Case:
    """A damaged module.

    :param kind: the class of the damage; ``text``: what exactly was done.
    """

    number: int
    kind: str
    base: str
    text: str
    data: bytes
    arguments: str = ""


def make_case(whole: Sequence[Base], seed: int, number: int) -> Case:
    """The case with this number; kinds take turns, so that any run of them has all."""
    rng = random.Random(f"{seed}:{number}")
    kind = _TURNS[number % len(_TURNS)]
    usable = whole if kind not in _NEEDS else [base for base in whole if _NEEDS[kind](base)]
    base = rng.choice(usable)
    signed = kind == "signature"
    data = bytearray(base.signed if signed else base.data)
    text = KINDS[kind](rng, base, data)
    arguments = base.arguments if kind == "parameters" or rng.random() < 0.2 else ""
    return Case(number, kind, base.name, text, bytes(data), arguments)


# -- values -------------------------------------------------------------------------------------------


def _value(rng: random.Random, old: int, bits: int, more: Sequence[int] = ()) -> int:
    """Another value for a field, such as programs err about."""
    mask = (1 << bits) - 1
    while True:
        choices = [
            rng.choice((0, 1, 2, 3, 8, 64, 4096, mask, mask - 1, mask >> 1, (mask >> 1) + 1)),
            old + rng.choice((-64, -24, -8, -4, -2, -1, 1, 2, 4, 8, 24, 64, 4096)),
            old ^ 1 << rng.randrange(bits),
            rng.getrandbits(bits),
            rng.getrandbits(rng.randrange(1, bits + 1)),
        ]
        choices += [rng.choice(more)] * 3 if more else []
        new = rng.choice(choices) & mask
        if new != old:
            return new


def _set(data: bytearray, dtype: np.dtype, start: int, member: str, value: int) -> int:
    """Write a member of a record; the old value."""
    kind, offset = dtype.fields[member][:2]
    place = slice(start + offset, start + offset + kind.itemsize)
    old = int.from_bytes(data[place], "little")
    data[place] = (value & (1 << 8 * kind.itemsize) - 1).to_bytes(kind.itemsize, "little")
    return old


def _damage_member(
    rng: random.Random, data: bytearray, dtype: np.dtype, start: int, members: Sequence[str], more: Sequence[int]
) -> str:
    member = rng.choice(members)
    kind, offset = dtype.fields[member][:2]
    old = int.from_bytes(data[start + offset : start + offset + kind.itemsize], "little")
    new = _value(rng, old, 8 * kind.itemsize, more)
    _set(data, dtype, start, member, new)
    return f"{member} {old:#x} -> {new:#x}"


# -- headers ------------------------------------------------------------------------------------------


def elf_header(rng: random.Random, base: Base, data: bytearray) -> str:
    if rng.random() < 0.2:
        place = rng.randrange(16)
        old, data[place] = data[place], _value(rng, data[place], 8)
        return f"e_ident[{place}] {old:#x} -> {data[place]:#x}"
    members = [name for name in EHDR.names if name != "e_ident"]
    weights = ["e_shoff", "e_shnum", "e_shstrndx", "e_shentsize", "e_type", "e_machine"]
    more = (len(data), len(data) - 64, len(data) - 1, base.header["e_shnum"], 65535)
    return _damage_member(rng, data, EHDR, 0, members + 2 * weights, more)


def section_header(rng: random.Random, base: Base, data: bytearray) -> str:
    section = rng.choice(base.interesting if rng.random() < 0.95 else base.sections)
    start = base.header["e_shoff"] + SHDR.itemsize * section.index
    count = len(base.sections)
    special = {
        "sh_type": SECTION_TYPES,
        "sh_flags": (0, 1, 2, 3, 4, 5, 6, 7, 0x200002, 0x100000, section.header["sh_flags"] ^ 2),
        "sh_offset": (len(data), len(data) - section.size, len(data) - section.size + 1, len(data) - 1),
        "sh_size": (len(data) - section.start, len(data) - section.start + 1, section.size // 2, 1 << 32, 1 << 30),
        "sh_link": (count, count - 1, *range(min(count, 8))),
        "sh_info": (count, count - 1, *range(min(count, 8))),
        "sh_name": tuple(one.header["sh_name"] for one in base.interesting),
        "sh_addralign": (0, 1, 3, 4096, 8192, 1 << 31, 1 << 32),
    }
    member = rng.choice(SHDR.names)
    text = _damage_member(rng, data, SHDR, start, [member], special.get(member, ()))
    return f"section {section.index} ({section.name}) {text}"


# -- tables -------------------------------------------------------------------------------------------


def symbol(rng: random.Random, base: Base, data: bytearray) -> str:
    table = base.of_type(2)[0]
    undefined = np.flatnonzero(base.symbols["st_shndx"] == 0)
    index = int(rng.choice(undefined)) if rng.random() < 0.3 else rng.randrange(len(base.symbols))
    strings = base.sections[table.header["sh_link"]]
    names = [int(base.symbols["st_name"][rng.randrange(len(base.symbols))]) for _ in range(3)]
    special = {
        "st_name": (*names, 0, strings.size - 1, strings.size, len(data) - strings.start, 1 << 31),
        "st_shndx": (*SPECIAL_INDICES, len(base.sections), len(base.sections) - 1),
        "st_info": (0x00, 0x10, 0x20, 0x12, 0x03, 0xFF),
        "st_value": (base.sections[min(1, len(base.sections) - 1)].size, 1 << 31, 1 << 63),
    }
    member = rng.choice(("st_name", "st_shndx", "st_value", "st_info", "st_other", "st_size", "st_name", "st_shndx"))
    start = table.start + SYM.itemsize * index
    return f"symbol {index}: {_damage_member(rng, data, SYM, start, [member], special.get(member, ()))}"


def relocation(rng: random.Random, base: Base, data: bytearray) -> str:
    section = rng.choice(base.relocations)
    entries = base.rela(section)
    index = rng.randrange(len(entries))
    start = section.start + RELA.itemsize * index
    old = entries[index]
    where = f"{section.name}[{index}]"
    machine = MACHINES[base.header["e_machine"]]
    what = rng.choice(("type", "symbol", "offset", "addend", "known type", "twice"))
    if what == "known type":
        what = "type"
        new = rng.choice(machine.known_types)
    elif what == "twice":
        other = int(entries["r_offset"][rng.randrange(len(entries))])
        _set(data, RELA, start, "r_offset", other)
        return f"{where} r_offset -> {other:#x}, that of another"
    else:
        new = -1
    info = int(old["r_info"])
    if what in {"type", "symbol"}:
        shift = 0 if what == "type" else 32
        before = info >> shift & 0xFFFFFFFF
        count = len(base.symbols)
        more = machine.types if what == "type" else (0, count, count - 1, count + 1)
        value = new if new >= 0 else _value(rng, before, 32, more)
        _set(data, RELA, start, "r_info", info & ~(0xFFFFFFFF << shift) | value << shift)
        return f"{where} {what} {before} -> {value}"
    size = base.sections[section.header["sh_info"]].size
    more = (size, size - 1, size - 4, size - 7, size + 4096) if what == "offset" else (1 << 31, -1 << 31, 1 << 32)
    return f"{where} {_damage_member(rng, data, RELA, start, [f'r_{what}'], more)}"


def replace_section(base: Base, data: bytearray, section: Section, content: bytes) -> None:
    """Put new contents of a section behind everything else."""
    data += bytes(-len(data) % 8)
    start = base.header["e_shoff"] + SHDR.itemsize * section.index
    _set(data, SHDR, start, "sh_offset", len(data))
    _set(data, SHDR, start, "sh_size", len(content))
    data += content


MODINFO_VALUES = (
    b"", b"Y", b"N", b"GPL", b"GPL v2", b"Proprietary", b"Dual BSD/GPL", b"x" * 300, b"\xff\xfe", b"%s%n",
    b"6.1.0 SMP preempt mod_unload modversions ", b"1.0",
)  # fmt: skip
MODINFO_KEYS = (
    b"name", b"vermagic", b"license", b"version", b"srcversion", b"intree", b"retpoline", b"staging", b"livepatch",
    b"test", b"import_ns", b"depends",
)  # fmt: skip


def modinfo(rng: random.Random, base: Base, data: bytearray) -> str:
    section = base.section(".modinfo")
    content = base.content(section)
    entries = [entry for entry in content.split(b"\0") if entry]
    what = rng.choice(("missing", "twice", "other", "added", "no NUL", "shuffled", "byte", "vermagic", "NULs"))
    acting = [i for i, entry in enumerate(entries) if entry.partition(b"=")[0] in MODINFO_KEYS]
    index = rng.choice(acting) if rng.random() < 0.8 else rng.randrange(len(entries))
    key, _, value = entries[index].partition(b"=")
    end = b"\0"
    if what == "missing":
        del entries[index]
    elif what == "twice":
        entries.insert(rng.randrange(len(entries) + 1), key + b"=" + rng.choice(MODINFO_VALUES))
    elif what == "other":
        entries[index] = key + b"=" + rng.choice(MODINFO_VALUES)
    elif what == "added":
        key = rng.choice(MODINFO_KEYS)
        entries.append(key + b"=" + rng.choice(MODINFO_VALUES))
    elif what == "no NUL":
        end = b""
        entries.append(entries.pop(index))
    elif what == "shuffled":
        rng.shuffle(entries)
    elif what == "byte":
        position = rng.randrange(len(entries[index]))
        changed = bytearray(entries[index])
        changed[position] = rng.randrange(256)
        entries[index] = bytes(changed)
    elif what == "vermagic":
        index = next((i for i, entry in enumerate(entries) if entry.startswith(b"vermagic=")), index)
        key, _, value = entries[index].partition(b"=")
        words = value.split(b" ")
        words[rng.randrange(len(words))] = rng.choice((b"", b"UP", b"SMP", b"9.9"))
        entries[index] = key + b"=" + b" ".join(words)
    else:
        entries[index] = b"\0" * rng.randrange(1, 5) + entries[index]
    replace_section(base, data, section, b"\0".join(entries) + end)
    if what == "no NUL" and rng.random() < 0.5:
        data += rng.choice((b"more", b"\0", b"intree=Y\0", b"\0license=GPL\0"))
    return f".modinfo {what}: {key.decode(errors='replace')}"


def versions(rng: random.Random, base: Base, data: bytearray) -> str:
    section = base.section("__versions")
    entries = [base.content(section)[i : i + 64] for i in range(0, section.size - 63, 64)]
    index = rng.randrange(len(entries))
    name = entries[index][8:].rstrip(b"\0").decode()
    what = rng.choice(("crc", "high half", "name", "missing", "twice", "twice first", "no NUL", "cut", "empty"))
    entry = bytearray(entries[index])
    if what == "crc":
        entry[0:4] = rng.randbytes(4)
    elif what == "high half":
        entry[4 + rng.randrange(4)] = rng.randrange(1, 256)
    elif what == "name":
        entry[8 + rng.randrange(len(name) + 1)] = rng.randrange(256)
    elif what == "no NUL":
        entry[8:] = (bytes(entry[8:]).rstrip(b"\0") + b"x" * 56)[:56]
    entries[index] = bytes(entry)
    if what == "missing":
        del entries[index]
    elif what.startswith("twice"):
        entry[0:4] = rng.randbytes(4)
        entries.insert(0 if what == "twice first" else len(entries), bytes(entry))
    content = b"".join(entries)
    if what == "cut":
        content = content[: -rng.randrange(1, 64)]
    replace_section(base, data, section, b"" if what == "empty" else content)
    return f"__versions {what}: {name}"


STRUCT_NAMES = (
    b"", b"x", b"dummy", b"x_tables", b"a/b", b"x" * 55, b"x" * 56, b"\xff\x01", b"ndiswrapper", b"lve",
    b"driverloader", b"vmlinux", b"..", b"%s", b"new\nline",
)  # fmt: skip


def this_module(rng: random.Random, base: Base, data: bytearray) -> str:
    section = base.section(".gnu.linkonce.this_module")
    what = rng.choice(("name", "name", "size", "bytes", "init"))
    if what == "name":
        name = rng.choice(STRUCT_NAMES)
        data[section.start + 24 : section.start + 80] = name.ljust(56, b"\0")
        return f"struct module: name {name!r}"
    if what == "size":
        size = max(0, section.size + rng.choice((-section.size, -896, -64, -8, -1, 1, 8, 64, 4096)))
        content = (base.content(section) + bytes(5000))[:size]
        replace_section(base, data, section, content)
        return f"struct module: {size} bytes"
    relocations = [one for one in base.relocations if one.header["sh_info"] == section.index]
    if what == "init" and relocations:
        index = rng.randrange(len(base.rela(relocations[0])))
        start = relocations[0].start + RELA.itemsize * index
        offsets = MACHINES[base.header["e_machine"]].struct_module
        return f"struct module: init or exit {_damage_member(rng, data, RELA, start, RELA.names, offsets)}"
    place = rng.randrange(section.size)
    length = min(rng.choice((1, 4, 8)), section.size - place)
    data[section.start + place : section.start + place + length] = rng.randbytes(length)
    return f"struct module: {length} bytes at {place:#x}"


def parameters(rng: random.Random, base: Base, data: bytearray) -> str:
    section = base.section("__param")
    relocations = [one for one in base.relocations if one.header["sh_info"] == section.index]
    if relocations and rng.random() < 0.6:
        index = rng.randrange(len(base.rela(relocations[0])))
        start = relocations[0].start + RELA.itemsize * index
        return f"__param relocation {index}: {_damage_member(rng, data, RELA, start, RELA.names, ())}"
    place = rng.randrange(section.size)
    if rng.random() < 0.6:
        place = 40 * rng.randrange(max(1, section.size // 40)) + rng.choice((24, 25, 26, 27))
    old, data[section.start + place] = data[section.start + place], rng.randrange(256)
    return f"__param+{place:#x}: {old:#x} -> {data[section.start + place]:#x}"


OTHER_TABLES = (
    "__ksymtab", "__ksymtab_gpl", "__kcrctab", "__kcrctab_gpl", "__ksymtab_strings", "__mcount_loc", "__ex_table",
    "__bug_table", "__jump_table", ".static_call_sites", ".orc_unwind", ".orc_unwind_ip", ".altinstructions",
    ".altinstr_replacement", ".parainstructions", ".retpoline_sites", ".return_sites", ".smp_locks", "__dyndbg",
    "__tracepoints_ptrs", "_ftrace_events", ".BTF", ".note.gnu.build-id", ".call_sites", ".ibt_endbr_seal",
)  # fmt: skip


def _tables_of(base: Base) -> list[Section]:
    names = OTHER_TABLES + MACHINES[base.header["e_machine"]].tables
    return [one for one in base.sections if one.name in names and one.size]


def tables(rng: random.Random, base: Base, data: bytearray) -> str:
    section = rng.choice(_tables_of(base))
    relocations = [one for one in base.relocations if one.header["sh_info"] == section.index]
    if relocations and rng.random() < 0.5:
        index = rng.randrange(len(base.rela(relocations[0])))
        start = relocations[0].start + RELA.itemsize * index
        return f"{section.name} relocation {index}: {_damage_member(rng, data, RELA, start, RELA.names, ())}"
    return _change_bytes(rng, data, section)


def strings(rng: random.Random, base: Base, data: bytearray) -> str:
    section = rng.choice(base.of_type(3))
    where = section.size - 1 if rng.random() < 0.2 else rng.randrange(section.size)
    old, data[section.start + where] = data[section.start + where], rng.choice((0, 65, 46, 255, rng.randrange(256)))
    return f"{section.name}+{where:#x}: {old:#x} -> {data[section.start + where]:#x}"


# -- the file as bytes --------------------------------------------------------------------------------


def _change_bytes(rng: random.Random, data: bytearray, section: Section) -> str:
    place = rng.randrange(section.size)
    length = min(rng.choice((1, 1, 2, 4, 8, 16)), section.size - place)
    data[section.start + place : section.start + place + length] = rng.randbytes(length)
    return f"{section.name}: {length} random bytes at {place:#x}"


def random_bytes(rng: random.Random, base: Base, data: bytearray) -> str:
    filled = [one for one in base.interesting if one.size and one.header["sh_type"] not in {0, 8}]
    if rng.random() < 0.7:
        return _change_bytes(rng, data, rng.choice(filled))
    count = rng.choice((1, 3, 10, 100))
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return f"{count} random bytes anywhere"


def truncation(rng: random.Random, base: Base, data: bytearray) -> str:
    bounds = [one.start + rng.choice((0, one.size)) for one in base.sections]
    edges = [0, 1, 28, 63, 64, 65, base.header["e_shoff"], *bounds, len(data) - 1]
    size = rng.choice(edges) + rng.choice((-1, 0, 0, 1)) if rng.random() < 0.5 else rng.randrange(len(data))
    size = min(max(size, 0), len(data) - 1)
    if rng.random() < 0.3:  # the section headers are usually last: keep them
        move_section_headers(base, data)
        hole = min(rng.choice((1, 8, 64, 4096)), base.header["e_shoff"] - 64)
        place = rng.randrange(64, base.header["e_shoff"] - hole + 1)
        data[place : place + hole] = bytes(hole)
        return f"{hole} bytes at {place:#x} are zero (section headers moved)"
    del data[size:]
    return f"cut off at {size} of {len(base.data)}"


def move_section_headers(base: Base, data: bytearray) -> None:
    start, size = base.header["e_shoff"], SHDR.itemsize * len(base.sections)
    data += bytes(-len(data) % 8)
    _set(data, EHDR, 0, "e_shoff", len(data))
    data += data[start : start + size]


def signature(rng: random.Random, base: Base, data: bytearray) -> str:
    end = len(data) - len(MARKER)
    trailer = end - TRAILER
    blob = trailer - int.from_bytes(data[trailer + 8 : end], "big")
    what = rng.choice(("marker", "trailer", "length", "blob", "blob", "blob", "content", "cut", "appended"))
    if what == "marker":
        place = rng.randrange(end, len(data))
    elif what == "trailer":
        place = rng.randrange(trailer, end)
    elif what == "length":
        size = trailer - blob
        new = rng.choice((0, 1, size - 1, size + 1, trailer, trailer - 1, trailer + 1, 0xFFFFFFFF, 0x10000, 0xFFFF))
        data[trailer + 8 : end] = new.to_bytes(4, "big")
        return f"signature: length {size} -> {new}"
    elif what == "blob":
        place = rng.randrange(blob, min(trailer, blob + 160)) if rng.random() < 0.6 else rng.randrange(blob, trailer)
    elif what == "content":
        place = rng.randrange(64, blob)
    elif what == "cut":
        size = rng.randrange(blob, len(data))
        del data[size:]
        return f"signature cut off at {size} of {len(base.signed)}"
    else:
        more = rng.choice((b"\0", MARKER, bytes(data[blob:])))
        data += more
        return f"signature: {len(more)} bytes appended"
    old = data[place]
    data[place] = old ^ 1 << rng.randrange(8) if rng.random() < 0.5 else (old + rng.randrange(1, 256)) & 0xFF
    return f"signature: {what} at {place - blob:+#x} of the blob: {old:#x} -> {data[place]:#x}"


def several(rng: random.Random, base: Base, data: bytearray) -> str:
    texts = []
    for _ in range(rng.choice((2, 2, 3, 4))):
        kind = rng.choice(("section header", "symbol", "relocation", "section header", "bytes", "strings"))
        if kind in _NEEDS and not _NEEDS[kind](base):
            continue
        texts.append(KINDS[kind](rng, base, data))
    return "; ".join(texts)


KINDS: dict[str, Mutation] = {
    "ELF header": elf_header,
    "section header": section_header,
    "symbol": symbol,
    "relocation": relocation,
    "modinfo": modinfo,
    "versions": versions,
    "struct module": this_module,
    "parameters": parameters,
    "tables": tables,
    "strings": strings,
    "bytes": random_bytes,
    "truncation": truncation,
    "signature": signature,
    "several": several,
}
_WEIGHTS = {"section header": 4, "symbol": 2, "relocation": 2, "signature": 2}
_TURNS = [kind for kind in KINDS for _ in range(_WEIGHTS.get(kind, 1))]
_NEEDS: dict[str, Callable[[Base], bool]] = {
    "signature": lambda base: bool(base.signed),
    "parameters": lambda base: _has(base, "__param"),
    "versions": lambda base: _has(base, "__versions"),
    "relocation": lambda base: bool(base.relocations),
    "tables": lambda base: bool(_tables_of(base)),
}


def _has(base: Base, name: str) -> bool:
    section = base.section(name)
    return section is not None and section.size > 0
