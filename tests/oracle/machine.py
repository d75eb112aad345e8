"""Cases that ask whether the *machine* is as true as the loader: code that is written at run time, modules that the
kernel asks for itself, what a system call leaves to its way out, tasks that die.

Loaders are told apart by comparing them in one machine; where that machine itself is wrong, both are. Only QEMU can
tell.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kodojo.image.image import Image
from kodojo.kmod.index import ModuleIndex
from tests.oracle.cases import Call, Case, in_file, in_memory, number, opened, pointing, result, text
from tests.support.crypto import INSTANCES, NONE_SUCH, modules_for

__all__ = ["machine_cases"]

GROUP = "machine"
# How many tests of its BPF compiler the kernel has, at the most; QEMU is through with a piece in half a minute.
TEST_BPF, TEST_BPF_STEP = 1050, 75
TEST_BPF_SUITES = ("test_tail_calls", "test_skb_segment")
ATTACHED = 1000
REQUESTED = {
    "one": ("dummy",),
    "two": ("kd_export", "kd_import"),
    "refused": ("kd_unknown",),
    "nested": ("kd_request",),
}
AES = ("ecb", "cbc", "lrw", "xts", "ctr", "ofb", "cfb", "xctr")
ASKERS = (
    ("rxrpc", "", ("pcbc(fcrypt)",)),
    ("tcrypt", "mode=10", (*(f"{mode}(aes)" for mode in AES), "rfc3686(ctr(aes))")),
    ("speakup_acntsa", "", ()),
)
TRACING = "/sys/kernel/tracing"
TRACED = "do_mkdirat"
AT_FDCWD = -100
# include/uapi/linux/socket.h, asm-generic/socket.h, bpf_common.h
AF_UNIX, SOCK_DGRAM, SOL_SOCKET, SO_ATTACH_FILTER = 1, 2, 1, 26
RETURN_CONSTANT = 0x06
O_NONBLOCK = 0o4000


def machine_cases(image: Image, built: Mapping[str, bytes]) -> Iterator[Case]:
    """The cases for a kernel, with the modules of tests/modules that were built for it."""
    yield from _bpf(image)
    yield _replaced_filters()
    yield from _static_keys(image)
    yield from _tracing()
    yield from _livepatch(built)
    yield from _requests(image, built)
    yield from _crypto(image, built)
    yield from _askers(image)
    yield from _way_out(built)
    yield from _deaths(built)


def _load(data: bytes, arguments: str = "", *looks_at: str) -> Call:
    return Call("finit_module", (in_file(data), text(arguments), number(0)), looks_at)


def _remove(name: str, *looks_at: str) -> Call:
    return Call("delete_module", (text(name), number(O_NONBLOCK)), looks_at)


def _write(path: str, value: str, *looks_at: str, flags: int = os.O_WRONLY) -> Call:
    data = value.encode()
    return Call("write", (opened(path, flags), in_memory(data), number(len(data))), looks_at)


def _sleep(seconds: int, *looks_at: str, after: Call) -> Call:
    return Call("nanosleep", (in_memory(struct.pack("<qq", seconds, 0)), number(0)), looks_at, earlier=(after,))


# -- code that is written at run time ---------------------------------------------------------------------------


def _bpf(image: Image) -> Iterator[Case]:
    """The kernel's own tests of its BPF compiler, whose programs take each other's place."""
    data = image.modules["test_bpf"].read()
    for first in range(0, TEST_BPF, TEST_BPF_STEP):
        span = f"{first},{first + TEST_BPF_STEP - 1}"
        calls = (_load(data, f"test_suite=test_bpf test_range={span}"), _remove("test_bpf"))
        yield Case(GROUP, f"test_bpf {span}", calls)
    for suite in TEST_BPF_SUITES:
        yield Case(GROUP, f"test_bpf {suite}", (_load(data, f"test_suite={suite}"), _remove("test_bpf")))


def _replaced_filters() -> Case:
    """A socket whose filter is replaced before each datagram, and says how much of it is received."""
    address = struct.pack("<H", AF_UNIX) + b"\0kd"
    earlier = [Call("socket", (number(AF_UNIX), number(SOCK_DGRAM), number(0)))] * 2
    earlier.append(Call("bind", (result(0), in_memory(address), number(len(address)))))
    earlier.append(Call("connect", (result(1), in_memory(address), number(len(address)))))
    message = b"x" * 61
    for turn in range(ATTACHED):
        code = struct.pack("<II", RETURN_CONSTANT, 1 + turn * 7 % len(message))
        program = pointing(struct.pack("<Q", 1), code)
        attach = (result(0), number(SOL_SOCKET), number(SO_ATTACH_FILTER), program, number(16))
        earlier.append(Call("setsockopt", attach))
        earlier.append(Call("write", (result(1), in_memory(message), number(len(message)))))
        earlier.append(Call("read", (result(0), in_memory(bytes(len(message))), number(len(message)))))
    return Case(GROUP, f"a filter replaced {ATTACHED} times", (Call("getuid", (), earlier=tuple(earlier)),))


def _static_keys(image: Image) -> Iterator[Case]:
    names = ("test_static_key_base", "test_static_keys")
    if all(name in image.modules for name in names):
        base, keys = (image.modules[name].read() for name in names)
        again = (_load(keys), _remove("test_static_keys")) * 3
        yield Case(GROUP, "test_static_keys", (_load(base), *again, _remove("test_static_key_base")))


def _tracing() -> Iterator[Case]:
    """A function is traced, and not any more, by turns."""

    def turns(switch: str, values: Sequence[str]) -> Iterator[Call]:
        for turn in range(3):
            for value in values:
                clear = Call("ftruncate", (opened(f"{TRACING}/trace", os.O_WRONLY | os.O_TRUNC), number(0)))
                yield _write(f"{TRACING}/{switch}", value)
                path = f"/kd-{turn}{value}"
                make = Call("mkdirat", (number(AT_FDCWD), text(path), number(0o755)))
                yield Call("getuid", (), (f"{TRACING}/trace",), earlier=(clear, make, make))

    calls = (_write(f"{TRACING}/set_ftrace_filter", TRACED), *turns("current_tracer", ("function", "nop")))
    yield Case(GROUP, "function tracer on and off", calls)
    calls = (
        _write(f"{TRACING}/kprobe_events", f"p:kprobes/kd {TRACED}"),
        *turns("events/kprobes/kd/enable", ("1", "0")),
    )
    yield Case(GROUP, "kprobe on and off", calls)


def _livepatch(built: Mapping[str, bytes]) -> Iterator[Case]:
    """A function of the kernel and one of a module are replaced, and not any more.

    What is loaded gets four seconds: a task that is in the kernel just then is patched later, once a second.
    """
    switch = "/sys/kernel/livepatch/kd_livepatch"
    looks = ("/proc/cmdline", switch)
    data = {name: built[name] for name in ("kd_export", "kd_livepatch", "kd_import")}
    for name, first in (("before", "kd_export"), ("after", "kd_livepatch")):
        second = "kd_livepatch" if first == "kd_export" else "kd_export"
        calls = [
            _sleep(4, *looks, after=_load(data[first])),
            _sleep(4, *looks, after=_load(data[second])),
            _load(data["kd_import"]),
            _remove("kd_import"),
            _sleep(4, *looks, after=_write(f"{switch}/enabled", "0")),
            _load(data["kd_import"]),
            _remove("kd_livepatch", *looks),
        ]
        yield Case(GROUP, f"kd_livepatch, kd_export loaded {name}", tuple(calls))


# -- modules that the kernel asks for ---------------------------------------------------------------------------


def _requests(image: Image, built: Mapping[str, bytes]) -> Iterator[Case]:
    def asks(name: str, arguments: str, found: Mapping[str, Sequence[str]]) -> Case:
        modprobe = tuple(
            (alias, tuple(built[one] if one in built else image.modules[one].read() for one in modules))
            for alias, modules in found.items()
        )
        return Case(GROUP, name, (_load(built["kd_threads"], arguments), _remove("kd_threads")), modprobe=modprobe)

    for task in ("threads=1", "threads=0 work=1"):
        yield asks(f"request_module, {task}: nothing", task, {})
        for what, modules in REQUESTED.items():
            yield asks(f"request_module, {task}: {what}", f"{task} name=kd-found", {"kd-found": modules})
    yield asks("request_module, threads=10 work=10: nothing", "threads=10 work=10", {})
    # tools/testing/selftests/kmod/kmod.sh, with kd_threads in place of test_kmod. The kernel's limit is 50 at once.
    xfs = {"fs-xfs": _with_dependencies(image, "xfs"), **dict(modules_for(image, "crc32c"))}
    for test, threads in (("0003", 1), ("0004", 2)):
        yield asks(f"kmod.sh {test}", f"fs=1 name=xfs threads={threads}", xfs)
    # Not xfs, which is large: each of them would read and check it.
    vfat = {"fs-vfat": _with_dependencies(image, "vfat")}
    for test, threads in (("0006", 50), ("0009", 62)):
        yield asks(f"kmod.sh {test}", f"fs=1 name=vfat threads={threads}", vfat)
    for test, threads in (("0005", 50), ("0008", 58)):
        yield asks(f"kmod.sh {test}", f"name=kd-found threads={threads}", {"kd-found": ("dummy",)})
    data = built["kd_request"]
    found = (("kd-nothing", (built["kd_noinit"],)),)
    yield Case(GROUP, "request_module by the task that loads", (_load(data), _remove("kd_request")), modprobe=found)


def _with_dependencies(image: Image, name: str) -> list[str]:
    return [*ModuleIndex.of(image).dependencies(name), name]


def _modprobe(image: Image, instances: Iterable[str]) -> tuple[tuple[str, tuple[bytes, ...]], ...]:
    """A modprobe that knows what these algorithms are made of."""
    found = dict(pair for instance in instances for pair in modules_for(image, instance))
    return tuple((alias, tuple(image.modules[one].read() for one in modules)) for alias, modules in found.items())


def _crypto(image: Image, built: Mapping[str, bytes]) -> Iterator[Case]:
    """Algorithms that are made of others when they are asked for, by a thread of the kernel's that asks for those.

    Those that have test vectors are tested by the kernel before they are had: /proc/crypto says so.
    """
    asked = (*INSTANCES.values(), *NONE_SUCH)
    for kind in sorted({kind for kind, _ in asked}):
        names = [name for one, name in asked if one == kind]
        calls = []
        for name in names:
            calls += [_load(built["kd_crypto"], f"kind={kind} name={name}", "/proc/crypto"), _remove("kd_crypto")]
        yield Case(GROUP, f"crypto_alloc_{kind}", tuple(calls), modprobe=_modprobe(image, names))


def _askers(image: Image) -> Iterator[Case]:
    """Modules of the tree that ask for others in their init, or speak to a device that is not there."""
    for name, arguments, instances in ASKERS:
        calls = [_load(image.modules[one].read()) for one in ModuleIndex.of(image).dependencies(name)]
        calls += [_load(image.modules[name].read(), arguments), _remove(name)]
        yield Case(GROUP, name, tuple(calls), modprobe=_modprobe(image, instances))


# -- the way out, and deaths ------------------------------------------------------------------------------------


def _way_out(built: Mapping[str, bytes]) -> Iterator[Case]:
    """What looked for partitions has closed the disk when the load returns; what was in use is free at once."""
    disk = built["kd_disk"]
    turn = (_load(disk, "sectors=64", "kd_disk"), _remove("kd_disk", "kd_disk"))
    data = bytes(range(256)) * 2
    use = Call("write", (opened("/dev/kd_disk", os.O_WRONLY), in_memory(data), number(len(data))), ("/dev/kd_disk",))
    yield Case(GROUP, "a disk, removed at once", (*turn, *turn, turn[0], use, turn[1]))
    # One process loads it and removes it: nothing comes between.
    both = Call("delete_module", (text("kd_disk"), number(O_NONBLOCK)), ("kd_disk",), earlier=(_load(disk),))
    yield Case(GROUP, "a disk, loaded and removed by one process", (both, both))


def _deaths(built: Mapping[str, bytes]) -> Iterator[Case]:
    """A task of the kernel's own dies; the calls after that are answered as before."""
    after = (_load(built["kd_hello"], "", "kd_hello"), _remove("kd_hello"), _remove("kd_dies"))
    yield Case(GROUP, "a worker dies", (_load(built["kd_dies"], "how=4"), *after))
    yield Case(
        GROUP,
        "a worker dies after a warning",
        (_load(built["kd_oops"], "how=3"), _load(built["kd_dies"], "how=4"), *after),
    )
