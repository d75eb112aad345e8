from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kodojo.errors import DamageError, FaultReport, Frame, LoadError, LogRecord, MachineFault, MachineHang, Refusal
from kodojo.loader.steps import Step

VERMAGIC = "hello: version magic 'A ' should be 'B '"


def _refusal(errno=8, kind=LoadError):
    def refuse():
        log = (LogRecord(3, VERMAGIC, 3.016149),)
        raise kind(
            "hello.ko: built for another kernel",
            Refusal(errno, "check_modinfo", "vermagic-mismatch", log, "built for another kernel", "build it again"),
        )

    return refuse


def test_success_is_silent(run, kernel, session, ko):
    """Like insmod, a load that goes well prints nothing; the state is saved."""
    result = run("insmod", ko, "whom=world", "n=-1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert kernel.loaded == [(ko, "whom=world", "n=-1")]
    assert session.saved


def test_refusal_lines(run, kernel, session, ko):
    """A refusal prints insmod's line first, then the log, why and hint, all on standard error; the state is saved."""
    kernel.on_insmod = _refusal()
    result = run("insmod", ko)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"insmod: ERROR: could not insert module {ko}: Invalid module format",
        f"[    3.016149] {VERMAGIC}",
        "why: built for another kernel (vermagic-mismatch)",
        "hint: build it again",
    ]
    assert session.saved


@pytest.mark.parametrize(
    ("errno", "text"),
    [
        (1, "Operation not permitted"),
        (2, "Unknown symbol in module"),
        (3, "Module has wrong symbol version"),
        (8, "Invalid module format"),
        (12, "Cannot allocate memory"),
        (17, "File exists"),
        (22, "Invalid parameters"),
        (129, "Key was rejected by service"),
    ],
)
def test_insmod_texts(run, kernel, ko, errno, text):
    """Every errno has the words that insmod of kmod 30 has for it."""
    kernel.on_insmod = _refusal(errno)
    assert run("insmod", ko).stderr.splitlines()[0] == f"insmod: ERROR: could not insert module {ko}: {text}"


def test_damage_without_errno(run, kernel, ko):
    """A file that would have crashed the kernel is an invalid format, even though no kernel lived to say so."""
    kernel.on_insmod = _refusal(0, DamageError)
    assert run("insmod", ko).stderr.splitlines()[0].endswith(": Invalid module format")


def test_missing_file(run, session, tmp_path):
    """A file that is not there is reported in kmod's words, and no machine is started for it."""
    path = str(tmp_path / "nothing.ko")
    result = run("insmod", path)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == f"insmod: ERROR: could not load module {path}: No such file or directory"
    assert session.asked_to_save is None


def test_missing_file_of_known_name(run, cards):
    """If the kernel's tree has a module of that name, the hint says where."""
    tree = {"dummy": SimpleNamespace(path="/tree/net/dummy.ko.xz")}
    cards.images["6.1"] = SimpleNamespace(release="6.1.0", modules=tree, builtin=frozenset())
    assert run("insmod", "dummy").stderr.splitlines()[1] == "hint: the module dummy of 6.1.0 is /tree/net/dummy.ko.xz"


def test_directory_cannot_be_inserted(run, tmp_path):
    """A thing that is there but cannot be read is `could not insert`, as kmod has it."""
    result = run("insmod", str(tmp_path))
    expected = f"insmod: ERROR: could not insert module {tmp_path}: Is a directory"
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, expected)


def test_steps_table(run, kernel, module, ko):
    """--steps prints one line for each step, with sizes as numbers and addresses in hex, on standard output."""
    steps = (
        Step("may_init_module", "is the caller allowed?", "main.c"),
        Step("kernel_read_file", "read the file", "read.c", {"size": 4096, "address": 0xFFFFC90000010000}),
    )
    kernel.on_insmod = lambda: module("hello", steps=steps)
    assert run("insmod", ko, "--steps").stdout.splitlines() == [
        "step              what for                found out",
        "may_init_module   is the caller allowed?",
        "kernel_read_file  read the file           size 4096, address 0xffffc90000010000",
    ]


