"""Who has the symbols that a module was refused for, and the command that loads it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.errors import Refusal
from kodojo.kmod.siblings import Siblings

if TYPE_CHECKING:
    from pathlib import Path

    from kodojo.kmod.known import KnownModules

__all__ = ["listed", "load_command", "owners_of", "with_providers"]

_SLUG = "unknown-symbol"
_MOST = 40  # symbols of one module that are looked up; whoever lacks more has another problem


def owners_of(known: KnownModules, symbols: Iterable[str]) -> dict[str, str]:
    """Symbol -> the module that exports it, as far as one does."""
    found = {symbol: known.by_symbol(f"symbol:{symbol}") for symbol in symbols}
    return {symbol: owners[0] for symbol, owners in found.items() if owners}


def load_command(*modules: str | os.PathLike[str]) -> str:
    """The commands that load these modules, each a name or a file, with what they need."""
    return ", ".join(f"kodojo modprobe {shlex.quote(_as_argument(module))}" for module in modules)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join((*(", ".join(names[:-1]),) * (len(names) > 1), names[-1]))


def _as_argument(module: str | os.PathLike[str]) -> str:
    """A file in the working directory needs ``./``, or it would be taken for a name."""
    text = os.fspath(module)
    return text if isinstance(module, str) or "/" in text else f"./{text}"


def with_providers(
    refusal: Refusal, known: KnownModules, name: str | None = None, file: Path | None = None
) -> Refusal:
    """A refusal for unknown symbols with a hint that names the modules which export them.

    :param known: the kernel's modules, and those beside the file.
    :param name: of the refused module; None if that is not known.
    :param file: its file, as the user named it, if one command could load it with what it needs.
    :return: the same if it is another refusal, or nothing is known.
    """
    if refusal.slug != _SLUG:
        return refusal
    owners = owners_of(known, (detail.subject for detail in refusal.details[:_MOST]))
    names = sorted(set(owners.values()) - {name})
    absent = known.absent(name) if isinstance(known, Siblings) and name is not None else ()
    if not names:
        return replace(refusal, hint=_absent_hint(absent)) if absent else refusal
    everything = len(owners) == len(refusal.details)
    what = "some of them" if not everything else "it" if len(refusal.details) == 1 else "them"
    which = "which exports" if len(names) == 1 else "which export"
    commands = _commands(known, _without_needed_by_others(known, names))
    hint = f"Load {listed(names)} first, {which} {what}: {commands}."
    if absent:
        hint += f" {_absent_hint(absent)}"
    elif everything and file is not None:
        hint += f" Or all at once: {load_command(file)}."
    details = tuple(
        replace(detail, facts=detail.facts | {"module": owners[detail.subject]})
        if detail.subject in owners
        else detail
        for detail in refusal.details
    )
    return replace(refusal, hint=hint, details=details)


def _absent_hint(absent: tuple[str, ...]) -> str:
    which = "which is" if len(absent) == 1 else "which are"
    return (
        f"depends= of the module names {listed(absent)}, {which} neither in the kernel's tree nor beside the"
        " file: put the .ko file there."
    )


def _without_needed_by_others(known: KnownModules, names: list[str]) -> list[str]:
    """Those that are not loaded anyway when the others are."""
    needed = {other for name in names for other in known.dependencies(name)}
    return [name for name in names if name not in needed] or names


def _commands(known: KnownModules, names: list[str]) -> str:
    """Each by its name, or by its file if it is not in the kernel's tree."""
    root = known.root
    words: list[str | Path] = []
    for name in names:
        path = known.path(name)
        words.append(path if path is not None and (root is None or not path.is_relative_to(root)) else name)
    return load_command(*words)
