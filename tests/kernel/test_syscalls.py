"""The bare system calls by our loader beside the kernel's own: the same values, and the same words in the log."""

from __future__ import annotations

import lzma
import os
import re

import pytest

from kodojo.errors import LoadError, UnloadError
from kodojo.kernel.kernel import Kernel
from tests.kernel.looking import tainted
from tests.support.paper_modules import module_for

pytestmark = pytest.mark.kernel

EPERM, ENOENT, ENOEXEC, EBADF, EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST = 1, 2, 8, 9, 11, 12, 14, 16, 17
EINVAL, ETXTBSY, EOPNOTSUPP, EKEYREJECTED = 22, 26, 95, 129
IGNORE_MODVERSIONS, IGNORE_VERMAGIC, COMPRESSED = 1, 2, 4
FORCED_LOAD = 1
UNMAPPED = (0, 16, 0x10000, 0x7FFFFFFFF000, 0xFFFFFFFF81000000, 1 << 63)


def mapping_at_its_end(kernel: Kernel, data: bytes) -> int:
    """Address of ``data`` at the very end of a page that no other page follows."""
    user = kernel.user
    page = user.allocate(8192)
    user.checked("memory", "munmap", page + 4096, 4096)
    kernel.memory.write(page + 4096 - len(data), data)
    return page + 4096 - len(data)


# -- init_module ---------------------------------------------------------------------------------------------
def test_init_module(both, noinit):
    """A module is loaded, and a second time refused."""
    assert both(lambda calls: calls.init(noinit)) == 0
    assert both(lambda calls: calls.init(noinit)) == -EEXIST
    assert [module.name for module in both.ours.kernel.modules] == ["kd_noinit"]


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 1000, -1000, -1])
def test_truncated_image(both, noinit, length):
    """Images that are shorter than a header, or than the sections they speak of, are no modules."""
    assert both(lambda calls: calls.init(noinit[:length])) == -ENOEXEC


def test_image_that_is_no_module(both):
    """Zeros, text and a program are no modules."""
    for data in (bytes(64), bytes(5000), b"#!/bin/sh\n" * 20, b"\x7fELF" + bytes(100), os.urandom(300)):
        assert both(lambda calls, data=data: calls.init(data)) == -ENOEXEC


def test_unmapped_image(both):
    """An image where nothing is mapped, or where the kernel is, gives -EFAULT; too short a length is seen first."""
    for address in UNMAPPED:
        assert both(lambda calls, address=address: calls.init(address, "", 5000)) == -EFAULT
        assert both(lambda calls, address=address: calls.init(address, "", 63)) == -ENOEXEC


def test_length_beyond_the_mapping(both, noinit):
    """A length that runs off the end of the mapping gives -EFAULT, one that reaches to it is fine."""
    rest = -len(noinit) % 4096
    assert both(lambda calls: calls.init(noinit, "", len(noinit) + rest + 1)) == -EFAULT
    assert both(lambda calls: calls.init(noinit, "", len(noinit) + rest)) == 0


