"""Dry loads into kernels that are only described: what can be checked is, and what cannot is said."""

import pytest

from kodojo.errors import MissingInformationError
from kodojo.image.image import Image
from kodojo.image.payload import unpacked
from kodojo.loader.dry import DryTarget
from kodojo.loader.verdict import check, load
from tests.support.headers import CONFIG, RELEASE, SYMVERS, write_headers
from tests.support.loading import export, finish, loadable, parameters

VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "
MARKER = b"~Module signature appended~\n"
SIZE = "struct module's size"


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))


@pytest.fixture
def described(tmp_path):
    def make(changes=None):
        return Image.open(write_headers(tmp_path / "tree", changes))

    return make


def module(*symbols, info=None, crcs=None, **options):
    """A module for the described kernel that uses some of its symbols."""
    usual = {"vermagic": VERMAGIC, "depends": ""}
    known = {"module_layout": 42, "_printk": 1, "only_gpl": 2, "in_space": 3, "usb_register_driver": 5, "mii_link": 6}
    writer = loadable(info=usual | (info or {}), crcs=known | (crcs or {}), **options)
    for symbol in symbols:
        writer.symbol(symbol)
    return finish(writer).build()


def texts(verdict):
    return [record.text for record in verdict.log]


def refused(verdict, slug):
    assert (verdict.ok, verdict.slug) == (False, slug), verdict
    return texts(verdict)


def subjects(verdict):
    """What the checks that were not made are about."""
    return [sentence.partition(":")[0] for sentence in verdict.unmade]


def test_good_module(described):
    """A module that fits loads; without type information the size of its struct module is not compared."""
    verdict = check(described(), module("_printk", "only_gpl"))
    assert (verdict.ok, verdict.errno, texts(verdict)) == (True, 0, [])
    assert subjects(verdict) == [SIZE]


def test_symbols(described):
    """CRCs, licence, namespaces and absence of symbols are checked as in any other kernel."""
    image = described()
    lines = refused(check(image, module("_printk", crcs={"_printk": 7})), "symbol-version")
    assert lines[0] == "paper: disagrees about version of symbol _printk"
    lines = refused(check(image, module("only_gpl", info={"license": "Proprietary"})), "gpl-only-symbol")
    assert lines[-1] == "paper: Unknown symbol only_gpl (err -2)"
    refused(check(image, module("in_space")), "namespace-not-imported")
    assert check(image, module("in_space", info={"import_ns": "SPACE"})).ok
    refused(check(image, module("gone", crcs={"gone": 1})), "unknown-symbol")
    refused(check(image, module(crcs={"module_layout": 1})), "module-layout-crc")


def test_vermagic(described):
    """Version magic is compared word by word; with checksums the release does not matter."""
    image = described()
    assert check(image, module(info={"vermagic": "5.0 SMP preempt mod_unload modversions "})).ok
    (line,) = refused(check(image, module(info={"vermagic": "5.0 mod_unload "})), "vermagic-mismatch")
    assert line == f"paper: version magic '5.0 mod_unload ' should be '{VERMAGIC}'"


def test_parameters(described):
    """Types of parameters that the kernel exports are known by their names."""
    writer = loadable(info={"vermagic": VERMAGIC}, crcs={"module_layout": 42, "param_ops_int": 4})
    parameters(writer, {"number": ("int", 0)})
    content = finish(writer).build()
    image = described({"Module.symvers": SYMVERS + "0x00000007\tparam_array_ops\tvmlinux\tEXPORT_SYMBOL\t\n"})
    writer.section("__versions").data += (7).to_bytes(8, "little") + b"param_array_ops".ljust(56, b"\0")
    content = writer.build()
    assert check(image, content, "number=7").ok
    refused(check(image, content, "number=x"), "parameter-invalid")


def test_struct_module_of_damaged_file(described):
    """What a damaged file has in struct module may mean anything, and is said so."""
    writer = loadable(info={"vermagic": VERMAGIC}, crcs={"module_layout": 42})
    section = writer.section(".gnu.linkonce.this_module")
    section.data = section.data[:500] + b"\1" + section.data[501:]
    verdict = check(described(), finish(writer).build())
    assert any("struct module in the file is not empty" in sentence for sentence in verdict.unmade)


# -- modules of the tree ----------------------------------------------------------------------------------


def test_dependency_without_file(described):
    """What a module of the tree exports is there if the module depends on it, and that it loads is presumed."""
    image = described()
    verdict = check(image, module("mii_link", info={"depends": "mii-lib"}))
    assert verdict.ok
    assert subjects(verdict) == ["dependencies", SIZE]
    assert "mii_lib" in verdict.unmade[0]
    refused(check(image, module("mii_link", info={"depends": "mii-lib"}, crcs={"mii_link": 9})), "symbol-version")
    proprietary = {"depends": "usbcore", "license": "Proprietary"}
    refused(check(image, module("usb_register_driver", info=proprietary)), "gpl-only-symbol")


def test_no_dependency(described):
    """A module that names no dependencies has none loaded for it: the symbol is unknown."""
    refused(check(described(), module("mii_link")), "unknown-symbol")


