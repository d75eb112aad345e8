"""The argument string: splitting it, and setting parameters (``lib/cmdline.c``, ``kernel/params.c``)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kodojo.errors import Detail, LoadError, decode
from kodojo.loader.kernel_symbol import known_address
from kodojo.loader.module_memory import read_bytes, read_string
from kodojo.loader.refusal import refuse
from kodojo.loader.target import Errno, KernelErrno

if TYPE_CHECKING:
    from kodojo.image.elf import Format
    from kodojo.loader.load_info import LoadInfo
    from kodojo.loader.target import Module, Target

__all__ = [
    "KernelParam",
    "kernel_param_layout",
    "kernel_params",
    "kstrtobool",
    "next_arg",
    "param_check_unsafe",
    "parameq",
    "parse_args",
    "skip_spaces",
    "unknown_module_param_cb",
]

SPACES = frozenset(b"\t\n\v\f\r \xa0")
"""What the kernel's ``isspace`` accepts: its character table is Latin-1."""

_MAX_ERRNO = 4095
KERNEL_PARAM_OPS_FL_NOARG = 1
KERNEL_PARAM_FL_UNSAFE = 1
KERNEL_PARAM_FL_HWPARAM = 2
TAINT_USER = 6


@dataclass(frozen=True, slots=True)
class KernelParam:
    """One ``struct kernel_param`` of a module, relocated.

    :param index: in the module's table.
    :param ops: address of its ``struct kernel_param_ops``; ``arg``: of what it sets.
    :param perm: mode of its file in sysfs, 0 if it has none.
    """

    index: int
    name: bytes
    ops: int
    perm: int
    level: int
    flags: int
    arg: int


def kernel_param_layout(elf_format: Format) -> struct.Struct:
    """``struct kernel_param``: name, mod, ops, u16 perm, s8 level, u8 flags, arg."""
    return struct.Struct(elf_format.order + ("QQQHbB4xQ" if elf_format.bits == 64 else "IIIHbBI"))


def kernel_params(mod: Module, info: LoadInfo) -> list[KernelParam]:
    """The module's parameters, in the order of its ``__param`` section."""
    layout = kernel_param_layout(info.format)
    start, count = info.section_objs(b"__param", layout.size)
    params = []
    for index in range(count):
        raw = read_bytes(mod, start + layout.size * index, layout.size)
        name, _mod, ops, perm, level, flags, arg = layout.unpack(raw)
        params.append(KernelParam(index, read_string(mod, name), ops, perm, level, flags, arg))
    return params


def parameq(first: bytes, second: bytes) -> bool:
    """Are two parameter names the same? ``-`` and ``_`` are (``kernel/params.c: parameq``)."""
    return first.replace(b"-", b"_") == second.replace(b"-", b"_")


def skip_spaces(args: bytes, start: int = 0) -> int:
    """The index of the first character from ``start`` on that is no white space."""
    while start < len(args) and args[start] in SPACES:
        start += 1
    return start


def next_arg(args: bytes, start: int) -> tuple[bytes, bytes | None, int]:
    """Split one argument off: its name, its value (None without ``=``), and where the next one starts.

    Source: ``lib/cmdline.c: next_arg``.
    """
    quoted = args[start : start + 1] == b'"'
    start += quoted
    in_quote = quoted
    equals = end = start
    while end < len(args):
        character = args[end]
        if character in SPACES and not in_quote:
            break
        if equals == start and character == ord("="):
            equals = end  # a "=" that comes first is part of the name
        if character == ord('"'):
            in_quote = not in_quote
        end += 1

    following = skip_spaces(args, min(end + 1, len(args)))
    closes = end > start and args[end - 1] == ord('"')
    if equals == start:
        return args[start : end - (quoted and closes)], None, following
    value = equals + 1
    opens = value < end and args[value] == ord('"')
    value += opens
    return args[start:equals], args[value : end - ((opens or quoted) and closes)], following


def parse_args(target: Target, mod: Module, info: LoadInfo, args: bytes) -> dict[str, int | str]:
    """Set every parameter in ``args``; errors do not end it, the last one decides the errno.

    An answer of a setter that is no errno, a positive one for instance, is reported like one, and then taken for a
    pointer to the arguments after ``--``.

    Facts: which parameters were set. Source: ``kernel/params.c: parse_args``.
    """
    _request_async_probe(target, mod, wanted=target.async_probe_default())
    position = skip_spaces(args)
    params = _first_by_name(kernel_params(mod, info)) if position < len(args) else {}
    failure: LoadError | int | None = None
    names: list[str] = []
    while position < len(args):
        start = position
        param, value, position = next_arg(args, start)
        if value is None and param == b"--":
            if failure is None:
                rest = decode(args[position:])
                target.printk(4, f"{mod.name}: parameters '{rest}' after `--' ignored")
            break
        known = params.get(param.replace(b"-", b"_"))
        if known is None:
            unknown_module_param_cb(target, mod, param, value, offsets(args, start, param))
            continue
        names.append(decode(known.name))
        answer = _set(target, mod, known, value, offsets(args, start, param)[1])
        if -_MAX_ERRNO <= answer < 0:
            failure = _refused(target, mod, known, param, value, -answer)
            info.steps.also(failure)
        elif answer:
            _report(target, mod, known, param, value, 0)
            failure = answer
    if isinstance(failure, LoadError):
        raise failure
    if failure is not None:
        target.warn_after_dashes(mod, failure)
    return {"set": len(names), "names": ", ".join(names)}


