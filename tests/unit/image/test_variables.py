from __future__ import annotations

import struct

import pytest

from kodojo.image.variables import Call, Load, events, find_variables, index_arrays, variables_in
from tests.conftest import image_of

AT = 0xFFFF_8000_0001_0000


def told(*words: int) -> list[Call | Load]:
    return list(events(struct.pack(f"<{len(words)}I", *words), AT))


def test_addresses():
    """ADRP and ADD make an address, a move carries it on, and a call is told with it."""
    (call,) = told(
        0xB0000000,  # adrp x0, AT + 0x1000
        0x91004000,  # add x0, x0, #0x10
        0xAA0003E1,  # mov x1, x0
        0x94000040,  # bl . + 0x100
    )
    assert call == Call(AT + 12 + 0x100, (AT + 0x1010, AT + 0x1010, *[None] * 6))


def test_loads():
    """A load from a known address is told, and the register that holds its value is known as such."""
    load, call = told(
        0xB0000000,  # adrp x0, AT + 0x1000
        0xF9400401,  # ldr x1, [x0, #8]
        0x94000040,  # bl
    )
    assert load == Load(AT + 0x1008)
    assert isinstance(call, Call)
    assert call.arguments[:2] == (AT + 0x1000, Load(AT + 0x1008))


def test_pair():
    """A load of two registers is told by its address."""
    assert told(0xB0000000, 0xA9410801) == [Load(AT + 0x1010)]  # ldp x1, x2, [x0, #16]


def test_calls_clobber():
    """What a function may change is not known behind its call; what it must keep, is."""
    _, second = told(
        0xB0000000,  # adrp x0, AT + 0x1000
        0xB0000013,  # adrp x19, AT + 0x1000
        0x94000040,  # bl
        0xAA1303E1,  # mov x1, x19
        0x94000040,  # bl
    )
    assert isinstance(second, Call)
    assert second.arguments[:2] == (None, AT + 0x1000)


def test_stores_keep():
    """A store leaves the register that it stores as it is."""
    (call,) = told(0xB0000000, 0xF90003E0, 0x94000040)  # adrp x0; str x0, [sp]; bl
    assert isinstance(call, Call)
    assert call.arguments[0] == AT + 0x1000


def test_block_behind_a_return():
    """A block behind a return begins with what was known at the jump to it, not at the return."""
    (call,) = told(
        0xB0000013,  # adrp x19, AT + 0x1000
        0xB4000060,  # cbz x0, . + 12
        0xD2800013,  # mov x19, #0
        0xD65F03C0,  # ret
        0xAA1303E0,  # mov x0, x19
        0x94000040,  # bl
    )
    assert isinstance(call, Call)
    assert call.arguments[0] == AT + 0x1000


def test_jump_out_is_a_call():
    """A jump out of the function is its last call; one inside is none."""
    assert [event.target for event in told(0x14000001, 0x17FFFFF0) if isinstance(event, Call)] == [AT + 4 - 0x40]


def test_arrays():
    """Variables are kept as arrays and come back."""
    variables = {"prb": AT, "modules": (1 << 64) - 8}
    assert variables_in(index_arrays(variables)) == variables


@pytest.mark.kernel
def test_against_a_kernel_that_lists_them():
    """In a kernel whose symbol table has the variables, what is read off its code are those."""
    image = image_of("6.12-arm64")
    found = find_variables(image.elf, image.kallsyms, image.exports, image.btf)
    assert {"modules", "module_mutex", "prb", "tainted_mask", "mod_tree", "modprobe_path"} <= set(found)
    assert found == {name: image.kallsyms.address(name) for name in found}
