"""The cases, for one kernel: always the same ones, in the same order."""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from kodojo.image.image import Image
from kodojo.kernel.abi import abi_of
from tests.damage.bases import bases
from tests.damage.mutations import make_case
from tests.differential import test_malformed
from tests.differential.test_distribution import listed
from tests.oracle.cases import Argument, Call, Case, in_file, in_memory, number, opened, text
from tests.oracle.machine import machine_cases
from tests.support import kbuild

__all__ = ["GROUPS", "catalogue"]

SEED, DAMAGED = 11, 110
GROUPS = (
    "tree", "malformed", "damaged", "built", "parameters", "init_module", "finit_module", "delete_module", "switches",
    "machine",
)  # fmt: skip
# What only one architecture's trees have: instructions that a processor may lack, its own devices.
MORE_OF_THE_TREE = {
    "aarch64": (
        "aes-ce-blk", "aes-neon-bs", "chacha-neon", "crct10dif-ce", "ghash-ce", "nhpoly1305-neon", "poly1305-neon",
        "sha2-ce", "sha3-ce", "sha512-ce", "xor-neon", "arm_smccc_trng", "arm_spe_pmu", "coresight", "virtio_mmio",
    ),
}  # fmt: skip
PAGE = 4096
O_TRUNC, O_NONBLOCK = 0o1000, 0o4000
UNMAPPED = (0, 16, 0x10000, 0x7FFFFFFFF000, 0xFFFFFFFF81000000, 1 << 63)


def catalogue(image: Image, series: str, groups: Collection[str] = GROUPS) -> list[Case]:
    """The cases of some groups for a kernel."""
    built = {name: path.read_bytes() for name, path in kbuild.build(series).items()}
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "tree": lambda: _tree(image),
        "malformed": lambda: _malformed(image),
        "damaged": lambda: _damaged(image, series),
        "built": lambda: _built(built),
        "parameters": lambda: _parameters(built["kd_hello"]),
        "init_module": lambda: _init_module(built["kd_noinit"]),
        "finit_module": lambda: _finit_module(image, built["kd_noinit"]),
        "delete_module": lambda: _delete_module(built),
        "switches": lambda: _switches(image, built["kd_noinit"]),
        "machine": lambda: machine_cases(image, built),
    }
    found = [case for group in GROUPS if group in groups for case in makers[group]()]
    return [replace(case, architecture=image.architecture) for case in found]


def load(data: bytes, arguments: str | bytes = "", looks_at: str = "") -> Call:
    looks = (looks_at,) if looks_at else ()
    return Call("init_module", (in_memory(data), number(len(data)), text(arguments)), looks)


def load_file(data: bytes, arguments: str = "", flags: int = 0, looks_at: str = "") -> Call:
    looks = (looks_at,) if looks_at else ()
    return Call("finit_module", (in_file(data), text(arguments), number(flags)), looks)


def remove(name: str | bytes, flags: int = O_NONBLOCK, looks_at: str = "") -> Call:
    return Call("delete_module", (text(name), number(flags)), (looks_at,) if looks_at else ())


# -- modules of the distribution ------------------------------------------------------------------------------


def _tree(image: Image) -> Iterator[Case]:
    """With what they depend on; loaded twice, then everything removed again."""
    for name, arguments in (*listed(), *((name, "") for name in MORE_OF_THE_TREE.get(image.architecture, ()))):
        if name not in image.modules:
            continue
        own = name.replace("-", "_")
        before = [image.modules[other] for other in image.modules[name].depends]
        data = image.modules[name].read()
        calls = [load_file(other.read()) for other in before]
        calls += [load_file(data, arguments, looks_at=own), load(data, arguments)]
        calls += [remove(own, looks_at=own), *(remove(other.name.replace("-", "_")) for other in reversed(before))]
        yield Case("tree", name, tuple(calls))


# -- modules that are odd -------------------------------------------------------------------------------------