def _first_by_name(params: list[KernelParam]) -> dict[bytes, KernelParam]:
    by_name: dict[bytes, KernelParam] = {}
    for param in params:
        by_name.setdefault(param.name.replace(b"-", b"_"), param)
    return by_name


def offsets(args: bytes, start: int, param: bytes) -> tuple[int, int]:
    """Where name and value of the argument at ``start`` are, behind quotes (see :func:`next_arg`)."""
    name = start + (args[start : start + 1] == b'"')
    value = name + len(param) + 1
    return name, value + (args[value : value + 1] == b'"')


def _set(target: Target, mod: Module, param: KernelParam, value: bytes | None, offset: int) -> int:
    """``kernel/params.c: parse_one`` for a parameter that was found: 0, -errno, or what its setter returns."""
    ops_flags, flags = target.parameter_flags(mod, param.index)
    if value is None and not ops_flags & KERNEL_PARAM_OPS_FL_NOARG:
        return -Errno.EINVAL
    if not param_check_unsafe(target, param.name, flags):
        return -Errno.EPERM
    return target.set_parameter(mod, param.index, value, offset)


def param_check_unsafe(target: Target, name: bytes, flags: int) -> bool:
    """May the parameter be set? Sets the taint of those that are called unsafe.

    Source: ``kernel/params.c: param_check_unsafe``.
    """
    if flags & KERNEL_PARAM_FL_HWPARAM:
        try:
            target.security_locked_down("LOCKDOWN_MODULE_PARAMETERS")
        except KernelErrno:
            return False
    if flags & KERNEL_PARAM_FL_UNSAFE:
        target.printk(5, f"Setting dangerous option {decode(name)} - tainting kernel")
        target.add_taint(TAINT_USER, lockdep_ok=True)
    return True


def _report(
    target: Target, mod: Module, known: KernelParam, param: bytes, value: bytes | None, errno: int
) -> tuple[str, str]:
    """Print the line for an argument that was not accepted; its value and its name as printed."""
    if errno != Errno.EPERM and known.ops == known_address(target.image, "param_array_ops"):
        # The setter of arrays has put a NUL in the place of the commas that it got to.
        value = value if value is None else value.partition(b",")[0]
    text, name = decode(value or b""), decode(param)
    if errno == Errno.ENOENT:
        target.printk(3, f"{mod.name}: Unknown parameter `{name}'")
    elif errno == Errno.ENOSPC:
        target.printk(3, f"{mod.name}: `{text}' too large for parameter `{name}'")
    else:
        target.printk(3, f"{mod.name}: `{text}' invalid for parameter `{name}'")
    return text, name


def _refused(
    target: Target, mod: Module, known: KernelParam, param: bytes, value: bytes | None, errno: int
) -> LoadError:
    """Print the line for an argument that was refused, and say why."""
    text, name = _report(target, mod, known, param, value, errno)
    if value is None:
        return refuse(
            mod.name,
            Errno.EINVAL,
            "parameter-without-value",
            f"parameter {name} needs a value",
            f"Write {name}=VALUE.",
            Detail(name),
        )
    slugs: dict[int, tuple[str, str]] = {
        Errno.ENOSPC: ("parameter-too-long", f"the value of parameter {name} is too long"),
        Errno.ERANGE: ("parameter-out-of-range", f"{text} is out of the range of parameter {name}"),
        Errno.EPERM: ("parameter-locked-down", f"lockdown forbids to set the hardware parameter {name}"),
    }
    slug, why = slugs.get(
        errno,
        ("parameter-invalid", f"parameter {name} does not accept the value '{text}'"),
    )
    detail = Detail(name, facts={"value": text})
    return refuse(mod.name, errno, slug, why, "See the module's parameters: modinfo -p.", detail)


def unknown_module_param_cb(
    target: Target, mod: Module, param: bytes, value: bytes | None, places: tuple[int, int]
) -> None:
    """Arguments that are no parameter of the module: ``async_probe``, ``dyndbg``, or ignored.

    Source: ``kernel/module/main.c: unknown_module_param_cb``.
    """
    if param == b"async_probe":
        wanted = kstrtobool(value)
        _request_async_probe(target, mod, wanted=wanted is None or wanted)
        return
    if not target.dyndbg_parameter(mod, param, value, places):
        # ddebug_dyndbg_param_cb has cut the name at its first dot.
        name = decode(param.partition(b".")[0])
        target.printk(4, f"{mod.name}: unknown parameter '{name}' ignored")


def _request_async_probe(target: Target, mod: Module, *, wanted: bool) -> None:
    mod.async_probe_requested = wanted
    target.set_field(mod, "async_probe_requested", int(wanted))


def kstrtobool(value: bytes | None) -> bool | None:
    """``lib/kstrtox.c: kstrtobool``: None where it gives -EINVAL."""
    first = (value or b"")[:1].lower()
    if first == b"o":
        return {b"n": True, b"f": False}.get((value or b"")[1:2].lower())
    return {b"y": True, b"t": True, b"1": True, b"n": False, b"f": False, b"0": False}.get(first)
