"""The files that depmod writes into a tree (``tools/depmod.c: depmod_output``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kodojo.durable import disk_error, write_atomically
from kodojo.errors import decode, encode
from kodojo.image.regular import read_regular
from kodojo.kmod.depmod.graph import Graph
from kodojo.kmod.depmod.index_writer import IndexWriter
from kodojo.kmod.depmod.kmod_hash import hash_order
from kodojo.kmod.names import alias_normalize

__all__ = ["FILES", "TEXTS", "Output", "files_of", "write_files"]

_BUCKETS = 2048  # of depmod's hash of symbols, in whose order modules.symbols is
_MODE = 0o644
_MAJOR = re.compile(rb"(char|block)-major-\s*([+-]?\d+)-\s*([+-]?\d+)")

TEXTS = ("modules.dep", "modules.alias", "modules.softdep", "modules.weakdep", "modules.symbols", "modules.devname")
"""What ``depmod -n`` prints, in its order."""

FILES = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.softdep",
    "modules.weakdep",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.devname",
)
"""All files, in the order in which they are written; kmod has ``modules.weakdep`` since version 33."""


@dataclass
class Output:
    """The files, and what there is to say about them.

    :param warnings: in kmod's words. :param errors: likewise.
    :param duplicates: what ``-w`` warns of.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)


def files_of(graph: Graph, root: Path, names: Sequence[str] = FILES) -> Output:
    """Make files, all of them unless some are named.

    :param root: the tree, which has ``modules.builtin`` and ``modules.builtin.modinfo``.
    """
    out = Output()
    makers: Mapping[str, Callable[[Graph, Output], bytes]] = {
        "modules.dep": _dep,
        "modules.dep.bin": _dep_bin,
        "modules.alias": _alias,
        "modules.alias.bin": _alias_bin,
        "modules.softdep": _softdep,
        "modules.weakdep": _weakdep,
        "modules.symbols": _symbols,
        "modules.symbols.bin": _symbols_bin,
        "modules.builtin.bin": lambda _, out: _builtin_bin(root, out),
        "modules.builtin.alias.bin": lambda _, out: _builtin_alias_bin(root, out),
        "modules.devname": _devname,
    }
    for name in names:
        out.files[name] = makers[name](graph, out)
    return out


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Write them, each one whole or not at all.

    :param directory: created if it is not there.
    :raises StoreError: the disk is full, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(directory, error, "create") from error
    for name, content in files.items():
        write_atomically(directory / name, content)
        (directory / name).chmod(_MODE)


# -- the files ----------------------------------------------------------------------------------------------


def _line(graph: Graph, number: int) -> bytes:
    modules = graph.modules
    words = [f"{modules[number].path}:", *(modules[other].path for other in graph.depends[number])]
    return encode(" ".join(words))


def _dep(graph: Graph, _: Output) -> bytes:
    return b"".join(_line(graph, number) + b"\n" for number in range(len(graph.modules)))


def _dep_bin(graph: Graph, out: Output) -> bytes:
    index = IndexWriter()
    for number, module in enumerate(graph.modules):
        line = _line(graph, number)
        if index.add(encode(module.name), line, number):
            out.duplicates.append(f"duplicate module deps:\n{decode(line)}")
    return _built(index, out)


def _alias(graph: Graph, _: Output) -> bytes:
    lines = [b"# Aliases extracted from modules themselves.\n"]
    for module in graph.modules:
        name = encode(module.name)
        lines += [b"alias %s %s\n" % (alias, name) for alias in module.aliases]
    return b"".join(lines)


def _alias_bin(graph: Graph, out: Output) -> bytes:
    index = IndexWriter()
    for number, module in enumerate(graph.modules):
        for value in module.aliases:
            alias = alias_normalize(decode(value))
            if alias is None:
                out.warnings.append(f"Unmatched bracket in {decode(value)}")
            elif index.add(encode(alias), encode(module.name), number):
                out.duplicates.append(f"duplicate module alias:\n{alias} {module.name}")
    return _built(index, out)