def _malformed(image: Image) -> Iterator[Case]:
    """Those of the differential test; the next module loads."""
    named = [
        (f"header {members}", lambda w, m=members: w.header.update(m), None) for members in test_malformed.HEADERS
    ]
    named += [
        (f"section zero {member}", lambda w, m=member: w.zero.update({m: 0xFFFFFFFF}), None)
        for member in ("sh_type", "sh_size", "sh_addr")
    ]
    named += [
        (f"section {name} {members}", lambda w, n=name, m=members: w.section(n).header.update(m), None)
        for name, members in test_malformed.SECTIONS
    ]
    named += [(f"modinfo {info}", lambda w: None, info) for info in test_malformed.MODINFO]
    named += [(name, change, None) for name, change in test_malformed.CHANGES.items()]
    whole = load(test_malformed.malformed(image, lambda w: None, name="whole"), looks_at="whole")
    for name, change, info in named:
        odd = load(test_malformed.malformed(image, change, info), looks_at="paper")
        yield Case("malformed", name, (odd, whole))
    for name in ("ndiswrapper", "driverloader", "lve"):
        data = test_malformed.malformed(image, lambda w: None, name=name)
        yield Case("malformed", f"called {name}", (load(data, looks_at=name), whole))


def _damaged(image: Image, series: str) -> Iterator[Case]:
    """A sample of the damaged modules (tests/damage), what they depend on loaded."""
    whole = bases(image, series)
    for index in range(DAMAGED):
        damaged = make_case(whole, SEED, index)
        module = image.modules.get(damaged.base)
        before = [image.modules[other].read() for other in (module.depends if module else ())]
        calls = (*(load(data) for data in before), load(damaged.data, damaged.arguments, damaged.base))
        yield Case("damaged", f"{index} {damaged.base}: {damaged.text}", calls)


# -- modules of tests/modules ---------------------------------------------------------------------------------


def _built(built: dict[str, bytes]) -> Iterator[Case]:
    for name in (
        "kd_hello", "kd_export", "kd_fail", "kd_irqs", "kd_leak", "kd_noexit", "kd_noinit", "kd_percpu",
        "kd_positive", "kd_proc", "kd_proprietary", "kd_request", "kd_timer", "kd_trace", "kd_unknown", "kd_import",
        "kd_gplonly_prop",
    ):  # fmt: skip
        yield Case("built", name, (load(built[name], looks_at=name), remove(name), load(built[name])))
    for error in (0, 1, 2, 12, 17, 512, 4095, 4096, -1, -5):
        yield Case("built", f"kd_fail error={error}", (load(built["kd_fail"], f"error={error}", "kd_fail"),))
    for how in (0, 1, 2):
        yield Case("built", f"kd_irqs how={how}", (load(built["kd_irqs"], f"how={how}"), load(built["kd_noinit"])))
    for how in range(10):
        yield Case("built", f"kd_oops how={how}", (load(built["kd_oops"], f"how={how}"),))
    yield Case("built", "kd_oops late", (load(built["kd_oops"], "late=1"), remove("kd_oops")))
    for how in (1, 4, 5):
        yield Case("built", f"kd_spin how={how}", (load(built["kd_spin"], f"how={how}", "kd_spin"),))
    yield Case("built", "kd_leak destroy", (load(built["kd_leak"], "destroy=1"), remove("kd_leak")))
    for importer in ("kd_import", "kd_import_without_ns", "kd_gplonly_prop"):
        pair = (load(built["kd_export"]), load(built[importer], looks_at=importer))
        yield Case("built", f"{importer} after kd_export", (*pair, remove("kd_export"), remove(importer)))


