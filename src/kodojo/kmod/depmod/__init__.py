"""depmod: what it finds out about the modules of a tree, and the files that it writes (``tools/depmod.c``)."""

from kodojo.kmod.depmod.graph import Graph, Wishes, link
from kodojo.kmod.depmod.output import FILES, TEXTS, files_of, write_files
from kodojo.kmod.depmod.scan import ScannedModule, scan
from kodojo.kmod.depmod.symbols import KernelSymbols

__all__ = [
    "FILES",
    "TEXTS",
    "Graph",
    "KernelSymbols",
    "ScannedModule",
    "Wishes",
    "files_of",
    "link",
    "scan",
    "write_files",
]
