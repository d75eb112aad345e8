"""The kernel's BTF, from types written here and from distribution kernels."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from kodojo.errors import ImageError, MissingInformationError
from kodojo.image.btf import Btf, Field, Parameter

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
FUNC, FUNC_PROTO, TYPE_TAG, ENUM64 = 12, 13, 18, 19
SIGNED = 1


class Writer:
    """Writes BTF; each method returns the id of the type that it adds."""

    def __init__(self):
        self.strings = bytearray(b"\0")
        self.types = []

    def name(self, text):
        if not text:
            return 0
        found = self.strings.find(b"\0" + text.encode() + b"\0")
        if found < 0:
            found = len(self.strings) - 1
            self.strings += text.encode() + b"\0"
        return found + 1

    def add(self, kind, name="", value=0, words=(), vlen=0, flag=False):
        info = vlen | kind << 24 | flag << 31
        self.types.append(struct.pack(f"<{3 + len(words)}I", self.name(name), info, value, *words))
        return len(self.types)

    def int(self, name, size, encoding=0, bits=None, offset=0):
        return self.add(INT, name, size, [encoding << 24 | offset << 16 | (size * 8 if bits is None else bits)])

    def array(self, element, count):
        return self.add(ARRAY, words=[element, 0, count])

    def struct(self, name, size, *members, kind=STRUCT, flag=False):
        """Members are (name, type, bit offset), with flag also the size of a bit-field."""
        words = []
        for member_name, type_id, bits, *bit_size in members:
            words += [self.name(member_name), type_id, bits | (bit_size[0] << 24 if bit_size else 0)]
        return self.add(kind, name, size, words, len(members), flag)

    def enum(self, name, *items, kind=ENUM, flag=False, size=4):
        words = []
        for item, value in items:
            words += [self.name(item), value & 0xFFFFFFFF]
            if kind == ENUM64:
                words.append(value >> 32 & 0xFFFFFFFF)
        return self.add(kind, name, size, words, len(items), flag)

    def function(self, name, returns, *parameters):
        words = [word for text, type_id in parameters for word in (self.name(text), type_id)]
        return self.add(FUNC, name, self.add(FUNC_PROTO, "", returns, words, len(parameters)))

    def bytes(self):
        types = b"".join(self.types)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + bytes(self.strings)


def example():
    """A small kernel: ``struct module`` with everything that paths can go through."""
    writer = Writer()
    integer = writer.int("int", 4, SIGNED)
    char = writer.int("char", 1)
    void_pointer = writer.add(PTR)
    region = writer.struct("module_memory", 16, ("base", void_pointer, 0), ("size", integer, 64))
    inner = writer.struct("", 8, ("first", integer, 0), ("second", integer, 32))
    union = writer.struct("", 8, ("", inner, 0), ("whole", void_pointer, 0), kind=UNION)
    memory_type = writer.add(TYPEDEF, "memory_t", region)
    constant = writer.add(CONST, "", memory_type)
    writer.struct(
        "module",
        200,
        ("state", writer.enum("module_state", ("LIVE", 0), ("COMING", 1)), 0),
        ("name", writer.array(char, 56), 32),
        ("mem", writer.array(constant, 7), 64 * 8),
        ("", union, 176 * 8),
        ("tail", writer.array(integer, 0), 184 * 8),
    )
    writer.add(TYPEDEF, "atomic_t", writer.struct("", 4, ("counter", integer, 0)))
    writer.enum("negative", ("MINUS", -4), ("PLUS", 7), flag=True)
    writer.enum("wide", ("HUGE", 1 << 40), kind=ENUM64, size=8)
    writer.enum("", ("ANONYMOUS", 0xFFFFFFFF))
    writer.function("printk", integer, ("fmt", writer.add(PTR, "", writer.add(CONST, "", char))), ("", 0))
    writer.function("nothing", 0)
    return writer.bytes()


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("state", 0),
        ("name", 4),
        ("name[55]", 59),
        ("mem", 64),
        ("mem[0].base", 64),
        ("mem[3].size", 64 + 3 * 16 + 8),
        ("first", 176),
        ("second", 180),
        ("whole", 176),
        ("tail[9]", 184 + 36),
    ],
)
def test_offset_follows_paths_as_c_does(path, offset):
    """A path goes through members, array elements, typedefs and anonymous members."""
    assert Btf(example()).struct("module").offset(path) == offset


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nope",
        "mem.base",
        "mem[7]",
        "name[56]",
        "state.x",
        "whole.x",
        "mem[1]base",
        ".state",
        "mem[-1]",
        "state ",
    ],
)
def test_a_path_that_leads_nowhere_is_missing_information(path):
    """A path that C would not compile is not there, and asking for its offset says so."""
    module = Btf(example()).struct("module")
    assert not module.has(path)
    with pytest.raises(MissingInformationError):
        module.offset(path)


def test_field_describes_the_value():
    """A field carries size, type, signedness and the number of elements."""
    module = Btf(example()).struct("module")
    assert module.size == 200
    assert module.field("second") == Field(180, 4, 0, 0, "int", signed=True, kind="int")
    assert module.field("mem") == Field(64, 112, 0, 0, "const memory_t[7]", kind="array", count=7)
    assert module.field("mem[2]") == Field(96, 16, 0, 0, "const memory_t", kind="struct")


def test_members_are_the_direct_ones():
    """An anonymous member is listed with an empty name."""
    members = Btf(example()).struct("module").members
    assert [(member.name, member.offset) for member in members] == [
        ("state", 0),
        ("name", 4),
        ("mem", 64),
        ("", 176),
        ("tail", 184),
    ]


def test_a_typedef_of_an_anonymous_struct_is_found_by_its_name():
    """``atomic_t`` is a struct to whoever asks for it."""
    assert Btf(example()).struct("atomic_t").offset("counter") == 0


def test_an_unknown_struct_is_missing_information():
    """There is no struct of that name, nor is a function or an enum one."""
    btf = Btf(example())
    for name in ("nope", "printk", "module_state", ""):
        assert not btf.has(name)
        with pytest.raises(MissingInformationError):
            btf.struct(name)


def test_names_with_equal_hashes_are_told_apart():
    """The index is by CRC-32, and these two words share one."""
    writer = Writer()
    writer.struct("plumless", 1)
    writer.struct("buckeroo", 2)
    btf = Btf(writer.bytes())
    assert (btf.struct("plumless").size, btf.struct("buckeroo").size) == (1, 2)


@pytest.mark.parametrize("flag", [True, False])
def test_bit_fields(flag):
    """A bit-field has the unit that holds it, both with the flag of its struct and in the older form."""
    writer = Writer()
    if flag:
        unsigned = writer.int("unsigned int", 4)
        members = [("low", unsigned, 32, 3), ("high", unsigned, 60, 4), ("plain", unsigned, 64, 0)]
    else:
        low = writer.int("unsigned int", 4, bits=3)
        high = writer.int("unsigned int", 4, bits=4, offset=4)
        members = [("low", low, 32), ("high", high, 56), ("plain", writer.int("unsigned int", 4), 64)]
    writer.struct("bits", 12, *members, flag=flag)
    bits = Btf(writer.bytes()).struct("bits")
    places = [
        (field.offset, field.size, field.bit_offset, field.bit_size)
        for field in map(bits.field, ("low", "high", "plain"))
    ]
    assert places == [(4, 4, 0, 3), (4, 4, 28, 4), (8, 4, 0, 0)]


def test_a_packed_bit_field_may_straddle_its_unit():
    """Such a field is described by the bytes that it touches."""
    writer = Writer()
    byte = writer.int("unsigned char", 1)
    writer.struct("packed", 2, ("a", byte, 0, 5), ("b", byte, 5, 6), flag=True)
    field = Btf(writer.bytes()).struct("packed").field("b")
    assert (field.offset, field.size, field.bit_offset, field.bit_size) == (0, 2, 5, 6)


def test_enumerators():
    """Constants are signed if the enum is, may have 64 bits, and are found without their enum's name."""
    btf = Btf(example())
    assert btf.enumerators("module_state") == {"LIVE": 0, "COMING": 1}
    assert btf.enumerators("negative") == {"MINUS": -4, "PLUS": 7}
    found = {name: btf.enumerator(name) for name in ("MINUS", "HUGE", "ANONYMOUS", "COMING", "nope")}
    assert found == {"MINUS": -4, "HUGE": 1 << 40, "ANONYMOUS": 0xFFFFFFFF, "COMING": 1, "nope": None}
    with pytest.raises(MissingInformationError):
        btf.enumerators("module")