def _parameters(hello: bytes) -> Iterator[Case]:
    for arguments in (
        "byte=255", "byte=256", "byte=-1", "byte=0x1f", "byte=017", "byte=08", "short=-32768", "short=32768",
        "ushort=65535", "ushort=65536", "int=-2147483648", "int=2147483648", "int=1x", "int=", "int",
        "int=0b1", "int=+5", "int= 5", "uint=4294967295", "uint=4294967296", "uint=-1",
        "long=-9223372036854775808", "long=9223372036854775808", "ulong=18446744073709551615",
        "ulong=18446744073709551616", "ullong=0xfffffffffffffffff", "hexint=0xDEADbeef", "hexint=0x100000000",
        'whom="Ada and Bob"', 'whom="Ada and Bob', 'whom=Ada" and "Bob', "whom=", "whom", "whom=" + 1024 * "x",
        "whom=" + 1025 * "x", "bool", "bool=on", "bool=of", "bool=perhaps", "invbool=1", "invbool=", "bint=y",
        "bint=2", "enable_only=1 enable_only=0", "enable_only=0", "text=1234567890123456789",
        "text=12345678901234567890", "int-value=5", "ints=1,-2,3,4", "ints=1,2,3,4,5", "ints=1,x", "ints=",
        "ints=,", "names=x,yy,z", "hidden=8", "dangerous=1", "even=3", "even=4", "noarg", "noarg=1",
        "nothing=1 byte=3", "byte=3 -- byte=4 int=x", "--", "=", "=5", "  byte=3   int=4  ",
        '"byte=3" "int=4"', "byte=1 byte=2 byte=x", "byte\t=\t3", "kd_hello.byte=3", "dyndbg", "dyndbg=+p",
        "async_probe", "async_probe=1",
    ):  # fmt: skip
        name = arguments if len(arguments) < 60 else f"{arguments[:20]}... ({len(arguments)} bytes)"
        yield Case("parameters", name, (load(hello, arguments, "kd_hello"),))
    yield Case("parameters", "bytes", (load(hello, b"whom=\xff\x01\x7f int=3", "kd_hello"),))
    written = [
        ("byte", "255"), ("byte", "256"), ("short", "-32768"), ("int", "2147483648"), ("int", "-1\n"),
        ("hexint", "ff"), ("bool", "y"), ("bint", "-1"), ("text", "longer"), ("text", 20 * "x"),
        ("whom", "dear reader"), ("ulong", "1"), ("ints", "4,3,2,1"), ("ints", "1,2,3,4,5"), ("even", "-8"),
        ("even", "5"), ("enable_only", "1"), ("enable_only", "0"), ("dangerous", "1"), ("missing", "1"),
    ]  # fmt: skip
    calls = [write(f"/sys/module/kd_hello/parameters/{name}", value, "kd_hello") for name, value in written]
    yield Case("parameters", "written through sysfs", (load(hello, looks_at="kd_hello"), *calls, remove("kd_hello")))


def write(path: str, value: str, looks_at: str = "") -> Call:
    """``write(2)`` to a file that is opened for it."""
    data = value.encode()
    looks = (looks_at,) if looks_at else ()
    return Call("write", (opened(path, os.O_WRONLY), in_memory(data), number(len(data))), looks)


# -- the system calls' own arguments --------------------------------------------------------------------------


