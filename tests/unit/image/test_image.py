import gzip
import os
import pickle
import shutil
import subprocess
import sys

import pytest

from kodojo.errors import ImageError, InputError, MissingInformationError, StoreError
from kodojo.image import vmlinuz as vmlinuz_module
from kodojo.image.image import Image
from tests.support.kernel_file import (
    BANNER,
    BASE,
    BUILD_ID,
    RELEASE,
    VERMAGIC,
    KernelWriter,
    bzimage,
    small_kernel,
)


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("KODOJO_STORE", str(tmp_path / "store"))


@pytest.fixture
def root(tmp_path):
    """An unpacked package."""
    root = tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    (root / f"lib/modules/{RELEASE}/kernel").mkdir(parents=True)
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage(gzip.compress(small_kernel())))
    (root / f"boot/config-{RELEASE}").write_text("CONFIG_SMP=y\n")
    (root / f"lib/modules/{RELEASE}/kernel/dummy.ko").write_bytes(KernelWriter().elf())
    return root


def no_extraction(monkeypatch):
    def refuse(*_):
        raise AssertionError("decompressed again")

    monkeypatch.setattr(vmlinuz_module, "extract", refuse)


def index_of(tmp_path):
    (directory,) = (path for path in (tmp_path / "store/index").iterdir() if path.name != "by-path")
    return directory


def check(image):
    """Everything that a small kernel says."""
    assert image.release == RELEASE
    assert image.banner == BANNER
    assert image.vermagic == VERMAGIC
    assert image.build_id == BUILD_ID.hex()
    assert image.kallsyms.address("printk") == BASE + 0x3010
    assert image.exports.find("printk").crc == 0xDEADBEEF
    assert image.exports.find("sym_7").namespace == "SPACE"
    assert image.entry == 0x1000000
    assert len(image.identity) == 64
    (segment,) = image.segments
    assert bytes(image.segment_data(segment)[:4]) == b"\x90" * 4


def test_directory(root):
    """An unpacked package gives the kernel, its configuration and its modules."""
    image = Image.open(root)
    check(image)
    assert image.architecture == "x86_64"
    assert image.config.enabled("SMP")
    assert image.modules["dummy"].path == root / f"lib/modules/{RELEASE}/kernel/dummy.ko"
    assert image.setup_header[0x202 - 0x1F1 :][:4] == b"HdrS"
    assert repr(image) == f"<Image {RELEASE}>"


@pytest.mark.parametrize("form", [str, lambda path: path])
def test_vmlinuz(root, form):
    """A kernel by path gives the same, with what lies beside it."""
    path = root / f"boot/vmlinuz-{RELEASE}"
    image = Image.open(form(path))
    check(image)
    assert image.path == path
    assert image.config.enabled("SMP")
    assert "dummy" in image.modules


def test_from_files(root, tmp_path):
    """A bare vmlinux with its modules given takes those; its setup header is empty."""
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(small_kernel())
    image = Image.from_files(vmlinux, modules=root, index_directory=tmp_path / "index")
    check(image)
    assert image.setup_header == b""
    assert "dummy" in image.modules
    assert (tmp_path / "index/vmlinux").read_bytes() == small_kernel()
    assert not (tmp_path / "store").exists()
    assert image.config_path is None
    assert image.config.enabled("SMP") == ("SMP" in image.vermagic)
    assert list(Image.from_files(vmlinux, index_directory=tmp_path / "index").modules) == []


def test_embedded_config(tmp_path):
    """Without a config file, the configuration inside the kernel counts."""
    vmlinux = tmp_path / "vmlinux"
    inside = b"IKCFG_ST" + gzip.compress(b"CONFIG_HZ=1000\n") + b"IKCFG_ED"
    vmlinux.write_bytes(small_kernel().replace(b"\x90" * len(inside), inside, 1))
    assert Image.open(vmlinux).config["CONFIG_HZ"] == "1000"


def test_second_opening(root, monkeypatch):
    """The second opening decompresses nothing, whether by directory or by path."""
    check(Image.open(root))
    no_extraction(monkeypatch)
    check(Image.open(root))
    check(Image.open(str(root)))
    check(Image.open(root / f"boot/vmlinuz-{RELEASE}"))


def test_copied_kernel(root, tmp_path, monkeypatch):
    """The content decides: a copy elsewhere, or a newer time, uses the same index."""
    check(Image.open(root))
    no_extraction(monkeypatch)
    shutil.copytree(root, tmp_path / "copy")
    check(Image.open(tmp_path / "copy"))
    os.utime(root / f"boot/vmlinuz-{RELEASE}", ns=(5, 5))
    check(Image.open(root))


@pytest.mark.parametrize("own_directory", [False, True])
def test_changed_kernel(root, tmp_path, own_directory):
    """Another kernel at the same path is noticed."""
    index = tmp_path / "index" if own_directory else None
    assert Image.from_directory(root, index).release == RELEASE
    other = small_kernel().replace(RELEASE.encode(), b"9.8.8-test")
    (root / f"boot/vmlinuz-{RELEASE}").write_bytes(bzimage(gzip.compress(other)))
    assert Image.from_directory(root, index).release == "9.8.8-test"


