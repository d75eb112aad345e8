"""Pointers into user space that are good, bad, or good in parts: by our loader and by the kernel's own, the same."""

from __future__ import annotations

import pytest

from kodojo.kernel.kernel import Kernel
from tests.kernel.callers import Calls

pytestmark = pytest.mark.kernel

ENOENT, ENOEXEC, ENOMEM, EFAULT = 2, 8, 12, 14
PAGE = 4096
PROT_NONE, PROT_READ = 0, 1
MAP_PRIVATE_ANONYMOUS_FIXED = 0x32
END_OF_USER_SPACE = 0x7FFFFFFFF000


def mapped(kernel: Kernel, data: bytes) -> int:
    """Address of a copy, in pages of its own."""
    address = kernel.user.allocate(len(data) + PAGE)
    kernel.memory.write(address, data)
    return address


def protect(kernel: Kernel, address: int, protection: int) -> None:
    """Map a page anew at an address: empty, with that protection."""
    arguments = (address, PAGE, protection, MAP_PRIVATE_ANONYMOUS_FIXED, -1, 0)
    assert kernel.user.checked("mmap", "mmap", *arguments) == address


@pytest.mark.parametrize("hole", [0, 1, -1])
def test_hole_in_the_image(both, noinit, hole):
    """A page that is missing anywhere in the image gives -EFAULT."""

    def load(calls: Calls) -> int:
        address = mapped(calls.kernel, noinit)
        page = (hole % (len(noinit) // PAGE)) * PAGE
        calls.kernel.user.checked("munmap", "munmap", address + page, PAGE)
        return calls.init(address, "", len(noinit))

    assert both(load) == -EFAULT


def test_page_that_may_not_be_read(both, noinit):
    """So does one that is there but may not be touched."""

    def load(calls: Calls) -> int:
        address = mapped(calls.kernel, noinit)
        protect(calls.kernel, address + PAGE, PROT_NONE)
        return calls.init(address, "", len(noinit))

    assert both(load) == -EFAULT


def test_page_that_was_never_touched(both):
    """An image that may only be read is fine to look at; this one is all zeros."""

    def load(calls: Calls) -> int:
        address = mapped(calls.kernel, b"")
        protect(calls.kernel, address, PROT_READ)
        return calls.init(address, "", PAGE)

    assert both(load) == -ENOEXEC


@pytest.mark.parametrize("length", [64, PAGE, 1 << 20])
@pytest.mark.parametrize(
    "address", [END_OF_USER_SPACE - 64, END_OF_USER_SPACE, (1 << 64) - 64, (1 << 64) - 1, 1 << 47]
)
def test_end_of_user_space(both, address, length):
    """An image that reaches beyond user space, or around the end of all addresses, is not read."""
    assert both(lambda calls: calls.init(address, "", length)) == -EFAULT


@pytest.mark.parametrize("length", [-1, -64, 1 << 64 | 8, -1 << 63])
def test_length_is_unsigned_long(both, noinit, length):
    """The length has 64 bits and no sign."""
    expected = -ENOEXEC if length & ((1 << 64) - 1) < 64 else -ENOMEM
    assert both(lambda calls: calls.init(noinit, "", length)) == expected


@pytest.mark.parametrize("what", ["arguments", "name"])
def test_text_that_goes_on_where_nothing_is(both, noinit, what):
    """A text is read up to its NUL; that must come before the hole."""

    def call(calls: Calls) -> int:
        address = mapped(calls.kernel, b"\0" * (PAGE - 7) + b"number=")
        calls.kernel.user.checked("munmap", "munmap", address + PAGE, PAGE)
        start = address + PAGE - 7
        return calls.init(noinit, start) if what == "arguments" else calls.delete(start)

    assert both(call) == -EFAULT


@pytest.mark.parametrize("name", [b"kd_noinit\0rest", b"kd_noinit ", b"kd-noinit", b" kd_noinit", b"KD_NOINIT"])
def test_names_are_taken_as_they_are(both, noinit, name):
    """A name ends at its NUL; nothing else about it is changed."""
    both(lambda calls: calls.init(noinit))
    assert both(lambda calls: calls.delete(name)) == (0 if b"\0" in name else -ENOENT)
