"""A driver from outside the kernel's tree: loaded with what it needs, by one call."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kodojo.errors import InputError, LoadError
from kodojo.image.additions import Kind, given_configuration, given_firmware
from kodojo.image.image import Image
from kodojo.kernel.kernel import Kernel
from tests.conftest import shared_store
from tests.kernel.looking import exists, listening

pytestmark = pytest.mark.kernel

FAMILY = ("kd_part", "kd_whole", "kd_request")


def names(kernel: Kernel) -> list[str]:
    """Of the loaded modules, in the order in which they were loaded."""
    return [module.name for module in reversed(kernel.modules)]


@pytest.fixture
def family(built: dict[str, Path], tmp_path: Path) -> Path:
    """A directory with three modules: kd_whole needs kd_part, and crc-itu-t of the kernel's tree."""
    directory = tmp_path / "built"
    directory.mkdir()
    for name in FAMILY:
        shutil.copy(built[name], directory)
    return directory


@pytest.mark.arm64
def test_file_with_what_it_needs(kernel: Kernel, family: Path) -> None:
    """A module that is named by its file brings what it needs from beside it and from the kernel's tree."""
    with listening(kernel) as said:
        module = kernel.modprobe(family / "kd_whole.ko")
    assert (module.name, module.state) == ("kd_whole", "Live")
    assert sorted(names(kernel)[:2]) == ["crc_itu_t", "kd_part"]
    assert names(kernel)[2:] == ["kd_whole"]
    assert said.by("kd_whole")[-1] == "sum=42 crc=31c3"
    assert [step.name for step in module.steps][-1] == "live"


