"""kd_oops and kd_spin: modules that crash, and that never return. What is expected stands in their sources."""

from __future__ import annotations

import pickle
import re

import pytest

from kodojo.errors import KodojoError, MachineError, MachineFault, MachineHang
from tests.kernel.looking import listening, tainted
from tests.kernel.processors import processor_of

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

DIE, WARN = 7, 9
EBUSY = 16
NULL = "Unable to handle kernel NULL pointer dereference at virtual address "

# how: the cause begins with (6.12 puts "Oops: " before some); innermost function; what the log says besides
OOPSES = {
    "x86_64": {
        0: ("BUG: kernel NULL pointer dereference, address: 0000000000000010", "kd_oops_inner",
            ["#PF: supervisor read access in kernel mode"]),
        1: ("BUG: unable to handle page fault for address: ffffdeadbeef0000", "kd_oops_inner",
            ["#PF: supervisor write access in kernel mode"]),
        2: ("kernel BUG at kd_oops.c:", "kd_oops_inner", ["invalid opcode: 0000"]),
        4: ("divide error: 0000", "kd_oops_inner", []),
        5: ("BUG: kernel NULL pointer dereference, address: 0000000000000000", None,
            ["#PF: supervisor instruction fetch in kernel mode"]),
        6: ("BUG: TASK stack guard page was hit at ", "overflow", ["stack guard page: 0000"]),
        7: ("general protection fault, probably for non-canonical address 0x8000000000000000", "kd_oops_inner", []),
        9: ("BUG: unable to handle page fault for address: ffffffff", "kd_oops_inner",
            ["#PF: supervisor write access in kernel mode"]),
    },
    # Arm ARM, D13.2.37: ESR_EL1. A division by zero gives 0; the highest byte of a user's address is ignored.
    "aarch64": {
        0: (NULL + "0000000000000010", "kd_oops_inner",
            ["ESR = 0x000000009600000", "EC = 0x25: DABT (current EL), IL = 32 bits", "CM = 0, WnR = 0"]),
        1: ("Unable to handle kernel paging request at virtual address ffffdeadbeef0000", "kd_oops_inner",
            ["ESR = 0x000000009600004", "EC = 0x25: DABT (current EL), IL = 32 bits", "CM = 0, WnR = 1"]),
        2: ("kernel BUG at kd_oops.c:", "kd_oops_inner", ["Oops - BUG: 00000000f2000800"]),
        5: (NULL + "0000000000000000", None,
            ["ESR = 0x000000008600000", "EC = 0x21: IABT (current EL)", "pc : 0x0"]),
        6: ("Kernel panic - not syncing: kernel stack overflow", "overflow",
            ["Insufficient stack space to handle exception!", "ESR: 0x0000000096000047 -- DABT (current EL)"]),
        7: (NULL + "0000000000000000", "kd_oops_inner", ["EC = 0x25: DABT (current EL), IL = 32 bits"]),
        9: ("Unable to handle kernel write to read-only memory at virtual address ffff", "kd_oops_inner",
            ["ESR = 0x000000009600004f", "FSC = 0x0f: level 3 permission fault", "CM = 0, WnR = 1"]),
    },
}  # fmt: skip
HOWS = sorted({how for oopses in OOPSES.values() for how in oopses})
# The signal that a task dies of which has jumped to where nothing is: page_fault_oops() and die().
KILLED_BY = {"x86_64": 9, "aarch64": 11}
END = "---[ end trace 0000000000000000 ]---"


def oops_of(kernel, how: int) -> tuple[str, str | None, list[str]]:
    """What is expected of it; the test is skipped where it is none."""
    oopses = OOPSES[kernel.image.architecture]
    if how not in oopses:
        pytest.skip(f"no exception on {kernel.image.architecture}")
    return oopses[how]


def crash(kernel, built, how: int) -> MachineFault:
    with pytest.raises(MachineFault) as fault:
        kernel.insmod(built["kd_oops"], f"how={how}")
    assert not isinstance(fault.value, MachineHang)
    return fault.value


