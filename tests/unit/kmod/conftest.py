"""A small module tree, written by the tests' own ELF writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kodojo.image.tree import ModuleTree
from kodojo.kmod.index import ModuleIndex
from tests.support.elf_writer import add_symbols, module_writer


class Tree:
    """Modules are added one by one, in the order that modules.order will have."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.order: list[str] = []
        (root / "kernel").mkdir(parents=True)

    def add(self, name: str, *, exports: tuple[str, ...] = (), needs: tuple[str, ...] = (), **info: object) -> Path:
        writer = module_writer(name=name.replace("-", "_"), info=info)
        add_symbols(writer, exports, needs)
        path = self.root / "kernel" / f"{name}.ko"
        path.write_bytes(writer.build())
        self.order.append(f"kernel/{name}.ko")
        return path

    def builtin(self, *names: str, info: bytes = b"") -> None:
        (self.root / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in names))
        (self.root / "modules.builtin.modinfo").write_bytes(info)

    def open(self, directory: Path | None = None) -> ModuleIndex:
        (self.root / "modules.order").write_text("".join(f"{line}\n" for line in self.order))
        return ModuleIndex.open(ModuleTree(self.root), directory)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "lib/modules/9.9-paper")


@pytest.fixture
def index(tree: Tree) -> ModuleIndex:
    """A file system on a library on a checksum, of which there are two."""
    tree.add("sum-fast", alias=["crypto-sum"])
    tree.add("sum-plain", alias=["crypto-sum"])
    tree.add("base", exports=("base_get", "base_put"))
    tree.add("lib", exports=("lib_do",), needs=("base_get", "printk"), softdep="pre: crypto-sum")
    tree.add("fs", needs=("lib_do", "base_put"), alias=["fs-fs", "pci:v00008086d*sv*"], softdep="post: tail")
    tree.add("tail")
    tree.builtin("core", info=b"core.license=GPL\0core.alias=net-pf-1\0core.parm=x:an x\0")
    return tree.open()


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes files of a modprobe.d, and gives the directory."""

    def write(**files: str) -> Path:
        directory = tmp_path / "modprobe.d"
        directory.mkdir(exist_ok=True)
        for name, text in files.items():
            (directory / f"{name}.conf").write_text(text)
        return directory

    return write
