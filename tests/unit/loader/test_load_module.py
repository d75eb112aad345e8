from __future__ import annotations

import pytest

from kodojo.errors import DamageError, LoadError, UnmodelledError
from kodojo.loader.steps import Steps
from kodojo.loader.target import Memory, ModuleState
from tests.support.elf_writer import ALLOC, WRITE
from tests.support.loading import SpyTarget, export, finish, load, loadable, module, parameters

BOTH = pytest.mark.parametrize("late", [False, True], ids=["6.1", "6.12"])

# What each entry of the list undoes, from the last step to the first.
COPY = ["vfree"]
MEMORY = ["module_memfree", *COPY]
PLACE = ["unlink_module", "wake_module_wq", *MEMORY]
USES = ["module_unload_free", *PLACE]
MODINFO = ["set_string", "set_string", *USES]
ARCH = ["module_arch_cleanup", *MODINFO]
FTRACE = ["ftrace_release_mod", "dynamic_debug_remove", "synchronize_rcu", "kfree", *ARCH]
BUG = ["set_state GOING", "module_bug_cleanup", *FTRACE]
COMING = ["set_state GOING", "destroy_params", "notify GOING", "klp_module_going", *BUG]
SYSFS = ["mod_sysfs_teardown", *COMING]


def refuse(target: SpyTarget, file, args: bytes = b"") -> LoadError:
    """Load what cannot be loaded; ``target.calls`` has what was undone then."""
    with pytest.raises(LoadError) as caught:
        load(target, file, args)
    return caught.value


def undone(target: SpyTarget, expected: list[str]) -> bool:
    """Did the load end with exactly these calls, and leave nothing behind?"""
    clean = not target.allocations and not [mod for mod in target.modules() if mod.name == "paper"]
    done = target.calls[-len(expected) :] == expected
    # The call before them belongs to the way up: a change of state, or the strings that were set.
    before = target.calls[: -len(expected)]
    return clean and done and set(before) <= {"set_state UNFORMED", "set_state COMING", "set_string"}


@BOTH
def test_steps_of_a_load(late):
    """The steps come in the order of the kernel; later kernels look for the name before they allocate."""
    steps = Steps()
    mod = load(SpyTarget(late=late, init=0), module(late=late), b"", steps)
    assert mod.state == ModuleState.LIVE
    early = ["module_patient_check_exists"] if late else []
    assert [step.name for step in steps] == [
        "may_init_module", "copy_module_from_user", "module_sig_check", "elf_validity_check", "setup_load_info",
        "blacklisted", "rewrite_section_headers", "check_modstruct_version", "check_modinfo", *early,
        "layout_and_allocate", "add_unformed_module", "module_augment_kernel_taints", "percpu_modalloc",
        "module_unload_init", "find_module_sections", "check_export_symbol_versions", "setup_modinfo",
        "simplify_symbols", "apply_relocations", "post_relocation", "strndup_user", "dynamic_debug_setup",
        "ftrace_module_init", "complete_formation", "prepare_coming_module", "parse_args", "mod_sysfs_setup",
        "free_copy", "do_init_module", "live",
    ]  # fmt: skip


@BOTH
def test_a_dry_load_ends_before_init(late):
    """Where nothing can run, the module stays COMING and its init memory stays."""
    target = SpyTarget(late=late)
    mod = load(target, module(late=late))
    assert mod.state == ModuleState.COMING
    assert "init" not in target.calls
    assert target.modules() == [mod]


@BOTH
def test_init_and_exit_come_from_struct_module(late):
    """The relocated words of struct module say where init and exit are."""
    mod = load(SpyTarget(late=late), module(late=late))
    code = mod.regions[Memory.INIT_TEXT if late else Memory.INIT]
    text = mod.regions[Memory.TEXT if late else Memory.CORE]
    assert (mod.init, mod.exit) == (code.base, text.base + 8)


def test_without_init_and_exit():
    """A module need not have either."""
    writer = loadable(has_exit=False)
    writer.this_module.clear()
    target = SpyTarget(init=0)
    mod = load(target, writer)
    assert (mod.init, mod.exit, mod.state) == (0, 0, ModuleState.LIVE)
    assert "init" not in target.calls


@BOTH
def test_live(late):
    """After init: LIVE, told to all, init memory gone, waiters woken."""
    target = SpyTarget(late=late, init=0)
    mod = load(target, module(late=late))
    start = target.calls.index("init")
    assert target.calls[start:] == [
        "init",
        "set_state LIVE",
        "notify LIVE",
        "after_init",
        "module_memfree",
        "wake_module_wq",
    ]
    assert all(region.base == 0 for region in mod.regions.values() if region.kind.is_init)
    assert len(target.allocations) == 1 + sum(region.base != 0 for region in mod.regions.values())


