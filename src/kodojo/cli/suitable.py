"""For a module of another architecture: which of the user's kernels it is for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.errors import KodojoError
from kodojo.image.architecture import architecture_named, architecture_of_module

if TYPE_CHECKING:
    from kodojo.errors import LoadError
    from kodojo.image.store import Store

__all__ = ["name_suitable_kernels", "suitable_kernels"]


def suitable_kernels(store: Store, data: bytes) -> list[str]:
    """The names of the kernels in a store that have the architecture of a module.

    :param data: the module.
    """
    wanted = architecture_of_module(data)
    found = []
    for name in store.names() if wanted is not None else ():
        with suppress(KodojoError):  # a kernel that cannot be opened suits nobody
            if architecture_named(store.open(name).architecture) is wanted:
                found.append(name)
    return found


def name_suitable_kernels(error: LoadError, store: Store, file: str) -> None:
    """Add to the hint of a refusal which kernels would suit, if the architecture was the reason."""
    if error.slug != "elf-architecture":
        return
    from kodojo.loader.verdict import read_module  # noqa: PLC0415  only now

    names = suitable_kernels(store, read_module(file))
    if names:
        hint = f"{error.hint} Kernels of its architecture in the store: {', '.join(names)}."
    else:
        hint = f"{error.hint} No kernel in the store has its architecture: see kodojo kernel add."
    error.hint, error.refusal = hint, replace(error.refusal, hint=hint)