def test_function_prototypes():
    """A prototype has types as in C; an ellipsis is no parameter."""
    btf = Btf(example())
    printk = btf.function("printk")
    assert printk.variadic
    assert printk.returns == Parameter("", "int", "int", 4, signed=True)
    assert printk.parameters == (Parameter("fmt", "const char *", "pointer", 8, signed=False),)
    nothing = btf.function("nothing")
    assert (nothing.returns.kind, nothing.parameters, nothing.variadic) == ("void", (), False)
    assert btf.function("module") is None


def _pointer_to(writer, *kinds):
    """Apply kinds to ``struct list_head`` from the inside out."""
    type_id = writer.struct("list_head", 16)
    for kind in kinds:
        type_id = writer.array(type_id, 3) if kind == ARRAY else writer.add(kind, "", type_id)
    return type_id


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ((), "struct list_head"),
        ((PTR,), "struct list_head *"),
        ((CONST, PTR), "const struct list_head *"),
        ((PTR, CONST), "struct list_head *const"),
        ((CONST, PTR, CONST, PTR), "const struct list_head *const *"),
        ((TYPE_TAG, PTR), "struct list_head *"),
        ((ARRAY,), "struct list_head[3]"),
        ((PTR, ARRAY), "struct list_head *[3]"),
        ((ARRAY, PTR), "struct list_head (*)[3]"),
        ((VOLATILE, ARRAY), "volatile struct list_head[3]"),
        ((PTR, FUNC_PROTO, PTR), "struct list_head *(*)(...)"),
    ],
)
def test_types_are_spelled_as_in_c(kinds, text):
    """The declarator stands where C puts it."""
    writer = Writer()
    writer.struct("holder", 8, ("member", _pointer_to(writer, *kinds), 0))
    assert Btf(writer.bytes()).struct("holder").field("member").type_name == text


