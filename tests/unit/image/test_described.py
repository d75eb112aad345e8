import pickle

import pytest

from kodojo.errors import ImageError, InputError, MissingInformationError
from kodojo.image.architecture import ARCHITECTURES
from kodojo.image.described import reading
from kodojo.image.image import Image
from tests.support.headers import CONFIG, RELEASE, SYMVERS, write_headers
from tests.support.kernel_file import BASE, KernelWriter, bzimage, small_kernel
from tests.support.kernel_file import RELEASE as KERNEL_RELEASE

VERMAGIC = f"{RELEASE} SMP preempt mod_unload modversions "
COUNTED = b"Only one .modinfo section must exist."
ZSMALLOC = "0x00000007\tzs_compact\tmm/zsmalloc\tEXPORT_SYMBOL_GPL\t\n"
SPLIT = b"Invalid ELF section name table type"


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))


@pytest.fixture
def tree(tmp_path):
    return write_headers(tmp_path / f"linux-headers-{RELEASE}")


def check(image):
    """What a complete headers tree tells."""
    assert (image.kind, image.release, image.architecture, image.vermagic) == ("headers", RELEASE, "x86_64", VERMAGIC)
    assert image.warnings == ()
    assert image.describes == {"release", "architecture", "vermagic", "config", "exports", "module exports"}
    assert image.config.enabled("MODVERSIONS")
    assert image.exports.find("only_gpl", gplok=False) is None
    assert image.exports.find("in_space").namespace == "SPACE"
    assert image.exports.find("mii_link") is None
    assert [export.name for export in image.module_exports.of_owner("drivers/net/mii-lib")] == ["mii_link"]
    assert image.module_exports.find("usb_register_driver").crc == 5
    assert len(image.modules) == 0
    assert "sha256" in image.oids
    assert "sha384" not in image.oids


def test_tree(tree):
    """A headers tree gives release, architecture, version magic, configuration, and all exports with their owners."""
    check(Image.open(tree))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=str)
def test_architecture(tmp_path, architecture):
    """A described kernel has the name of its architecture that uname would say, whatever the build called it."""
    config = "".join(f"CONFIG_{option}=y\n" for option in architecture.options)
    for number, name in enumerate((architecture.name, *architecture.aliases)):
        built = {".config": config, "include/generated/compile.h": f'#define UTS_MACHINE "{name}"\n'}
        image = Image.open(write_headers(tmp_path / str(number), built | {"include/config/auto.conf": None}))
        assert image.architecture == architecture.name
        assert not [warning for warning in image.warnings if "compile.h" in warning]


def test_symvers_by_path(tree):
    """Module.symvers stands for the tree around it."""
    check(Image.open(tree / "Module.symvers"))


@pytest.mark.parametrize(
    "place",
    ["usr/src/linux-headers-x", "usr/src/kernels/x", "lib/modules/x/build", "usr/lib/modules/x/build", "build"],
)
def test_unpacked(tmp_path, place):
    """Headers are found where packages of distributions have them."""
    write_headers(tmp_path / "root" / place)
    check(Image.open(tmp_path / "root"))


def test_halves(tmp_path):
    """The headers that flavours share are found by the Makefile that includes theirs."""
    shared = {"include/linux/module.h": None, "include/linux/oid_registry.h": None}
    own = tmp_path / "usr/src/linux-headers-6.1.0-amd64"
    write_headers(own, shared | {"Makefile": "include /usr/src/linux-headers-6.1.0-common/Makefile\n"})
    write_headers(tmp_path / "usr/src/linux-headers-6.1.0-common", {"Module.symvers": None})
    image = Image.open(tmp_path)
    check(image)
    assert not image.has_text(COUNTED)


def test_several(tmp_path):
    """Headers of two kernels in one directory are an error that names both."""
    for flavour in ("a", "b"):
        write_headers(tmp_path / "usr/src" / flavour)
    with pytest.raises(InputError, match=r"several.*src/a.*src/b"):
        Image.open(tmp_path)


def test_pickle(tree):
    """A description survives pickling."""
    image = Image.open(tree)
    check(pickle.loads(pickle.dumps(image)))


def test_opened_again(tree, monkeypatch):
    """The second opening parses nothing; a change of any file is noticed."""
    first = Image.open(tree)
    monkeypatch.setattr(reading, "parse_symvers", lambda *_: pytest.fail("parsed again"))
    check(Image.open(tree))
    monkeypatch.undo()
    (tree / "include/generated/utsrelease.h").write_text('#define UTS_RELEASE "6.1.0-other"\n')
    changed = Image.open(tree)
    assert (first.release, changed.release) == (RELEASE, "6.1.0-other")
    assert changed.identity != first.identity