@pytest.mark.parametrize("length", [1 << 30, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_absurd_length(both, noinit, length):
    """A length for which there is no memory gives -ENOMEM, whatever is at the address."""
    assert both(lambda calls: calls.init(noinit, "", length)) == -ENOMEM
    assert both(lambda calls: calls.init(0, "", length)) == -ENOMEM


def test_unreadable_arguments(both, noinit):
    """An argument pointer that cannot be read gives -EFAULT, and the module is gone."""
    for address in UNMAPPED:
        assert both(lambda calls, address=address: calls.init(noinit, address)) == -EFAULT
        assert both.ours.kernel.modules == []
    assert both(lambda calls: calls.init(noinit)) == 0


def test_arguments_are_read_late(both, built, noinit):
    """What is wrong with the image or its symbols is found before the arguments are looked at."""
    assert both(lambda calls: calls.init(noinit[:-1000], 0)) == -ENOEXEC
    assert both(lambda calls: calls.init(built["kd_unknown"].read_bytes(), 0)) == -ENOENT
    assert both(lambda calls: calls.init(built["kd_fail"].read_bytes(), 0)) == -EFAULT


def test_arguments_at_the_end_of_a_mapping(both, noinit):
    """Arguments end with a NUL that must be readable too."""
    for kernel in both.kernels:
        assert mapping_at_its_end(kernel, b"number=5") > 0

    def load(calls, data):
        return calls.init(noinit, mapping_at_its_end(calls.kernel, data))

    assert both(lambda calls: load(calls, b"number=5")) == -EFAULT
    assert both(lambda calls: load(calls, b"number=5\0")) == 0
    assert both.ours.kernel.modules[0].parameters == {"number": "5"}


def test_long_arguments(both, noinit):
    """Arguments may be as long as the kernel has memory for."""
    args = "number=1 " * 100 + " " * 200000 + "number=7"
    assert both(lambda calls: calls.init(noinit, args)) == 0
    assert both.ours.kernel.modules[0].parameters == {"number": "7"}


def test_init_error_is_the_value(both, built):
    """The errno of a failing init is the value of the system call."""
    fail = built["kd_fail"].read_bytes()
    assert both(lambda calls: calls.init(fail, "error=5")) == -5
    assert both(lambda calls: calls.init(fail, "error=0")) == 0


# -- finit_module --------------------------------------------------------------------------------------------
def test_finit_module(both, built):
    """A module is loaded from a file with its arguments, and a second time refused."""
    assert both(lambda calls: calls.finit(built["kd_noinit"], "number=9")) == 0
    assert both.ours.kernel.modules[0].parameters == {"number": "9"}
    assert both(lambda calls: calls.finit(built["kd_noinit"])) == -EEXIST


@pytest.mark.parametrize("fd", [-1, -2, 12345, (1 << 31) - 1])
def test_bad_descriptor(both, fd):
    """A number that is no open file gives -EBADF."""
    assert both(lambda calls: calls.finit_descriptor(fd)) == -EBADF


def test_closed_descriptor(kernel, built):
    """A descriptor that was closed is none any more."""
    descriptor = os.open(built["kd_noinit"], os.O_RDONLY)
    os.close(descriptor)
    assert kernel.finit_module(descriptor) == -EBADF


@pytest.mark.parametrize(
    ("mode", "errno"),
    [(os.O_WRONLY, EBADF), (os.O_RDWR, ETXTBSY), (os.O_PATH, EBADF), (os.O_WRONLY | os.O_APPEND, EBADF)],
)
def test_open_mode(both, noinit, tmp_path, mode, errno):
    """The file must be open for reading, and not for writing."""
    file = tmp_path / "kd_noinit.ko"
    file.write_bytes(noinit)
    assert both(lambda calls: calls.finit(file, "", 0, mode)) == -errno


def test_somebody_writes(kernel, noinit, tmp_path):
    """While another descriptor may write to the file it is busy; afterwards it is not."""
    file = tmp_path / "kd_noinit.ko"
    file.write_bytes(noinit)
    reader = os.open(file, os.O_RDONLY)
    with file.open("r+b"):
        assert kernel.finit_module(reader) == -ETXTBSY
    assert kernel.finit_module(reader) == 0
    os.close(reader)


def test_directory_and_empty_file(both, tmp_path):
    """A directory is no module, nor is a file without content."""
    assert both(lambda calls: calls.finit(tmp_path)) == -EINVAL
    empty = tmp_path / "empty"
    empty.touch()
    assert both(lambda calls: calls.finit(empty)) == -EINVAL


def test_pipe_and_device(kernel):
    """Only regular files are read."""
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    assert kernel.finit_module(reader) == -EINVAL
    assert kernel.finit_module(null) == -EINVAL
    assert kernel.finit_module(writer) == -EBADF
    for descriptor in (reader, writer, null):
        os.close(descriptor)


def test_short_file(both, noinit, tmp_path):
    """What is in the file is judged as what is in memory."""
    file = tmp_path / "short.ko"
    for length in (1, 63, 64, 1000):
        file.write_bytes(noinit[:length])
        assert both(lambda calls: calls.finit(file)) == -ENOEXEC


def test_position_and_name_do_not_matter(kernel, noinit, tmp_path):
    """The whole file is read wherever the descriptor stands and whatever has become of its name."""
    file = tmp_path / "kd_noinit.ko"
    file.write_bytes(noinit)
    descriptor = os.open(file, os.O_RDONLY)
    file.unlink()
    os.lseek(descriptor, 100, os.SEEK_SET)
    assert kernel.finit_module(descriptor) == 0
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 100
    os.close(descriptor)


@pytest.mark.parametrize("flags", [8, 15, 0x100, 0x80000000, -1])
def test_unknown_flags(both, built, flags):
    """Flags that do not exist are refused before the descriptor is looked at."""
    assert both(lambda calls: calls.finit(built["kd_noinit"], "", flags)) == -EINVAL
    assert both(lambda calls: calls.finit_descriptor(-1, flags)) == -EINVAL


def other_vermagic(data: bytes) -> bytes:
    vermagic = re.findall(rb"\0vermagic=[^\0 ]+ SMP [^\0]+\0", data)
    assert len(vermagic) == 1
    return data.replace(vermagic[0], vermagic[0].replace(b" SMP ", b" smp "))


def other_crc(data: bytes, image) -> bytes:
    """The CRC of module_layout turned over wherever it occurs."""
    crc = image.exports.get("module_layout").crc.to_bytes(4, "little")
    assert crc in data
    return data.replace(crc, bytes(255 - byte for byte in crc))


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_ignored_vermagic(both, noinit, tmp_path, flags):
    """A module for another kernel loads with flag 2 only, by force."""
    file = tmp_path / "other.ko"
    file.write_bytes(other_vermagic(noinit))
    loads = bool(flags & IGNORE_VERMAGIC)
    assert both(lambda calls: calls.finit(file, "", flags)) == (0 if loads else -ENOEXEC)
    assert (FORCED_LOAD in tainted(both.ours.kernel)) == bool(flags)  # flag 1 is obeyed before vermagic is compared
    assert any("version magic" in text for _, text in both.ours.log) != loads


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_ignored_symbol_versions(both, noinit, image, tmp_path, flags):
    """A module whose symbols had other types loads with flag 1 only, by force."""
    file = tmp_path / "other.ko"
    file.write_bytes(other_crc(noinit, image))
    loads = bool(flags & IGNORE_MODVERSIONS)
    assert both(lambda calls: calls.finit(file, "", flags)) == (0 if loads else -ENOEXEC)
    assert (FORCED_LOAD in tainted(both.ours.kernel)) == loads


def test_flags_on_a_good_module(both, built):
    """Flags 1 and 2 force even where nothing had to be forced."""
    for flags in (1, 2, 3):
        assert both(lambda calls, flags=flags: calls.finit(built["kd_noinit"], "", flags)) == 0
        assert both(lambda calls: calls.delete("kd_noinit")) == 0


def test_compressed_file(both, noinit, image, tmp_path):
    """Flag 4: the kernel decompresses where it was built for it, and says -EOPNOTSUPP where not."""
    packed, plain, damaged = tmp_path / "kd_noinit.ko.xz", tmp_path / "kd_noinit.ko", tmp_path / "damaged.ko.xz"
    data = lzma.compress(noinit, check=lzma.CHECK_CRC32)
    packed.write_bytes(data)
    plain.write_bytes(noinit)
    damaged.write_bytes(data[:-100])
    possible = image.config.enabled("MODULE_DECOMPRESS") and image.config.enabled("MODULE_COMPRESS_XZ")
    assert both(lambda calls: calls.finit(packed, "number=4", COMPRESSED)) == (0 if possible else -EOPNOTSUPP)
    assert both(lambda calls: calls.finit(packed)) == -ENOEXEC
    assert both(lambda calls: calls.finit(plain, "", COMPRESSED)) == (-EINVAL if possible else -EOPNOTSUPP)
    assert both(lambda calls: calls.finit(damaged, "", COMPRESSED)) == (-EINVAL if possible else -EOPNOTSUPP)
    assert len(both.ours.kernel.modules) == possible


# -- delete_module -------------------------------------------------------------------------------------------
def test_delete_unknown_name(both):
    """A name that no module has, none at all, or one that is too long gives -ENOENT."""
    for name in ("kd_nothing", "", "x" * 54, "x" * 55, "x" * 56, "x" * 57, "x" * 5000, b"\xff\n "):
        assert both(lambda calls, name=name: calls.delete(name)) == -ENOENT


def test_delete_unreadable_name(both):
    """A name that cannot be read gives -EFAULT."""
    for address in UNMAPPED:
        assert both(lambda calls, address=address: calls.delete(address)) == -EFAULT


def test_delete_by_address(both, noinit):
    """The name may be anywhere in user space; it ends at its NUL, or where it is too long, or it cannot be read."""

    def delete(calls, data):
        return calls.delete(mapping_at_its_end(calls.kernel, data))

    both(lambda calls: calls.init(noinit))
    assert both(lambda calls: delete(calls, b"kd_noinit")) == -EFAULT
    assert both(lambda calls: delete(calls, b"x" * 54)) == -EFAULT
    assert both(lambda calls: delete(calls, b"x" * 60)) == -ENOENT
    assert both(lambda calls: delete(calls, b"kd_noinit\0")) == 0


@pytest.mark.parametrize("flags", [0, 0o4000, 0xFFFFFFFF])
def test_delete_flags(both, noinit, flags):
    """Whatever the flags, a module that nobody uses is removed, and is unknown afterwards."""
    both(lambda calls: calls.init(noinit))
    assert both(lambda calls: calls.delete("kd_noinit", flags)) == 0
    assert both(lambda calls: calls.delete("kd_noinit", flags)) == -ENOENT


@pytest.mark.parametrize("flags", [0, 0o5000])
def test_delete_what_is_used(both, built, flags):
    """A module that another one needs stays, by force too; one without exit goes by force."""
    for name in ("kd_export", "kd_import", "kd_noexit"):
        both.settle()
        assert both(lambda calls, name=name: calls.init(built[name].read_bytes())) == 0
    assert both(lambda calls: calls.delete("kd_export", flags)) == -EAGAIN
    assert both(lambda calls: calls.delete("kd_noexit", flags)) == (0 if flags & 0o1000 else -EBUSY)


def long_module(image, name: str) -> bytes:
    return module_for(image, name=name).build()


def test_delete_longest_name(both, image):
    """The longest name has 55 bytes."""
    data = long_module(image, 55 * "n")
    assert both(lambda calls: calls.init(data)) == 0
    assert both(lambda calls: calls.delete(54 * "n")) == -ENOENT
    longer = both(lambda calls: calls.delete(56 * "n"))  # some kernels cut it, others refuse it
    assert longer in (0, -ENOENT)
    assert both(lambda calls: calls.delete(55 * "n")) == (0 if longer else -ENOENT)


# -- who may -------------------------------------------------------------------------------------------------
def every_call(built, errno: int):
    """Each of the three calls, with arguments that are wrong in other ways too."""
    noinit = built["kd_noinit"]
    return [
        lambda calls: calls.init(noinit.read_bytes()),
        lambda calls: calls.init(0, 0, 0),
        lambda calls: calls.finit_descriptor(-1),
        lambda calls: calls.finit_descriptor(-1, 0x100),
        lambda calls: calls.delete("kd_proc"),
        lambda calls: calls.delete(0),
    ]


def test_without_capabilities(both, built, noinit):
    """Without CAP_SYS_MODULE every call gives -EPERM, whatever else is wrong; afterwards all is as before."""
    both(lambda calls: calls.init(built["kd_proc"].read_bytes()))
    ours, native = both.kernels
    with ours.as_user(capabilities=()), native.as_user(capabilities=()):
        for call in every_call(built, EPERM):
            assert (call(both.ours), call(both.native)) == (-EPERM, -EPERM)
        with built["kd_noinit"].open("rb") as file:
            assert ours.finit_module(file.fileno()) == -EPERM
        with pytest.raises(LoadError) as refusal:
            ours.insmod(built["kd_noinit"])
        assert (refusal.value.errno, refusal.value.slug) == (EPERM, "no-capability")
        with pytest.raises(UnloadError) as refusal:
            ours.rmmod("kd_proc")
        assert refusal.value.errno == EPERM
    assert both(lambda calls: calls.init(noinit)) == 0


ALL_BUT_MODULE = [number for number in range(41) if number != 16]


@pytest.mark.parametrize(("uid", "capabilities"), [(0, ()), (0, ALL_BUT_MODULE), (1000, ALL_BUT_MODULE)])
def test_other_capabilities_do_not_help(kernel, noinit, uid, capabilities):
    """It is the capability that counts, not the user id, and no other one will do."""
    with kernel.as_user(uid, uid, capabilities):
        assert kernel.init_module(noinit) == -EPERM
        assert kernel.user.syscall("init_module", 0, 0, 0) == -EPERM


@pytest.mark.parametrize("capability", ["CAP_SYS_MODULE", "sys_module", 16])
def test_one_capability_is_enough(both, built, capability):
    """With CAP_SYS_MODULE and nothing else a user loads and removes, in every way."""
    ours, native = both.kernels
    native.write_file("/tmp/module.ko", built["kd_noinit"].read_bytes())
    with ours.as_user(1000, 1000, [capability]):
        assert ours.init_module(built["kd_noinit"].read_bytes()) == 0
        assert ours.delete_module("kd_noinit") == 0
        with built["kd_noinit"].open("rb") as file:
            assert ours.finit_module(file.fileno(), "number=3") == 0
        ours.rmmod("kd_noinit")
        ours.insmod(built["kd_noinit"]).remove()
        assert ours.init_module(b"") == -ENOEXEC
    with native.as_user(1000, 1000, [capability]):
        assert both.native.init(built["kd_noinit"].read_bytes()) == 0
        assert both.native.delete("kd_noinit") == 0


def test_modules_disabled(both, built):
    """Once the sysctl modules_disabled is written nothing is loaded or removed any more, by root either."""
    both(lambda calls: calls.init(built["kd_proc"].read_bytes()))
    for kernel in both.kernels:
        kernel.write_file("/proc/sys/kernel/modules_disabled", b"1")
    for call in every_call(built, EPERM):
        assert both(call) == -EPERM
    with pytest.raises(LoadError) as refusal:
        both.ours.kernel.insmod(built["kd_noinit"])
    assert (refusal.value.errno, refusal.value.slug) == (EPERM, "modules-disabled")
    assert [module.name for module in both.ours.kernel.modules] == ["kd_proc"]


def test_signatures_enforced(both, built, image):
    """Once module.sig_enforce is set our modules are rejected in the kernel's words; signed ones load."""
    for kernel in both.kernels:
        kernel.write_file("/sys/module/module/parameters/sig_enforce", b"1")
    assert both(lambda calls: calls.init(built["kd_noinit"].read_bytes())) == -EKEYREJECTED
    assert [text for _, text in both.ours.log] == ["Loading of unsigned module is rejected"]
    assert both(lambda calls: calls.finit(built["kd_noinit"])) == -EKEYREJECTED
    signed = image.modules["dummy"].read()
    assert both(lambda calls: calls.init(signed[:-1] + b"x")) == -EKEYREJECTED
    assert both(lambda calls: calls.init(signed)) == 0
    assert both.ours.kernel.modules[0].taints == 0
