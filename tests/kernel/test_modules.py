"""The modules of tests/modules: loaded, exercised, removed. What is expected of each stands in its source."""

from __future__ import annotations

import struct
from collections import Counter

import pytest

from kodojo.errors import LoadError, UnloadError
from kodojo.loader.target import Errno
from tests.kernel.looking import commands, errno_of, exists, listening, mode_of, module_line, names, tainted
from tests.kernel.processors import processor_of

pytestmark = pytest.mark.kernel

ENOENT, ENOEXEC, EAGAIN, ENOMEM, EFAULT, EBUSY, EINVAL, ENOTTY, ENOSPC = 2, 8, 11, 12, 14, 16, 22, 25, 28
PROPRIETARY, FORCED_RMMOD, BAD_PAGE, WARN, OUT_OF_TREE, UNSIGNED = 0, 3, 5, 9, 12, 13
O_RDWR, O_TRUNC, O_NONBLOCK = 0o2, 0o1000, 0o4000
LOADED = {OUT_OF_TREE, UNSIGNED}  # by any module of ours
GET, SET = 0x80046B01, 0x40046B02


def refused(kernel, built, name: str, *args: str) -> LoadError:
    """The refusal with which the load ends; no trace of the module is left."""
    with pytest.raises(LoadError) as refusal:
        kernel.insmod(built[name], *args)
    assert name not in [module.name for module in kernel.modules]
    assert module_line(kernel, name) == []
    assert not exists(kernel, f"/sys/module/{name}")
    return refusal.value


def errno_of_removal(kernel, name: str) -> int:
    with pytest.raises(UnloadError) as refusal:
        kernel.rmmod(name)
    return refusal.value.errno


def kallsyms_of(kernel, name: str) -> list[str]:
    return [line for line in kernel.read_file("/proc/kallsyms").decode().splitlines() if line.endswith(f"[{name}]")]


# -- the list ------------------------------------------------------------------------------------------------
def test_lists_agree(kernel, built):
    """The kernel's list, newest first, is what /proc/modules says: names, sizes, counts, users, states, taints."""
    for name in ("kd_export", "kd_import", "kd_noexit", "kd_proprietary"):
        kernel.insmod(built[name])
    modules = kernel.modules
    lines = [line.split() for line in kernel.read_file("/proc/modules").decode().splitlines()]
    assert [module.name for module in modules] == ["kd_proprietary", "kd_noexit", "kd_import", "kd_export"]
    assert [line[0] for line in lines] == [module.name for module in modules]
    assert [int(line[1]) for line in lines] == [module.size for module in modules]
    assert [line[2:5] for line in lines] == [
        ["0", "-", "Live"],
        ["0", "[permanent],", "Live"],
        ["0", "-", "Live"],
        ["1", "kd_import,", "Live"],
    ]
    assert [module.refcount for module in modules] == [0, 0, 0, 1]
    assert [module.users for module in modules] == [(), (), (), ("kd_import",)]
    assert {module.state for module in modules} == {"Live"}
    assert [line[6] for line in lines] == ["(POE)", "(OE)", "(OE)", "(OE)"]
    masks = [module.taints for module in modules]
    assert masks[0] == 1 << PROPRIETARY | 1 << OUT_OF_TREE | 1 << UNSIGNED
    assert set(masks[1:]) == {1 << OUT_OF_TREE | 1 << UNSIGNED}


def test_taints_outlive_the_module(kernel, built):
    """The first foreign module taints the kernel, says so once, and the taint stays."""
    assert tainted(kernel) == set()
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_noinit"])
        module.remove()
        kernel.insmod(built["kd_noinit"])
    taint_lines = [line for line in said.lines if "taint" in line]
    assert taint_lines == [
        "kd_noinit: loading out-of-tree module taints kernel.",
        "kd_noinit: module verification failed: signature and/or required key missing - tainting kernel",
    ]
    kernel.rmmod("kd_noinit")
    assert tainted(kernel) == LOADED


def test_same_module_twice(kernel, built):
    """A module that is loaded is refused a second time with -EEXIST and stays what it was."""
    module = kernel.insmod(built["kd_noinit"], "number=8")
    with pytest.raises(LoadError) as refusal:
        kernel.insmod(built["kd_noinit"])
    assert refusal.value.errno == Errno.EEXIST == 17
    assert kernel.modules == [module]
    assert module.parameters == {"number": "8"}


