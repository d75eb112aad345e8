"""kd_hello: parameters of every type, given when it is loaded, and through sysfs."""

from __future__ import annotations

import pytest

from kodojo.errors import LoadError
from tests.kernel.looking import errno_of, exists, listening, mode_of, names, tainted

pytestmark = pytest.mark.kernel

EPERM, ENOENT, EACCES, EINVAL, ENOSPC, EROFS, ERANGE = 1, 2, 13, 22, 28, 30, 34
TAINT_USER = 6
BASE = "/sys/module/kd_hello/parameters"

# name: what init prints, what sysfs shows; in the order of the source
DEFAULTS = {
    "byte": ("8", "8"), "short": ("-16", "-16"), "ushort": ("16", "16"), "int": ("-32", "-32"), "uint": ("32", "32"),
    "long": ("-64", "-64"), "ulong": ("64", "64"), "ullong": ("128", "128"), "hexint": ("0xbeef", "0x00beef"),
    "whom": ("world", "world"), "bool": ("N", "N"), "invbool": ("Y", "N"), "bint": ("0", "0"),
    "enable_only": ("N", "N"), "text": ("short", "short"), "int_value": ("1", "1"), "ints": ("1,2", "1,2"),
    "names": ("a,b", "a,b"), "hidden": ("7", None), "dangerous": ("0", "0"), "even": ("2", "2 is even"),
    "noarg": ("N", None),
}  # fmt: skip

GIVEN = {
    "byte=255": ("byte", "255", "255"),
    "byte=0x1f": ("byte", "31", "31"),
    "byte=017": ("byte", "15", "15"),
    "short=-32768": ("short", "-32768", "-32768"),
    "short=32767": ("short", "32767", "32767"),
    "ushort=65535": ("ushort", "65535", "65535"),
    "int=-2147483648": ("int", "-2147483648", "-2147483648"),
    "int=2147483647": ("int", "2147483647", "2147483647"),
    "uint=4294967295": ("uint", "4294967295", "4294967295"),
    "long=-9223372036854775808": ("long", "-9223372036854775808", "-9223372036854775808"),
    "ulong=18446744073709551615": ("ulong", "18446744073709551615", "18446744073709551615"),
    "ullong=18446744073709551615": ("ullong", "18446744073709551615", "18446744073709551615"),
    "hexint=0xDEADbeef": ("hexint", "0xdeadbeef", "0xdeadbeef"),
    'whom="Ada and Bob"': ("whom", "Ada and Bob", "Ada and Bob"),
    "whom=": ("whom", "", ""),
    "bool": ("bool", "Y", "Y"),
    "bool=on": ("bool", "Y", "Y"),
    "invbool=1": ("invbool", "N", "Y"),
    "bint=y": ("bint", "1", "1"),
    "enable_only=1": ("enable_only", "Y", "Y"),
    "text=1234567890123456789": ("text", "1234567890123456789", "1234567890123456789"),
    "int-value=5": ("int_value", "5", "5"),
    "int_value=6": ("int_value", "6", "6"),
    "ints=1,-2,3,4": ("ints", "1,-2,3,4", "1,-2,3,4"),
    "ints=9": ("ints", "9", "9"),
    "names=x,yy,z": ("names", "x,yy,z", "x,yy,z"),
    "hidden=8": ("hidden", "8", None),
    "even=4": ("even", "4", "4 is even"),
    "noarg": ("noarg", "Y", None),
}


def greeting(changed: dict[str, str]) -> list[str]:
    return ["hello", *(f"{name}={changed.get(name, printed)}" for name, (printed, _) in DEFAULTS.items())]


