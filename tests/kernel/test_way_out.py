"""What the way back to user space does is done after each operation."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.kernel

CONTENT = bytes(range(256)) * 16


def test_a_disk_can_be_removed_at_once(kernel, built):
    """The search for partitions in a driver's init opens the disk; after insmod nobody has it open."""
    module = kernel.insmod(built["kd_disk"])
    assert module.refcount == 0
    kernel.rmmod("kd_disk")
    kernel.insmod(built["kd_disk"], "sectors=64")
    kernel.write_file("/dev/kd_disk", CONTENT)
    assert kernel.read_file("/dev/kd_disk") == CONTENT + bytes(64 * 512 - len(CONTENT))
    kernel.rmmod("kd_disk")


def test_a_file_that_is_given_up_is_closed(kernel, built):
    """The last reference to a file of a module's, dropped by a call in the kernel, is gone after the operation."""
    module = kernel.insmod(built["kd_misc"])
    with kernel.operation():
        descriptor = kernel.files.open("/dev/kd_misc")
        file = kernel.calls("fget", descriptor.fd)
        descriptor.__exit__()
        assert module.refcount == 1
        kernel.calls("fput", file)
    assert module.refcount == 0