def test_dependency_of_dependency(described):
    """What a dependency may bring along is no errno; which module it is in is said."""
    verdict = check(described(), module("mii_link", info={"depends": "usbcore"}))
    assert verdict.ok
    assert any("mii_link" in sentence and "drivers/net/mii-lib" in sentence for sentence in verdict.unmade)


def test_dependency_that_is_not_listed(described):
    """Nothing is said of a module whose dependency Module.symvers does not list, unless something else refuses it."""
    image = described()
    with pytest.raises(MissingInformationError, match="out_of_tree"):
        check(image, module("strange", info={"depends": "out_of_tree"}))
    with pytest.raises(MissingInformationError, match="out_of_tree"):
        check(image, module("mii_link", info={"depends": "mii-lib,out_of_tree"}))
    both = {"depends": "out_of_tree,mii-lib"}
    refused(check(image, module("mii_link", info=both, crcs={"mii_link": 9})), "symbol-version")


def test_module_of_the_tree(described):
    """A module that the tree lists may export what is listed as its own, and nothing that the kernel exports."""
    for name, slug in (("mii_link", "ok"), ("_printk", "duplicate-export")):
        writer = loadable(name="mii-lib", info={"vermagic": VERMAGIC}, crcs={"module_layout": 42})
        export(writer, name, crc=6)
        assert check(described(), finish(writer).build()).slug == slug


def test_module_given_before(described):
    """A dependency that was loaded itself needs no stand-in."""
    writer = loadable(name="mii_lib", info={"vermagic": VERMAGIC}, crcs={"module_layout": 42})
    export(writer, "mii_link", crc=9)
    target = DryTarget(described())
    load(target, unpacked(finish(writer).build(), "module"))
    target.stand_in(["mii-lib", "usbcore"])
    assert [mod.name for mod in target.modules()] == ["usbcore", "mii_lib"]
    assert target.find_symbol("mii_link", gplok=True).crc == 9


# -- what is not known ------------------------------------------------------------------------------------


def test_unsigned_and_signed(described):
    """A missing signature is seen; one that is there cannot be verified, and is not called missing."""
    image = described({".config": CONFIG + "CONFIG_MODULE_SIG=y\nCONFIG_CRYPTO_SHA256=y\n"})
    content = module()
    assert texts(check(image, content)) == [
        "paper: module verification failed: signature and/or required key missing - tainting kernel"
    ]
    refused(check(image, content + b"\0\0\2\0\0\0\0\0\0\0\0\1" + MARKER), "malformed-signature")


def test_neither_release_nor_config(described):
    """Without release and configuration version magic is not compared, and options are presumed."""
    names = ("include/generated/utsrelease.h", "include/config/kernel.release", ".config", "include/config/auto.conf")
    image = described(dict.fromkeys(names))
    verdict = check(image, module("_printk", info={"vermagic": "anything"}))
    assert verdict.ok
    assert {"version magic", "architecture", SIZE} <= set(subjects(verdict))
    refused(check(image, module("_printk", crcs={"_printk": 7})), "symbol-version")


def test_refusal_by_a_presumed_option(described):
    """A refusal that an option decides which is not known is none; the doubt says what it would be."""
    image = described({".config": None, "include/config/auto.conf": None})
    verdict = check(image, module("in_space"))
    assert (verdict.ok, verdict.errno) == (True, 0)
    (doubt,) = (
        sentence for sentence in verdict.unmade if "CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS" in sentence
    )
    assert "errno 22" in doubt
    # A module that is refused either way is refused.
    verdict = check(image, module("gone", info={"vermagic": None}, crcs={"gone": 1}))
    assert (verdict.ok, verdict.errno) == (False, 8)
    assert any(
        "CONFIG_MODULE_FORCE_LOAD" in sentence and "errno would be 2:" in sentence for sentence in verdict.unmade
    )


def test_architecture_not_known(described):
    """A module for another architecture than the presumed one is not refused if no file says which it is."""
    image = described({".config": None, "include/config/auto.conf": None})
    writer = loadable(info={"vermagic": VERMAGIC}, crcs={"module_layout": 42})
    writer.header["e_machine"] = 183
    verdict = check(image, finish(writer).build())
    assert verdict.ok
    assert any(sentence.startswith("architecture") for sentence in verdict.unmade)
    refused(check(described({".config": CONFIG}), writer.build()), "elf-architecture")


def test_message_not_known(described):
    """Of two wordings for the same errno one is given, and the other is mentioned."""
    image = described({"include/linux/module.h": "enum mod_mem_type {\n};\n"})
    writer = loadable(late=True, info={"vermagic": VERMAGIC}, crcs={"module_layout": 42})
    finish(writer)
    writer.header["e_shstrndx"] = 1
    verdict = check(image, writer.build())
    assert verdict.errno == 8
    assert any("other words" in sentence for sentence in verdict.unmade)


def test_no_module_layout(described):
    """A Module.symvers without module_layout leaves the checksum of struct module open."""
    lines = SYMVERS.splitlines(keepends=True)
    verdict = check(described({"Module.symvers": "".join(lines[1:])}), module("_printk"))
    assert verdict.ok
    assert "the checksum of struct module" in subjects(verdict)


def test_full_image_has_nothing_unmade():
    """A verdict about a whole kernel has no checks that were not made."""
    from tests.unit.loader.test_verdict import paper

    assert check(paper(), finish(loadable()).build()).unmade == ()
