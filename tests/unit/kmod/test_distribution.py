"""The real module trees of both kernels."""

from __future__ import annotations

import pytest

from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.index import ModuleIndex
from kodojo.kmod.modinfo import read_modinfo
from kodojo.kmod.modprobe import lookup, modprobe_quietly, resolve

pytestmark = pytest.mark.kernel

NOTHING = ModprobeConfig()


@pytest.fixture
def index(image):
    return ModuleIndex.of(image)


@pytest.mark.x86_64("it has a driver of its own for the checksum")
def test_the_driver_for_the_processor_comes_first(index):
    """As depmod -b and modprobe -R of kmod 30 have it."""
    candidates = [candidate.name for candidate in lookup(index, NOTHING, "crypto-crc32c")]
    assert candidates == ["crc32c_intel", "crc32c_generic"]


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("fs-ext4", ["ext4"]),
        ("pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", ["e1000e"]),
        ("symbol:jbd2_journal_destroy", ["jbd2"]),
        ("snd-hda-intel", ["snd_hda_intel"]),
        ("no-such-module", []),
    ],
)
def test_names_lead_where_kmod_has_them_lead(index, name, modules):
    assert [candidate.name for candidate in lookup(index, NOTHING, name)] == modules


@pytest.mark.x86_64("it has a driver of its own for the checksum")
def test_ext4_brings_what_kmod_would_bring_in_that_order(index):
    names = [action.name for action in resolve(index, NOTHING, "ext4")]
    assert names == ["crc32c_intel", "crc32c_generic", "jbd2", "mbcache", "crc16", "ext4"]


def test_dependencies_agree_with_what_the_modules_say(index, image):
    """Ours come from the symbols; the build has left its own list in each module's .modinfo."""
    for name in index.names[::97]:
        said = {
            d.replace("-", "_") for v in read_modinfo(index.path(name)).values("depends") for d in v.split(",") if d
        }
        assert said <= set(index.dependencies(name)), name


def test_a_module_of_the_distribution_tells_its_signer_if_it_has_one(index):
    info = read_modinfo(index.path("ext4"))
    assert info.values("license") == ["GPL"]
    assert info.values("sig_id") in ([], ["PKCS#7"])
    if info.values("sig_id"):
        assert info.values("sig_hashalgo") == ["sha256"]
        assert info.values("signer")[0]


def test_a_request_loads_the_modules_into_the_real_kernel(index, kernel):
    loaded = lambda name: any(module.name == name for module in kernel.modules)  # noqa: E731
    insmod = lambda path, options: kernel.insmod(path, *([options] if options else []))  # noqa: E731
    assert modprobe_quietly(index, NOTHING, "fs-vfat", loaded, insmod) == 0
    assert {"vfat", "fat"} <= {module.name for module in kernel.modules}
