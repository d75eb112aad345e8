"""The module tree that a command works on: the kernel's, or the one that ``-d`` and ``-S`` name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kodojo.cli.app import App
    from kodojo.image.image import Image
    from kodojo.kmod.index import ModuleIndex

__all__ = ["current_image", "module_index"]


def current_image(app: App) -> Image:
    """The kernel that ``--kernel`` names, else the one that the machine runs, else the store's current one."""
    return app.kernel_image()


def module_index(app: App, image: Callable[[], Image], root: str | None, version: str | None) -> ModuleIndex:
    """The index of a module tree.

    :param image: gives the kernel whose tree it is, and whose release stands for ``version``.
    :param root: the directory in which there is a ``lib/modules``; None: the tree of a kernel in the store.
    :param version: the release of that kernel.
    """
    from kodojo.image.tree import ModuleTree  # noqa: PLC0415  only when it is needed
    from kodojo.kmod.index import ModuleIndex  # noqa: PLC0415

    with app.bar() as bar:
        if root is None:
            return ModuleIndex.of(image() if version is None else app.open_kernel(version), progress=bar.update)
        # Joined as text, as kmod does it: the path stands in messages.
        tree = ModuleTree(Path(f"{root}/lib/modules/{image().release if version is None else version}"))
        return ModuleIndex.open(tree, None, progress=bar.update)
