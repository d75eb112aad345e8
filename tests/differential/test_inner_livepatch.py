"""Livepatches: loaded, in force, ended and removed by us as natively; and their own kind of relocations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kodojo.errors import GuestOSError
from kodojo.kernel.kernel import Kernel
from tests.differential.compare import SETTLE, differences, native_init_module, our_init_module, outcome_of
from tests.support.elf_writer import ALLOC, WRITE
from tests.support.paper_modules import module_for, pointer

pytestmark = [pytest.mark.kernel, pytest.mark.x86_64("Debian's arm64 kernels have no livepatches")]

LOADERS = (our_init_module, native_init_module)
ENABLED = "/sys/kernel/livepatch/kd_livepatch/enabled"
TRANSITION = "/sys/kernel/livepatch/kd_livepatch/transition"
SHF_RELA_LIVEPATCH = 0x00100000
SHN_LIVEPATCH = 0xFF20
EAGAIN, EINVAL = 11, 22


def read(kernel: Kernel, path: str) -> bytes:
    try:
        return kernel.read_file(path)
    except GuestOSError as error:
        return b"errno %d" % error.errno


def look(kernel: Kernel) -> dict[str, bytes]:
    """What a livepatch can be known by."""
    found = {path: read(kernel, path) for path in ("/proc/cmdline", "/proc/modules", ENABLED)}
    found["objects"] = b" ".join(
        sorted(entry.name.encode() for entry in kernel.list_directory("/sys/kernel/livepatch"))
    )
    return found


def settle(kernel: Kernel) -> None:
    """Until all tasks have left what is patched; ours does so when it returns from a system call."""
    for _ in range(20):
        kernel.sleep(SETTLE)
        if read(kernel, TRANSITION) != b"1\n":
            break
    kernel.sleep(SETTLE)


def life(kernel: Kernel, load, built: dict[str, Path], *, late: bool) -> tuple[list[object], list[tuple[int, str]]]:
    """A livepatch's life from load to removal: what there is at each point, and the log.

    :param late: the module that it patches is loaded after it.
    """
    mark = kernel.printk.next_sequence()
    seen: list[object] = []
    order = ["kd_livepatch", "kd_export"] if late else ["kd_export", "kd_livepatch"]
    for name in (*order, "kd_import"):
        seen.append((name, load(kernel, built[name].read_bytes())))
        settle(kernel)
        seen.append(look(kernel))
    seen.append(kernel.delete_module("kd_livepatch"))
    kernel.write_file(ENABLED, b"0")
    settle(kernel)
    seen.append(look(kernel))
    seen.append(kernel.delete_module("kd_livepatch"))
    kernel.sleep(SETTLE)
    seen.append(look(kernel))
    return seen, [(record.level, record.text) for record in kernel.printk.records(mark)]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_life_of_a_livepatch(kernel, built, late):
    """It patches the kernel, and a module loaded before or after; ended, it can be removed."""
    (ours, our_log), (native, native_log) = (life(kernel.fork(), load, built, late=late) for load in LOADERS)
    assert ours == native
    assert our_log == native_log
    assert [step for step in ours if isinstance(step, int)] == [-EAGAIN, 0]
    looks = [step for step in ours if isinstance(step, dict)]
    assert looks[2]["/proc/cmdline"] == b"kd_livepatch: patched\n"
    assert b"patched" not in looks[-1]["/proc/cmdline"]
    assert any("gpl=4001" in text for _, text in our_log)


@pytest.mark.parametrize("arguments", ["", "broken=1"])
def test_load(kernel, built, arguments):
    """Memory, struct module and sysfs are those of the native load; so is a failure."""
    data = built["kd_livepatch"].read_bytes()
    ours, native = (outcome_of(kernel.fork(), load, data, arguments, "kd_livepatch") for load in LOADERS)
    assert differences(kernel, ours, native) == []
    assert (ours.value == 0) == (arguments == "")


# -- relocations -------------------------------------------------------------------------------------------

SECTIONS = {
    ".klp.rela.vmlinux..data": 0,
    ".klp.rela.kd_export..data": 0,
    ".klp.rela.a": 0,
    ".klp.rela..data": -EINVAL,
    ".klp.relo.vmlinux.data": -EINVAL,
    ".klp.rela." + 55 * "x" + ".y": 0,
    ".klp.rela." + 56 * "x" + ".y": 0,
}

# Name, section of the symbol; does it load?
SYMBOLS = [
    (".klp.sym.vmlinux.cmdline_proc_show,0", SHN_LIVEPATCH, True),
    (".klp.sym.vmlinux.cmdline_proc_show,1", SHN_LIVEPATCH, True),
    (".klp.sym.vmlinux.cmdline_proc_show, 1x", SHN_LIVEPATCH, True),
    (".klp.sym.vmlinux.cmdline_proc_show,2", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.cleanup_module,0", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.AMBIGUOUS,0", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.AMBIGUOUS,2", SHN_LIVEPATCH, True),
    (".klp.sym.vmlinux.AMBIGUOUS,12345", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.cmdline_proc_show", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.cmdline_proc_show,", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.,0", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinuxcmdline_proc_show,0", SHN_LIVEPATCH, False),
    ("cmdline_proc_show", SHN_LIVEPATCH, False),
    (".klp.sym.vmlinux.cmdline_proc_show,0", ".text", False),
]


def ambiguous(kernel: Kernel) -> str:
    """A function of which the kernel has three or more, but not thousands."""
    kallsyms = kernel.image.kallsyms
    names = ("__initcall", "init", "copy_overflow", "bad_area", "t_show", "s_show", "m_start")
    return next(name for name in names if len(kallsyms.get_all(name)) > 2)


def livepatch(kernel: Kernel, section: str, symbol: str, where: int | str) -> bytes:
    writer = module_for(kernel.image, info={"livepatch": "Y"})
    writer.add(".pointers", bytes(24), ALLOC | WRITE, align=8)
    writer.symbol(symbol, where)
    relocations = writer.relocations(".pointers", [(8, pointer(writer), symbol, 4)])
    relocations.name = section
    relocations.flags = ALLOC | SHF_RELA_LIVEPATCH
    return writer.build()


def same_value(kernel: Kernel, data: bytes) -> int:
    ours, native = (outcome_of(kernel.fork(), load, data, "", "paper") for load in LOADERS)
    assert not native.fault
    assert differences(kernel, ours, native) == []
    return ours.value


@pytest.mark.parametrize("section", SECTIONS)
def test_section_name(kernel, section):
    """Only sections for the kernel are applied at once; those with bad names are refused."""
    data = livepatch(kernel, section, ".klp.sym.vmlinux.cmdline_proc_show,1", SHN_LIVEPATCH)
    assert same_value(kernel, data) == SECTIONS[section]


@pytest.mark.parametrize(("symbol", "where", "loads"), SYMBOLS)
def test_symbol(kernel, symbol, where, loads):
    """Symbols are found by name and position; what is not found, or not clear, is refused."""
    name = re.sub("AMBIGUOUS", ambiguous(kernel), symbol)
    value = same_value(kernel, livepatch(kernel, ".klp.rela.vmlinux..data", name, where))
    assert value == (0 if loads else -EINVAL)
