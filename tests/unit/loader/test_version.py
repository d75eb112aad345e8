import pytest

from kodojo.errors import LoadError, MissingInformationError
from kodojo.image.exports import Export
from kodojo.loader.target import Module
from kodojo.loader.version import check_modstruct_version, check_version, same_magic, try_to_force_load
from tests.support.elf_writer import module_writer, versions
from tests.support.stages import EARLY, lines, paper_target, rewritten

LAYOUT = Export("module_layout", 0xFFFFFFFF81000000, 0xDEADBEEF, gpl=False, namespace=None)
FORCED = 1 << 1


def scene(content, *, flags=0, **options):
    """A module whose __versions has these bytes, on a kernel with a checksum for module_layout."""
    writer = module_writer(name="real", info={"name": "shown"}, crcs={})
    writer.section("__versions").data = content
    target = paper_target(EARLY, LAYOUT, **options)
    mod, info = rewritten(target, writer, flags=flags)
    return target, mod, info


def test_equal():
    """Equal checksums are fine, and nothing is printed."""
    target, mod, info = scene(versions({"a": 1, "b": 0xFFFFFFFF}))
    assert check_version(target, info, mod, b"a", 1)
    assert check_version(target, info, mod, b"b", 0xFFFFFFFF)
    assert target.log == []
    assert target.taints == 0


def test_other():
    """A symbol with another checksum, and one without: a line each, with the name from .modinfo."""
    target, mod, info = scene(versions({"a": 1}))
    assert not check_version(target, info, mod, b"a", 2)
    assert not check_version(target, info, mod, b"b", 2)
    assert lines(target) == [
        (4, "shown: disagrees about version of symbol a"),
        (4, "shown: no symbol version for b"),
    ]


def test_first_entry_counts():
    """Of two entries with the same name only the first is looked at."""
    target, mod, info = scene(versions({"a": 1}) + versions({"a": 2}))
    assert check_version(target, info, mod, b"a", 1)
    assert not check_version(target, info, mod, b"a", 2)


def test_high_half():
    """The checksum in the file has 64 bits, and the upper half must be zero."""
    target, mod, info = scene(versions({"a": 1 << 32 | 1}))
    assert not check_version(target, info, mod, b"a", 1)


def test_names_are_c_strings():
    """A name ends at its first NUL, or goes on after its 56 bytes, into the next checksum."""
    dirty = (1).to_bytes(8, "little") + b"a\0rubbish".ljust(56, b"\0")
    long = (2).to_bytes(8, "little") + b"x" * 56
    follower = b"yz" + bytes(6) + bytes(56)
    target, mod, info = scene(dirty + long + follower)
    assert check_version(target, info, mod, b"a", 1)
    assert check_version(target, info, mod, b"x" * 56 + b"yz", 2)
    assert not check_version(target, info, mod, b"x" * 56, 2)


def test_rest_of_an_entry():
    """What is left behind the last whole entry is ignored."""
    target, mod, info = scene(versions({"a": 1, "b": 1})[:-1])
    assert check_version(target, info, mod, b"a", 1)
    assert not check_version(target, info, mod, b"b", 1)


def test_exporter_without_checksum():
    """Without a checksum on the other side there is nothing to compare."""
    target, mod, info = scene(b"")
    assert check_version(target, info, mod, b"a", None)
    assert not check_version(target, info, mod, b"a", 0)


def test_kernel_without_modversions():
    """A kernel without CONFIG_MODVERSIONS compares nothing."""
    target, mod, info = scene(b"", MODVERSIONS="n")
    assert check_version(target, info, mod, b"a", 1)
    check_modstruct_version(target, mod, info)
    assert target.log == []


def test_forced():
    """Told to ignore checksums, the kernel names the symbol once and is tainted, and so is the module."""
    target, mod, info = scene(versions({"a": 1}), flags=1)
    assert check_version(target, info, mod, b"a", 2)
    assert check_version(target, info, mod, b"b", 2)
    assert lines(target) == [
        (4, "real: a: kernel tainted."),
        (4, "Disabling lock debugging due to kernel taint"),
    ]
    assert target.taints == mod.taints == FORCED


def test_force_not_built_in():
    """Without CONFIG_MODULE_FORCE_LOAD the answer is no, without a word."""
    target = paper_target(MODULE_FORCE_LOAD="n")
    mod = Module("m")
    assert not try_to_force_load(target, mod, "bad vermagic")
    assert target.log == []
    assert mod.taints == 0


def test_modstruct():
    """module_layout decides whether struct module is the same: ENOEXEC if not."""
    target, mod, info = scene(versions({"module_layout": 0xDEADBEEF}))
    check_modstruct_version(target, mod, info)
    assert target.log == []
    for content, line in (
        (versions({"module_layout": 1}), "shown: disagrees about version of symbol module_layout"),
        (b"", "shown: no symbol version for module_layout"),
    ):
        target, mod, info = scene(content)
        with pytest.raises(LoadError) as caught:
            check_modstruct_version(target, mod, info)
        assert (caught.value.errno, caught.value.slug) == (8, "module-layout-crc")
        assert lines(target) == [(4, line)]


def test_no_module_layout():
    """A kernel that exports no module_layout is no kernel that the loader can judge by."""
    target, mod, info = scene(b"")
    target.image.exports = type(target.image.exports)(())
    with pytest.raises(MissingInformationError):
        check_modstruct_version(target, mod, info)


@pytest.mark.parametrize(
    ("ours", "theirs", "with_crcs", "without"),
    [
        (b"6.1 SMP ", b"6.1 SMP ", True, True),
        (b"6.2 SMP ", b"6.1 SMP ", True, False),
        (b"6.1 SMP", b"6.1 SMP ", False, False),
        (b"6.1 UP ", b"6.1 SMP ", False, False),
        (b" SMP ", b"6.1 SMP ", True, False),
        (b"6.1", b"6.2", True, False),
        (b"", b"6.1 SMP ", False, False),
    ],
)
def test_same_magic(ours, theirs, with_crcs, without):
    """With checksums everything before the first blank is skipped; the rest has to be identical."""
    assert same_magic(ours, theirs, has_crcs=True) == with_crcs
    assert same_magic(ours, theirs, has_crcs=False) == without