@pytest.mark.parametrize("name", ["facts", "kallsyms", "vmlinux"])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "header", "other"])
def test_damaged_index(root, tmp_path, name, damage):
    """Whatever of the index is absent, short, or no such file, is made anew."""
    check(Image.open(root))
    path = index_of(tmp_path) / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "short":
        path.write_bytes(whole[:-100])
    elif damage == "header":
        path.write_bytes(whole[:20] + b"#" + whole[21:] + (b"x" if name == "vmlinux" else b""))
    else:
        path.write_bytes(b"kodojo arrays 2 something else entirely\n" * 50)
    check(Image.open(root))
    assert path.read_bytes() == whole


def test_foreign_arrays(root, tmp_path):
    """Arrays that are whole but belong to something else are made anew."""
    check(Image.open(root))
    index = index_of(tmp_path)
    shutil.copy(index / "facts", index / "kallsyms")
    check(Image.open(root))


def test_garbage_directory(root, tmp_path):
    """A directory that should be the index and is not, is replaced."""
    index = tmp_path / "index"
    index.mkdir()
    (index / "vmlinux").mkdir()
    check(Image.from_directory(root, index))
    assert sorted(path.name for path in index.iterdir()) == ["exports", "facts", "kallsyms", "source", "vmlinux"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "root"]


def test_concurrent_openings(root):
    """Processes that open the same kernel for the first time at once all get it."""
    code = "import sys; from kodojo.image.image import Image; i = Image.open(sys.argv[1]); print(len(i.kallsyms))"
    command = [sys.executable, "-c", code, str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [process.communicate()[0] for process in processes]
    assert len(set(outputs)) == 1
    assert int(outputs[0]) > 600


def test_unwritable(root, tmp_path):
    """An index that cannot be written is an error of the store, which names the place."""
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="store"):
        Image.open(root)


def test_pickle(root, monkeypatch):
    """A pickled image is the same image, and its index is used."""
    image = Image.open(root)
    check(image)
    no_extraction(monkeypatch)
    check(pickle.loads(pickle.dumps(image)))


def test_has_text(root):
    """Texts are looked for in the read-only data, not in the code."""
    image = Image.open(root)
    assert image.has_text(b"only in rodata")
    assert not image.has_text(b"\x90\x90\x90\x90")
    assert not image.has_text(b"never written")


def test_has_text_is_kept(root, monkeypatch):
    """What was found out about a text is found in the index by the next opening, and no answer is another's."""
    for text in (b"only in rodata", b"never written"):
        Image.open(root).has_text(text)
    monkeypatch.setattr(Image, "_text_areas", property(lambda _: pytest.fail("searched again")))
    again = Image.open(root)
    assert again.has_text(b"only in rodata")
    assert not again.has_text(b"never written")
    monkeypatch.undo()
    monkeypatch.setattr("kodojo.image.image.crc32", lambda _text: 0)
    assert Image.open(root).has_text(b"only in rodata")
    assert not Image.open(root).has_text(b"never written")
    assert Image.open(root).has_text(b"only in rodata")


def test_no_headers(tmp_path):
    """A vmlinux without section headers tells as much, but for its build id."""
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(small_kernel(headers=False))
    image = Image.open(vmlinux)
    assert (image.release, image.vermagic) == (RELEASE, VERMAGIC)
    assert image.exports.find("gpl_only").gpl
    assert image.has_text(b"only in rodata")
    assert image.build_id == ""


def test_no_kallsyms(tmp_path):
    """A kernel without kallsyms opens; only what needs them is refused."""
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(small_kernel(kallsyms=False))
    image = Image.open(vmlinux)
    assert image.exports.find("printk").crc == 0xDEADBEEF
    with pytest.raises(MissingInformationError, match="no symbol table"):
        _ = image.kallsyms
    with pytest.raises(MissingInformationError, match=r"types \(BTF\)|symbol table"):
        _ = image.btf


def test_refusals(tmp_path):
    """What is no kernel is refused at once: text, an ELF file that is no Linux, an empty directory, nothing."""
    file = tmp_path / "file"
    file.write_text("no kernel")
    with pytest.raises(ImageError, match="not a kernel"):
        Image.open(file)
    file.write_bytes(KernelWriter().elf())
    with pytest.raises(ImageError, match="not a Linux kernel"):
        Image.open(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no kernel"):
        Image.open(tmp_path / "empty")
    for absent in (tmp_path / "absent", str(tmp_path / "absent"), "absent.deb"):
        with pytest.raises(InputError, match="no such file or directory"):
            Image.open(absent)
    with pytest.raises(InputError, match="cannot be read"):
        _ = Image.from_files(tmp_path / "absent").release
    assert not (tmp_path / "store").exists()


@pytest.mark.kernel
@pytest.mark.x86_64("elsewhere kallsyms lists no data")
def test_real_vermagic(image):
    """The vermagic found is the string that the kernel's own symbol of that name points to."""
    assert image.elf.string(image.kallsyms.address("vermagic")).decode() == image.vermagic
    assert image.vermagic.startswith(image.release + " ")


@pytest.mark.kernel
def test_real_texts(image):
    """Messages of the loader are found in a real kernel, others are not."""
    assert image.has_text(b"version magic '%s' should be '%s'")
    assert not image.has_text(b"version magic '%s' could be '%s'")


@pytest.mark.kernel
def test_real_parts(image):
    """A real kernel has types and trusted keys, on x86-64 its setup header, and is the configuration's."""
    assert image.setup_header[0x202 - 0x1F1 :][:4] == (b"HdrS" if image.architecture == "x86_64" else b"")
    assert image.btf.struct("module").offset("name") == 24
    assert len(image.keyring) >= 1
    assert image.config.enabled("MODULES")
    assert len(image.build_id) == 40