def test_defaults(kernel, built):
    """Without arguments every parameter has its initial value, in init and in sysfs; hidden ones have no file."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_hello"])
    expected = {name: shown for name, (_, shown) in DEFAULTS.items() if shown is not None}
    assert said.by("kd_hello")[-1 - len(DEFAULTS) :] == greeting({})
    assert names(kernel, BASE) == set(expected)
    assert module.parameters == expected
    assert mode_of(kernel, f"{BASE}/byte") == 0o100644
    assert mode_of(kernel, f"{BASE}/ulong") == 0o100444


def test_removal_frees_parameters(kernel, built):
    """Exit runs, then the parameters are freed, and nothing is left in sysfs."""
    kernel.insmod(built["kd_hello"], "even=6")
    with listening(kernel) as said:
        kernel.rmmod("kd_hello")
    assert said.lines == ["kd_hello: bye", "kd_hello: free even=6"]
    assert not exists(kernel, "/sys/module/kd_hello")
    assert kernel.modules == []


def rounds() -> list[dict[str, tuple[str, str, str | None]]]:
    """What is given, in as few loads as go: each parameter at most once in each."""
    found: list[dict[str, tuple[str, str, str | None]]] = []
    for argument, (name, printed, shown) in GIVEN.items():
        free = next((given for given in found if name not in {taken for taken, _, _ in given.values()}), None)
        if free is None:
            found.append(free := {})
        free[argument] = (name, printed, shown)
    return found


@pytest.mark.parametrize("given", rounds(), ids=lambda given: f"{len(given)}-arguments")
def test_values_are_set(kernel, built, given):
    """Values up to the bounds of each type arrive, in init and in sysfs; the others keep their initial ones."""
    with listening(kernel) as said:
        module = kernel.insmod(built["kd_hello"], *given)
    assert said.by("kd_hello")[-1 - len(DEFAULTS) :] == greeting({name: text for name, text, _ in given.values()})
    expected = {name: shown for name, (_, shown) in DEFAULTS.items()} | {name: s for name, _, s in given.values()}
    assert module.parameters == {name: shown for name, shown in expected.items() if shown is not None}


def test_all_at_once(kernel, built):
    """Arguments are taken in their order, each by its own parameter; the last one of a name wins."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_hello"], "even=4", "noarg", "byte=1", "ints=7,8,9", "byte=2", "int=-0x10")
    spoken = said.by("kd_hello")
    assert spoken[-1 - len(DEFAULTS) :] == greeting(
        {"even": "4", "noarg": "Y", "byte": "2", "ints": "7,8,9", "int": "-16"}
    )
    assert [line for line in spoken if line.startswith("set")] == ["set even=4", "set noarg (no value)"]


# argument: errno, what is said about it (after the module's name, but for the text and array lines)
REFUSED = {
    "byte=256": (ERANGE, "kd_hello: `256' invalid for parameter `byte'"),
    "byte=-1": (EINVAL, "kd_hello: `-1' invalid for parameter `byte'"),
    "short=32768": (ERANGE, "kd_hello: `32768' invalid for parameter `short'"),
    "short=-32769": (ERANGE, "kd_hello: `-32769' invalid for parameter `short'"),
    "ushort=65536": (ERANGE, "kd_hello: `65536' invalid for parameter `ushort'"),
    "int=1x": (EINVAL, "kd_hello: `1x' invalid for parameter `int'"),
    "int=2147483648": (ERANGE, "kd_hello: `2147483648' invalid for parameter `int'"),
    "int=": (EINVAL, "kd_hello: `' invalid for parameter `int'"),
    "int": (EINVAL, "kd_hello: `' invalid for parameter `int'"),
    "uint=4294967296": (ERANGE, "kd_hello: `4294967296' invalid for parameter `uint'"),
    "long=9223372036854775808": (ERANGE, "kd_hello: `9223372036854775808' invalid for parameter `long'"),
    "ulong=18446744073709551616": (ERANGE, "kd_hello: `18446744073709551616' invalid for parameter `ulong'"),
    "ullong=18446744073709551616": (ERANGE, "kd_hello: `18446744073709551616' invalid for parameter `ullong'"),
    "hexint=0x100000000": (ERANGE, "kd_hello: `0x100000000' invalid for parameter `hexint'"),
    "bool=perhaps": (EINVAL, "kd_hello: `perhaps' invalid for parameter `bool'"),
    "invbool=": (EINVAL, "kd_hello: `' invalid for parameter `invbool'"),
    "bint=2": (EINVAL, "kd_hello: `2' invalid for parameter `bint'"),
    "ints=1,2,3,4,5": (EINVAL, "ints: can only take 4 arguments"),
    "ints=1,x": (EINVAL, "kd_hello: `1' invalid for parameter `ints'"),  # the comma has become a NUL by then
    "text=123456789012345678901": (ENOSPC, "text: string doesn't fit in 19 chars."),
    "text=12345678901234567890": (ENOSPC, "text: string doesn't fit in 19 chars."),
    "whom=" + 1025 * "x": (ENOSPC, "whom: string parameter too long"),
    "even=3": (ERANGE, "kd_hello: `3' invalid for parameter `even'"),
    "even=three": (EINVAL, "kd_hello: `three' invalid for parameter `even'"),
}


