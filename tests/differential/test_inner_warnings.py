"""What the kernel warns of while it loads a module: the same lines, levels and consequences, by us and natively."""

from __future__ import annotations

import pytest

from kodojo.kernel.kernel import Kernel
from tests.damage.outcomes import without_traces
from tests.differential.compare import SETTLE, Outcome, differences, native_init_module, our_init_module, outcome_of
from tests.support.elf_writer import ALLOC, EXEC, WRITE, ElfWriter
from tests.support.paper_modules import module_for, pointer

pytestmark = pytest.mark.kernel

LOADERS = (our_init_module, native_init_module)
EINVAL = 22

# Module, arguments; its return value.
OWN = [
    ("kd_irqs", "how=0", 0), ("kd_irqs", "how=1", 0), ("kd_irqs", "how=2", 0), ("kd_irqs", "how=3", 0),
    ("kd_positive", "", 0), ("kd_oops", "how=3", 0),
    ("kd_hello", "async_probe", 0), ("kd_hello", "async_probe=0 async_probe", 0),
    ("kd_hello", "async_probe=maybe", 0),
    ("kd_hello", "dyndbg=+p", 0), ("kd_hello", "dyndbg", 0), ("kd_hello", 'dyndbg="func nobody +p; nonsense"', 0),
    ("kd_hello", "kd_hello.dyndbg=+p other.dyndbg=+p", 0), ("kd_misc", "dyndbg==pflmt", 0),
    ("kd_hello", 'text="a b" names="x y",z whom=""', 0), ("kd_hello", '"text=a b" int=5 -- int=6', 0),
    ("kd_hello", "ints=1,2,3,4,5 int=7", -EINVAL), ("kd_hello", "dangerous=1 int=1x even=3", -34),
]  # fmt: skip


def traceless(outcome: Outcome) -> Outcome:
    outcome.log = without_traces(outcome.log)
    return outcome


def compare(kernel: Kernel, data: bytes, arguments: str, name: str) -> Outcome:
    ours, native = (traceless(outcome_of(kernel.fork(), load, data, arguments, name)) for load in LOADERS)
    assert not native.fault
    assert differences(kernel, ours, native) == []
    return ours


@pytest.mark.parametrize(("name", "arguments", "value"), OWN)
def test_own(kernel, built, name, arguments, value):
    """Inits that come back in a wrong state or with odd values, arguments of the kernel's own, debug messages."""
    assert compare(kernel, built[name].read_bytes(), arguments, name).value == value


@pytest.mark.parametrize("default", [b"Y", b"N"])
def test_default_of_async_probe(kernel, built, default):
    """module.async_probe decides for those who do not say; the init does not wait for asynchronous work then."""
    path = "/sys/module/module/parameters/async_probe"
    if kernel.image.kallsyms.get("async_probe") is None:
        pytest.skip("a kernel without this parameter")
    kernel.write_file(path, default)
    ours = compare(kernel, built["kd_hello"].read_bytes(), "", "kd_hello")
    offset = kernel.image.btf.struct("module").field("async_probe_requested").offset
    assert ours.struct_module[offset] == (default == b"Y")


@pytest.mark.parametrize("arguments", ["name=kd_import", "name=kd_import error=-1", "name=kd_import error=0", ""])
def test_a_watcher_that_refuses(kernel, built, arguments):
    """A notifier's errno is that of the load; those who were told before are told that the module is going."""
    results = []
    for load in LOADERS:
        copy = kernel.fork()
        mark = copy.printk.next_sequence()
        values = []
        for name in ("kd_refuser", "kd_export", "kd_import", "kd_hello"):
            values.append(load(copy, built[name].read_bytes(), arguments if name == "kd_refuser" else ""))
            copy.sleep(SETTLE)  # init memory is freed later
        copy.write_file("/sys/module/kd_refuser/parameters/name", b"nobody")
        values.append(load(copy, built["kd_misc"].read_bytes()))
        log = [(record.level, record.text) for record in copy.printk.records(mark)]
        results.append((values, log, copy.read_file("/proc/modules")))
    assert results[0] == results[1]
    assert any("kd_refuser: kd_import 1" in text for _, text in results[0][1])


# -- written by hand --------------------------------------------------------------------------------------


def two_constructor_tables(writer: ElfWriter) -> None:
    writer.add(".ctors", bytes(8), ALLOC | WRITE, align=8)
    writer.add(".init_array", bytes(8), ALLOC | WRITE, align=8)


def obsolete_parameters(writer: ElfWriter) -> None:
    writer.add("__obsparm", bytes(8), ALLOC)


def odd_orc(writer: ElfWriter) -> None:
    writer.add(".orc_unwind_ip", bytes(10), ALLOC)
    writer.add(".orc_unwind", bytes(7), ALLOC)


def no_call_at_mcount(writer: ElfWriter) -> None:
    writer.add("__mcount_loc", bytes(16), ALLOC | WRITE, align=8)
    writer.relocations("__mcount_loc", [(0, pointer(writer), "work", 0), (8, pointer(writer), "work", 8)])


def bug_table(writer: ElfWriter) -> None:
    writer.add("__bug_table", bytes(25), ALLOC | WRITE, align=4)


def init_read_only_after_init(writer: ElfWriter) -> None:
    writer.add(".data..ro_after_init", b"once" * 8, ALLOC | WRITE, align=32)
    writer.add(".init.data..ro_after_init", b"late" * 8, ALLOC | WRITE, align=32)


def odd_jump_table(writer: ElfWriter) -> None:
    """An entry without a key of its own, and half an entry."""
    writer.add("__jump_table", bytes(8), ALLOC | WRITE, align=8)


def exception_table(writer: ElfWriter) -> None:
    writer.add("__ex_table", bytes(range(36)), ALLOC, align=4)
    writer.add(".init.text.more", b"\xc3" * 8, ALLOC | EXEC)


TABLES = [
    two_constructor_tables, obsolete_parameters, odd_orc, no_call_at_mcount, bug_table, init_read_only_after_init,
    odd_jump_table, exception_table,
]  # fmt: skip


@pytest.mark.parametrize("change", TABLES, ids=lambda change: change.__name__)
def test_table(kernel, change):
    """Tables that are wrong, and what the kernel says to them."""
    writer = module_for(kernel.image)
    change(writer)
    compare(kernel, writer.build(), "", "paper")
