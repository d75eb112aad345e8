from __future__ import annotations

import pytest

from kodojo.check.explain.changes import MOST_CHANGES, MOST_LINES, Changes
from kodojo.image.type_graph import Node, Part, spell
from tests.unit.check.explain.types import PaperTypes, function, pointer, struct


def driver(*members, size=16, **more):
    """Types of a function that gets a pointer to a struct, which points to another."""
    nodes = {
        "s": struct("driver", size, *members),
        "s*": pointer("s"),
        "inner": more.pop("inner", struct("inner", 4, ("value", "int", 0))),
        "inner*": pointer("inner"),
        "f": more.pop("f", function("int", "s*")),
    }
    return PaperTypes(nodes | more, register="f")


PLAIN = (("name", "long", 0), ("inner", "inner*", 8))


def lines(old, new, name="register"):
    return {change.name: change.lines for change in Changes(old, new).reachable(name)}


def test_nothing_changed():
    """The same types have no changes."""
    assert lines(driver(*PLAIN), driver(*PLAIN)) == {}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((*PLAIN, ("extra", "int", 16)), ("+ int extra; at offset 16",)),
        ((("name", "long", 0),), ("- struct inner *inner; was at offset 8",)),
        (
            (("name", "int", 0), ("inner", "inner*", 8)),
            ("~ long int name; is int name; at offset 0",),
        ),
        (
            (("name", "long", 8), ("inner", "inner*", 16)),
            ("~ name is at offset 8 instead of 0, as are 1 members behind it",),
        ),
    ],
)
def test_members(members, expected):
    """A member that is new, gone, of another type, or elsewhere."""
    assert lines(driver(*PLAIN), driver(*members)) == {"struct driver": expected}


def test_size_alone():
    """A struct that has only grown is told with both sizes."""
    (change,) = Changes(driver(*PLAIN), driver(*PLAIN, size=24)).reachable("register")
    assert (change.old_size, change.new_size, change.lines) == (16, 24, ())


def test_behind_pointers():
    """A change behind a pointer in a struct is found; the nearest change comes first."""
    new = driver(*PLAIN, ("more", "int", 16), inner=struct("inner", 8, ("value", "long", 0)))
    assert list(lines(driver(*PLAIN), new)) == ["struct driver", "struct inner"]


def test_circles_end():
    """Structures that point to themselves are walked through once."""
    members = (("next", "s*", 0), ("value", "int", 8))
    assert lines(driver(*members), driver(*members)) == {}


def test_members_of_anonymous_structures():
    """A member that moves into an anonymous union stays a member of the outer struct, at its offset."""
    old = driver(("a", "int", 0), ("b", "int", 4))
    new = driver(("", "u", 0), ("b", "int", 8), u=struct("", 8, ("a", "int", 0), ("c", "long", 0), kind="union"))
    assert lines(old, new)["struct driver"] == (
        "+ long int c; at offset 0",
        "~ b is at offset 8 instead of 4",
    )


def test_bit_fields():
    """Bit-fields have their offset in bits, and another width is another type."""

    def flags(bits: int, size: int):
        return driver(flag=Node("int", "int", 4)) if not size else PaperTypes(
            {"s": Node("struct", "s", 4, parts=(Part("flag", "int", bits, size),)), "f": function(0, "s")},
            register="f",
        )  # fmt: skip

    assert lines(flags(3, 1), flags(3, 2))["struct s"] == ("~ int flag; is int flag; at offset 0 bit 3",)
    assert lines(flags(3, 1), flags(4, 1))["struct s"] == ("~ flag is at offset 0 bit 4 instead of 0 bit 3",)


def test_enums():
    """Constants that are new, gone or renumbered."""
    old = driver(*PLAIN, e=Node("enum", "e", 4, values=(("A", 0), ("B", 1), ("C", 2))), f=function("e", "s*"))
    new = driver(*PLAIN, e=Node("enum", "e", 4, values=(("A", 0), ("C", 1), ("D", 2))), f=function("e", "s*"))
    assert lines(old, new) == {"enum e": ("- B = 1", "+ D = 2", "~ C = 2; is 1")}


def test_prototype():
    """Another prototype is told as C writes it; the same is not."""
    old = driver(*PLAIN)
    new = driver(*PLAIN, f=function("int", "s*", "int"))
    assert Changes(old, new).of_prototype("register") == (
        "int register(struct driver *)",
        "int register(struct driver *, int)",
    )
    assert Changes(old, old).of_prototype("register") is None
    assert Changes(old, new).of_prototype("unknown") is None


def test_kernel_without_the_prototype():
    """Where the kernel does not describe the symbol, structures of the same name are compared."""
    new = driver(*PLAIN, ("extra", "int", 16))
    new._symbols.clear()
    assert lines(driver(*PLAIN), new) == {"struct driver": ("+ int extra; at offset 16",)}
    old = driver(*PLAIN)
    old._symbols.clear()
    assert lines(old, driver(*PLAIN)) == {}


def test_limits():
    """So many changes for a symbol, so many lines for a type, and no more types than the budget has."""
    names = [f"s{i}" for i in range(MOST_CHANGES + 2)]
    old, new = (
        PaperTypes(
            {name: struct(name, 4, *((f"{name}{i}", "int", i) for i in range(count))) for name in names}
            | {"f": function(0, *names)},
            f="f",
        )
        for count in (1, MOST_LINES + 3)
    )
    changes = Changes(old, new)
    found = changes.reachable("f")
    assert len(found) == MOST_CHANGES
    assert len(found[0].lines) == MOST_LINES + 1
    assert found[0].lines[-1] == "... and 2 more changes"
    assert Changes(old, new, budget=1).reachable("f") == []


@pytest.mark.parametrize(
    ("key", "nodes", "text"),
    [
        ("p", {"p": pointer("c"), "c": Node("const", target="int")}, "const int *x"),
        ("c", {"p": pointer("int"), "c": Node("const", target="p")}, "int *const x"),
        ("a", {"a": Node("array", target="p", count=4), "p": pointer("int")}, "int *x[4]"),
        ("p", {"p": pointer("a"), "a": Node("array", target="int", count=4)}, "int (*x)[4]"),
        ("p", {"p": pointer("f"), "f": function(0, "int", 0)}, "void (*x)(int, ...)"),
        ("f", {"f": function("int")}, "int x(void)"),
        ("t", {"t": Node("typedef", "u8", target="int")}, "u8 x"),
        ("t", {"t": Node("typedef", "", target="int")}, "int x"),
        ("s", {"s": Node("forward", "file")}, "struct file x"),
        (0, {}, "void x"),
    ],
)
def test_spell(key, nodes, text):
    """Types are written as in C."""
    assert spell(PaperTypes(nodes), key, "x") == text


def test_spell_of_a_circle():
    """A typedef of itself has an end."""
    circle = PaperTypes({"t": Node("pointer", target="t")})
    assert spell(circle, "t", "x").count("*") > 100