@BOTH
def test_failing_init(late):
    """A negative result is the errno; the module goes without its exit function being called."""
    target = SpyTarget(late=late, init=-19)
    error = refuse(target, module(late=late))
    assert (error.errno, error.slug, error.step) == (19, "init-failed", "do_init_module")
    start = target.calls.index("init")
    assert target.calls[start:] == [
        "init", "kfree", "set_state GOING", "synchronize_rcu", "module_put", "notify GOING", "klp_module_going",
        "ftrace_release_mod", "mod_sysfs_teardown", "set_state UNFORMED", "dynamic_debug_remove",
        "module_arch_cleanup", "module_unload_free", "destroy_params", "module_bug_cleanup", "unlink_module",
        "module_memfree", "kfree", "module_memfree", "wake_module_wq",
    ]  # fmt: skip
    assert not target.allocations
    assert not target.modules()


def test_init_may_return_any_negative_number():
    """Numbers that are no errno of the loader's are passed on as they are; those of the kernel's own are named."""
    error = refuse(SpyTarget(init=-517), module())
    assert (error.errno, error.why.startswith("its init function returned -517 (EPROBE_DEFER: ")) == (517, True)
    assert refuse(SpyTarget(init=-520), module()).why == "its init function returned -520"


def test_positive_init():
    """A positive result is reported in two lines of one record, and the module is loaded all the same."""
    target = SpyTarget(init=7)
    assert load(target, module()).state == ModuleState.LIVE
    assert target.lines == [
        (4, "do_init_module: 'paper'->init suspiciously returned 7, it should follow 0/-E convention"),
        (4, "do_init_module: loading module anyway..."),
    ]


# -- undoing ------------------------------------------------------------------------------------------


def test_undo_after_bad_elf():
    """A file that is no module costs the temporary copy only."""
    target = SpyTarget()
    assert refuse(target, b"#!" * 50).step == "elf_validity_check"
    assert undone(target, COPY)


@BOTH
@pytest.mark.parametrize("fortified", [False, True])
def test_name_without_end(late, fortified, monkeypatch):
    """6.1 with FORTIFY_SOURCE panics at a name that fills its 56 bytes; later kernels read on."""
    target = SpyTarget(late=late, init=0)
    enabled = target.image.config.enabled
    monkeypatch.setattr(
        type(target.image.config),
        "enabled",
        lambda _self, name: fortified if name == "FORTIFY_SOURCE" else enabled(name),
    )
    writer = module(late=late, info={"name": "paper"})
    section = writer.section(".gnu.linkonce.this_module")
    section.data = section.data[:24] + b"x" * 56 + section.data[80:]
    if fortified and not late:
        with pytest.raises(DamageError, match="does not end within"):
            load(target, writer)
    else:
        assert load(target, writer).name.startswith("x" * 56)


@BOTH
def test_undo_after_duplicate(late):
    """A name that is taken: 6.1 notices when it has allocated, later kernels before."""
    target = SpyTarget(late=late, init=0)
    load(target, module(late=late))
    first = dict(target.allocations)
    target.calls.clear()
    error = refuse(target, module(late=late))
    assert (error.errno, error.slug) == (17, "already-loaded")
    assert error.step == ("module_patient_check_exists" if late else "add_unformed_module")
    assert target.calls == (COPY if late else ["set_state UNFORMED", *MEMORY])
    assert target.allocations == first


@BOTH
def test_undo_after_percpu(late):
    """Without per-CPU memory the module leaves the list again."""
    writer = loadable(late=late)
    writer.add(".data..percpu", b"", ALLOC | WRITE, type=8, size=9000, align=8192)
    target = SpyTarget(late=late)
    error = refuse(target, finish(writer))
    assert (error.errno, error.slug) == (12, "per-cpu-memory")
    assert target.lines == [
        (4, "paper: per-cpu alignment 8192 > 4096"),
        (4, "paper: Could not allocate 9000 bytes percpu data"),
    ]
    assert undone(target, PLACE)


def test_undo_after_missing_crcs():
    """Exports without checksums, in a kernel that does not load by force."""
    writer = loadable()
    export(writer, "paper_work", crc=None)
    target = SpyTarget(MODULE_FORCE_LOAD="n")
    assert refuse(target, finish(writer)).step == "check_export_symbol_versions"
    assert undone(target, USES)


def test_undo_after_unknown_symbol():
    """A symbol that nobody has."""
    writer = loadable()
    writer.symbol("nobody_has_this")
    target = SpyTarget()
    assert refuse(target, finish(writer)).step == "simplify_symbols"
    assert undone(target, MODINFO)


def test_undo_after_relocation():
    """A relocation that does not fit."""
    writer = loadable()
    writer.relocations(".data", [(0, 1, "work", 0)])
    target = SpyTarget()
    assert refuse(target, finish(writer)).step == "apply_relocations"
    assert undone(target, MODINFO)


def test_undo_after_bad_argument_pointer():
    """The argument string is read late, and may not be readable."""
    data = module().build()
    target = SpyTarget()
    from kodojo.loader.syscalls import sys_init_module

    with pytest.raises(LoadError) as caught:
        sys_init_module(target, target.user_copy(data), len(data), 0)
    assert (caught.value.errno, caught.value.slug) == (14, "bad-argument-pointer")
    assert undone(target, ARCH)


