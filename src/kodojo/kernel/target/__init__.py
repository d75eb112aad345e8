"""A booted kernel as the loader sees it (:class:`kodojo.loader.target.Target`).

Each part is a file: who may and what taints (``permission``), memory (``memory``), the list of modules
and their exports (``modules``), and everything that the kernel's own functions do to a module (``formation``).
"""

from __future__ import annotations

from kodojo.kernel.target.formation import FormationPart
from kodojo.kernel.target.memory import MemoryPart
from kodojo.kernel.target.modules import ModulesPart
from kodojo.kernel.target.permission import PermissionPart

__all__ = ["BootedTarget"]


class BootedTarget(PermissionPart, MemoryPart, ModulesPart, FormationPart):
    """A kernel that runs."""