def memory_of(module) -> list[range]:
    """Where the module's memory is."""
    view = module.struct
    try:
        parts = [(view.get(f"{part}.base"), view.get(f"{part}.size")) for part in ("core_layout", "init_layout")]
    except KodojoError:
        parts = [(view.get(f"mem[{i}].base"), view.get(f"mem[{i}].size")) for i in range(7)]
    return [range(base, base + size) for base, size in parts if base]


def vmalloc_areas(kernel) -> int:
    """How many there are, without those that are freed and only wait for it."""
    lines = kernel.read_file("/proc/vmallocinfo").splitlines()
    return sum(b"unpurged vm_area" not in line for line in lines)


def is_in_module(kernel, address: int) -> bool:
    [module] = kernel.modules
    return any(address in part for part in memory_of(module))


def reliable(fault: MachineFault) -> list[str]:
    return [re.split(r"[+.]", frame.symbol)[0] for frame in fault.backtrace if frame.reliable]


@pytest.mark.parametrize("how", HOWS)
def test_oops(kernel, built, how):
    """An oops in init is a MachineFault: cause, registers, backtrace through the module, and the kernel's report."""
    cause, innermost, besides = oops_of(kernel, how)
    processor = processor_of(kernel)
    panics = cause.startswith("Kernel panic")
    with listening(kernel) as said:
        fault = crash(kernel, built, how)
    # 6.1 names sources with their directory, which kbuild.py calls so
    assert fault.report.cause.removeprefix("Oops: ").replace(" module/", " ").startswith(cause)
    assert fault.report.cause in str(fault)
    assert fault.registers.keys() >= processor.registers
    assert fault.registers[processor.stack] > processor.kernel_half
    if innermost is None:
        assert fault.registers[processor.pc] == 0
        assert fault.backtrace[0].symbol == "0x0"
    else:
        assert panics or is_in_module(kernel, fault.registers[processor.pc])
        assert re.match(rf"{innermost}(\.cold)?\+0x[0-9a-f]+/0x[0-9a-f]+ \[kd_oops\]$", fault.backtrace[0].symbol)
    functions = reliable(fault)
    if how != 6:  # its backtrace is full of itself
        assert functions[functions.index("kd_oops_outer") :][:3] == [
            "kd_oops_outer",
            "kd_oops_init",
            "do_one_initcall",
        ]
    lines = [record.text for record in fault.log]
    assert lines == said.lines
    assert fault.report.cause in lines
    assert any(line.startswith(("RIP: 0010:", "pc : ")) for line in lines)
    assert [words for words in besides if not any(words in line for line in lines)] == []
    assert panics or END in lines
    assert fault.survived == (how != 6)  # that one happens on the stack of an exception: the kernel panics


@pytest.mark.parametrize("how", [0, 2])
def test_the_machine_goes_on(kernel, built, how):
    """insmod dies of its oops, nothing else: the module stays half loaded for ever, and other modules load."""
    before = vmalloc_areas(kernel)
    fault = crash(kernel, built, how)
    assert fault.survived
    assert "stays held" in fault.hint
    assert re.match(rb"kd_oops \d+ 1 - Loading 0x[0-9a-f]+ \(OE\+\)\n$", kernel.read_file("/proc/modules"))
    assert [(module.name, module.state) for module in kernel.modules] == [("kd_oops", "Loading")]
    assert DIE in tainted(kernel)
    assert kernel.delete_module("kd_oops") == -EBUSY
    assert vmalloc_areas(kernel) > before
    kernel.insmod(built["kd_export"])
    kernel.insmod(built["kd_import"])
    with listening(kernel) as said:
        kernel.sleep(1)
    assert said.lines == []
    kernel.rmmod("kd_import")
    assert kernel.fork().read_file("/proc/modules").count(b"\n") == 2


# What a dying task says last. Without preemption (where the kernel counts who disables it) no page fault may sleep:
# its handler leaves interrupts off, too.
NOTES = {0: ["irqs disabled"], 1: ["irqs disabled", "preempt_count 1"], 2: []}


