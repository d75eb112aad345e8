"""Loading and removing by force: what kmod asks the kernel for, beside the kernel's own system calls."""

from __future__ import annotations

import lzma

import pytest

from kodojo.errors import LoadError, UnloadError
from tests.kernel.looking import listening, tainted
from tests.kernel.test_syscalls import other_crc, other_vermagic

pytestmark = pytest.mark.kernel

FORCED_LOAD, FORCED_UNLOAD = 1, 3
ENOEXEC, EAGAIN = 8, 11
O_TRUNC, O_NONBLOCK = 0o1000, 0o4000


@pytest.mark.parametrize("packed", ["plain", "xz", "bytes"])
@pytest.mark.parametrize(("modversion", "vermagic"), [(False, False), (True, False), (False, True), (True, True)])
def test_what_is_forced_is_what_the_flags_force(both, noinit, image, tmp_path, packed, modversion, vermagic):
    """For a module that user space unpacks its facts are taken out: errno, log and taints are those of the flags."""
    data = other_crc(other_vermagic(noinit), image)
    plain = tmp_path / "kd_noinit.ko"
    plain.write_bytes(data)
    file = data if packed == "bytes" else plain
    if packed == "xz":
        file = tmp_path / "kd_noinit.ko.xz"
        file.write_bytes(lzma.compress(data, check=lzma.CHECK_CRC32))
    flags = (1 if modversion else 0) | (2 if vermagic else 0)
    ours, native = both.kernels
    with listening(ours) as said:
        try:
            ours.insmod(file, force_modversion=modversion, force_vermagic=vermagic)
        except LoadError as error:
            errno = error.errno
        else:
            errno = 0
    assert errno == -both.native.finit(plain, "", flags) == (0 if flags == 3 else ENOEXEC)
    assert [(record.level, record.text) for record in said.records] == both.native.log
    assert tainted(ours) == tainted(native)
    assert (FORCED_LOAD in tainted(ours)) == modversion  # the versions are compared first


def test_rmmod_by_force(both, built):
    """Somebody holds the module: it stays, but for rmmod -f, which taints; as the kernel's own delete_module."""
    ours, native = both.kernels
    assert both(lambda calls: calls.init(built["kd_hello"].read_bytes())) == 0
    for kernel in both.kernels:
        (module,) = kernel.modules
        assert kernel.call("try_module_get", module.address)
    with pytest.raises(UnloadError) as failure:
        ours.rmmod("kd_hello")
    assert failure.value.errno == EAGAIN == -both.native.delete("kd_hello", O_NONBLOCK)
    with listening(ours) as said:
        ours.rmmod("kd_hello", force=True)
    assert both.native.delete("kd_hello", O_NONBLOCK | O_TRUNC) == 0
    assert [(record.level, record.text) for record in said.records] == both.native.log
    assert tainted(ours) == tainted(native)
    assert FORCED_UNLOAD in tainted(ours)
    assert ours.modules == [] == native.modules