def test_steps_of_a_refusal(run, kernel, ko):
    """--steps names the step that refused."""
    kernel.on_insmod = _refusal()
    last = run("insmod", ko, "--steps").stdout.splitlines()[-1]
    assert last.split() == ["check_modinfo", "refused"]


def test_json_of_success(run, kernel, module, ko):
    """--json prints the log of this load only, the steps and the module; nothing goes to standard error."""
    kernel.printk.lines.append(LogRecord(6, "from before", 1.0))

    def load():
        kernel.printk.lines.append(LogRecord(6, "hello, world", 3.5))
        return module("hello", steps=(Step("live", "is LIVE", "main.c", {"core": 4096}),))

    kernel.on_insmod = load
    result = run("insmod", ko, "whom=world", "n=1", "--json")
    shape = json.loads(result.stdout)
    assert result.stderr == ""
    assert (shape["ok"], shape["errno"], shape["file"], shape["arguments"]) == (True, 0, ko, "whom=world n=1")
    assert shape["log"] == [{"level": 6, "text": "hello, world", "time": 3.5}]
    assert shape["steps"] == [{"name": "live", "title": "is LIVE", "source": "main.c", "facts": {"core": 4096}}]
    assert shape["module"]["name"] == "hello"
    assert shape["module"]["address"] == "0xffffffffc0201000"


def test_json_of_refusal(run, kernel, ko):
    """--json of a refusal has the kernel's answer and ours, and the same members as that of a success."""
    good = json.loads(run("insmod", ko, "--json").stdout)
    kernel.on_insmod = _refusal()
    result = run("--json", "insmod", ko)
    shape = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (1, "")
    assert shape.keys() == good.keys()
    assert (shape["ok"], shape["errno"], shape["errno_name"]) == (False, 8, "ENOEXEC")
    assert (shape["step"], shape["slug"]) == ("check_modinfo", "vermagic-mismatch")
    assert shape["log"] == [{"level": 3, "text": VERMAGIC, "time": 3.016149}]
    assert shape["module"] is None


def test_json_of_missing_file(run, tmp_path):
    """A file that is not there has the same shape, with the errno of open()."""
    shape = json.loads(run("insmod", str(tmp_path / "no.ko"), "--json").stdout)
    assert (shape["ok"], shape["errno_name"], shape["why"]) == (False, "ENOENT", "No such file or directory")


def _crash(kind, hint):
    def crash():
        report = FaultReport(
            "BUG: kernel NULL pointer dereference",
            {"rip": 0xFFFFFFFFC0201005, "rax": 7},
            (Frame(0, "hello_init+0x5/0x10 [hello]"), Frame(0, "vprintk+0x1/0x2", reliable=False)),
            (LogRecord(1, "BUG: kernel NULL pointer dereference", 3.0),),
        )
        raise kind("the kernel crashed", report, hint=hint)

    return crash


def test_crash(run, kernel, session, ko):
    """An oops is told with cause, registers, backtrace and log; exit status 1, and the state is not saved."""
    kernel.on_insmod = _crash(MachineFault, "go on from a fork")
    result = run("insmod", ko)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "kodojo: the kernel crashed",
        "cause: BUG: kernel NULL pointer dereference",
        "registers:",
        "  rip ffffffffc0201005  rax 0000000000000007",
        "backtrace:",
        "  hello_init+0x5/0x10 [hello]",
        "  ? vprintk+0x1/0x2",
        "log:",
        "  [    3.000000] BUG: kernel NULL pointer dereference",
        "the machine is as it was before this command",
    ]
    assert not session.saved


def test_hang(run, kernel, ko):
    """A hang comes with its hint, and --limit is handed on."""
    kernel.on_insmod = _crash(MachineHang, "give it more time")
    result = run("insmod", "--limit", "2.5", ko)
    assert "hint: give it more time" in result.stderr.splitlines()
    assert kernel.limits == [2.5]