@pytest.mark.parametrize("how", sorted(NOTES))
def test_what_a_dying_task_leaves(kernel, built, how):
    """It says what it had switched off; all is on again, and time, work queues and RCU go on."""
    with pytest.raises(MachineFault) as fault:
        kernel.insmod(built["kd_dies"], f"how={how}")
    assert fault.value.survived
    notes = [record.text for record in fault.value.log if record.text.startswith("note: ")]
    expected = NOTES[how] if how == 0 or kernel.image.config.enabled("PREEMPT_COUNT") else []
    assert notes == [f"note: insmod[1] exited with {note}" for note in expected]
    before = kernel.time
    with listening(kernel) as said:
        kernel.sleep(0.5)
        kernel.call("synchronize_rcu")
    assert said.lines == []
    assert kernel.time >= before + 0.5
    kernel.insmod(built["kd_timer"]).remove()


def test_a_crash_in_an_interrupt(kernel, built):
    """What crashes in an interrupt ends the machine, with a complete report."""

    def load_and_wait():
        kernel.insmod(built["kd_dies"], "how=3")
        kernel.sleep(1)

    with pytest.raises(MachineFault) as fault:
        load_and_wait()
    assert not fault.value.survived
    assert END in [record.text for record in fault.value.log]
    assert "kd_dies_now" in reliable(fault.value)[0]
    with pytest.raises(MachineError, match="has stopped"):
        kernel.read_file("/proc/modules")


def test_a_crash_of_another_task(kernel, built):
    """A task that crashes while nobody waits for it dies alone: a complete report, and everything goes on."""
    kernel.insmod(built["kd_dies"], "how=4")
    kernel.sleep(1)
    (oops,) = kernel.oopses
    assert "kd_dies_now" in next(frame.symbol for frame in oops.backtrace if frame.reliable)
    assert oops.log[-1].text == END
    assert kernel.warnings == ()
    twin = kernel.fork()
    for each in (kernel, twin):
        assert "kd_dies" in {module.name for module in each.modules}
        each.insmod(built["kd_timer"]).remove()
        assert each.read_file("/proc/sys/kernel/tainted") == b"%d\n" % (1 << DIE | 1 << 12 | 1 << 13)


def test_a_crash_below_modprobe(kernel, built):
    """A modprobe that crashes has died by a signal, as far as who waits for it can tell."""
    kernel.requests.answer = lambda _name: kernel.calls(0)  # what modprobe does
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_request"])
    assert said.by("kd_request")[-1] == f"request_module={KILLED_BY[kernel.image.architecture]}"
    assert module.state == "Live"
    assert len(kernel.oopses) == 1
    kernel.requests.answer = lambda _name: 0
    assert kernel.call("__request_module", 1, "fat") == 0
    module.remove()


def test_a_warning_does_not_hide_an_oops(kernel, built):
    """The cause of a crash is the crash, whatever the kernel has warned of before in the same operation."""
    with kernel.operation():
        kernel.insmod(built["kd_oops"], "how=3").remove()
        with pytest.raises(MachineFault) as fault:
            kernel.insmod(built["kd_oops"], "how=0")
    assert fault.value.report.cause.removeprefix("Oops: ").startswith(OOPSES[kernel.image.architecture][0][0])
    assert "kd_oops_inner" in fault.value.backtrace[0].symbol
    assert any(record.text.startswith("WARNING: ") for record in fault.value.log)


@pytest.mark.parametrize("how", [0, 1, 9])
def test_fault_address(kernel, built, how):
    """CR2, or FAR_EL1, is the address that could not be accessed."""
    fault = crash(kernel, built, how)
    address = re.search(r"address:? ([0-9a-f]{16})$", fault.report.cause)
    assert fault.registers[processor_of(kernel).fault_address] == int(address[1], 16)