def test_the_index_can_be_kept():
    """A second opening with the arrays of the first answers alike."""
    data = example()
    first = Btf(data)
    second = Btf(memoryview(data), {name: array.copy() for name, array in first.index_arrays().items()})
    assert second.struct("module").field("mem[3].base") == first.struct("module").field("mem[3].base")
    assert second.function("printk") == first.function("printk")
    assert second.enumerator("HUGE") == first.enumerator("HUGE")


def test_a_foreign_index_is_refused():
    """Arrays that belong to other data, or are none, are an image error."""
    writer = Writer()
    writer.int("int", 4)
    foreign = Btf(writer.bytes()).index_arrays()
    damaged = dict(foreign, positions=foreign["positions"].astype(np.float64))
    for index in (foreign, damaged, {}):
        with pytest.raises(ImageError):
            Btf(example(), index)


def use_everything(btf):
    for name in ("module", "atomic_t", "module_memory"):
        if btf.has(name):
            found = btf.struct(name)
            assert found.members is not None
            for path in ("mem[3].base", "second", "name[3]", "counter", "tail[1]"):
                found.has(path)
    for name in ("MINUS", "HUGE", "nope"):
        btf.enumerator(name)
    for name in ("printk", "nothing"):
        btf.function(name)


@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x80FFFFFF, 0x0A000000, 7])
def test_damage_is_an_image_error(value):
    """Whatever word is overwritten: an answer or an image error, never anything else."""
    data = example()
    refused = 0
    for position in range(0, len(data) - 3, 4):
        damaged = data[:position] + struct.pack("<I", value) + data[position + 4 :]
        try:
            use_everything(Btf(damaged))
        except ImageError:
            refused += 1
    assert refused


def test_truncation_is_an_image_error():
    """A file that ends early is refused at once, wherever it ends."""
    data = example()
    for size in range(len(data)):
        with pytest.raises(ImageError):
            Btf(data[:size])


def test_types_that_contain_themselves_are_an_image_error():
    """A typedef of itself and an array of itself end in an error, not in a loop."""
    writer = Writer()
    writer.add(TYPEDEF, "loop", 1)
    writer.array(2, 3)
    writer.struct("holder", 8, ("typedef", 1, 0), ("array", 2, 0))
    holder = Btf(writer.bytes()).struct("holder")
    for path in ("typedef", "array"):
        with pytest.raises(ImageError):
            holder.field(path)


def test_a_struct_that_contains_itself_has_no_unknown_members():
    """The search for a member goes into each anonymous struct once."""
    writer = Writer()
    writer.struct("holder", 8, ("", 1, 0), ("", 2, 0), ("here", 2, 32))
    writer.struct("", 8, ("", 1, 0), ("", 2, 0))
    holder = Btf(writer.bytes()).struct("holder")
    assert holder.has("here")
    assert not holder.has("gone")


@pytest.mark.kernel
@pytest.mark.x86_64("the offsets were read off those kernels")
def test_struct_module_of_distribution_kernels(image):
    """Offsets that were read off both kernels by other means."""
    module = image.btf.struct("module")
    common = {
        "state": 0,
        "list": 8,
        "name": 24,
        "mkobj": 80,
        "mkobj.kobj.name": 80,
        "syms": 208,
        "num_syms": 224,
        "kp": 264,
        "num_gpl_syms": 276,
        "sig_ok": 297,
        "extable": 304,
        "init": 312,
    }
    layouts = {
        896: {"core_layout.base": 320, "init_layout": 400, "arch": 480, "taints": 504, "args": 600}
        | {"percpu": 608, "source_list": 816, "target_list": 832, "exit": 848, "refcnt": 856},
        1280: {"mem": 320, "mem[3].base": 320 + 3 * 72, "arch": 824, "taints": 848, "args": 944}
        | {"percpu": 952, "source_list": 1168, "target_list": 1184, "exit": 1200, "refcnt": 1208},
    }
    expected = common | layouts[module.size]
    assert {path: module.offset(path) for path in expected} == expected


@pytest.mark.kernel
def test_prototypes_and_constants_of_distribution_kernels(image):
    """What the loader needs of a kernel's functions and enums is there."""
    assert image.btf.enumerator("MODULE_STATE_COMING") == 1
    assert image.btf.enumerator("PERF_EVENT_STATE_DEAD") == -4
    initcall = image.btf.function("do_one_initcall")
    assert (initcall.returns.type, initcall.parameters[0].type) == ("int", "initcall_t")
    assert image.btf.function("_printk").variadic