@pytest.mark.parametrize("name", ["exports", "facts"])
def test_damaged_index(tree, name):
    """What is damaged in the index is made anew."""
    index = Image.open(tree).index_directory
    (index / name).write_bytes(b"garbage")
    check(Image.open(tree))


def test_invented_addresses(tree):
    """Every export has an address of its own, in reach of relocations; none is a real one."""
    image = Image.open(tree)
    addresses = [export.address for table in (image.exports, image.module_exports) for export in table]
    assert len(set(addresses)) == len(addresses) == 7
    assert all(0xFFFFFFFF80000000 <= address < 0xFFFFFFFFC0000000 for address in addresses)


@pytest.mark.parametrize(
    "attribute", ["elf", "segments", "entry", "setup_header", "kallsyms", "btf", "keyring", "banner"]
)
def test_only_described(tree, attribute):
    """What only the kernel itself could tell is an error that says what to do."""
    image = Image.open(tree)
    with pytest.raises(MissingInformationError) as caught:
        getattr(image, attribute)
    assert f"linux-image-{RELEASE}" in caught.value.hint


def test_symvers_alone(tmp_path):
    """Module.symvers alone tells exports and nothing else, and says so."""
    (tmp_path / "Module.symvers").write_text(SYMVERS)
    image = Image.open(tmp_path)
    assert image.describes == {"exports", "module exports"}
    assert len(image.warnings) == 2
    assert len(image.exports) == 5
    for attribute in ("release", "architecture", "vermagic", "config"):
        with pytest.raises(MissingInformationError):
            getattr(image, attribute)


def test_release_of_directory(tmp_path):
    """The name of the directory is good enough for a release, and not for version magic."""
    image = Image.open(write_headers(tmp_path / f"linux-headers-{RELEASE}", UNGENERATED))
    assert image.release == RELEASE
    assert "vermagic" not in image.describes
    assert any("version magic cannot be compared" in warning for warning in image.warnings)


UNGENERATED = {"include/generated/utsrelease.h": None, "include/config/kernel.release": None}


def test_auto_conf_alone(tmp_path):
    """Without .config, what the build made of it does."""
    check(Image.open(write_headers(tmp_path / "tree", {".config": None})))


# -- the messages of a kernel that is not there -----------------------------------------------------------


def test_messages_of_old_headers(tree):
    """Headers without the companions of later messages show that the kernel has none of those messages."""
    image = Image.open(tree)
    assert not image.has_text(COUNTED)
    assert not image.has_text(SPLIT)
    assert image.has_text(b"%s: loading test module taints kernel.")
    with pytest.raises(MissingInformationError, match="anything else"):
        image.has_text(b"anything else")


def test_messages_of_new_headers(tmp_path):
    """A companion of a message shows that the kernel has it; of a later message nothing is known."""
    tree = write_headers(tmp_path / "tree", {"include/linux/module.h": "enum mod_mem_type {\n\tMOD_TEXT = 0,\n};\n"})
    image = Image.open(tree)
    assert image.has_text(COUNTED)
    with pytest.raises(MissingInformationError):
        image.has_text(SPLIT)


def test_messages_of_sources(tmp_path):
    """In a build tree the kernel's own source answers, literals that are broken across lines included."""
    source = {"kernel/module/main.c": 'pr_err("Invalid ELF section "\n\t\t"name table type: %u\\n", type);\n'}
    new = {"include/linux/module.h": "enum mod_mem_type {\n};\n"}
    image = Image.open(write_headers(tmp_path / "tree", source | new))
    assert image.has_text(SPLIT)
    assert not image.has_text(b"anything else")
    assert "messages" in image.describes


# -- build trees with a kernel, and files that look like one ------------------------------------------------


def test_build_tree(tmp_path):
    """A build tree with its kernel is a whole image."""
    tree = write_headers(tmp_path / "tree")
    (tree / "vmlinux").write_bytes(small_kernel())
    image = Image.open(tree)
    assert image.kind == "kernel"
    assert image.exports.find("printk").address == BASE + 0x3010
    assert image.config.get("CONFIG_LOCALVERSION") == "-test"
    assert "module exports" in image.describes
    assert image.module_exports.find("mii_link").owner == "drivers/net/mii-lib"
    assert any(f"of release {KERNEL_RELEASE}, but" in warning for warning in image.warnings)
    same = {"include/generated/utsrelease.h": f'#define UTS_RELEASE "{KERNEL_RELEASE}"\n'}
    write_headers(tree, same)
    assert not any("of release" in warning for warning in Image.open(tree).warnings)


