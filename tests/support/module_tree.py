"""Module trees that tests lay out by hand, and the distribution's own kmod at work on them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from kodojo.image.tree import ModuleTree
from tests.support import distribution
from tests.support.elf_writer import module_writer

__all__ = ["RELEASE", "TreeWriter", "kmod_tool"]

RELEASE = "9.9-paper"
_ABSOLUTE, _WEAK = 0xFFF1, 2


def kmod_tool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run depmod, modprobe or modinfo of the distribution."""
    program, environment = distribution.kmod()
    return subprocess.run(
        words, executable=program, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


class TreeWriter:
    """``lib/modules/RELEASE`` below a root.

    :param root: of the system.
    """

    def __init__(self, root: Path) -> None:
        self.top = root
        self.root = root / "lib/modules" / RELEASE
        self.root.mkdir(parents=True)

    def add(
        self,
        path: str,
        *,
        exports: Iterable[str] = (),
        needs: Iterable[str] = (),
        weak: Iterable[str] = (),
        export_crcs: Mapping[str, int] | None = None,
        crcs: Mapping[str, int] | None = None,
        **info: object,
    ) -> Path:
        """Write a module.

        :param path: below the tree, or an absolute one.
        :param exports: symbols of a kernel without CRCs; ``export_crcs``: of one that has them.
        :param crcs: what ``__versions`` has. :param info: what .modinfo has.
        """
        name = path.rpartition("/")[2].partition(".")[0].replace("-", "_")
        writer = module_writer(name=name, info=info, crcs=crcs)
        names = [*exports, *(export_crcs or {})]
        if names:
            writer.add("__ksymtab_strings", b"".join(symbol.encode() + b"\0" for symbol in names), 2)
        for symbol, crc in (export_crcs or {}).items():
            writer.symbol(f"__crc_{symbol}", _ABSOLUTE, crc)
        for symbol in needs:
            writer.symbol(symbol)
        for symbol in weak:
            writer.symbol(symbol, bind=_WEAK)
        return self.put(path, writer.build())

    def put(self, path: str, content: bytes) -> Path:
        """Write any file."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def order(self, *paths: str) -> None:
        """Write modules.order."""
        self.put("modules.order", "".join(f"{path}\n" for path in paths).encode())

    def config(self, *lines: str) -> Path:
        """Write a depmod.d, and return it."""
        directory = self.top / "etc/depmod.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tests.conf").write_text("".join(f"{line}\n" for line in lines))
        return directory

    def depmod(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Have the distribution's depmod at work, with this system's depmod.d."""
        return kmod_tool("depmod", "-b", str(self.top), "-C", str(self.config_directory), *options, RELEASE)

    @property
    def config_directory(self) -> Path:
        return self.top / "etc/depmod.d"

    def tree(self) -> ModuleTree:
        """The tree as kodojo sees it now."""
        return ModuleTree(self.root)

    def files(self) -> dict[str, bytes]:
        """What depmod has written; taken away from the tree."""
        written = [path for path in self.root.glob("modules.*") if path.name not in _INPUT]
        found = {path.name: path.read_bytes() for path in written}
        for path in written:
            path.unlink()
        return found


_INPUT = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