def test_symbols_come_and_go(kernel, built):
    """A module's functions are in /proc/kallsyms while it is loaded; those of init only during init."""
    kernel.insmod(built["kd_export"])
    symbols = {line.split()[2] for line in kallsyms_of(kernel, "kd_export")}
    assert {"kd_export_plain", "kd_export_gpl", "kd_export_in_namespace"} <= symbols
    assert ("kd_export_number" in symbols) == kernel.image.config.enabled("KALLSYMS_ALL")  # a variable
    assert "kd_export_init" not in symbols
    kernel.rmmod("kd_export")
    assert kallsyms_of(kernel, "kd_export") == []


def test_steps_are_told(kernel, built):
    """A load tells its steps in order, from the permission to LIVE."""
    steps = [step.name for step in kernel.insmod(built["kd_noinit"]).steps]
    wanted = ["may_init_module", "setup_load_info", "simplify_symbols", "apply_relocations", "mod_sysfs_setup"]
    found = [name for name in steps if name in wanted]
    assert found == wanted


# -- without init, without exit ------------------------------------------------------------------------------
def test_noinit(kernel, built):
    """A module without init and exit loads, says nothing, has its parameter, and can be removed."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_noinit"])
    assert [line for line in said.lines if "taint" not in line] == []
    assert module.parameters == {"number": "3"}
    module.remove()
    assert kernel.modules == []
    with pytest.raises(UnloadError) as refusal:
        module.remove()
    assert refusal.value.errno == ENOENT


def test_noexit(kernel, built):
    """A module without exit is permanent: -EBUSY, and it stays."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_noexit"])
    assert said.by("kd_noexit")[-1] == "here to stay"
    assert module_line(kernel, "kd_noexit")[3] == "[permanent],"
    assert errno_of_removal(kernel, "kd_noexit") == EBUSY
    assert kernel.modules == [module]
    assert module.state == "Live"


def test_noexit_by_force(kernel, built, image):
    """Removal by force works where the kernel was configured for it, and taints it (R)."""
    kernel.insmod(built["kd_noexit"])
    possible = image.config.enabled("MODULE_FORCE_UNLOAD")
    assert kernel.delete_module("kd_noexit", O_TRUNC | O_NONBLOCK) == (0 if possible else -EBUSY)
    assert (kernel.modules == []) == possible
    assert (FORCED_RMMOD in tainted(kernel)) == possible


