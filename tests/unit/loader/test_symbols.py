from __future__ import annotations

import pytest

from kodojo.errors import LoadError
from kodojo.image.exports import Export
from kodojo.loader.target import Module, ModuleState
from tests.support.elf_writer import ALLOC, WRITE
from tests.support.loading import R_64, SpyTarget, export, finish, load, loadable

ADDRESS = 0xFFFFFFFF81234560
PLAIN = Export("plain", ADDRESS, None, False, None)
GPL = Export("gpl_only", ADDRESS + 16, None, True, None)
VERSIONED = Export("versioned", ADDRESS + 32, 0xABCD, False, None)
SPACED = Export("spaced", ADDRESS + 48, None, False, "SPACE")
EXPORTS = (PLAIN, GPL, VERSIONED, SPACED)


def importer(*names: str, name: str = "paper", **options) -> object:
    """A module that needs these symbols: a pointer to each is in ``.data.pointers``."""
    writer = loadable(name=name, **options)
    for symbol in names:
        writer.symbol(symbol)
    writer.add(".data.pointers", bytes(8 * len(names)), ALLOC | WRITE, align=8)
    writer.relocations(".data.pointers", [(8 * i, R_64, symbol, 0) for i, symbol in enumerate(names)])
    return finish(writer)


def exporter(symbol: str = "provided", *, name: str = "provider", gpl: bool = False, **options) -> object:
    """A module that exports its function ``work`` under that name."""
    writer = loadable(name=name, **options)
    export(writer, symbol, gpl=gpl, crc=None if options.get("crcs") is None else 0x1234)
    return finish(writer)


def pointers(target: SpyTarget, mod: Module, count: int) -> list[int]:
    """The relocated pointers of an :func:`importer`."""
    region = next(iter(mod.regions.values()))
    data = bytes(region.data)
    at = data.index(ADDRESS.to_bytes(8, "little"))
    return [int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i in range(count)]


def refused(target: SpyTarget, file) -> LoadError:
    mark = len(target.log)
    with pytest.raises(LoadError) as caught:
        load(target, file)
    assert caught.value.step == "simplify_symbols"
    target.log = target.log[mark:]
    return caught.value


def test_kernel_symbols():
    """An undefined symbol gets the address of the kernel's export; GPL-only ones mark the module."""
    target = SpyTarget(*EXPORTS)
    mod = load(target, importer("plain", "gpl_only"))
    assert pointers(target, mod, 2) == [PLAIN.address, GPL.address]
    assert mod.using_gplonly_symbols
    assert target.log == []


@pytest.mark.parametrize("late", [False, True])
def test_unknown_symbols_are_all_reported(late):
    """Every symbol that nobody exports has a line; the load fails with ENOENT."""
    target = SpyTarget(*EXPORTS, late=late)
    error = refused(target, importer("nobody", "plain", "noone", late=late))
    assert (error.errno, error.slug) == (2, "unknown-symbol")
    assert target.lines == [
        (4, "paper: Unknown symbol nobody (err -2)"),
        (4, "paper: Unknown symbol noone (err -2)"),
    ]


def test_weak_symbols_may_be_missing():
    """A weak symbol that nobody exports stays 0, and so does _GLOBAL_OFFSET_TABLE_."""
    writer = loadable()
    writer.symbol("nobody", bind=2)
    writer.symbol("_GLOBAL_OFFSET_TABLE_")
    target = SpyTarget()
    load(target, finish(writer))
    assert target.log == []


def test_the_last_error_wins():
    """Of several faults all are logged, and the errno is that of the last one."""
    writer = loadable()
    writer.symbol("shared", 0xFFF2)
    writer.symbol("__gnu_lto_slim", 0xFFF2)
    writer.symbol("lost", 99)
    writer.symbol("nobody")
    target = SpyTarget()
    error = refused(target, finish(writer))
    largest = len(writer.sections) + len(writer.tables)
    assert error.errno == 2
    assert target.lines == [
        (4, "paper: please compile with -fno-common"),
        (3, f"paper: Symbol lost has an invalid section index 99 (max {largest})"),
        (4, "paper: Unknown symbol nobody (err -2)"),
    ]