def test_text_with_a_slash_is_a_file(kernel: Kernel, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a text with a slash; a name is looked for in the tree only, and the message says how files are named."""
    monkeypatch.chdir(family)
    assert kernel.fork().modprobe("./kd_whole.ko").name == "kd_whole"
    with pytest.raises(InputError, match=r"kd_whole.ko: Module kd_whole.ko not found") as refusal:
        kernel.modprobe("kd_whole.ko")
    assert refusal.value.hint == "a file is given as a path: ./kd_whole.ko"
    with pytest.raises(InputError, match="kd_whole"):
        kernel.modprobe("kd_whole")
    with pytest.raises(InputError, match="no such file"):
        kernel.modprobe("./kd_nothing.ko")
    assert names(kernel) == []


@pytest.mark.arm64
def test_name_and_alias_at_a_path(kernel: Kernel, family: Path) -> None:
    """With a directory, modules below it are found by name and by alias, and parameters are for the one named."""
    below = family / "deep"
    below.mkdir()
    (family / "kd_part.ko").rename(below / "kd_part.ko")
    fork = kernel.fork()
    with listening(fork) as said:
        assert fork.modprobe("kd-whole", path=family).name == "kd_whole"
    assert said.by("kd_part")[-1] == "bias=1"
    module = kernel.modprobe("kd-family-part", "bias=5", path=family)
    assert (module.name, module.parameters) == ("kd_part", {"bias": "5"})
    with listening(kernel) as said:
        kernel.modprobe("kd_whole", path=str(family))
    assert said.by("kd_whole")[-1] == "sum=46 crc=31c3"


def test_names_of_the_tree(kernel: Kernel) -> None:
    """Names and aliases of the kernel's own tree are loaded with what they need; what is there already is given."""
    assert kernel.modprobe("fs-vfat").name == "vfat"
    assert names(kernel)[-2:] == ["fat", "vfat"]
    again = kernel.modprobe("vfat")
    assert (again.name, again.steps) == ("vfat", ())


def test_options_of_modprobe_d(kernel: Kernel, family: Path, tmp_path: Path) -> None:
    """Options of modprobe.d are for every module of the load, and what is given comes after them."""
    config = tmp_path / "own.conf"
    config.write_text("options kd_part bias=7\noptions kd_request name=\n")
    kernel.modprobe(family / "kd_whole.ko", config=config)
    assert next(module for module in kernel.modules if module.name == "kd_part").parameters == {"bias": "7"}
    kernel.modprobe(family / "kd_request.ko", "name=kd-none", config=config)
    assert kernel.read_file("/sys/module/kd_request/parameters/name") == b"kd-none\n"


@pytest.mark.arm64
def test_request_finds_siblings(kernel: Kernel, family: Path) -> None:
    """What a module asks the kernel for while it is loaded by its file is found beside it; afterwards it is not."""
    fork = kernel.fork()
    with listening(kernel) as said:
        kernel.modprobe(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == "request_module=0"
    assert sorted(names(kernel)) == ["kd_part", "kd_request"]
    with listening(fork) as said:
        fork.modprobe(family / "kd_part.ko")
        fork.rmmod("kd_part")
        fork.insmod(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == f"request_module={1 << 8}"
    fork.rmmod("kd_request")
    with listening(fork) as said, fork.beside(family):
        fork.insmod(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == "request_module=0"


def test_insmod_with_dependencies(kernel: Kernel, family: Path) -> None:
    """insmod can load first what a file needs; the file itself is loaded as insmod does, and so refused if loaded."""
    assert kernel.insmod(family / "kd_whole.ko", with_dependencies=True).name == "kd_whole"
    assert sorted(names(kernel)) == ["crc_itu_t", "kd_part", "kd_whole"]
    with pytest.raises(LoadError) as refusal:
        kernel.insmod(family / "kd_whole.ko", with_dependencies=True)
    assert refusal.value.errno == 17
    with pytest.raises(InputError, match="bytes"):
        kernel.insmod((family / "kd_whole.ko").read_bytes(), with_dependencies=True)


@pytest.mark.arm64
def test_refusal_names_who_exports(kernel: Kernel, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal for missing symbols names the modules that export them, and commands that load them."""
    monkeypatch.chdir(family)
    with pytest.raises(LoadError) as refusal:
        kernel.insmod("kd_whole.ko")
    assert {detail.subject for detail in refusal.value.refusal.details} == {"crc_itu_t", "kd_part_sum"}
    assert refusal.value.hint == (
        "Load crc_itu_t and kd_part first, which export them:"
        " kodojo modprobe crc_itu_t, kodojo modprobe ./kd_part.ko. Or all at once: kodojo modprobe ./kd_whole.ko."
    )
    kernel.modprobe("crc-itu-t")
    with pytest.raises(LoadError) as refusal:
        kernel.insmod((family / "kd_whole.ko").read_bytes())
    assert "kd_part" not in refusal.value.hint  # nothing is known of where the bytes come from
    (family / "kd_part.ko").unlink()
    with pytest.raises(LoadError) as refusal:
        kernel.modprobe("./kd_whole.ko")
    assert "kd_part, which is neither in the kernel's tree nor beside the file" in refusal.value.hint


def test_refusal_of_a_dependency(kernel: Kernel, family: Path) -> None:
    """When the kernel refuses a module that another one needs, the error is that refusal, and names its file."""
    data = (family / "kd_part.ko").read_bytes()
    (family / "kd_part.ko").write_bytes(data.replace(b" SMP preempt", b" SMQ preempt"))
    with pytest.raises(LoadError) as refusal:
        kernel.modprobe(family / "kd_whole.ko")
    assert (refusal.value.file, refusal.value.slug) == (str(family / "kd_part.ko"), "vermagic-mismatch")
    assert "kd_whole" not in names(kernel)


def test_module_that_is_built_in(kernel: Kernel) -> None:
    """What is built into the kernel cannot be given as a module."""
    with pytest.raises(InputError, match="built into"):
        kernel.modprobe(min(kernel.image.builtin))


@pytest.fixture
def furnished(image: Image, tmp_path: Path) -> Kernel:
    """A kernel to which a person has added configuration and firmware."""
    assert image.config_path is not None
    own = Image.from_files(
        image.path, image.modules.root, image.config_path, image.index_directory, tmp_path / "additions"
    )
    (tmp_path / "own.conf").write_text("alias kd-family-part fat\noptions kd_part bias=9\n")
    (tmp_path / "firmware/kd").mkdir(parents=True)
    (tmp_path / "firmware/kd/blob.bin").write_bytes(bytes(range(1, 5)) * 100_000)
    own.additions.install(
        [*given_configuration(Kind.MODPROBE_D, [tmp_path / "own.conf"]), *given_firmware([tmp_path / "firmware"])]
    )
    return Kernel.boot(own, store=shared_store())


@pytest.mark.arm64
def test_installed_modprobe_d(furnished: Kernel, family: Path) -> None:
    """A modprobe.d that was installed for the kernel counts for modprobe, and for what the kernel asks for itself."""
    furnished.modprobe(family / "kd_part.ko")
    assert furnished.read_file("/sys/module/kd_part/parameters/bias") == b"9\n"
    with listening(furnished) as said:
        furnished.insmod(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == "request_module=0"
    assert "fat" in names(furnished)


@pytest.mark.arm64
def test_installed_firmware(furnished: Kernel, kernel: Kernel, built: dict[str, Path]) -> None:
    """Firmware that was installed is there for the driver; the kernel without has none, and boots just the same."""
    assert (furnished.log, furnished.time) == (kernel.log, kernel.time)
    with listening(kernel) as said:
        kernel.insmod(built["kd_firmware"])
    assert said.by("kd_firmware")[-1] == "error=-2"
    assert not exists(kernel, "/lib/firmware")
    with listening(furnished) as said:
        furnished.insmod(built["kd_firmware"])
    assert said.by("kd_firmware")[-1] == f"size=400000 sum={10 * 100_000}"


def test_firmware_that_changes(furnished: Kernel, built: dict[str, Path], tmp_path: Path) -> None:
    """A file that is installed anew is written anew, by whoever loads the next module."""
    furnished.insmod(built["kd_firmware"])
    furnished.rmmod("kd_firmware")
    (tmp_path / "firmware/kd/blob.bin").write_bytes(b"\x07")
    furnished.image.additions.install(given_firmware([tmp_path / "firmware"]))
    with listening(furnished) as said, furnished.as_user(capabilities=["CAP_SYS_MODULE"]):
        furnished.insmod(built["kd_firmware"])
    assert said.by("kd_firmware")[-1] == "size=1 sum=7"


def test_kernel_without_a_tree(image: Image, family: Path, tmp_path: Path) -> None:
    """A kernel that came without modules has a modprobe only while there are files for it to find."""
    assert image.config_path is not None
    bare = Image.from_files(image.path, None, image.config_path, image.index_directory, tmp_path / "additions")
    kernel = Kernel.boot(bare, store=shared_store())
    with listening(kernel) as said:
        kernel.modprobe(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == "request_module=0"
    kernel.rmmod("kd_request")
    with listening(kernel) as said:
        kernel.insmod(family / "kd_request.ko", "name=kd-family-part")
    assert said.by("kd_request")[-1] == "request_module=-2"