def test_positive_init(kernel, built):
    """An init that returns a positive number loads, with a warning and a stack dump."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_positive"])
    complaint = "do_init_module: 'kd_positive'->init suspiciously returned 5, it should follow 0/-E convention"
    assert complaint in said.lines
    assert processor_of(kernel).backtrace in said.lines[said.lines.index(complaint) :]
    assert module.state == "Live"
    module.remove()


# -- what registers something --------------------------------------------------------------------------------
def test_proc_file(kernel, built):
    """The proc file reads, is written, and is gone with its module."""
    module = kernel.insmod(built["kd_proc"])
    assert mode_of(kernel, "/proc/kd_proc") == 0o100644
    assert kernel.read_file("/proc/kd_proc") == b"empty\n"
    kernel.write_file("/proc/kd_proc", b"new text")
    assert kernel.read_file("/proc/kd_proc") == b"new text"
    with kernel.open("/proc/kd_proc", O_RDWR) as file:
        file.write(b"one ")
        file.write(b"two")
    assert kernel.read_file("/proc/kd_proc") == b"one two"
    module.remove()
    assert errno_of(kernel.read_file, "/proc/kd_proc") == ENOENT


def test_proc_file_bounds(kernel, built):
    """4096 bytes fit, one more does not and changes nothing; unreadable memory gives -EFAULT."""
    kernel.insmod(built["kd_proc"])
    full = bytes(range(256)) * 16
    kernel.write_file("/proc/kd_proc", full)
    assert kernel.read_file("/proc/kd_proc") == full
    assert errno_of(kernel.write_file, "/proc/kd_proc", full + b"x") == ENOSPC
    assert kernel.read_file("/proc/kd_proc") == full
    with kernel.open("/proc/kd_proc", O_RDWR) as file:
        assert kernel.user.syscall("write", file.fd, 16, 10) == -EFAULT
        assert kernel.user.syscall("read", file.fd, 16, 10) == -EFAULT
        file.seek(4090)
        with pytest.raises(Exception, match="No space left"):
            file.write(b"1234567")
        assert file.write(b"123456") == 6


def test_misc_device(kernel, built):
    """The device is there, reads, writes, seeks and answers its requests; it goes with its module."""
    module = kernel.insmod(built["kd_misc"])
    assert mode_of(kernel, "/dev/kd_misc") == 0o020600
    assert kernel.read_file("/sys/class/misc/kd_misc/dev").startswith(b"10:")
    with kernel.open("/dev/kd_misc", O_RDWR) as device:
        assert device.read(100) == bytes(64)
        assert device.read(100) == b""
        assert errno_of(device.write, b"x") == ENOSPC
        assert device.seek(60) == 60
        assert device.write(b"12345678") == 4
        assert device.seek(-6, 2) == 58
        assert device.read() == b"\0\x001234"
        assert device.seek(64) == 64
        assert errno_of(device.seek, 65) == EINVAL
        assert errno_of(device.seek, -1) == EINVAL
    module.remove()
    assert not exists(kernel, "/dev/kd_misc")
    assert not exists(kernel, "/sys/class/misc/kd_misc")


def test_misc_ioctl(kernel, built):
    """Requests get and set the number; bad ones, bad values and bad pointers have their errors."""
    kernel.insmod(built["kd_misc"])
    with kernel.open("/dev/kd_misc") as device:
        assert device.ioctl(GET, bytes(4)) == (0, struct.pack("<i", 42))
        assert device.ioctl(SET, struct.pack("<i", 7)) == (0, struct.pack("<i", 7))
        assert device.ioctl(GET, bytes(4)) == (0, struct.pack("<i", 7))
        assert errno_of(device.ioctl, SET, struct.pack("<i", -1)) == EINVAL
        assert errno_of(device.ioctl, 0x6B03) == ENOTTY
        assert errno_of(device.ioctl, GET, 0) == EFAULT
        assert errno_of(device.ioctl, SET, 16) == EFAULT
        assert device.ioctl(GET, bytes(4)) == (0, struct.pack("<i", 7))


def test_misc_device_holds_its_module(kernel, built):
    """While the device is open its module has a reference for each open file and cannot be removed."""
    module = kernel.insmod(built["kd_misc"])
    with kernel.open("/dev/kd_misc"), kernel.open("/dev/kd_misc"):
        assert module.refcount == 2
        assert module.parameters["opens"] == "2"
        assert module_line(kernel, "kd_misc")[2:4] == ["2", "-"]
        assert errno_of_removal(kernel, "kd_misc") == EAGAIN
        assert module.state == "Live"
        assert module.refcount == 2
    assert module.refcount == 0
    assert module.parameters["opens"] == "0"
    module.remove()
    assert kernel.modules == []


# -- one uses the other --------------------------------------------------------------------------------------
def test_import_needs_export(kernel, built):
    """Without kd_export every missing symbol is named, and the load ends with -ENOENT."""
    with listening(kernel) as said:
        refusal = refused(kernel, built, "kd_import")
    assert refusal.errno == ENOENT
    unknown = {line for line in said.lines if "Unknown symbol" in line}
    exported = ("kd_export_plain", "kd_export_gpl", "kd_export_in_namespace", "kd_export_number")
    assert unknown == {f"kd_import: Unknown symbol {name} (err -2)" for name in exported}


def test_import_uses_export(kernel, built):
    """A module that uses another holds it: count, users, holders, and the order of removal."""
    export = kernel.insmod(built["kd_export"])
    assert (export.refcount, export.users) == (0, ())
    with listening(kernel) as said:
        kernel.insmod(built["kd_import"])
    assert said.by("kd_import")[-1] == "plain=2 gpl=21 namespace=301 number=1000"
    assert (export.refcount, export.users) == (1, ("kd_import",))
    assert exists(kernel, "/sys/module/kd_export/holders/kd_import")
    assert errno_of_removal(kernel, "kd_export") == EAGAIN
    assert kernel.delete_module("kd_export") == -EAGAIN
    kernel.rmmod("kd_import")
    assert (export.refcount, export.users) == (0, ())
    assert names(kernel, "/sys/module/kd_export/holders") == set()
    kernel.rmmod("kd_export")
    assert kernel.modules == []


def test_namespace_not_imported(kernel, built):
    """A symbol from a namespace that is not imported is refused, and no reference is held afterwards."""
    export = kernel.insmod(built["kd_export"])
    with listening(kernel) as said:
        refusal = refused(kernel, built, "kd_import_without_ns")
    assert refusal.errno == EINVAL
    assert said.by("kd_import_without_ns")[-2:] == [
        "module uses symbol (kd_export_in_namespace) from namespace KD, but does not import it.",
        "Unknown symbol kd_export_in_namespace (err -22)",
    ]
    assert (export.refcount, export.users) == (0, ())
    assert names(kernel, "/sys/module/kd_export/holders") == set()
    export.remove()


def test_unknown_symbol(kernel, built):
    """A symbol that nobody exports ends the load with -ENOENT and its name."""
    with listening(kernel) as said:
        refusal = refused(kernel, built, "kd_unknown")
    assert refusal.errno == ENOENT
    assert said.lines[-1] == "kd_unknown: Unknown symbol kd_exists_nowhere (err -2)"


def test_proprietary(kernel, built):
    """A proprietary module loads and taints itself and the kernel (P)."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_proprietary"])
    assert "kd_proprietary: module license 'Proprietary' taints kernel." in said.lines
    assert "Disabling lock debugging due to kernel taint" in said.lines
    assert module.taints & 1 << PROPRIETARY
    assert tainted(kernel) == LOADED | {PROPRIETARY}