def test_json_of_crash(run, kernel, ko):
    """--json of a crash names the kind, and has registers as hex texts and the backtrace."""
    kernel.on_insmod = _crash(MachineFault, "")
    shape = json.loads(run("insmod", ko, "--json").stdout)
    assert shape["ok"] is False
    assert shape["error"]["kind"] == "MachineFault"
    assert shape["error"]["registers"] == {"rip": "0xffffffffc0201005", "rax": "0x7"}
    assert shape["error"]["backtrace"][1] == {"address": "0x0", "symbol": "vprintk+0x1/0x2", "reliable": False}


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_silly_limit(run, kernel, ko, limit):
    """A limit that is no positive number of seconds is wrong usage, and nothing is loaded."""
    assert run("insmod", ko, "--limit", limit).exit_code == 1
    assert kernel.loaded == []


def test_warn_is_mentioned(run, kernel, module, ko):
    """A WARN during a load that goes well is mentioned, and does not change the exit status."""

    def load():
        kernel.printk.lines += [
            LogRecord(4, "------------[ cut here ]------------"),
            LogRecord(4, "WARNING: CPU: 0 PID: 1 at hello.c:3 hello_init+0x1/0x2 [hello]"),
            LogRecord(4, "---[ end trace 0000000000000000 ]---"),
        ]
        return module("hello")

    kernel.on_insmod = load
    result = run("insmod", ko)
    assert result.exit_code == 0
    expected = "kodojo: the kernel warns: WARNING: CPU: 0 PID: 1 at hello.c:3 hello_init+0x1/0x2 [hello]"
    assert result.stderr.startswith(expected)


def test_interrupted(run, kernel, session, ko):
    """Ctrl-C ends with status 130 and leaves the state as it was."""

    def interrupt():
        raise KeyboardInterrupt

    kernel.on_insmod = interrupt
    result = run("insmod", ko)
    assert result.exit_code == 130
    assert not session.saved


def test_fresh_and_kernel_before_and_after(run, session, cards, ko):
    """--fresh and --kernel work; --kernel also before the command's name."""
    cards.images["6.1"] = "an image"
    assert run("--kernel", "6.1", "insmod", "--fresh", ko).exit_code == 0
    assert (session.image, session.fresh, session.saved) == ("an image", True, False)
    session.image = None
    assert run("insmod", ko, "--kernel", "6.1").exit_code == 0
    assert session.image == "an image"


def test_unknown_kernel(run, cards, ko):
    """Errors end in a message with a hint and status 1, without a traceback."""
    result = run("insmod", ko, "--kernel", "7.0")
    assert (result.exit_code, result.stderr.splitlines()) == (
        1,
        ["kodojo: there is no kernel in the store yet", "hint: kodojo kernel add"],
    )


def test_name_in_any_bytes(run, kernel, tmp_path):
    """A file name that is no UTF-8 is handed on as it is, and shown without harm."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b.ko")
    try:
        Path(path).touch()
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    kernel.on_insmod = _refusal()
    result = run("insmod", path)
    assert kernel.loaded == [(path,)]
    assert r"/\xff\x1b.ko: Invalid module format" in result.stderr.splitlines()[0]


def test_with_dependencies(run, kernel, ko, tmp_path):
    """--with-dependencies is the kernel's business; of what is refused on the way the file is named."""
    assert run("insmod", "--with-dependencies", ko, "a=1").exit_code == 0
    assert kernel.loaded == [(ko, "a=1", "with dependencies")]

    needed = tmp_path / "needed.ko"
    needed.write_bytes(Path(ko).read_bytes())

    def refuse():
        raise LoadError("no", Refusal(2, "simplify_symbols", "unknown-symbol"), file=str(needed))

    kernel.on_insmod = refuse
    first = run("insmod", "--with-dependencies", ko).stderr.splitlines()[0]
    assert first == f"insmod: ERROR: could not insert module {needed}: Unknown symbol in module"