def test_undo_after_duplicate_export():
    """An export that exists already."""
    writer = loadable()
    export(writer, "param_ops_int")
    target = SpyTarget()
    error = refuse(target, finish(writer))
    assert (error.errno, error.step) == (8, "complete_formation")
    assert target.lines == [(3, "paper: exports duplicate symbol param_ops_int (owned by kernel)")]
    assert undone(target, FTRACE)


def test_undo_after_failing_protection():
    """Memory that cannot be protected: the bug table is forgotten on the spot."""
    target = SpyTarget(fail={"protect_module": 12})
    assert refuse(target, module()).errno == 12
    assert undone(target, ["module_bug_cleanup", *FTRACE])


def test_undo_after_notifier():
    """A notifier that refuses: livepatch hears of it, the other notifiers have been told by the chain."""
    target = SpyTarget(fail={"notify_coming": 22})
    error = refuse(target, module())
    assert (error.errno, error.step, error.slug) == (22, "prepare_coming_module", "kernel-refused")
    assert undone(target, ["klp_module_going", *BUG])


def test_undo_after_livepatch_refusal():
    """No module may be called vmlinux."""
    target = SpyTarget()
    error = refuse(target, module(name="vmlinux"))
    assert (error.errno, error.step) == (22, "prepare_coming_module")
    assert target.lines == [(3, "livepatch: vmlinux.ko: invalid module name")]
    assert target.calls[-len(BUG) :] == BUG


def test_undo_after_bad_parameter():
    """From parsing on, everybody is told that the module is going."""
    writer = loadable()
    parameters(writer, {"number": ("int", 0)})
    target = SpyTarget()
    assert refuse(target, finish(writer), b"number=x").step == "parse_args"
    assert undone(target, COMING)


def test_undo_after_sysfs():
    """sysfs refuses."""
    target = SpyTarget(fail={"mod_sysfs_setup": 22})
    assert refuse(target, module()).step == "mod_sysfs_setup"
    assert undone(target, COMING)


def test_undo_after_livepatch_copy():
    """A livepatch whose ELF data cannot be kept leaves sysfs again."""
    target = SpyTarget(fail={"copy_module_elf": 12})
    assert refuse(target, module(info={"livepatch": "Y"})).errno == 12
    assert undone(target, SYSFS)


def test_an_oops_undoes_nothing():
    """When the kernel dies in a step, or kodojo has a gap there, nobody cleans up."""
    target = SpyTarget(fail={"module_finalize": UnmodelledError("a gap")})
    with pytest.raises(UnmodelledError):
        load(target, module())
    assert set(target.calls) <= {"set_state UNFORMED", "set_string"}
    assert target.modules()


def test_refusal_has_step_and_log():
    """A refusal carries the lines of this load only."""
    target = SpyTarget()
    target.printk(6, "before")
    writer = loadable()
    writer.symbol("nobody_has_this")
    error = refuse(target, finish(writer))
    assert [(record.level, record.text) for record in error.log] == [
        (4, "paper: Unknown symbol nobody_has_this (err -2)")
    ]


def test_taints_survive_a_failed_load():
    """What a module did to the kernel's taints is not undone."""
    writer = loadable(info={"intree": None})
    writer.symbol("nobody_has_this")
    target = SpyTarget()
    refuse(target, finish(writer))
    assert target.taints == 1 << 12


def test_misaligned_memory():
    """Memory that does not consist of pages is refused; its BUG() table stays with the kernel, as in Linux 6.1."""

    class Misaligned(SpyTarget):
        def module_check_misalignment(self, mod):
            return True

    target = Misaligned()
    error = refuse(target, module())
    assert (error.errno, error.slug, error.step) == (22, "module-memory-misaligned", "complete_formation")
    assert "module_bug_cleanup" not in target.calls
    assert not target.allocations


def test_constructors_run_before_init():
    """Constructors, where there are any, have run when init begins; nothing else of the module has."""
    target = SpyTarget(init=0)
    load(target, module())
    start = target.calls.index("constructors")
    assert target.calls[start : start + 2] == ["constructors", "init"]


def test_no_memory_for_the_record_of_init_memory():
    """Where that cannot be had, init does not run, and the module goes as if its init had failed."""
    target = SpyTarget(init=0, fail={"allocate_initfree": 12})
    error = refuse(target, module())
    assert (error.errno, error.slug, error.step) == (12, "out-of-memory", "do_init_module")
    assert "init" not in target.calls
    assert "notify GOING" in target.calls
    assert not target.allocations
    assert not target.modules()


def test_parameter_without_operations():
    """Operations that are nowhere in kernel or modules make the kernel read what is not there: damage."""
    writer = module()
    writer.symbol("counter_too", ".data")
    writer.add(".texts", b"odd\0")
    writer.symbol("texts", ".texts")
    writer.add("__param", bytes(16) + b"\xff" * 7 + bytes(17), align=8)
    writer.relocations("__param", [(0, 1, "texts", 0)])
    with pytest.raises(DamageError, match="nothing"):
        load(SpyTarget(), writer, b"odd=1")