def test_proprietary_needs_gpl(kernel, built):
    """A proprietary module does not find a GPL-only symbol; the taint stays all the same."""
    with listening(kernel) as said:
        refusal = refused(kernel, built, "kd_gplonly_prop")
    assert refusal.errno == ENOENT
    licence = said.lines.index("kd_gplonly_prop: module license 'Proprietary' taints kernel.")
    assert "kd_gplonly_prop: Unknown symbol system_long_wq (err -2)" in said.lines[licence:]
    assert PROPRIETARY in tainted(kernel)


# -- later ---------------------------------------------------------------------------------------------------
TIMED = {"timer": "3", "work": "1", "delayed_work": "1", "thread": "1", "hrtimer": "3", "tasklet": "1", "rcu": "1"}


def test_everything_runs_later(kernel, built):
    """Timers, work, threads, a tasklet and an RCU callback run as guest time passes, and stop with the module."""
    module = kernel.insmod(built["kd_timer"])
    kernel.sleep(1)
    assert module.parameters == TIMED | {"completed": "Y", "wait": "N"}
    assert "kd_timer" in commands(kernel)
    with listening(kernel) as said:
        module.remove()
    assert said.lines == ["kd_timer: stopped"]
    kernel.sleep(0.1)
    assert "kd_timer" not in commands(kernel)


def test_init_waits(kernel, built):
    """An init that waits for all that and sleeps comes back, and its sleep takes guest time."""
    before = kernel.time
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_timer"], "wait=1")
    assert said.by("kd_timer")[-2:] == ["completed=1", "slept=1"]
    assert kernel.time - before >= 0.05
    assert module.parameters == TIMED | {"completed": "Y", "wait": "Y"}
    module.remove()


def test_request_module(kernel, built):
    """A module that asks for another one gets what modprobe's exit status says, or that there is no modprobe."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_request"])
    assert said.by("kd_request")[-1] == f"request_module={1 << 8}"
    kernel.rmmod("kd_request")
    kernel.answers_requests = False
    with listening(kernel) as said:
        kernel.insmod(built["kd_request"])
    assert said.by("kd_request")[-1] == f"request_module=-{ENOENT}"
    kernel.rmmod("kd_request")
    with listening(kernel) as said:
        kernel.insmod(built["kd_request"], "name=")
    assert said.lines == []


def test_request_is_fulfilled(kernel, built):
    """What the kernel asks for is loaded from its own tree, dependencies and all, before the asker goes on."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_request"], "name=fs-vfat")
    assert said.by("kd_request")[-1] == "request_module=0"
    assert {module.name for module in kernel.modules} == {"kd_request", "vfat", "fat"}
    assert b"\tvfat\n" in kernel.read_file("/proc/filesystems")


