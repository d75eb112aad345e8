from __future__ import annotations

from kodojo.errors import Frame, LogRecord
from kodojo.kernel.faults import warnings_in

# As lib/bug.c, kernel/panic.c and arch/x86/kernel/dumpstack.c print it.
WARNING = """\
------------[ cut here ]------------
number is 5
WARNING: CPU: 0 PID: 1 at /build/sample.c:12 sample_init+0x1c/0x40 [sample]
Modules linked in: sample(OE+)
CPU: 0 PID: 1 Comm: insmod Tainted: G           OE      6.1.0-99-amd64 #1  Debian 6.1.999-1
RIP: 0010:sample_init+0x1c/0x40 [sample]
Code: 66 90 e9 00 00 00 00 <0f> 0b c3
RSP: 0018:ffffc90000013e10 EFLAGS: 00000246
RAX: 0000000000000000 RBX: ffffffffc0000010 RCX: 000000000000001f
RDX: 0000000000000001 RSI: 0000000000000002 RDI: 00000000ffffffff
RBP: 0000000000000003 R08: 0000000000000008 R09: 0000000000000009
R10: 000000000000000a R11: 000000000000000b R12: 000000000000000c
FS:  0000000000000000(0000) GS:ffff88800f600000(0000) knlGS:0000000000000000
CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
CR2: 00007ffc00001000 CR3: 0000000001234000 CR4: 00000000000006f0
Call Trace:
 <TASK>
 ? __warn+0x7d/0xc0
 do_one_initcall+0x41/0x210
 sample_helper+0x5/0x10 [sample]
 0xffffffffc0001234
 </TASK>
---[ end trace 0000000000000000 ]---"""

BUG = """\
------------[ cut here ]------------
kernel BUG at /build/sample.c:30!
invalid opcode: 0000 [#1] PREEMPT SMP NOPTI
RIP: 0010:sample_init+0x1c/0x40 [sample]
---[ end trace 0000000000000000 ]---"""


def records(text: str, level: int = 4) -> tuple[LogRecord, ...]:
    return tuple(LogRecord(level, line, 1.5) for line in text.splitlines())


def test_warning():
    """A WARN report is one record with its cause, its registers, its backtrace and its lines."""
    lines = (*records("before"), *records(WARNING), *records("after"))
    (report,) = warnings_in(lines)
    assert report.cause == "WARNING: CPU: 0 PID: 1 at /build/sample.c:12 sample_init+0x1c/0x40 [sample]"
    assert report.log == records(WARNING)[1:]
    assert report.backtrace == (
        Frame(0, "sample_init+0x1c/0x40 [sample]"),
        Frame(0, "__warn+0x7d/0xc0", reliable=False),
        Frame(0, "do_one_initcall+0x41/0x210"),
        Frame(0, "sample_helper+0x5/0x10 [sample]"),
        Frame(0, "0xffffffffc0001234"),
    )


def test_registers():
    """Registers have their names in lower case, the flags theirs, whatever the line has besides."""
    (report,) = warnings_in(records(WARNING))
    expected = {"rax": 0, "rbx": 0xFFFFFFFFC0000010, "rcx": 0x1F, "rdx": 1, "rsi": 2, "rdi": 0xFFFFFFFF, "rbp": 3}
    expected |= {"r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "rsp": 0xFFFFC90000013E10, "rflags": 0x246}
    assert report.registers == expected | {"cr2": 0x7FFC00001000}


def test_several_warnings():
    """Each report is its own."""
    second = WARNING.replace("sample.c:12", "sample.c:13")
    reports = warnings_in(records(f"{WARNING}\nbetween\n{second}"))
    assert [report.cause.split()[6] for report in reports] == ["/build/sample.c:12", "/build/sample.c:13"]


def test_bug_is_no_warning():
    """BUG() has the same frame around it, and is not a warning."""
    assert warnings_in(records(BUG)) == ()
    assert len(warnings_in(records(f"{BUG}\n{WARNING}"))) == 1


def test_unfinished_report():
    """A report whose end is missing, or is interrupted by another one, is left out."""
    cut = "\n".join(WARNING.splitlines()[:5])
    assert warnings_in(records(cut)) == ()
    (report,) = warnings_in(records(f"{cut}\n{WARNING}"))
    assert report.log == records(WARNING)[1:]


def test_end_without_beginning():
    """So is one whose beginning has left the log."""
    assert warnings_in(records("\n".join(WARNING.splitlines()[1:]))) == ()


def test_no_warnings():
    """A quiet log has none."""
    assert warnings_in(()) == ()
    assert warnings_in(records("WARNING: just a line\nCall Trace:\n function+0x1/0x2")) == ()