def test_common_symbols():
    """A common symbol is an error, ENOEXEC."""
    writer = loadable()
    writer.symbol("nobody")
    writer.symbol("shared", 0xFFF2)
    error = refused(SpyTarget(), finish(writer))
    assert (error.errno, error.slug) == (8, "common-symbol")


def test_absolute_and_defined_symbols():
    """A symbol of a section is moved with it, an absolute one stays what it is."""
    writer = loadable()
    writer.symbol("fixed", 0xFFF1, 0x1234)
    writer.add(".data.pointers", bytes(16), ALLOC | WRITE, align=8)
    writer.relocations(".data.pointers", [(0, R_64, "fixed", 0), (8, R_64, "work", 1)])
    mod = load(SpyTarget(), finish(writer))
    data = bytes(next(iter(mod.regions.values())).data)
    at = data.index((0x1234).to_bytes(8, "little"))
    assert int.from_bytes(data[at + 8 : at + 16], "little") == next(iter(mod.regions.values())).base + 17


def test_per_cpu_symbols():
    """A per-CPU variable's address is its offset in the per-CPU area."""
    writer = loadable()
    writer.add(".data..percpu", bytes(64), ALLOC | WRITE, align=32)
    writer.symbol("each_cpu", ".data..percpu", 8)
    writer.add(".data.pointers", bytes(16), ALLOC | WRITE, align=8)
    writer.symbol("plain")
    writer.relocations(".data.pointers", [(0, R_64, "plain", 0), (8, R_64, "each_cpu", 0)])
    target = SpyTarget(*EXPORTS)
    mod = load(target, finish(writer))
    assert mod.percpu
    assert pointers(target, mod, 2)[1] == mod.percpu + 8


# -- versions and namespaces --------------------------------------------------------------------------


def test_matching_version():
    """The checksum of the kernel's export is the one that the module was built with."""
    load(SpyTarget(*EXPORTS), importer("versioned", crcs={"versioned": 0xABCD}))


@pytest.mark.parametrize(
    ("crcs", "line"),
    [
        ({"versioned": 1}, "paper: disagrees about version of symbol versioned"),
        ({"other": 1}, "paper: no symbol version for versioned"),
        ({"versioned": 1 << 32 | 0xABCD}, "paper: disagrees about version of symbol versioned"),
    ],
)
def test_wrong_version(crcs, line):
    """Another checksum, or none, is EINVAL."""
    target = SpyTarget(*EXPORTS)
    error = refused(target, importer("versioned", crcs=crcs))
    assert (error.errno, error.slug) == (22, "symbol-version")
    assert target.lines == [(4, line), (4, "paper: Unknown symbol versioned (err -22)")]


def test_namespace():
    """A namespace has to be imported by its exact name; one of several imports is enough."""
    load(SpyTarget(*EXPORTS), importer("spaced", info={"import_ns": ("OTHER", "SPACE")}))
    target = SpyTarget(*EXPORTS)
    error = refused(target, importer("spaced", info={"import_ns": ("OTHER", "SPAC")}))
    assert (error.errno, error.slug) == (22, "namespace-not-imported")
    line = "paper: module uses symbol (spaced) from namespace SPACE, but does not import it."
    assert target.lines == [(3, line), (4, "paper: Unknown symbol spaced (err -22)")]


def test_namespace_where_imports_may_be_missing():
    """A kernel may be built to complain only."""
    target = SpyTarget(*EXPORTS, MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS="y")
    load(target, importer("spaced"))
    line = "paper: module uses symbol (spaced) from namespace SPACE, but does not import it."
    assert target.lines == [(4, line)]


# -- licenses -----------------------------------------------------------------------------------------


