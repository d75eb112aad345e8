"""What kmod's tools print, word for word: their output is an interface that scripts rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.report.paint import Paint, clean

if TYPE_CHECKING:  # an error message needs no machine
    from kodojo.kernel.module import Module

__all__ = ["LSMOD_HEADER", "error_line", "insmod_text", "lsmod_line", "not_inserted", "not_loaded", "unload_text"]

LSMOD_HEADER = "Module                  Size  Used by"

_ENOENT, _ESRCH, _ENOEXEC, _EINVAL = 2, 3, 8, 22
_INSMOD_TEXTS = {
    _ENOEXEC: "Invalid module format",
    _ENOENT: "Unknown symbol in module",
    _ESRCH: "Module has wrong symbol version",
    _EINVAL: "Invalid parameters",
}  # tools/insmod.c: mod_strerror


def insmod_text(errno: int) -> str:
    """What insmod says for an errno of (f)init_module (``tools/insmod.c: mod_strerror``)."""
    from kodojo.kernel.user import errno_text  # noqa: PLC0415

    return _INSMOD_TEXTS.get(errno) or errno_text(errno)


def not_inserted(file: str, text: str) -> str:
    """The message of insmod for a module that the kernel refuses, or that cannot be read."""
    return f"could not insert module {file}: {text}"


def not_loaded(file: str, text: str) -> str:
    """The message of insmod for a file that is not there."""
    return f"could not load module {file}: {text}"


def error_line(tool: str, message: str, paint: Paint) -> str:
    """``insmod: ERROR: message``."""
    return f"{paint(f'{tool}: ERROR:', 'bold', 'red')} {clean(message)}"


def lsmod_line(module: Module) -> str:
    """A module in the output of lsmod (``tools/lsmod.c``)."""
    users = ",".join(module.users)
    line = f"{module.name:<19} {module.size:8d}  {module.refcount}"
    return clean(f"{line} {users}" if users else line)


def unload_text(name: str, *, builtin: bool, module: Module | None) -> str | None:
    """Why rmmod does not even try to remove a module (``tools/rmmod.c: check_module_inuse``); None if it tries."""
    if builtin:
        return f"Module {name} is builtin."
    if module is None or module.state == "Unformed":
        return f"Module {name} is not currently loaded"
    users = module.users
    if users:
        return f"Module {name} is in use by: {' '.join(users)}"
    return f"Module {name} is in use" if module.refcount else None
