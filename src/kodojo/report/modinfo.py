"""What modinfo prints (``tools/modinfo.c``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.report.paint import clean

if TYPE_CHECKING:
    from kodojo.kmod.modinfo import Modinfo, Parameter

__all__ = ["field_lines", "modinfo_lines", "modinfo_values"]

_COLUMN = 15


def modinfo_lines(info: Modinfo) -> list[str]:
    """All about a module."""
    lines = [_line("name", info.name)] if info.builtin else []
    lines.append(_line("filename", info.filename))
    lines += [_line(key, value) for key, value in info.rows if key not in ("parm", "parmtype")]
    return lines + [_line("parm", _described(parameter)) for parameter in info.parameters]


def modinfo_values(info: Modinfo) -> list[str]:
    """All about a module as ``modinfo -0`` prints it: tags as they are in the file, the rest as in the lines."""
    values = [f"{_title('name')}{info.name}"] if info.builtin else []
    values.append(f"{_title('filename')}{info.filename}")
    values += [f"{key}={value}" for key, value in info.rows if key not in ("parm", "parmtype")]
    return values + [f"{_title('parm')}{_described(parameter)}" for parameter in info.parameters]


def field_lines(info: Modinfo, field: str, *, raw: bool = False) -> list[str]:
    """The values of one field, without its name.

    :param raw: as they are in the file: for a program, not for a terminal.
    """
    if field == "parm":
        return [_typed(parameter) if raw else clean(_typed(parameter)) for parameter in info.parameters]
    return info.values(field) if raw else [_clean_lines(value) for value in info.values(field)]


def _title(key: str) -> str:
    return f"{key}:{' ' * abs(_COLUMN - len(key))}"


def _line(key: str, value: str) -> str:
    return f"{_title(clean(key))}{_clean_lines(value)}"


def _clean_lines(value: str) -> str:
    """Signatures have lines and tabs of their own; texts of modules may have them, too, and must not do worse."""
    lines = value.split("\n")
    return "\n".join("\t".join(map(clean, line.split("\t"))) for line in lines)


def _described(parameter: Parameter) -> str:
    if parameter.description is None:
        return f"{parameter.name}:{parameter.type}"
    return _typed(parameter)


def _typed(parameter: Parameter) -> str:
    if parameter.description is None:
        return f"{parameter.name}: ({parameter.type})"
    suffix = f" ({parameter.type})" if parameter.type is not None else ""
    return f"{parameter.name}:{parameter.description}{suffix}"
