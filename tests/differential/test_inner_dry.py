"""A dry load says what the native loader says, in whatever stage it says it, short of what needs code to run."""

from __future__ import annotations

import re
import struct

import pytest

from kodojo.errors import DamageError, LoadError, MachineFault
from kodojo.kernel.kernel import Kernel
from kodojo.loader.dry import DryTarget
from kodojo.loader.dry_formation import builtin_kobjects
from kodojo.loader.syscalls import sys_finit_module, sys_init_module
from tests.damage.outcomes import without_traces
from tests.differential.compare import native_init_module
from tests.support.elf_writer import ALLOC, EXEC, WRITE, ElfWriter
from tests.support.paper_modules import distance, module_for, pointer

pytestmark = pytest.mark.kernel

EINVAL, EEXIST = 22, 17
IGNORE_MODVERSIONS = 1
LEVELS_OF_STACKS = re.compile(r"^(CPU:|Hardware name:|Call Trace:|WARNING: CPU|Modules linked in:| )")
# On paper there is no key to hash pointers with.
ADDRESS = re.compile(r"\b(?:0x)?[0-9a-f]{16}\b|\(____ptrval____\)")


def dry(kernel: Kernel, data: bytes, flags: int = 0) -> tuple[int, list[tuple[int, str]]]:
    target = DryTarget(kernel.image)
    uargs = target.user_copy(b"\0")
    value = 0
    try:
        if flags:
            sys_finit_module(target, target.open_file(data), uargs, flags)
        else:
            sys_init_module(target, target.user_copy(data), len(data), uargs)
    except LoadError as error:
        value = -error.errno
    return value, lines((record.level, record.text) for record in target.log)


def native(kernel: Kernel, data: bytes) -> tuple[int, list[tuple[int, str]]]:
    mark = kernel.printk.next_sequence()
    value = native_init_module(kernel, data)
    return value, lines((record.level, record.text) for record in kernel.printk.records(mark))


def lines(log) -> list[tuple[int, str]]:
    """The log without backtraces, which show who called, and without addresses."""
    kept = without_traces(list(log))
    kept = [(level, text) for level, text in kept if not LEVELS_OF_STACKS.match(text) and "end trace" not in text]
    return [(level, ADDRESS.sub("ADDRESS", text)) for level, text in kept]


def paper(kernel: Kernel, name: str = "paper") -> ElfWriter:
    return module_for(kernel.image, name=name)


def parameters(writer: ElfWriter, *rows: tuple[str, int]) -> None:
    """Integer parameters: name and permissions of each."""
    texts, entries, table = bytearray(), [], bytearray()
    writer.symbol("texts", ".texts")
    writer.symbol("param_ops_int")
    for number, (name, perm) in enumerate(rows):
        start = 40 * number
        table += struct.pack("<QQQHbB4xQ", 0, 0, 0, perm, -1, 0, 0)
        entries += [(start, pointer(writer), "texts", len(texts)), (start + 16, pointer(writer), "param_ops_int", 0)]
        entries.append((start + 32, pointer(writer), "counter", 0))
        texts += name.encode() + b"\0"
    writer.add(".texts", bytes(texts))
    writer.add("__param", bytes(table), align=8)
    writer.relocations("__param", entries)


def crcs(kernel: Kernel, writer: ElfWriter, *names: str) -> None:
    rows = ((kernel.image.exports.get(name).crc, name) for name in names)
    writer.section("__versions").data += b"".join(
        crc.to_bytes(8, "little") + name.encode().ljust(56, b"\0") for crc, name in rows
    )


def two_sections(kernel: Kernel, writer: ElfWriter) -> None:
    writer.add(".rodata", b"again")


def two_notes(kernel: Kernel, writer: ElfWriter) -> None:
    for _ in range(2):
        writer.add(".note.x", bytes(16), ALLOC, type=7)


def two_sections_one_empty(kernel: Kernel, writer: ElfWriter) -> None:
    writer.add(".rodata", b"")


def two_parameters(kernel: Kernel, writer: ElfWriter) -> None:
    crcs(kernel, writer, "param_ops_int")
    parameters(writer, ("first", 0o644), ("same", 0o444), ("same", 0o644))


def hidden_parameter(kernel: Kernel, writer: ElfWriter) -> None:
    crcs(kernel, writer, "param_ops_int")
    parameters(writer, ("same", 0o444), ("same", 0))


def odd_permissions(kernel: Kernel, writer: ElfWriter) -> None:
    crcs(kernel, writer, "param_ops_int")
    parameters(writer, ("first", 0o644), ("world", 0o666), ("execute", 0o755))


def static_call(kernel: Kernel, writer: ElfWriter, where: str, addend: int = 0) -> None:
    writer.add(".static_call_sites", bytes(8), ALLOC | WRITE, align=8)
    relocations = [(0, distance(writer), "work", 4), (4, distance(writer), where, addend)]
    writer.relocations(".static_call_sites", relocations)


