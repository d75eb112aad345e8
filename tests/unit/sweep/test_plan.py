from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.elf_writer import ElfWriter
from tests.sweep.plan import Modules, Node


@dataclass
class Image:
    """As much of one as a plan needs."""

    modules: dict = field(default_factory=dict)


@dataclass
class Module:
    path: Path
    depends: tuple[str, ...]

    def read(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    tree = {
        "crc32c_generic": ((), ""),
        "core": ((), ""),
        "user1": (("core",), ""),
        "user2": (("core",), "softdep=pre: some-alias post: user1"),
        "soft": ((), "alias=some_alias"),
        "top": (("core", "user1"), ""),
    }
    found = Image()
    for name, (depends, modinfo) in tree.items():
        writer = ElfWriter()
        writer.add(".modinfo", modinfo.encode() + b"\0")
        path = tmp_path / f"{name}.ko"
        path.write_bytes(writer.build())
        found.modules[name] = Module(path, depends)
    return found


def places(node: Node, above: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """By module: what is loaded when it is tested."""
    found = {node.name: above} if node.tested else {}
    for child in node.children.values():
        found |= places(child, (*above, node.name) if node.name else above)
    return found


def test_everything_is_tested_on_its_dependencies(image: Image, tmp_path: Path) -> None:
    """Each module is tested once, with its dependencies, soft ones and the helpers loaded and nothing else."""
    plan = Modules(image, tmp_path / "cache").plan(image.modules)
    assert {name: set(above) for name, above in places(plan, ()).items()} == {
        "crc32c_generic": set(),
        "core": {"crc32c_generic"},
        "soft": {"crc32c_generic"},
        "user1": {"crc32c_generic", "core"},
        "user2": {"crc32c_generic", "core", "soft"},
        "top": {"crc32c_generic", "core", "user1"},
    }
    assert all(
        above.index(other) < above.index(name)
        for above in places(plan, ()).values()
        for name in above
        for other in image.modules[name].depends
    )


def test_work_is_shared(image: Image, tmp_path: Path) -> None:
    """A dependency of several modules is loaded once for all."""
    plan = Modules(image, tmp_path / "cache").plan(["user1", "top"])
    assert plan.size == 1 + len(["crc32c_generic", "core", "user1", "top"])


def test_facts_are_kept(image: Image, tmp_path: Path) -> None:
    """A second look at the tree reads only the modules that have changed."""
    before = Modules(image, tmp_path / "cache").facts
    for name in ("core", "soft"):
        status = image.modules[name].path.stat()
        image.modules[name].path.write_bytes(b"\0" * status.st_size)
        os.utime(image.modules[name].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Modules(image, tmp_path / "cache").facts == before
