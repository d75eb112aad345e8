from __future__ import annotations

import pytest

from kodojo.errors import LoadError
from kodojo.loader.target import Memory, Module
from tests.support.loading import SpyTarget, finish, load, loadable, parameters

PARAMS = {
    "number": ("int", 0),
    "small-one": ("byte", 8),
    "on": ("bool", 16),
    "locked": ("bool_enable_only", 24),
    "not_on": ("invbool", 32),
    "flag": ("bint", 40),
    "text": ("charp", 48),
    "list": ("array", 64),
    "short_text": ("string", 160),
}


def with_parameters(*, flags: int = 0) -> bytes:
    writer = loadable()
    parameters(writer, PARAMS, flags=flags)
    return finish(writer).build()


def set_args(args: bytes, *, target: SpyTarget | None = None, flags: int = 0) -> tuple[Module, SpyTarget]:
    target = target or SpyTarget()
    return load(target, with_parameters(flags=flags), args), target


def refused(args: bytes, *, flags: int = 0, target: SpyTarget | None = None) -> tuple[LoadError, SpyTarget]:
    target = target or SpyTarget()
    with pytest.raises(LoadError) as caught:
        load(target, with_parameters(flags=flags), args)
    assert caught.value.step == "parse_args"
    return caught.value, target


def variable(mod: Module, offset: int, size: int = 4) -> int:
    """A variable in the module's .data, which begins where its writable data does."""
    region = mod.regions[Memory.CORE]
    start = region.ro_after_init_size + offset
    return int.from_bytes(region.data[start : start + size], "little")


def test_values_are_stored():
    """Each type stores its value; '-' and '_' in names are the same."""
    mod, target = set_args(b"number=-2 small_one=0x10 on locked=1 not-on=y flag list=7,8")
    assert target.log == []
    assert variable(mod, 0) == (1 << 32) - 2
    assert variable(mod, 8, 1) == 16
    assert [variable(mod, offset, 1) for offset in (16, 24, 32)] == [1, 1, 0]
    assert variable(mod, 40) == 1
    assert [variable(mod, offset) for offset in (64, 68, 128)] == [7, 8, 2]


@pytest.mark.parametrize(
    ("args", "errno", "slug", "lines"),
    [
        (b"number=x", 22, "parameter-invalid", ["paper: `x' invalid for parameter `number'"]),
        (b"number=", 22, "parameter-invalid", ["paper: `' invalid for parameter `number'"]),
        (b"number", 22, "parameter-without-value", ["paper: `' invalid for parameter `number'"]),
        (b"not_on", 22, "parameter-without-value", ["paper: `' invalid for parameter `not_on'"]),
        (b"small_one=256", 34, "parameter-out-of-range", ["paper: `256' invalid for parameter `small_one'"]),
        (b"on=maybe", 22, "parameter-invalid", ["paper: `maybe' invalid for parameter `on'"]),
        (b"list=1,x,3", 22, "parameter-invalid", ["paper: `1' invalid for parameter `list'"]),
        (
            b"list=1,2,3", 22, "parameter-invalid",
            ["list: can only take 2 arguments", "paper: `1' invalid for parameter `list'"],
        ),
        (
            b"short_text=12345678", 28, "parameter-too-long",
            [
                "short_text: string doesn't fit in 7 chars.",
                "paper: `12345678' too large for parameter `short_text'",
            ],
        ),
        (
            b"text=" + b"t" * 1025, 28, "parameter-too-long",
            ["text: string parameter too long", f"paper: `{'t' * 1025}' too large for parameter `text'"],
        ),
    ],
)  # fmt: skip
def test_refused_values(args, errno, slug, lines):
    """What a type does not accept is reported with module, value and parameter."""
    error, target = refused(args)
    assert (error.errno, error.slug) == (errno, slug)
    assert target.lines == [(3, line) for line in lines]


def test_limits_are_inclusive():
    """A text may be as long as its buffer minus one, a charp 1024 characters."""
    set_args(b"short_text=1234567 text=" + b"t" * 1024)


def test_enable_only():
    """A bool_enable_only may be set, and then not be cleared any more."""
    error, _target = refused(b"locked=1 locked=0")
    assert error.errno == 30


def test_parsing_goes_on_after_an_error():
    """All arguments are tried, and the last error is the load's."""
    error, target = refused(b"number=x small_one=300 number=5")
    assert error.errno == 34
    assert len(target.lines) == 2


def test_unknown_parameters_are_ignored():
    """An unknown name is reported, up to its first dot, and does no harm."""
    _mod, target = set_args(b"nothing=1 other.thing=2 =x")
    assert target.lines == [(4, f"paper: unknown parameter '{name}' ignored") for name in ("nothing", "other", "=x")]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [(b"async_probe", True), (b"async_probe=0", False), (b"async_probe=what", True), (b"", False)],
)
def test_async_probe(args, wanted):
    """async_probe belongs to the loader: no value, or one that is no bool, means yes."""
    mod, target = set_args(args)
    assert mod.async_probe_requested is wanted
    assert target.log == []


def test_async_probe_by_default():
    """module.async_probe holds for modules that say nothing about it."""
    target = SpyTarget()
    target.async_probe_default = lambda: True
    assert set_args(b"", target=target)[0].async_probe_requested
    target = SpyTarget()
    target.async_probe_default = lambda: True
    assert not set_args(b"async_probe=n", target=target)[0].async_probe_requested


def test_async_probe_is_not_folded():
    """async-probe is just an unknown parameter."""
    mod, target = set_args(b"async-probe")
    assert not mod.async_probe_requested
    assert target.lines == [(4, "paper: unknown parameter 'async-probe' ignored")]


def test_dyndbg():
    """dyndbg belongs to dynamic debug, with and without a module's name before it."""
    assert set_args(b"dyndbg=+p paper.dyndbg dyndbg")[1].log == []


def test_double_dash():
    """Everything behind -- is ignored, and said to be."""
    mod, target = set_args(b"number=1 -- number=x  more")
    assert target.lines == [(4, "paper: parameters 'number=x  more' after `--' ignored")]
    assert variable(mod, 0) == 1


def test_double_dash_after_an_error():
    """After an error nothing is said about what follows --."""
    error, target = refused(b"number=x -- more")
    assert error.errno == 22
    assert len(target.lines) == 1


def test_unsafe_parameters():
    """Setting a parameter that is called unsafe taints the kernel, every time with a line."""
    mod, target = set_args(b"number=1 number=2", flags=1)
    assert target.lines == [(5, "Setting dangerous option number - tainting kernel")] * 2
    assert target.taints == 1 << 6
    assert mod.taints == 0


def test_hardware_parameters_under_lockdown():
    """Lockdown forbids hardware parameters; the array's commas then are still there."""
    target = SpyTarget(fail={"security_locked_down": 1})
    error, _ = refused(b"list=1,2", flags=2, target=target)
    assert (error.errno, error.slug) == (1, "parameter-locked-down")
    assert target.lines == [(3, "paper: `1,2' invalid for parameter `list'")]
