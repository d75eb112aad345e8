"""``python -m tests.attack.archives``: packages and images that are damaged, or mean harm, into ``check`` and
``kernel add``: ar, tar, cpio, rpm, initramfs images, and what they are compressed with.

Damage is done before compression as often as after it; headers are damaged by their fields, with checksums that hold.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kodojo.check.examine import examine
from kodojo.check.sources import Spool, find_modules
from kodojo.errors import KodojoError
from kodojo.image.package import unpack
from tests.attack.runner import Attack, main
from tests.support import archives
from tests.support.archives import COMPRESSIONS, ar, cpio, entry, header, regular, rpm, tar
from tests.support.checking import simple_module

EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
NAMES = (
    "../../etc/passwd", "/etc/passwd", "lib/modules/../../../x.ko", "lib/modules/1/x.ko", "boot/vmlinuz", "x.ko",
    "", ".", "..", "/", "a" * 300, "\u202e\x1b[2J.ko", "lib/modules/1/kernel", "boot", "TRAILER!!!", "./boot/x\n.ko",
    "usr/src/x-1/dkms.conf",
)  # fmt: skip
TAR_TYPES = b"0\x001234567LKxXgSDVNMA7"
COMPRESSED = tuple(COMPRESSIONS)


class Bases(NamedTuple):
    """What is damaged."""

    module: bytes
    contents: dict[str, bytes]


def prepare() -> Bases:
    """A module, and a kernel's files."""
    module = simple_module("paper")
    contents = {
        "./boot/vmlinuz-6.1": bytes(range(256)) * 8,
        "./boot/config-6.1": b"CONFIG_MODULES=y\n",
        "./lib/modules/6.1/kernel/a.ko": module,
        "./lib/modules/6.1/kernel/b.ko": module[:1000],
        "./usr/share/doc/kernel/README": b"not needed",
    }
    return Bases(module, contents)


# -- damage ---------------------------------------------------------------------------------------------------


def damage(rng: random.Random, data: bytes) -> bytes:
    """Bytes, words, pieces: one to four times."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(EXTREMES) & ((1 << 8 * width) - 1)
            out[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 600)]
        elif kind == 5:
            piece = out[at : at + rng.randrange(1, 1024)]
            out[at:at] = piece * rng.choice((1, 1, 2, 50))
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
    return bytes(out)


def number_field(rng: random.Random, width: int) -> bytes:
    """A number of tar's, or what stands in its place."""
    return rng.choice(
        (
            b"%0*o\0" % (width - 1, rng.choice(EXTREMES) % 8 ** (width - 1)),
            b"\x80" + rng.randbytes(width - 1),
            b"\x80" + rng.choice(EXTREMES).to_bytes(width - 1),
            b"\xff" * width,
            rng.randbytes(width),
            b"7" * width,
            b" " * width,
            b"-1".ljust(width, b"\0"),
            b"0_1".rjust(width, b"0"),
        )
    )


def tar_with_fields(rng: random.Random, bases: Bases) -> bytes:
    """Headers whose fields say anything, with checksums that are right."""
    out = b""
    for _ in range(rng.randrange(1, 9)):
        content = rng.choice((b"", b"x" * 10, bases.module[:700], b"a" * 512, pax(rng), pax(rng)))
        info, _ = entry(rng.choice(NAMES)[:99], data=content)
        block = bytearray(info.tobuf(archives.tarfile.GNU_FORMAT, "utf-8", "surrogateescape")[-512:])
        block[156] = rng.choice(TAR_TYPES)
        if rng.random() < 0.3:
            target = rng.choice(NAMES).encode("utf-8", "surrogateescape")[:100]
            block[157 : 157 + len(target)] = target
        if rng.random() < 0.3:
            at, width = rng.choice(((100, 8), (108, 8), (124, 12), (124, 12), (136, 12), (329, 8), (345, 155)))
            block[at : at + width] = number_field(rng, width)[:width].ljust(width, b"\0")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        out += (bytes(block) + content + bytes(-len(content) % 512)) * rng.choice((1, 1, 1, 1, 40))
    return out + bytes(1024)


def pax(rng: random.Random) -> bytes:
    """Records, right and wrong."""
    out = b""
    for _ in range(rng.randrange(1, 5)):
        keyword = rng.choice((b"path", b"size", b"linkpath", b"GNU.sparse.size", b"mtime", b"", b"hdrcharset"))
        value = rng.choice((b"x.ko", b"1" * 20, b"-1", b"0", b"9" * 5000, b"\xff\xfe", b"../../x.ko", b""))
        body = b" " + keyword + b"=" + value + b"\n"
        out += rng.choice((b"%d" % (len(body) + len(str(len(body) + 2))), b"0", b"99999999999", b"-5", b"")) + body
    return out


def cpio_with_fields(rng: random.Random, bases: Bases) -> bytes:
    """Entries whose numbers say anything."""
    out = b""
    for _ in range(rng.randrange(1, 9)):
        name = rng.choice(NAMES)
        mode = rng.choice((0o100644, 0o100755, 0o120777, 0o40755, 0o20644, 0o10644, 0, 0xFFFFFFFF))
        content = rng.choice((b"", b"../x", bases.module, b"x" * 5000))
        one = bytearray(archives.cpio([(name, mode, content, rng.randrange(3), rng.randrange(3))])[:-124])
        if rng.random() < 0.4 and len(one) > 110:
            at = 6 + 8 * rng.randrange(13)
            one[at : at + 8] = rng.choice((b"%08x" % rng.choice(EXTREMES), rng.randbytes(8), b" 1234567"))
        out += (bytes(one) + bytes(-len(one) % 4)) * rng.choice((1, 1, 1, 30))
    return out + cpio([])


