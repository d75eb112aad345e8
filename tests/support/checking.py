"""Modules and kernels on paper for the tests of whole checks: both can be sent to other processes."""

from __future__ import annotations

from pathlib import Path

from kodojo.image.exports import Export
from kodojo.image.tree import ModuleTree
from tests.support.loading import SpyTarget, export, finish, loadable


def paper_kernel(*exports: Export, tree: ModuleTree | None = None, release: str = "9.9-paper"):
    """A kernel with these exports."""
    image = SpyTarget(*exports).image
    image.modules = tree or ModuleTree(None)
    image.release = release
    image.path = Path(__file__)  # a file that is there
    image.kind, image.warnings = "kernel", ()
    return image


def simple_module(
    name: str = "paper", *, exports: tuple[str, ...] = (), needs: tuple[str, ...] = (), **info: str | None
) -> bytes:
    """A module that loads if what it needs is there."""
    writer = loadable(name=name, info=info)
    for symbol in exports:
        export(writer, symbol, crc=None)
        writer.symbol(f"__ksymtab_{symbol}", "__ksymtab")
    for symbol in needs:
        writer.symbol(symbol)
    return finish(writer).build()