def _init_module(data: bytes) -> Iterator[Case]:
    def case(name: str, umod: Argument, length: int, uargs: Argument | None = None) -> Case:
        call = Call("init_module", (umod, number(length), uargs or text("")), ("kd_noinit",))
        return Case("init_module", name, (call, load(data)))

    lengths = {str(length): length for length in (0, 1, 63, 64, 65, 1000)}
    lengths |= {"half": len(data) // 2, "all but 1000": len(data) - 1000, "all but one": len(data) - 1}
    for name, length in lengths.items():
        yield case(f"cut to {name}", in_memory(data[:length]), length)
    for name, content in (
        ("zeros", bytes(5000)),
        ("text", b"#!/bin/sh\n" * 20),
        ("only magic", b"\x7fELF" + bytes(100)),
    ):
        yield case(name, in_memory(content), len(content))
    for address in UNMAPPED:
        yield case(f"image at {address:#x}", number(address), 5000)
        yield case(f"short image at {address:#x}", number(address), 63)
        yield case(f"arguments at {address:#x}", in_memory(data), len(data), number(address))
    rest = -len(data) % PAGE
    yield case("length to the end of the page", in_memory(data), len(data) + rest)
    yield case("length beyond the page", in_memory(data), len(data) + rest + 1)
    for length in (1 << 30, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        yield case(f"length {length:#x}", in_memory(data), length)
    for end in (b"number=5", b"number=5\0"):
        at_end = in_memory(bytes(PAGE - len(end)) + end, PAGE - len(end))
        yield case(f"arguments {end!r} at the end of a page", in_memory(data), len(data), at_end)
    long = text("number=1 " * 100 + " " * 200000 + "number=7")
    yield case("long arguments", in_memory(data), len(data), long)
    yield case("bad image and arguments", in_memory(data[:-1000]), len(data) - 1000, number(0))


def _finit_module(image: Image, data: bytes) -> Iterator[Case]:
    def case(name: str, file: Argument, flags: int = 0, uargs: Argument | None = None) -> Case:
        call = Call("finit_module", (file, uargs or text("number=4"), number(flags)), ("kd_noinit",))
        return Case("finit_module", name, (call, load(data)))

    for descriptor in (-1, -2, 12345, (1 << 31) - 1):
        yield case(f"descriptor {descriptor}", number(descriptor))
    for mode in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_PATH"):
        yield case(mode, in_file(data, getattr(os, mode)))
    yield case("directory", opened("/tmp", abi_of(image.architecture).open_directory))
    yield case("device", opened("/dev/null"))
    yield case("/proc", opened("/proc/version"))
    for length in (0, 1, 63, 64, 1000):
        yield case(f"{length} bytes", in_file(data[:length]))
    for flags in (1, 2, 3, 8, 15, 0x100, 0x80000000, -1):
        yield case(f"flags {flags:#x}", in_file(data), flags)
        yield case(f"flags {flags:#x}, bad descriptor", number(-1), flags)
    yield case("bad arguments", in_file(data), 0, number(0))
    foreign = re.sub(rb"(?<=\0)(vermagic=\S+ )SMP ", rb"\1smp ", data)
    crc = image.exports.get("module_layout").crc.to_bytes(4, "little")
    retyped = data.replace(crc, bytes(255 - byte for byte in crc))
    packed = lzma.compress(data, check=lzma.CHECK_CRC32)
    for flags in (0, 1, 2, 3):
        yield case(f"another vermagic, flags {flags}", in_file(foreign), flags)
        yield case(f"another CRC, flags {flags}", in_file(retyped), flags)
    for flags in (0, 4):
        yield case(f"xz, flags {flags}", in_file(packed), flags)
        yield case(f"damaged xz, flags {flags}", in_file(packed[:-100]), flags)
    yield case("not compressed, flags 4", in_file(data), 4)


def _delete_module(built: dict[str, bytes]) -> Iterator[Case]:
    data = built["kd_noinit"]
    for name in ("kd_nothing", "", "x" * 54, "x" * 55, "x" * 56, "x" * 57, "x" * 5000, b"\xff\n ", "kernel", "ext4"):
        shown = name if len(name) < 20 else f"{len(name)} times x"
        yield Case("delete_module", f"name {shown!r}", (remove(name), load(data)))
    for address in UNMAPPED:
        call = Call("delete_module", (number(address), number(0)))
        yield Case("delete_module", f"name at {address:#x}", (call, load(data)))
    for end in (b"kd_noinit", b"x" * 54, b"x" * 60, b"kd_noinit\0"):
        name = in_memory(bytes(PAGE - len(end)) + end, PAGE - len(end))
        calls = (load(data), Call("delete_module", (name, number(0)), ("kd_noinit",)))
        yield Case("delete_module", f"name {end!r} at the end of a page", calls)
    for flags in (0, O_NONBLOCK, O_TRUNC, O_TRUNC | O_NONBLOCK, 0xFFFFFFFF):
        again = (remove("kd_noinit", flags, "kd_noinit"), remove("kd_noinit", flags))
        yield Case("delete_module", f"flags {flags:#o}", (load(data), *again))
        loads = [load(built[name]) for name in ("kd_export", "kd_import", "kd_noexit")]
        removes = [remove(name, flags) for name in ("kd_export", "kd_noexit", "kd_import", "kd_export")]
        yield Case("delete_module", f"used ones, flags {flags:#o}", (*loads, *removes))


def _switches(image: Image, data: bytes) -> Iterator[Case]:
    """Who may load modules, and which; what makes the kernel refuse all of them, or unsigned ones."""
    signed = image.modules["dummy"].read()
    after = (load(data), load_file(data), load(signed[:-1] + b"x"), load(signed, looks_at="dummy"), remove("dummy"))
    yield Case("switches", "modules_disabled", (load(data), write("/proc/sys/kernel/modules_disabled", "1"), *after))
    enforce = write("/sys/module/module/parameters/sig_enforce", "1")
    yield Case("switches", "sig_enforce", (enforce, *after))
    calls = (
        load(data),
        load(b""),
        load_file(data),
        load_file(data, flags=8),
        remove("kd_noinit"),
        remove("kd_nothing"),
    )
    nobody = [replace(call, privileged=False) for call in calls]
    yield Case("switches", "without capabilities", (*nobody, load(data), *nobody, remove("kd_noinit")))
    for level in ("integrity", "confidentiality"):
        yield Case("switches", f"lockdown={level}", (write("/sys/kernel/security/lockdown", level), *after))