def test_proprietary_modules_do_not_see_gpl_only_symbols():
    """For a proprietary module a GPL-only symbol does not exist; the reason is told apart."""
    target = SpyTarget(*EXPORTS)
    error = refused(target, importer("gpl_only", info={"license": "Proprietary"}))
    assert (error.errno, error.slug) == (2, "gpl-only-symbol")
    assert target.lines[-1] == (4, "paper: Unknown symbol gpl_only (err -2)")


def test_inherited_taint():
    """Who uses a proprietary module's symbols is proprietary from then on."""
    target = SpyTarget(*EXPORTS, init=0)
    load(target, exporter(info={"license": "Proprietary"}))
    target.log.clear()
    mod = load(target, importer("provided"))
    assert mod.taints & 1
    assert target.lines[-1] == (
        4, "paper: module uses symbols provided from proprietary module provider, inheriting taint."
    )  # fmt: skip


def test_gpl_only_symbols_after_inherited_taint():
    """After that, GPL-only symbols are unknown to it."""
    target = SpyTarget(*EXPORTS, init=0)
    load(target, exporter(info={"license": "Proprietary"}))
    error = refused(target, importer("provided", "gpl_only"))
    assert error.slug == "gpl-only-symbol"
    assert target.lines[-1] == (4, "paper: Unknown symbol gpl_only (err -2)")


def test_proprietary_symbols_after_gpl_only_ones():
    """The other way round, it is the proprietary module's symbol that is refused."""
    target = SpyTarget(*EXPORTS, init=0)
    load(target, exporter(info={"license": "Proprietary"}))
    error = refused(target, importer("gpl_only", "provided"))
    assert error.slug == "gpl-and-proprietary"
    text = "module using GPL-only symbols uses symbols provided from proprietary module provider."
    assert target.lines[-2:] == [(3, f"paper: {text}"), (4, "paper: Unknown symbol provided (err -2)")]


# -- other modules ------------------------------------------------------------------------------------


def test_symbols_of_modules():
    """An export of a loaded module is found, and the module is used once however many symbols there are."""
    target = SpyTarget(*EXPORTS, init=0)
    provider = load(target, exporter())
    mod = load(target, importer("provided", "provided"))
    assert mod.uses == [provider]
    assert target.users(provider) == [mod]


def test_provider_that_is_still_loading():
    """A module that is COMING is waited for; in vain, that is EBUSY."""
    target = SpyTarget(*EXPORTS)
    load(target, exporter())
    error = refused(target, importer("provided"))
    assert (error.errno, error.slug) == (16, "provider-not-ready")
    assert target.lines == [
        (4, "paper: gave up waiting for init of module provider."),
        (4, "paper: Unknown symbol provided (err -16)"),
    ]


def test_provider_that_gets_ready():
    """If it is LIVE after the wait, all is well."""
    target = SpyTarget(*EXPORTS)
    provider = load(target, exporter())
    target.wait_for_module = lambda mod, seconds: target.set_state(mod, ModuleState.LIVE)
    assert load(target, importer("provided")).uses == [provider]


def test_provider_that_is_going():
    """No reference can be taken to a module that is GOING."""
    target = SpyTarget(*EXPORTS)
    load(target, exporter()).state = ModuleState.GOING
    error = refused(target, importer("provided"))
    assert (error.errno, error.slug) == (2, "provider-going")
    assert target.lines == [(4, "paper: Unknown symbol provided (err -2)")]


@pytest.mark.parametrize("gpl", [False, True])
def test_duplicate_export_of_a_module(gpl):
    """Exports exist once, in whatever table; the owner is named."""
    target = SpyTarget(init=0)
    load(target, exporter())
    with pytest.raises(LoadError) as caught:
        load(target, exporter(name="again", gpl=gpl))
    assert (caught.value.errno, caught.value.slug) == (8, "duplicate-export")
    assert target.lines[-1] == (3, "again: exports duplicate symbol provided (owned by provider)")