def function(kernel: Kernel, *, odd: bool) -> str:
    """An exported function whose ninth byte is odd, or not. Undoing, the kernel takes an even word for a pointer."""
    kallsyms = kernel.image.kallsyms
    text = range(kallsyms.address("_stext"), kallsyms.address("_etext"))
    for export in kernel.image.exports:
        plain = not export.namespace and not export.name.startswith("__SC")  # those are static calls themselves
        if export.address in text and plain and export.address % 4 == 0:
            word = int.from_bytes(kernel.memory.read(export.address + 8, 8), "little")
            if word % 2 == odd and 1 << 56 < word < 0xFF << 56:
                return export.name
    raise LookupError


def static_call_of_no_trampoline(kernel: Kernel, writer: ElfWriter, *, odd: bool = True) -> None:
    name = function(kernel, odd=odd)
    crcs(kernel, writer, name)
    writer.symbol(name)
    static_call(kernel, writer, name)


def static_call_of_own_code(kernel: Kernel, writer: ElfWriter) -> None:
    writer.add(".text.more", b"\xc3" * 16, ALLOC | EXEC, align=16)
    writer.symbol("more", ".text.more")
    static_call(kernel, writer, "more")


def state_relocated(kernel: Kernel, writer: ElfWriter) -> None:
    writer.relocations(".gnu.linkonce.this_module", [(0, pointer(writer), "work", 0)])


def list_relocated(kernel: Kernel, writer: ElfWriter) -> None:
    writer.relocations(".gnu.linkonce.this_module", [(16, pointer(writer), "work", 0)])


CHANGES = {
    "state-relocated": state_relocated,
    "list-relocated": list_relocated,
    "two-sections": two_sections,
    "two-notes": two_notes,
    "two-sections-one-empty": two_sections_one_empty,
    "two-parameters": two_parameters,
    "hidden-parameter": hidden_parameter,
    "odd-permissions": odd_permissions,
    "static-call-of-no-trampoline": static_call_of_no_trampoline,
    "static-call-of-own-code": static_call_of_own_code,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed(kernel, change):
    """What a subsystem has against the file: the same errno and lines."""
    writer = paper(kernel)
    CHANGES[change](kernel, writer)
    data = writer.build()
    assert dry(kernel, data) == native(kernel, data)


@pytest.mark.x86_64("static calls are indirect calls elsewhere")
def test_damage_of_undoing(kernel):
    """What makes the kernel follow code as if it were a pointer is refused as damaging."""
    writer = paper(kernel)
    static_call_of_no_trampoline(kernel, writer, odd=False)
    target = DryTarget(kernel.image)
    data = writer.build()
    with pytest.raises(DamageError):
        sys_init_module(target, target.user_copy(data), len(data), target.user_copy(b"\0"))
    with pytest.raises(MachineFault):
        native_init_module(kernel, data)


@pytest.mark.parametrize("name", ["kernel", "printk", "xz_dec", "tcp_cubic", "", "..", "a/b", "new"])
def test_name(kernel, name):
    """A module cannot have the name of something that is built in and known to sysfs."""
    if name == "xz_dec" and kernel.image.kallsyms.get("__start___modver") is None:
        pytest.skip("known to sysfs by its version alone, and nothing tells where this kernel's table of those is")
    data = paper(kernel, name).build()
    expected = native(kernel, data)
    assert dry(kernel, data) == expected
    assert (expected[0] == 0) == (name not in ("kernel", "printk", "xz_dec", "") and not is_there(kernel, name))


def is_there(kernel: Kernel, name: str) -> bool:
    return (
        name == "tcp_cubic" and kernel.list_directory("/sys/module") != () and name in builtin_kobjects(kernel.image)
    )


def test_builtin_kobjects(kernel):
    """The names that the image tells are in /sys/module, and all but those of drivers are told."""
    there = {entry.name for entry in kernel.list_directory("/sys/module")}
    told = builtin_kobjects(kernel.image)
    assert told <= there
    drivers = {name for name in there - told if kernel.image.kallsyms.get(f"__initcall__kmod_{name}") is None}
    assert len(there - told) <= 18
    assert drivers == there - told


def test_bad_taint(kernel, built):
    """A module that is loaded by force gets no trace events."""
    data = built["kd_trace"].read_bytes()
    value, said = dry(kernel, data, IGNORE_MODVERSIONS)
    mark = kernel.printk.next_sequence()
    with built["kd_trace"].open("rb") as file:
        assert kernel.finit_module(file.fileno(), "", IGNORE_MODVERSIONS) == value == 0
    booted = lines((record.level, record.text) for record in kernel.printk.records(mark))
    assert said == booted[: len(said)]
    assert (3, "kd_trace: module has bad taint, not creating trace events") in said
