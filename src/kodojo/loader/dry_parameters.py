"""What the setters of the standard parameter types accept (``kernel/params.c``, ``lib/kstrtox.c``).

Only for a dry load: a kernel that runs sets parameters with its own code.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from kodojo.errors import decode
from kodojo.image.architecture import architecture_named
from kodojo.loader.module_memory import find_place, read_bytes
from kodojo.loader.parameters import kstrtobool
from kodojo.loader.refusal import would_damage
from kodojo.loader.target import Errno

if TYPE_CHECKING:
    from kodojo.image.elf import Format
    from kodojo.loader.parameters import KernelParam
    from kodojo.loader.target import Module, Target

__all__ = ["NOARG", "TYPES", "kstrto", "set_value"]

NUMBERS = {
    # ops: (bits, 0 for those of an address; signed)
    "param_ops_byte": (8, False),
    "param_ops_short": (16, True),
    "param_ops_ushort": (16, False),
    "param_ops_int": (32, True),
    "param_ops_uint": (32, False),
    "param_ops_hexint": (32, False),
    "param_ops_long": (0, True),
    "param_ops_ulong": (0, False),
    "param_ops_ullong": (64, False),
}
BOOLEANS = ("param_ops_bool", "param_ops_bool_enable_only", "param_ops_invbool", "param_ops_bint")
NOARG = ("param_ops_bool", "param_ops_bool_enable_only", "param_ops_bint")
"""The types that have ``KERNEL_PARAM_OPS_FL_NOARG``: their value may be left out."""

TYPES = (*NUMBERS, *BOOLEANS, "param_ops_charp", "param_ops_string", "param_array_ops")
"""The types whose setters are known. Everything else is a module's own code."""

CHARP_MAX = 1024

_DIGITS = {8: re.compile(rb"[0-7]*"), 10: re.compile(rb"[0-9]*"), 16: re.compile(rb"[0-9a-fA-F]*")}


def kstrto(text: bytes, bits: int, *, signed: bool) -> tuple[int, int]:
    """``kstrtoint`` and its relatives with base 0: a positive errno or 0, and the value."""
    negative = signed and text.startswith(b"-")
    rest = text[1:] if negative or text.startswith(b"+") else text
    base = 10
    if re.match(rb"0[xX][0-9a-fA-F]", rest):
        base, rest = 16, rest[2:]
    elif rest.startswith(b"0"):
        base = 8
    match = _DIGITS[base].match(rest)
    digits = match.group() if match else b""
    # More digits than 64 bits can have: no need to convert a megabyte of them.
    significant = digits.lstrip(b"0")
    value = int(significant, base) if 0 < len(significant) <= 24 else (1 << 64 if significant else 0)
    if value >= 1 << 64:
        return Errno.ERANGE, 0
    if not digits or rest[len(digits) :] not in (b"", b"\n"):
        return Errno.EINVAL, 0
    value = -value if negative else value
    lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return (0, value) if lowest <= value <= highest else (Errno.ERANGE, 0)


def set_value(
    target: Target, mod: Module, param: KernelParam, value: bytes | None, names: dict[int, str]
) -> int | None:
    """Do what ``ops->set`` does: 0 or a positive errno; None if it is code that is not known.

    :param names: address -> name of the known ``param_ops_*``.
    """
    kind = names.get(param.ops)
    if kind is None:
        return None
    if kind == "param_array_ops":
        return _set_array(target, mod, param, value or b"", names)
    if kind == "param_ops_string":
        return _set_string(target, mod, param, value or b"")
    return _set_scalar(target, mod, kind, param.name, param.arg, value)


def _set_scalar(target: Target, mod: Module, kind: str, name: bytes, address: int, value: bytes | None) -> int:
    if kind == "param_ops_charp":
        if len(value or b"") > CHARP_MAX:
            target.printk(3, f"{decode(name)}: string parameter too long")
            return Errno.ENOSPC
        _store(mod, address, bytes(_format(target).word))
        return 0
    if kind in BOOLEANS:
        return _set_bool(target, mod, kind, address, value)
    bits, signed = NUMBERS[kind]
    bits = bits or _format(target).bits
    errno, number = kstrto(value or b"", bits, signed=signed)
    if errno == 0:
        _store(mod, address, (number & (1 << bits) - 1).to_bytes(bits // 8, _format(target).byteorder))
    return errno


def _set_bool(target: Target, mod: Module, kind: str, address: int, value: bytes | None) -> int:
    wanted = kstrtobool(b"1" if value is None else value)
    if wanted is None:
        return Errno.EINVAL
    if kind == "param_ops_bool_enable_only" and not wanted:
        return Errno.EROFS if any(read_bytes(mod, address, 1)) else 0
    size = 4 if kind == "param_ops_bint" else 1
    number = int(wanted != (kind == "param_ops_invbool"))
    _store(mod, address, number.to_bytes(size, _format(target).byteorder))
    return 0


def _set_string(target: Target, mod: Module, param: KernelParam, value: bytes) -> int:
    # struct kparam_string: unsigned int maxlen; char *string
    maxlen, address = _unpack(target, mod, param.arg, "I4xQ", "II")
    if len(value) >= maxlen:
        target.printk(3, f"{decode(param.name)}: string doesn't fit in {(maxlen - 1) & 0xFFFFFFFF} chars.")
        return Errno.ENOSPC
    _store(mod, address, value + b"\0")
    return 0


def _set_array(target: Target, mod: Module, param: KernelParam, value: bytes, names: dict[int, str]) -> int | None:
    # struct kparam_array: unsigned int max, elemsize, *num; const struct kernel_param_ops *ops; void *elem
    largest, size, number, ops, element = _unpack(target, mod, param.arg, "IIQQQ", "IIIII")
    kind = names.get(ops)
    if kind is None or kind in ("param_array_ops", "param_ops_string"):
        return None
    if number:
        _store(mod, number, bytes(4))
    for index, piece in enumerate(value.split(b",")):
        if index == largest:
            # The format is %i
            shown = struct.unpack("<i", struct.pack("<I", largest))[0]
            target.printk(3, f"{decode(param.name)}: can only take {shown} arguments")
            return Errno.EINVAL
        errno = _set_scalar(target, mod, kind, param.name, element + index * size, piece)
        if errno:
            return errno
        if number:
            _store(mod, number, (index + 1).to_bytes(4, _format(target).byteorder))
    return 0


def _format(target: Target) -> Format:
    return architecture_named(target.image.architecture).format


def _unpack(target: Target, mod: Module, address: int, wide: str, narrow: str) -> tuple[int, ...]:
    """The members of a structure, which is spelled for addresses of 64 and of 32 bits."""
    elf_format = _format(target)
    layout = struct.Struct(elf_format.order + (wide if elf_format.bits == 64 else narrow))
    return layout.unpack(read_bytes(mod, address, layout.size))


def _store(mod: Module, address: int, data: bytes) -> None:
    place = find_place(mod, address, len(data))
    if place is None:
        raise would_damage(mod.name, f"a parameter is stored at {address:#x}, outside the module's memory")
    place.region.data[place.offset : place.offset + len(data)] = data