def test_refused_values(kernel, built):
    """A value that its parameter does not take ends the load: errno, log, and nothing is left but the taint."""
    for argument, (errno, line) in REFUSED.items():
        twin = kernel.fork()
        with listening(twin) as said, pytest.raises(LoadError) as refusal:
            twin.insmod(built["kd_hello"], argument)
        assert refusal.value.errno == errno, argument
        assert line in said.lines, argument
        assert said.lines[-1] == "kd_hello: free even=2", argument
        assert "kd_hello: hello" not in said.lines
        assert [record.text for record in refusal.value.log] == said.lines, argument
        assert twin.modules == []
        assert not exists(twin, "/sys/module/kd_hello")


def test_enable_only_cannot_be_disabled(kernel, built):
    """A parameter that can only be switched on says -EROFS when it is to be switched off again."""
    with pytest.raises(LoadError) as refusal:
        kernel.insmod(built["kd_hello"], "enable_only=1", "enable_only=0")
    assert refusal.value.errno == EROFS


def test_correct_load_after_a_refused_one(kernel, built):
    """After a refusal the same module loads with good arguments, from its initial values."""
    with pytest.raises(LoadError):
        kernel.insmod(built["kd_hello"], "byte=5", "int=1x")
    with listening(kernel) as said:
        kernel.insmod(built["kd_hello"])
    assert said.by("kd_hello")[-1 - len(DEFAULTS) :] == greeting({})


def test_dangerous_parameter_taints(kernel, built):
    """An unsafe parameter loads, warns and taints the kernel (U)."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_hello"], "dangerous=1")
    assert "Setting dangerous option dangerous - tainting kernel" in said.lines
    assert "kd_hello: dangerous=1" in said.lines
    assert TAINT_USER in tainted(kernel)


def test_unknown_parameter_is_ignored(kernel, built):
    """A parameter that the module has not is named in the log and ignored."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_hello"], "nothing=1", "byte=3")
    assert "kd_hello: unknown parameter 'nothing' ignored" in said.lines
    assert "kd_hello: byte=3" in said.lines


def test_arguments_after_dashes_are_ignored(kernel, built):
    """What follows ``--`` is named in the log and not parsed."""
    with listening(kernel) as said:
        kernel.insmod(built["kd_hello"], "byte=3", "--", "byte=4", "int=x")
    assert "kd_hello: parameters 'byte=4 int=x' after `--' ignored" in said.lines
    assert "kd_hello: byte=3" in said.lines


