import pytest

from kodojo.errors import LoadError
from kodojo.loader.modinfo import (
    blacklisted,
    check_export_symbol_versions,
    check_modinfo,
    module_augment_kernel_taints,
    setup_modinfo,
)
from tests.support.elf_writer import module_writer
from tests.support.stages import EARLY, LATE, STRUCT_SIZE, checked, lines, paper_target, rewritten

P, F, C, O, E, K, N = (1 << bit for bit in (0, 1, 10, 12, 13, 15, 18))  # noqa: E741  the kernel's letters
LOCKDEP = (4, "Disabling lock debugging due to kernel taint")
BOTH = pytest.mark.parametrize("kernel", [EARLY, LATE])
UNSIGNED = "module verification failed: signature and/or required key missing - tainting kernel"


def early_stage(kernel, *, flags=0, name="paper", crcs=None, options=(), **info):
    """A module with these .modinfo values after check_modinfo."""
    target = paper_target(kernel, **dict(options))
    writer = module_writer(name=name, struct_size=STRUCT_SIZE[kernel], info=info, crcs=crcs)
    mod, load_info = rewritten(target, writer, flags=flags)
    check_modinfo(target, mod, load_info)
    return target, mod, load_info


def both_stages(kernel, *, sig_ok=True, **options):
    """The same, and what is tested once the module is in the list."""
    target, mod, info = early_stage(kernel, **options)
    info.sig_ok = sig_ok
    module_augment_kernel_taints(target, mod, info)
    check_export_symbol_versions(target, mod, info)
    return target, mod, info


@BOTH
def test_good(kernel):
    """An ordinary module is loaded without a word and without a taint."""
    target, mod, _info = both_stages(kernel)
    assert target.log == []
    assert target.taints == mod.taints == 0
    assert mod.sig_ok


@BOTH
def test_vermagic(kernel):
    """Another vermagic is refused; the line has info->name and both strings."""
    target = paper_target(kernel)
    writer = module_writer(
        name="real", struct_size=STRUCT_SIZE[kernel], info={"name": "shown", "vermagic": "9.9-paper UP "}
    )
    mod, info = rewritten(target, writer)
    with pytest.raises(LoadError) as caught:
        check_modinfo(target, mod, info)
    assert (caught.value.errno, caught.value.slug) == (8, "vermagic-mismatch")
    text = "shown: version magic '9.9-paper UP ' should be '9.9-paper SMP preempt mod_unload modversions '"
    assert lines(target) == [(3, text)]


@BOTH
def test_vermagic_release(kernel):
    """With __versions the release does not matter; told to ignore __versions, it does."""
    other = "1.0 SMP preempt mod_unload modversions "
    early_stage(kernel, crcs={}, vermagic=other)
    with pytest.raises(LoadError):
        early_stage(kernel, vermagic=other)
    with pytest.raises(LoadError):
        early_stage(kernel, crcs={}, vermagic=other, flags=1)


@BOTH
@pytest.mark.parametrize(("flags", "vermagic"), [(0, None), (2, "wrong"), (2, None)])
def test_no_vermagic(kernel, flags, vermagic):
    """Without vermagic, or told to ignore it, the module is forced in: taint F."""
    target, mod, _info = early_stage(kernel, flags=flags, vermagic=vermagic, name="odd")
    assert lines(target) == [(4, "odd: bad vermagic: kernel tainted."), LOCKDEP]
    assert target.taints == mod.taints == F


@BOTH
def test_no_vermagic_and_no_force(kernel):
    """A kernel that does not load by force refuses that without a word."""
    with pytest.raises(LoadError) as caught:
        early_stage(kernel, vermagic=None, options={"MODULE_FORCE_LOAD": "n"})
    assert (caught.value.errno, caught.value.slug) == (8, "vermagic-missing")