def test_panic(kernel, built):
    """A panic is a MachineFault that says what was printed, with the way to it."""
    fault = crash(kernel, built, 8)
    assert fault.report.cause == "Kernel panic - not syncing: kd_oops"
    functions = [re.split(r"[+.]", frame.symbol)[0] for frame in fault.backtrace]
    after = functions[functions.index("panic") :]
    assert [name for name in after if name.startswith("kd_oops_") and "pfx" not in name] == [
        "kd_oops_inner",
        "kd_oops_outer",
        "kd_oops_init",
    ]
    assert fault.registers.keys() >= processor_of(kernel).registers
    assert "Kernel panic - not syncing: kd_oops" in [record.text for record in fault.log]


def test_warning_is_recorded(kernel, built):
    """WARN is no fault: the load succeeds, the warning is recorded with registers and backtrace, the taint set."""
    assert kernel.warnings == ()
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_oops"], "how=3")
    assert module.state == "Live"
    assert "kd_oops: survived" in said.lines
    [warning] = kernel.warnings
    assert re.match(r"WARNING: CPU: 0 PID: 1 at (?:module/)?kd_oops\.c:\d+ kd_oops_inner\+", warning.cause)
    assert warning.backtrace[0].symbol.startswith("kd_oops_inner+")
    assert "kd_oops_outer" in [frame.symbol.split("+")[0] for frame in warning.backtrace]
    assert warning.registers.keys() >= processor_of(kernel).shown
    assert WARN in tainted(kernel)
    module.remove()


def test_harmless(kernel, built):
    """The same module does nothing when it is told so."""
    kernel.insmod(built["kd_oops"], "how=11").remove()
    assert kernel.warnings == ()
    assert WARN not in tainted(kernel)


def test_oops_in_exit(kernel, built):
    """An oops in exit is a fault of the removal."""
    kernel.insmod(built["kd_oops"], "how=0", "late=1")
    with pytest.raises(MachineFault) as fault:
        kernel.rmmod("kd_oops")
    assert "NULL pointer dereference" in fault.value.report.cause
    assert "kd_oops_outer" in reliable(fault.value)[:2]  # exit jumps there
    assert [(module.name, module.state) for module in kernel.modules] == [("kd_oops", "Unloading")]
    assert kernel.delete_module("kd_oops") == -EBUSY


def test_oops_through_the_bare_system_call(kernel, built):
    """The bare system call has no errno for a crash: it is a MachineFault there, too."""
    with pytest.raises(MachineFault):
        kernel.init_module(built["kd_oops"].read_bytes(), "how=0")
    assert kernel.init_module(built["kd_noinit"].read_bytes()) == 0


def test_stopped_machine(kernel, built):
    """A machine that has panicked refuses work, says why and what to do; log, modules and warnings stay readable."""
    fault = crash(kernel, built, 8)
    for work in (
        lambda: kernel.insmod(built["kd_noinit"]),
        lambda: kernel.rmmod("kd_oops"),
        lambda: kernel.call("int_sqrt", 144),
        lambda: kernel.read_file("/proc/modules"),
        lambda: kernel.write_file("/proc/sys/kernel/printk", b"7"),
        lambda: kernel.list_directory("/proc"),
        lambda: kernel.open("/proc/modules"),
        lambda: kernel.sleep(1),
        lambda: kernel.init_module(b""),
        lambda: kernel.finit_module(-1),
        lambda: kernel.delete_module("kd_oops"),
        lambda: kernel.as_user().__enter__(),
        kernel.fork,
        kernel.save,
    ):
        with pytest.raises(MachineError) as refusal:
            work()
        assert "this machine has stopped" in str(refusal.value)
        assert str(fault) in str(refusal.value)
        assert "fork" in refusal.value.hint
    assert fault.report.cause in [record.text for record in kernel.log]
    assert kernel.warnings == ()
    assert [(module.name, module.state) for module in kernel.modules] == [("kd_oops", "Loading")]


