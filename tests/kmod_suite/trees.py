"""Roots for kmod's tools: modules by the tests' own ELF writer, indexed by the real depmod, and modprobe.d."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import distribution
from tests.support.elf_writer import ALLOC, ElfWriter, module_writer

__all__ = ["RELEASE", "Mod", "Real", "make_root"]

RELEASE = "4.4.4-suite"
_SHN_ABS = 0xFFF1


@dataclass(frozen=True)
class Mod:
    """A module to be written.

    :param exports: symbols with their CRCs. :param needs: symbols of others, with the CRCs wanted, None for none.
    """

    path: str
    exports: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, int | None] = field(default_factory=dict)
    info: Mapping[str, str | Iterable[str]] = field(default_factory=dict)

    def build(self) -> bytes:
        name = self.path.rpartition("/")[2].partition(".")[0].replace("-", "_")
        crcs = {symbol: crc for symbol, crc in self.needs.items() if crc is not None}
        writer: ElfWriter = module_writer(name=name, info=self.info, crcs=crcs or None)
        if self.exports:
            writer.add("__ksymtab", bytes(12 * len(self.exports)), ALLOC)
            writer.add("__ksymtab_strings", b"".join(symbol.encode() + b"\0" for symbol in self.exports), ALLOC)
        for symbol, crc in self.exports.items():
            writer.symbol(symbol, ".text")
            writer.symbol(f"__ksymtab_{symbol}", "__ksymtab")
            writer.symbol(f"__crc_{symbol}", _SHN_ABS, crc)
        for symbol in self.needs:
            writer.symbol(symbol)
        return writer.build()


class Real:
    """kmod's own programs."""

    def __init__(self, directory: Path) -> None:
        program, self._environment = distribution.kmod()
        self._directory = directory
        directory.mkdir(exist_ok=True)
        for tool in ("depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod"):
            (directory / tool).symlink_to(program)

    def run(self, tool: str, *arguments: str) -> tuple[int, bytes, str]:
        """Exit status, output and messages."""
        # By its bare name, which stands in the messages of getopt
        environment = {**self._environment, "LC_ALL": "C", "PATH": f"{self._directory}:{self._environment['PATH']}"}
        environment.pop("MODPROBE_OPTIONS", None)
        done = subprocess.run(
            [tool, *arguments], env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        return done.returncode, done.stdout, os.fsdecode(done.stderr)


def make_root(
    root: Path, real: Real, modules: Iterable[Mod], files: Mapping[str, str], builtin: Mapping[str, str]
) -> None:
    """Write ``lib/modules`` and ``etc/modprobe.d`` below a directory, and let the real depmod index it.

    :param files: of modprobe.d, by name. :param builtin: names, with their lines in modules.builtin.modinfo.
    """
    tree = root / "lib/modules" / RELEASE
    tree.mkdir(parents=True)
    paths = []
    for module in modules:
        path = tree / "kernel" / module.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module.build())
        paths.append(f"kernel/{module.path}\n")
    (tree / "modules.order").write_text("".join(paths))
    (tree / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    entries = [f"{name.replace('-', '_')}.{line}\0" for name, text in builtin.items() for line in text.splitlines()]
    (tree / "modules.builtin.modinfo").write_bytes("".join(entries).encode())
    directory = root / "etc/modprobe.d"
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    status, _, said = real.run("depmod", "-b", str(root), RELEASE)
    assert status == 0, said