ACTING = [
    ({"intree": None}, [(4, "paper: loading out-of-tree module taints kernel.")], O),
    ({"intree": "N"}, [], 0),
    (
        {"staging": "Y"},
        [
            (
                4,
                "paper: module is from the staging directory, the quality is unknown, you have been warned.",
            )
        ],
        C,
    ),
    ({"livepatch": "Y"}, [(5, "paper: tainting kernel with TAINT_LIVEPATCH")], K),
    ({"livepatch": ""}, [(5, "paper: tainting kernel with TAINT_LIVEPATCH")], K),
    ({"test": ""}, [(4, "paper: loading test module taints kernel.")], N),
    ({"license": "GPL v2"}, [], 0),
    ({"license": "Dual MPL/GPL"}, [], 0),
]


@BOTH
@pytest.mark.parametrize(("info", "expected", "taint"), ACTING)
def test_acting_key(kernel, info, expected, taint):
    """Each key of .modinfo that acts: its line and its taint, of module and kernel."""
    target, mod, _info = both_stages(kernel, **info)
    assert lines(target) == expected
    assert target.taints == mod.taints == taint
    assert mod.klp == ("livepatch" in info)


@pytest.mark.parametrize(("license_", "shown"), [("Proprietary", "Proprietary"), (None, "unspecified"), ("", "")])
def test_license(license_, shown):
    """A license that is not GPL-compatible taints; later kernels say so twice the first time."""
    line = (4, f"paper: module license '{shown}' taints kernel.")
    target, mod, _info = both_stages(EARLY, license=license_)
    assert lines(target) == [line, LOCKDEP]
    assert target.taints == mod.taints == P
    target, mod, info = both_stages(LATE, license=license_)
    assert lines(target) == [line, LOCKDEP, (4, "paper: module license taints kernel.")]
    target.log.clear()
    module_augment_kernel_taints(target, mod, info)
    assert target.log == []


@BOTH
def test_order(kernel):
    """All taints of one module, in the order of the kernel's function."""
    target, _mod, _info = both_stages(
        kernel, sig_ok=False, intree=None, staging="Y", livepatch="Y", license="x", test="Y"
    )
    starts = [text.removeprefix("paper: ")[:22] for _level, text in lines(target)]
    expected = [
        "loading out-of-tree mo", "module is from the sta", "tainting kernel with T", "module license 'x' tai",
        "Disabling lock debuggi", "loading test module ta", "module verification fa",
    ]  # fmt: skip
    if kernel == LATE:
        expected.append("module license taints ")
    assert starts == expected
    assert target.taints == P | C | O | E | K | N


def test_when():
    """6.1 taints before the module is in the list, later kernels when it is."""
    target, _mod, _info = early_stage(EARLY, intree=None, staging="Y", license="x", test="Y")
    assert target.taints == P | C | O | N
    target, mod, _info = early_stage(LATE, intree=None, staging="Y", license="x", test="Y", livepatch="Y")
    assert target.taints == 0
    assert mod.klp
    assert target.log == []


@BOTH
def test_said_once(kernel):
    """What the kernel is tainted with already is not announced again, but staging and the taint bits are."""
    target, mod, info = both_stages(kernel, intree=None, staging="Y", test="Y", sig_ok=False)
    target.log.clear()
    mod.taints = 0
    check_modinfo(target, mod, info)
    module_augment_kernel_taints(target, mod, info)
    assert [text[:38] for _level, text in lines(target)] == ["paper: module is from the staging dire"]
    assert mod.taints == C | O | E | N


@BOTH
def test_unsigned(kernel):
    """Without a valid signature: one line since boot, and taint E."""
    target, mod, _info = both_stages(kernel, sig_ok=False)
    assert lines(target) == [(5, f"paper: {UNSIGNED}")]
    assert target.taints == mod.taints == E
    assert not mod.sig_ok
    target, mod, _info = both_stages(kernel, sig_ok=False, options={"MODULE_SIG": "n"})
    assert mod.taints == 0


@BOTH
def test_livepatch_not_built_in(kernel):
    """A livepatch for a kernel that cannot be patched is refused."""
    with pytest.raises(LoadError) as caught:
        early_stage(kernel, livepatch="Y", options={"LIVEPATCH": "n"})
    assert (caught.value.errno, caught.value.slug) == (8, "livepatch-unsupported")


