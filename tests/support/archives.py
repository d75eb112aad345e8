"""Writers of packages and archives, good and bad."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile

import zstandard

COMPRESSIONS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def ar(members):
    out = b"!<arch>\n"
    for name, data in members.items():
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return out


def entry(name, kind=tarfile.REGTYPE, target="", data=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def tar(entries, form=tarfile.GNU_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(entries, suffix=".xz", form=tarfile.GNU_FORMAT):
    data = COMPRESSIONS[suffix](tar(entries, form))
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(b"odd"), f"data.tar{suffix}": data})


def files(contents):
    return [entry(name, data=data) for name, data in contents.items()]


def cpio(entries):
    """An archive of (name, mode, content, inode, links)."""
    out = b""
    for name, mode, data, inode, links in [*entries, ("TRAILER!!!", 0, b"", 0, 1)]:
        raw = name.encode() + b"\0"
        numbers = [inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        out += b"070701" + b"".join(b"%08x" % number for number in numbers) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return out


def header(tags):
    index, store = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        size = {3: 2, 4: 4, 5: 8}.get(kind)
        if size:
            store += b"\0" * (-len(store) % size)
        index += struct.pack(">IIII", tag, kind, len(store), len(values))
        store += b"".join(value.to_bytes(size) if size else value.encode() + b"\0" for value in values)
    return b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", len(tags), len(store)) + index + store


def rpm(payload, tags=None, kind=0, suffix=".xz"):
    lead = b"\xed\xab\xee\xdb\x03\0" + struct.pack(">H", kind)
    signature = header({1000: (4, [1, 2, 3])})
    main = header({1124: (6, ["cpio"])} | (tags or {}))
    return (
        lead.ljust(96, b"\0")
        + signature.ljust(-(-len(signature) // 8) * 8, b"\0")
        + main
        + COMPRESSIONS[suffix](payload)
    )


def regular(contents):
    return [
        (name, stat.S_IFREG | 0o644, data, 100 + number, 1) for number, (name, data) in enumerate(contents.items())
    ]
