"""Relocations of 32-bit x86."""

import pytest

from kodojo.errors import DamageError
from tests.support.architectures import code_of, kernel, refusal, relocated

R_386_32, R_386_PC32, R_386_GOTPC, R_386_PLT32 = 1, 2, 10, 4


def test_absolute():
    """The value is added to what is there, modulo 2 ** 32."""
    loaded = relocated(kernel("i686"), code_of("i686", 0xFFFFFFFC), R_386_32, 0xC0001000)
    assert loaded.word(".text") == 0xC0000FFC


@pytest.mark.parametrize("kind", [R_386_PC32, R_386_PLT32])
def test_relative(kind):
    """The place is subtracted from the value; branches have -4 as addend."""
    loaded = relocated(kernel("i686"), code_of("i686", 0x90909090, 0xFFFFFFFC), kind, 0x40, offset=4, relative=True)
    assert loaded.word(".text", 4) == 0x40 - 4 - 4
    assert loaded.word(".text") == 0x90909090


def test_relative_to_afar():
    """Every address can be reached."""
    loaded = relocated(kernel("i686"), bytes(4), R_386_PC32, 0x1000)
    assert loaded.word(".text") == (0x1000 - loaded.address(".text")) & 0xFFFFFFFF


def test_unknown_type():
    """All other types are refused."""
    assert refusal(kernel("i686"), bytes(4), R_386_GOTPC, 0) == (
        8, "unknown-relocation", "module: paper: Unknown relocation: 10",
    )  # fmt: skip


def test_outside():
    """A place outside the module's memory would damage the kernel."""
    with pytest.raises(DamageError):
        relocated(kernel("i686"), bytes(4), R_386_32, 0, offset=0x7FFFFFF0)