@BOTH
def test_retpoline(kernel):
    """A module without retpolines is named each time, if the kernel has the test and is at risk."""
    target = paper_target(kernel)
    target.spectre_v2_unsafe = lambda: True
    mod, info = rewritten(target, module_writer(struct_size=STRUCT_SIZE[kernel], info={"retpoline": None}))
    check_modinfo(target, mod, info)
    module_augment_kernel_taints(target, mod, info)
    assert target.log == []
    target.image.kallsyms["retpoline_module_ok"] = 1
    check_modinfo(target, mod, info)
    module_augment_kernel_taints(target, mod, info)
    assert lines(target) == [(4, "paper: loading module not compiled with retpoline compiler.")]
    assert mod.taints == 0


@BOTH
@pytest.mark.parametrize(("name", "own"), [("ndiswrapper", 0), ("driverloader", P), ("lve", P)])
def test_special_names(kernel, name, own):
    """Three names taint the kernel whatever they say, one of them without tainting the module."""
    target, mod, _info = both_stages(kernel, name=name)
    assert lines(target) == [LOCKDEP, (4, f"{name}: module license taints kernel.")]
    assert target.taints == P
    assert mod.taints == own


@BOTH
@pytest.mark.parametrize("suffix", ["", "_gpl"])
def test_exports_without_crcs(kernel, suffix):
    """Exports without checksums taint, or are refused where nothing is forced."""
    writer = module_writer(struct_size=STRUCT_SIZE[kernel])
    writer.add(f"__ksymtab{suffix}", bytes(12))
    target = paper_target(kernel)
    mod, info = rewritten(target, writer)
    check_export_symbol_versions(target, mod, info)
    assert lines(target) == [(4, "paper: no versions for exported symbols: kernel tainted."), LOCKDEP]
    assert mod.taints == F
    with pytest.raises(LoadError) as caught:
        check_export_symbol_versions(paper_target(kernel, MODULE_FORCE_LOAD="n"), mod, info)
    assert (caught.value.errno, caught.value.slug) == (8, "exports-without-crc")
    check_export_symbol_versions(paper_target(kernel, MODULE_FORCE_LOAD="n", MODVERSIONS="n"), mod, info)


def test_exports_with_crcs():
    """A table of checksums is enough, and without exports none is needed."""
    writer = module_writer()
    writer.add("__ksymtab", bytes(12))
    writer.add("__kcrctab", bytes(4))
    writer.add("__ksymtab_gpl", bytes(11))
    target = paper_target()
    mod, info = rewritten(target, writer)
    check_export_symbol_versions(target, mod, info)
    assert mod.taints == 0


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("shown", True), ("a,shown", True), ("shown,b", True), ("a,shown,b", True), ("", False), ("real", False),
        ("show", False), ("shown2", False), (" shown", False), ("SHOWN", False),
    ],
)  # fmt: skip
def test_blacklist(text, hit):
    """The list is compared exactly, with the name in .modinfo."""
    target = paper_target(blacklist=text)
    info = checked(target, module_writer(name="real", info={"name": "shown"}))
    if not hit:
        blacklisted(target, info)
        assert target.log == []
        return
    with pytest.raises(LoadError) as caught:
        blacklisted(target, info)
    assert (caught.value.errno, caught.value.slug) == (1, "module-blacklisted")
    assert lines(target) == [(3, "Module shown is blacklisted")]


@pytest.mark.parametrize(("text", "hit"), [("", False), ("a", False), ("a,", False), (",a", True), ("a,,b", True)])
def test_blacklisted_empty_name(text, hit):
    """An empty name is on the list only between two commas, or before one."""
    target = paper_target(blacklist=text)
    info = checked(target, module_writer(info={"name": ""}))
    if hit:
        with pytest.raises(LoadError):
            blacklisted(target, info)
    else:
        blacklisted(target, info)


def test_setup_modinfo():
    """version and srcversion are kept, as bytes, and NULL where there is none, whatever was there before."""
    target = paper_target()
    mod, info = rewritten(target, module_writer(info={"version": "1.2"}))
    kept = {}
    target.set_string = lambda _mod, member, text: kept.update({member: text})
    target.set_field = lambda _mod, member, value: kept.update({member: value})
    setup_modinfo(target, mod, info)
    assert kept == {"version": b"1.2", "srcversion": 0}