def rpm_with_fields(rng: random.Random, bases: Bases) -> bytes:
    """Headers whose tags say anything."""
    count = rng.randrange(1, 4)
    tags = {
        1116: (4, [rng.choice((0, 0, 1, 0xFFFFFFFF)) for _ in range(count)]),
        1117: (8, [rng.choice(("x.ko", "y.ko", "../z.ko", "")) for _ in range(count)]),
        1118: (8, [rng.choice(("/lib/modules/1/", "/", "../"))]),
        1030: (3, [rng.choice((0o100644, 0o120777, 0o40755, 0)) for _ in range(count)]),
        1028: (4, [rng.choice((0, 10, 0xFFFFFFFF)) for _ in range(count)]),
    }
    large = b"".join(b"07070X%08x\0\0" % rng.choice((0, 1, 2, 0xFFFFFFFF)) + bytes(12) for _ in range(count))
    payload = rng.choice((large + cpio([]), cpio(regular(bases.contents)), cpio_with_fields(rng, bases)))
    data = bytearray(rpm(payload, tags, rng.choice((0, 0, 0, 1)), rng.choice(COMPRESSED)))
    start = bytes(data).index(header({1000: (4, [1, 2, 3])})[:8])
    for _ in range(rng.randrange(4)):
        at = start + 8 + 4 * rng.randrange(60)
        data[at : at + 4] = rng.choice((*EXTREMES, rng.getrandbits(32))).to_bytes(4)
    return bytes(data)


# -- cases ----------------------------------------------------------------------------------------------------


def packed(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Compressed in some way, damaged before or behind, or in the compressed data."""
    suffix = rng.choice(COMPRESSED)
    if rng.random() < 0.5:
        data = damage(rng, data)
    data = COMPRESSIONS[suffix](data)
    return suffix, damage(rng, data) if rng.random() < 0.4 else data


def _deb(rng: random.Random, data: bytes) -> bytes:
    suffix, data = packed(rng, data)
    whole = ar({"debian-binary": b"2.0\n", "control.tar.xz": b"", f"data.tar{suffix}": data})
    return damage(rng, whole) if rng.random() < 0.3 else whole


def _initramfs(rng: random.Random, bases: Bases) -> bytes:
    out = b""
    for _ in range(rng.randrange(1, 4)):
        archive = rng.choice((cpio(regular(bases.contents)), cpio_with_fields(rng, bases), cpio([])))
        out += packed(rng, archive)[1] if rng.random() < 0.7 else archive
        out += bytes(rng.choice((0, 0, 1, 2, 3, 512)))
    return out


KINDS: dict[str, Callable[[random.Random, Bases], tuple[str, bytes]]] = {
    "deb": lambda rng, bases: ("x.deb", _deb(rng, tar([entry(n, data=d) for n, d in bases.contents.items()]))),
    "tar": lambda rng, bases: ("x.deb", _deb(rng, tar_with_fields(rng, bases))),
    "ar": lambda rng, bases: (
        "x.deb",
        damage(rng, ar({"debian-binary": b"2.0\n", "data.tar": tar([entry("x.ko", data=bases.module[:99])])})[:900]),
    ),
    "cpio": lambda rng, bases: ("x.img", damage(rng, cpio_with_fields(rng, bases))),
    "rpm": lambda rng, bases: ("x.rpm", rpm_with_fields(rng, bases)),
    "initramfs": lambda rng, bases: ("x.img", _initramfs(rng, bases)),
    "compressed module": lambda rng, bases: ("x.ko.xz", packed(rng, bases.module)[1]),
}


def attempt(bases: Bases, seed: int, number: int, place: Path) -> tuple[str, str]:
    """Give one file to ``check``, and to ``kernel add`` if it claims to be a package."""
    rng = random.Random(f"archives {seed} {number}")
    kind = tuple(KINDS)[number % len(KINDS)]
    name, data = KINDS[kind](rng, bases)
    (place / name).write_bytes(data)
    (place / "spool").mkdir()
    spool = Spool(place / "spool")
    given = examine(find_modules([str(place / name)], spool), spool)
    problems = [each.module for each in given if each.module.problem]
    for each in problems:
        if not each.problem.startswith(str(place / name)) or "\n" in each.problem or not each.hint:
            raise AssertionError(f"{each.problem!r} ({each.hint!r})")
    if not name.endswith((".deb", ".rpm")):
        return kind, "refused" if problems else "read"
    try:
        unpack(place / name, place / "out")
    except KodojoError as error:
        if str(place / name) not in error.message or not error.hint or (place / "out").exists():
            raise AssertionError(f"{error.message!r} ({error.hint!r})") from error
        return kind, "refused"
    outside = [
        path for path in (place / "out").rglob("*") if path.is_symlink() or not (path.is_dir() or path.is_file())
    ]
    if outside:
        raise AssertionError(f"written: {outside}")
    return kind, "unpacked"


ATTACK = Attack("archives", prepare, attempt, ("x.", "spool", "out"))

if __name__ == "__main__":
    sys.exit(main(ATTACK))