THREAD_STACK = 5 * 4096  # with its guard page; threads of the kernel come and go


def vmalloc_areas(kernel) -> Counter[int]:
    """Sizes of the areas in use but the stacks of threads, and how many there are of each."""
    lines = kernel.read_file("/proc/vmallocinfo").decode().splitlines()
    sizes = Counter(int(line.split()[1]) for line in lines if " unpurged " not in line)
    del sizes[THREAD_STACK]
    return sizes


# -- init that fails -----------------------------------------------------------------------------------------
FAIL_PATHS = ("/proc/kd_fail", "/dev/kd_fail", "/sys/class/misc/kd_fail", "/sys/module/kd_fail")


@pytest.mark.parametrize("errno", [ENOMEM, 1, 133])
def test_failing_init(kernel, built, errno):
    """The errno of init is that of the load, and nothing of the module is left."""
    with listening(kernel) as said:
        refusal = refused(kernel, built, "kd_fail", f"error={errno}")
    assert refusal.errno == errno
    assert said.by("kd_fail")[-2:] == ["registered", "undone"]
    assert [path for path in FAIL_PATHS if exists(kernel, path)] == []
    assert kernel.call("module_kallsyms_lookup_name", "kd_fail:kd_fail_exit") == 0


def test_failing_init_leaves_no_memory(kernel, built):
    """Failing again and again takes no module memory, no vmalloc area and no slab page."""

    def slab_pages() -> int:
        vmstat = dict(line.split() for line in kernel.read_file("/proc/vmstat").decode().splitlines())
        return int(vmstat["nr_slab_unreclaimable"])

    for _ in range(3):
        refused(kernel, built, "kd_fail")
    kernel.sleep(0.1)  # what is freed by a work queue
    before, pages = vmalloc_areas(kernel), slab_pages()
    for _ in range(10):
        refused(kernel, built, "kd_fail")
    kernel.sleep(0.1)
    assert vmalloc_areas(kernel) == before
    assert slab_pages() - pages <= 2


def test_load_after_failing_init(kernel, built):
    """After a failed init the module loads with arguments that let it succeed, and can be removed."""
    refused(kernel, built, "kd_fail")
    module = kernel.insmod(built["kd_fail"], "error=0")
    assert module.state == "Live"
    with listening(kernel) as said:
        module.remove()
    assert said.lines == ["kd_fail: bye"]


def test_livepatch_where_there_are_none(both, built, image):
    """A kernel without livepatches refuses a module that is marked as one."""
    possible = image.config.enabled("LIVEPATCH")
    assert both(lambda calls: calls.init(built["kd_livepatch"].read_bytes())) == (0 if possible else -ENOEXEC)
    assert ("livepatch support is disabled" in both.ours.log[-1][1]) != possible


# -- code that is patched, traced, or misbehaves -------------------------------------------------------------
def test_percpu_and_patched_code(kernel, built):
    """Per-CPU data, static keys, static calls, alternatives and exception tables work in a module."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_percpu"])
    cpus = kernel.read_file("/sys/devices/system/cpu/possible").decode().strip()
    assert cpus == "0"
    assert said.by("kd_percpu")[-9:] == [
        "percpu=7 sum=7",
        "counter=8 aligned=3",
        "pointer=NULL",
        "keys=0,1 then 1,0",
        "call=2 then 3",
        "kernel's key=0",
        "weak=absent",
        "alternative agrees",
        f"fault=-{EFAULT}",
    ]
    with listening(kernel) as said:
        module.remove()
    assert said.lines == ["kd_percpu: bye"]


def test_percpu_memory_is_returned(kernel, built):
    """Per-CPU memory for modules is limited: loading and removing often never runs out of it."""
    for _ in range(20):
        kernel.insmod(built["kd_percpu"]).remove()
    assert kernel.modules == []


def test_tracepoint_and_notifier(kernel, built):
    """A module's tracepoint works and its event exists as long as it; its notifier hears of other modules."""
    event = "/sys/kernel/tracing/events/kd_trace/kd_trace_event"
    with listening(kernel) as said:
        kernel.insmod(built["kd_trace"])
    assert "kd_trace: hits=1 sum=5" in said.lines
    assert exists(kernel, event)
    with listening(kernel) as said:
        kernel.insmod(built["kd_noinit"]).remove()
    heard = [line for line in said.by("kd_trace") if "kd_noinit" in line]
    assert heard == ["kd_noinit coming", "kd_noinit live", "kd_noinit going"]
    kernel.rmmod("kd_trace")
    assert not exists(kernel, event)
    with listening(kernel) as said:
        kernel.insmod(built["kd_noinit"])
    assert said.by("kd_trace") == []


