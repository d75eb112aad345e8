"""Reports of guest.c."""

from __future__ import annotations

import struct
import subprocess

import pytest

from tests.oracle import qemu
from tests.oracle.answers import HANG, KILLED, PANIC, Answer


def record(kind: str, content: bytes) -> bytes:
    return kind.encode() + struct.pack("<I", len(content)) + content


def answers(*records: bytes, calls: int = 1, ending: str = PANIC) -> list[Answer]:
    return qemu._answers(qemu._records(b"".join(records)), calls, ending)


VALUE = record("V", struct.pack("<q", -8))
LOG = record("L", b"6,123,456789,-;a: hello\n SUBSYSTEM=module\n")
END = record("E", b"")


def test_whole_answer():
    """A call's value, log, taints, modules and files are put together."""
    found = answers(
        VALUE,
        LOG,
        record("F", b"/proc/sys/kernel/tainted\x004096\n"),
        record("F", b"/proc/modules\0a 1 0 - Live 0x0\n"),
        record("D", b"/sys/module/a/sections\0"),
        record("F", b"/sys/module/a/refcnt\x000\n"),
        record("F", b"/sys/module/a/uevent\0"),
        record("N", b"/sys/module/a/odd\0" + struct.pack("<q", -5)),
        record("O", b"/sys/module/a/link\0\x0a"),
        END,
    )
    sysfs = {
        "/sys/module/a/sections/": "", "/sys/module/a/refcnt": "0\n", "/sys/module/a/odd": "errno 5",
        "/sys/module/a/link": "kind 10",
    }  # fmt: skip
    log, modules = [(6, "a: hello")], "a 1 0 - Live 0x0\n"
    assert found == [Answer(-8, log=log, tainted=4096, modules=modules, sysfs=sysfs)]


def test_earlier_calls():
    """What a process's earlier calls returned comes before the last one's value."""
    earlier = [record("W", struct.pack("<q", value)) for value in (3, -22)]
    assert answers(*earlier, VALUE, END) == [Answer(-8, earlier=[3, -22])]


def test_log_lines():
    """A record may have several lines, escaped bytes, and a facility beside its level."""
    assert qemu._log_lines(b"12,1,2,-;one\\x0atwo \\xff\n KEY=value\n") == [(4, "one"), (4, "two \udcff")]
    assert qemu._log_lines(b"6,1,2,-;\n") == [(6, "")]


def test_oops():
    """A caller that was killed ends the case; its log is kept."""
    found = answers(record("K", struct.pack("<i", 9)), LOG, END, calls=2)
    assert found == [Answer(end=KILLED, log=[(6, "a: hello")])]


def test_panic():
    """A machine that ends before the answer is whole has panicked, or hangs, in that call."""
    assert answers(VALUE, END, calls=2) == [Answer(-8), Answer(end=PANIC)]
    assert answers(VALUE, END, calls=2, ending=HANG)[1] == Answer(end=HANG)
    assert answers() == [Answer(end=PANIC)]


def test_cut_off_report():
    """Half a record does not count."""
    assert qemu._records(VALUE + LOG[:-1]) == [("V", VALUE[5:])]
    assert qemu._records(VALUE + b"L\1") == [("V", VALUE[5:])]


def test_lost_log():
    """A log that overran the kernel's buffer is not compared with a whole one."""
    with pytest.raises(qemu.QemuError):
        answers(VALUE, record("P", struct.pack("<q", -32)), END)


def test_limit():
    """A process is over its limit when it has used up its time, not when others have; but it is by the clock, too."""
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not qemu._limit(process, 60)()
        assert qemu._limit(process, 0)()
        process.kill()