def _softdep(graph: Graph, _: Output) -> bytes:
    lines = [b"# Soft dependencies extracted from modules themselves.\n"]
    for module in graph.modules:
        lines += [b"softdep %s %s\n" % (encode(module.name), text) for text in module.softdeps]
    return b"".join(lines)


def _weakdep(graph: Graph, _: Output) -> bytes:
    lines = [b"# Weak dependencies extracted from modules themselves.\n"]
    for module in graph.modules:
        lines += [b"weakdep %s %s\n" % (encode(module.name), text) for text in module.weakdeps]
    return b"".join(lines)


def _symbols(graph: Graph, _: Output) -> bytes:
    names = [encode(module.name) for module in graph.modules]
    ordered = hash_order(graph.owners, _BUCKETS)
    lines = (b"alias symbol:%s %s\n" % (symbol, names[graph.owners[symbol]]) for symbol in ordered)
    return b"".join([b"# Aliases for symbols, used by symbol_request().\n", *lines])


def _symbols_bin(graph: Graph, out: Output) -> bytes:
    index = IndexWriter()
    for symbol, number in graph.owners.items():
        index.add(b"symbol:" + symbol, encode(graph.modules[number].name), number)
    return _built(index, out)


def _builtin_bin(root: Path, out: Output) -> bytes:
    data = _read(root, "modules.builtin", out)
    if data is None:
        return b""
    index = IndexWriter()
    for line in data.splitlines():
        if not line[:1].isalpha():
            out.errors.append(f"Invalid modules.builtin line: {decode(line)}")
            continue
        name = line.rpartition(b"/")[2].partition(b".")[0].replace(b"-", b"_")
        index.add(name, b"")
    return _built(index, out)


def _builtin_alias_bin(root: Path, out: Output) -> bytes:
    data = _read(root, "modules.builtin.modinfo", out)
    if data is None:
        return b""
    index = IndexWriter()
    entries = iter(data.split(b"\0")[:-1])
    for entry in entries:
        name, dot, rest = entry.partition(b".")
        key, equals, value = rest.partition(b"=")
        if dot and name and not equals:
            next(entries, None)  # kmod looks for the entry's end once more, and finds that of the next one
        elif dot and name and key == b"alias" and value:
            alias = alias_normalize(decode(value))
            if alias is None:
                out.warnings.append(f"Unmatched bracket in {decode(value)}")
            else:
                index.add(encode(alias), name)
    return _built(index, out)


def _devname(graph: Graph, out: Output) -> bytes:
    lines: list[bytes] = []
    for module in graph.modules:
        name, device = _device(module.aliases)
        if name is not None and device:
            lines.append(b"%s %s %s\n" % (encode(module.name), name, device))
        elif name is not None:
            lacking = "lacks major and minor information. Ignoring."
            out.errors.append(f"Module '{module.name}' has devname ({decode(name)}) but {lacking}")
    return b"".join([b"# Device nodes to trigger on-demand module loading.\n", *lines]) if lines else b""


def _device(aliases: list[bytes]) -> tuple[bytes | None, bytes]:
    """The name that a module's device should have, and ``c10:200``."""
    name, device = None, b""
    for alias in aliases:
        if alias.startswith(b"devname:"):
            name = alias.removeprefix(b"devname:")
        elif (match := _MAJOR.match(alias)) is not None:
            major, minor = (int(number) & 0xFFFFFFFF for number in match.groups()[1:])
            device = b"%c%d:%d" % (match[1][0], major, minor)
        if device and name is not None:
            break
    return name, device


def _built(index: IndexWriter, out: Output) -> bytes:
    for key in index.refused:
        out.errors.append(f"Module index: bad character in {decode(key)!r} - only 7-bit ASCII is supported")
    return index.build()


def _read(root: Path, name: str, out: Output) -> bytes | None:
    try:
        return read_regular(root / name)
    except OSError as error:
        out.warnings.append(f"could not open {name} at {root}: {error.strerror or error}")
        return None