def test_boot_directory_first(tmp_path):
    """An unpacked root with a kernel and its headers is a whole image, too."""
    root = write_headers(tmp_path / "root/usr/src/linux-headers-x").parents[2]
    (root / "boot").mkdir()
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage(small_kernel()))
    assert Image.open(root).kind == "kernel"


def test_vmlinux_of_types(tmp_path):
    """The vmlinux without code that headers packages bring is no kernel, but has the types."""
    tree = write_headers(tmp_path / "tree")
    writer = KernelWriter()
    writer.add(".BTF", TYPES)
    (tree / "vmlinux").write_bytes(writer.elf())
    image = Image.open(tree)
    assert image.kind == "headers"
    assert "types" in image.describes
    assert image.btf.struct("module").size == 896


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"garbage" * 100])
def test_vmlinux_that_is_none(tmp_path, content):
    """A vmlinux that is empty or garbage is refused by its name, not silently left out."""
    tree = write_headers(tmp_path / "tree")
    (tree / "vmlinux").write_bytes(content)
    with pytest.raises(ImageError, match="vmlinux"):
        Image.open(tree)


def _types():
    """BTF with ``struct module { }`` of 896 bytes."""
    strings = b"\0module\0"
    record = (1).to_bytes(4, "little") + (4 << 24).to_bytes(4, "little") + (896).to_bytes(4, "little")
    lengths = [24, 0, len(record), len(record), len(strings)]
    header = b"\x9f\xeb\x01\x00" + b"".join(value.to_bytes(4, "little") for value in lengths)
    return header + record + strings


TYPES = _types()


# -- contradictions ---------------------------------------------------------------------------------------

ELSEWHERE = CONFIG.replace("CONFIG_USB=m", "CONFIG_USB=y")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"include/config/kernel.release": "6.6.2-test\n"}, "kernel.release says 6.6.2-test"),
        ({".config": CONFIG.replace("6.1.7", "5.10.3")}, "made for Linux 5.10.3"),
        ({".config": CONFIG.replace('"-test"', '"-other"')}, "CONFIG_LOCALVERSION=-other"),
        ({"include/generated/compile.h": '#define UTS_MACHINE "aarch64"\n'}, "compile.h is of a build for aarch64"),
        ({".config": CONFIG.replace("X86_64", "MIPS")}, "no architecture"),
        ({".config": CONFIG + "CONFIG_LIVEPATCH=y\n"}, "1 options from auto.conf (CONFIG_LIVEPATCH)"),
        ({".config": ELSEWHERE}, "usb_register_driver is exported by drivers/usb/core/usbcore and CONFIG_USB is y"),
        (
            {"Module.symvers": SYMVERS + ZSMALLOC},
            "zs_compact is exported by mm/zsmalloc and CONFIG_ZSMALLOC is not set",
        ),
        ({"Module.symvers": "".join(SYMVERS.splitlines(keepends=True)[:5])}, "only vmlinux was built"),
        ({"Module.symvers": "".join(SYMVERS.splitlines(keepends=True)[5:])}, "vmlinux was not built"),
        ({".config": CONFIG.replace("CONFIG_MODVERSIONS=y\n", "")}, "the configuration has no CONFIG_MODVERSIONS"),
    ],
)
def test_contradiction(tmp_path, changes, words):
    """Parts that do not belong together are said so, in words that name both sides."""
    image = Image.open(write_headers(tmp_path / "tree", changes))
    assert [warning for warning in image.warnings if words in warning]


def test_no_checksums(tmp_path):
    """A Module.symvers without checksums beside CONFIG_MODVERSIONS=y is said so."""
    lines = [f"0x00000000{line[10:]}" for line in SYMVERS.splitlines(keepends=True)]
    image = Image.open(write_headers(tmp_path / "tree", {"Module.symvers": "".join(lines)}))
    (warning,) = image.warnings
    assert "no checksums" in warning


def test_cut_off(tmp_path):
    """A Module.symvers that was cut off is refused, with the line."""
    tree = write_headers(tmp_path / "tree", {"Module.symvers": SYMVERS[:-30]})
    with pytest.raises(ImageError, match=r"Module\.symvers:7: cut off"):
        Image.open(tree)


def test_giant_config(tmp_path):
    """A giant file in place of a small one is refused before it is read."""
    tree = write_headers(tmp_path / "tree")
    with (tree / ".config").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="too large"):
        Image.open(tree)
