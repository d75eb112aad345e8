from __future__ import annotations

import pytest

from kodojo.check.explain.nearest import nearest, nearest_word
from kodojo.check.explain.symbols import gpl_only_symbol, namespace_not_imported, taints, unknown_symbol
from kodojo.errors import Detail
from kodojo.image.exports import Export
from kodojo.loader.verdict import Verdict
from tests.support.paper import Config, Kallsyms
from tests.unit.check.explain.conftest import Exports, case, kernel, problem


def unknown(one, name: str = "gone"):
    found = unknown_symbol(one, problem("unknown-symbol", Detail(name)))
    return found, found.details[0]


def test_symbol_of_another_module(exporters):
    """The module of the tree that exports the symbol is named, with the command that loads it."""
    exporters["9.9-paper", "gone"] = ["provider"]
    found, detail = unknown(case(depends="provider,other"))
    assert detail.facts == {"found": "another module", "module": "provider", "in depends": "yes"}
    assert found.hint == "Load provider first: kodojo modprobe provider."
    found, detail = unknown(case())
    assert detail.facts["in depends"] == "no"
    assert "Module.symvers" in found.hint
    assert detail.more == ("depends= of this module does not name provider",)


def test_symbol_that_is_not_exported(exporters):
    """A symbol of the kernel that modules may not use is told from one that is nowhere."""
    image = kernel(kallsyms=Kallsyms(gone=0x1000))
    assert unknown(case(image))[1].facts == {"found": "not exported"}
    assert unknown(case())[1].facts == {"found": "nowhere"}


def test_symbol_of_a_described_kernel(exporters):
    """A kernel that is only described is asked for nothing that it does not know."""
    image = kernel("usb_gone_by", describes=frozenset({"exports"}), kallsyms=None, config=None)
    assert unknown(case(image), "usb_gone")[1].facts == {"found": "nowhere"}


def test_symbol_of_the_kernel_that_it_was_built_for(exporters):
    """If that kernel is at hand, who exported the symbol there is told."""
    exporters["5.0", "gone"] = ["old_provider"]
    old = kernel("here", release="5.0")
    assert unknown(case(built_for=old), "here")[1].more[0] == "5.0 exports it"
    assert unknown(case(built_for=old))[1].more == ("in 5.0 module old_provider exports it",)


def test_symbol_of_an_option(exporters):
    """A symbol whose kind belongs to an option that is off says so, and not if it is on."""
    assert "CONFIG_USB" in unknown(case(), "usb_gone")[1].more[0]
    on = kernel(config=Config(USB="m"))
    assert unknown(case(on), "usb_gone")[1].more == ()


def test_dependency_that_is_nowhere(exporters):
    """A module that depends= names and the tree has not is what to load first."""
    assert "Load gone_module first" in unknown(case(depends="gone_module"))[0].hint


def test_symbols_that_nobody_has(exporters):
    """The advice is not to load what exports a symbol where nothing does, nor to do so for the kernel's own."""
    assert "check both together" in unknown(case())[0].hint
    found, detail = unknown(case(kernel(kallsyms=Kallsyms(gone=1)), built_for=kernel("gone", release="5.0")))
    assert "does not export" in found.hint
    assert detail.more == ("5.0 exports it",)


def test_symbols_of_another_release(exporters):
    """Where nothing else is known, the release that the module was built for is the hint."""
    found, _detail = unknown(case(vermagic="5.0-other SMP "))
    assert found.hint == "Build the module for 9.9-paper: it was built for 5.0-other, which had the symbol."


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("krealloc", ["krealloc_noprof"]),
        ("usb_register_drivers", ["usb_register_driver"]),
        ("__netif_rx", ["netif_rx"]),
        ("something_else", []),
    ],
)
def test_nearest(name, found):
    """Renamed and mistyped symbols are found among the exports; what looks like nothing is not."""
    image = kernel("krealloc_noprof", "usb_register_driver", "usb_deregister", "netif_rx", "kfree", "printk")
    assert nearest(image, name) == found


def test_nearest_are_few():
    """Of many that look alike, three are told, the likeliest first."""
    image = kernel(*(f"foo_bar_{letter}" for letter in "abcdef"), "foo_bar_long_name")
    found = nearest(image, "foo_bar_aa")
    assert found[0] == "foo_bar_a"
    assert len(found) == 3


def test_nearest_word():
    """The word that was meant, or nothing."""
    assert nearest_word("nummdies", ["numdummies", "debug"]) == "numdummies"
    assert nearest_word("xyz", ["numdummies", "debug"]) == ""


def test_gpl_only():
    """The licence that the module declares, and whether the symbol was free to all in its own kernel."""
    old = kernel(release="5.0")
    old.exports = Exports([Export("one", 0, None, False, None), Export("two", 0, None, True, None)])
    details = (Detail("one"), Detail("two"))
    found = gpl_only_symbol(case(built_for=old, license="Proprietary"), problem("gpl-only-symbol", *details))
    assert found.why == "why (its licence is 'Proprietary')"
    assert [detail.text for detail in found.details] == [
        "exported with EXPORT_SYMBOL_GPL; in 5.0 it was exported to all",
        "exported with EXPORT_SYMBOL_GPL",
    ]


def test_namespaces():
    """One line to add for each namespace, and what is imported already."""
    details = [Detail(name, facts={"namespace": space}) for name, space in (("a", "ONE"), ("b", "TWO"), ("c", "ONE"))]
    found = namespace_not_imported(case(import_ns="OTHER"), problem("namespace-not-imported", *details))
    assert found.hint.count('MODULE_IMPORT_NS("ONE");') == found.hint.count('MODULE_IMPORT_NS("TWO");') == 1
    assert "so far it imports OTHER" in found.hint


def test_taints():
    """Each flag that the load sets is told by its letter."""
    told = taints(Verdict(ok=True, taints=1 << 0 | 1 << 12 | 1 << 13))
    assert [detail.subject for detail in told] == ["taint P", "taint O", "taint E"]
    assert taints(Verdict(ok=True)) == ()