def test_parent_is_unharmed(kernel, built):
    """A crash in a fork does nothing to the kernel that it was made from, nor to other forks."""
    kernel.insmod(built["kd_noinit"])
    before = kernel.log
    victim, witness = kernel.fork(), kernel.fork()
    crash(victim, built, 0)
    for survivor in (kernel, witness):
        assert survivor.log == before
        assert survivor.read_file("/proc/modules").startswith(b"kd_noinit ")
        survivor.insmod(built["kd_export"]).remove()


def test_fault_survives_pickling(kernel, built):
    """The exception can be sent to another process, with all that it carries."""
    fault = crash(kernel, built, 0)
    copy = pickle.loads(pickle.dumps(fault))
    assert type(copy) is MachineFault
    assert (str(copy), copy.hint, copy.report) == (str(fault), fault.hint, fault.report)


# -- code that does not return -------------------------------------------------------------------------------
NEVER = {0: "kd_spin_forever", 2: "kd_spin_forever", 3: "kd_spin_sleep", 6: "kd_spin_reschedule"}
LIMITS = {0: 0.5, 2: 0.5, 3: 2, 6: 2}  # guest seconds; spinning ones cost real time


@pytest.mark.parametrize("how", sorted(NEVER))
def test_hang(kernel, built, how):
    """An init that does not return ends in a MachineHang at the limit, which says where it hangs.

    The machine goes on if others can run, or the kernel tells that what spins may be put to sleep.
    """
    kernel.limit(LIMITS[how])
    before = kernel.time
    with pytest.raises(MachineHang) as hang:
        kernel.insmod(built["kd_spin"], f"how={how}")
    functions = [frame.symbol.split("+")[0] for frame in hang.value.backtrace]
    assert functions[functions.index(NEVER[how]) :][:3] == [NEVER[how], "kd_spin_init", "do_one_initcall"]
    assert functions.index(NEVER[how]) <= 2  # or what it calls
    assert f"{functions[0]}+" in str(hang.value)
    assert ("waits" in str(hang.value)) == (how == 3)
    processor = processor_of(kernel)
    assert hang.value.registers.keys() >= processor.registers
    assert processor.takes_interrupts(hang.value.registers) or how in (2, 3, 6)
    assert LIMITS[how] - 0.1 <= kernel.time - before < LIMITS[how] + (1.2 if how == 3 else 0.4)
    assert "limit" in hang.value.hint
    survives = how in (3, 6) or (how == 0 and kernel.image.config.enabled("PREEMPT_COUNT"))
    assert (hang.value.survived, hang.value.left) == (survives, survives)
    if survives:
        kernel.insmod(built["kd_hello"]).remove()
        kernel.fork().insmod(built["kd_hello"])
    else:
        with pytest.raises(MachineError, match="has stopped"):
            kernel.read_file("/proc/modules")
    assert [(module.name, module.state) for module in kernel.modules] == [("kd_spin", "Loading")]


@pytest.mark.parametrize("how", [1, 4, 5, 7])
def test_slow_init(kernel, built, how):
    """An init that takes its time within the limit loads; its time is guest time."""
    kernel.limit(2)
    before = kernel.time
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_spin"], f"how={how}")
    assert said.by("kd_spin")[-1] == "done"
    jiffy = 1 / kernel.hertz
    least = {1: 9 * jiffy, 4: 0.1, 5: 0.02 - jiffy, 7: 0}
    assert least[how] <= kernel.time - before < 1
    module.remove()


def test_limit_is_for_each_operation(kernel, built):
    """The limit holds for one operation, not for all together."""
    kernel.limit(1)
    for _ in range(4):
        kernel.sleep(0.5)
    kernel.insmod(built["kd_spin"], "how=4").remove()
    with pytest.raises(MachineHang):
        kernel.call("schedule_timeout_uninterruptible", round(1.5 * kernel.hertz))


@pytest.mark.parametrize("seconds", [0, -1])
def test_limit_is_positive(kernel, seconds):
    """A limit that is none is refused."""
    with pytest.raises(KodojoError, match="positive"):
        kernel.limit(seconds)