def test_notifier_hears_of_failure(kernel, built):
    """A module whose init fails is coming and going, and never live, for the notifier of another one."""
    kernel.insmod(built["kd_trace"])
    with listening(kernel) as said:
        refused(kernel, built, "kd_fail")
    assert said.by("kd_trace") == ["kd_fail coming", "kd_fail going"]


PREEMPTION, INTERRUPTS = "preemption imbalance", "disabled interrupts"
IMBALANCES = {0: [PREEMPTION], 1: [INTERRUPTS], 2: [PREEMPTION, INTERRUPTS]}


@pytest.mark.parametrize("how", [0, 1, 2, 3])
def test_init_in_a_wrong_state(kernel, built, how):
    """An init that comes back with preemption or interrupts off is repaired with a warning; sleeping works after.

    A kernel that does not count who disabled preemption notices nothing of it.
    """
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_irqs"], f"how={how}")
    returned = [line for line in said.lines if " returned with " in line]
    counted = kernel.image.config.enabled("PREEMPT_COUNT")
    wrong = " ".join(what for what in IMBALANCES.get(how, []) if counted or what == INTERRUPTS)
    if wrong:
        [line] = returned
        assert line.startswith("initcall kd_irqs_init+0x0/")
        assert line.rstrip().endswith(f"[kd_irqs] returned with {wrong}")
        assert len(kernel.warnings) == 1
        assert WARN in tainted(kernel)
    else:
        assert returned == []
        assert kernel.warnings == ()
    kernel.sleep(0.1)
    module.remove()


def slab_objects(kernel, cache: str) -> int | None:
    """Number of a cache's objects in use; None if there is no such cache."""
    for line in kernel.read_file("/proc/slabinfo").decode().splitlines():
        if line.split()[0] == cache:
            return int(line.split()[1])
    return None


def test_leak(kernel, built):
    """What a module does not free stays after it: its cache with five objects, and three vmalloc'ed pages."""
    kernel.insmod(built["kd_noinit"]).remove()  # whatever the first load of all allocates
    kernel.sleep(0.1)
    before = vmalloc_areas(kernel)
    with listening(kernel) as said:
        kernel.insmod(built["kd_leak"]).remove()
    assert said.lines == ["kd_leak: allocated", "kd_leak: freed nothing"]
    assert slab_objects(kernel, "kd_leak") is not None
    kernel.sleep(0.1)
    after = vmalloc_areas(kernel)
    guard = 4096
    assert after - before == {3 * 4096 + guard: 1}
    assert before - after == {}
    assert kernel.modules == []


def test_leak_is_complained_about(kernel, built, image):
    """Destroying a cache with objects in it makes the kernel complain, and the removal goes on."""
    kernel.insmod(built["kd_leak"], "destroy=1")
    with listening(kernel) as said:
        kernel.rmmod("kd_leak")
    [bug] = [line for line in said.lines if line.startswith("BUG kd_leak (")]
    assert ": Objects remaining" in bug
    assert bug.endswith("on __kmem_cache_shutdown()")
    assert any(line.startswith("WARNING") or "Slab cache still has objects" in line for line in said.lines)
    assert said.lines[-1] == "kd_leak: freed nothing"
    assert BAD_PAGE in tainted(kernel)
    assert kernel.modules == []


def test_modules_that_nobody_waits_for(kernel):
    """``request_module_nowait()`` in init: what was asked for needs the very module, and comes when that is live."""
    kernel.insmod(kernel.image.modules["6lowpan"].path)
    loaded = {module.name: module for module in kernel.modules}
    assert {"nhc_dest", "nhc_fragment", "nhc_udp"} < loaded.keys()
    assert loaded["6lowpan"].refcount == len(loaded) - 1