WRITTEN = {
    ("byte", "255"): "255", ("short", "-32768"): "-32768", ("ushort", "65535\n"): "65535", ("int", "-1"): "-1",
    ("uint", "4294967295"): "4294967295", ("long", "-9223372036854775808"): "-9223372036854775808",
    ("hexint", "0xff\n"): "0x0000ff", ("bool", "y"): "Y", ("invbool", "0"): "N", ("bint", "1"): "1",
    ("text", "longer"): "longer", ("whom", "dear reader"): "dear reader", ("ints", "4,3,2,1"): "4,3,2,1",
    ("even", "-8"): "-8 is even",
}  # fmt: skip


def test_written_through_sysfs(kernel, built):
    """Every writable parameter takes a value through its file and gives it back."""
    module = kernel.insmod(built["kd_hello"])
    with listening(kernel) as said:
        for name, text in WRITTEN:
            kernel.write_file(f"{BASE}/{name}", text.encode())
    assert said.lines == ["kd_hello: set even=-8"]
    shown = {name: module.parameters[name] for name, _text in WRITTEN}
    assert shown == {name: value for (name, _), value in WRITTEN.items()}


# file, text: errno, log
UNWRITTEN = {
    ("byte", "256"): (ERANGE, []),
    ("byte", "-1"): (EINVAL, []),
    ("short", "32768"): (ERANGE, []),
    ("int", "2147483648"): (ERANGE, []),
    ("int", ""): (0, []),  # a write of nothing never reaches the module
    ("hexint", "ff"): (EINVAL, []),
    ("bool", "perhaps"): (EINVAL, []),
    ("bint", "-1"): (EINVAL, []),
    ("text", 20 * "x"): (ENOSPC, ["text: string doesn't fit in 19 chars."]),
    ("ints", "1,2,3,4,5"): (EINVAL, ["ints: can only take 4 arguments"]),
    ("whom", 1025 * "x"): (ENOSPC, ["whom: string parameter too long"]),
    ("even", "5"): (ERANGE, []),
    ("ulong", "1"): (EACCES, []),
    ("names", "x"): (EACCES, []),
    ("int_value", "2"): (EACCES, []),
    ("missing", "1"): (EACCES, []),  # sysfs: nobody creates files there
}


def test_refused_through_sysfs(kernel, built):
    """A bad value through sysfs gives the kernel's errno and log line, and the old value stays."""
    module = kernel.insmod(built["kd_hello"])
    before = module.parameters
    for (name, text), (errno, lines) in UNWRITTEN.items():
        with listening(kernel) as said:
            if errno:
                assert errno_of(kernel.write_file, f"{BASE}/{name}", text.encode()) == errno, (name, text)
            else:
                kernel.write_file(f"{BASE}/{name}", text.encode())
        assert said.lines == lines, (name, text)
        if name != "ints":  # as many elements as there was room for are set
            assert module.parameters.get(name) == before.get(name), (name, text)


def test_enable_only_through_sysfs(kernel, built):
    """``enable_only`` may be switched on through sysfs, never off."""
    module = kernel.insmod(built["kd_hello"])
    kernel.write_file(f"{BASE}/enable_only", b"1")
    assert errno_of(kernel.write_file, f"{BASE}/enable_only", b"0") == EROFS
    assert module.parameters["enable_only"] == "Y"


def test_dangerous_through_sysfs(kernel, built):
    """Writing an unsafe parameter taints the kernel as giving it does."""
    kernel.insmod(built["kd_hello"])
    assert TAINT_USER not in tainted(kernel)
    with listening(kernel) as said:
        kernel.write_file(f"{BASE}/dangerous", b"1")
    assert said.lines == ["Setting dangerous option dangerous - tainting kernel"]
    assert TAINT_USER in tainted(kernel)


def test_others_may_not_write(kernel, built):
    """A user without rights reads a parameter's file and cannot open it for writing."""
    kernel.insmod(built["kd_hello"])
    with kernel.as_user(capabilities=()):
        assert kernel.read_file(f"{BASE}/byte") == b"8\n"
        assert errno_of(kernel.write_file, f"{BASE}/byte", b"1") == EACCES
