"""Answers side by side."""

from __future__ import annotations

from dataclasses import replace

from tests.oracle.answers import DAMAGE, KILLED, PANIC, Answer, file_text
from tests.oracle.cases import Call, Case, number, text
from tests.oracle.compare import differences
from tests.oracle.judge import judged
from tests.oracle.runner import Answers
from tests.support.accepted import Accepted, judge

CALL = Call("delete_module", (text("a"), number(0)))
CASE = Case("group", "name", (CALL, CALL))
GOOD = Answer(
    value=0, log=[(6, "a: hello")], tainted=4, modules="a 1 0 - Live 0x0 (O)\n", sysfs={"/sys/module/a/refcnt": "0\n"}
)


def test_equal_answers():
    """Answers that are the same do not differ."""
    assert differences(CASE, [GOOD, GOOD], [GOOD, GOOD]) == []


def test_everything_is_compared():
    """Whatever differs in an answer is told with the number of the call."""
    for name, other in {
        "value": -2, "log": [(4, "a: hello")], "tainted": 0, "modules": "", "sysfs": {}, "end": KILLED,
    }.items():  # fmt: skip
        found = differences(CASE, [GOOD, replace(GOOD, **{name: other})], [GOOD, GOOD])
        assert len(found) == 1, name
        assert found[0].startswith(f"call 1 delete_module: {name}")


def test_earlier_calls():
    """Earlier calls of the same process are compared, but for the numbers of their descriptors."""
    call = replace(CALL, earlier=(Call("socket", ()), Call("write", ())))
    case = Case("group", "name", (call,))

    def found(ours: list[int], theirs: list[int]) -> list[str]:
        return differences(case, [replace(GOOD, earlier=ours)], [replace(GOOD, earlier=theirs)])

    assert found([3, 1], [7, 1]) == []
    assert found([3, 1], [3, 2]) == ["call 0 delete_module: earlier call 1 write: ours 1, QEMU 2"]
    assert len(found([3, 1], [-12, 1])) == 1


def test_trace():
    """Who was traced, and when, is not compared; what was, is."""
    texts = [
        f"# tracer: function\n    init-{pid}       [000] ..... {time}: do_mkdirat <-{caller}\n"
        for pid, time, caller in ((1, "2.5", "f"), (41, "11.123456", "f"), (1, "2.5", "g"))
    ]
    one, same, other = (replace(GOOD, sysfs={"/sys/kernel/tracing/trace": text}) for text in texts)
    assert differences(CASE, [one, GOOD], [same, GOOD]) == []
    assert differences(CASE, [one, GOOD], [other, GOOD]) != []


def test_how_long_a_test_of_bpf_took():
    """The kernel's own tests of its BPF compiler say how long they took; whether they passed is compared."""
    one, same, other, failed = (
        replace(GOOD, log=[(6, f"test_bpf: #0 TAX jited:{end}")])
        for end in ("1 0 4000 PASS", "1 0 0 PASS", "0 0 0 PASS", "1 ret 1 != 2 FAIL (1 times)")
    )
    assert differences(CASE, [one, GOOD], [same, GOOD]) == []
    assert differences(CASE, [one, GOOD], [other, GOOD]) != []
    assert differences(CASE, [one, GOOD], [failed, GOOD]) != []


def test_log_of_another_length():
    """A line too many is a difference even if all others are the same."""
    longer = replace(GOOD, log=[*GOOD.log, (6, "more")])
    assert len(differences(CASE, [GOOD, longer], [GOOD, GOOD])) == 1
    assert len(differences(CASE, [GOOD, GOOD], [GOOD, longer])) == 1


def test_process_numbers_are_masked():
    """The number of the process that made the call is not compared, the rest of its line is."""
    one, other = (
        replace(GOOD, log=[(4, f"WARNING: CPU: 0 PID: {pid} at a.c:1 {where}")])
        for pid, where in ((1, "f"), (9, "f"))
    )
    third = replace(GOOD, log=[(4, "WARNING: CPU: 0 PID: 9 at a.c:1 g")])
    assert differences(CASE, [one, GOOD], [other, GOOD]) == []
    assert differences(CASE, [one, GOOD], [third, GOOD]) != []


def test_after_an_oops_the_log_may_go_on():
    """Our machine stops at an oops; what a real one says afterwards is not compared, what it said before is."""
    ours = Answer(end=KILLED, log=[(1, "BUG: a")])
    assert differences(CASE, [ours], [Answer(end=KILLED, log=[(1, "BUG: a"), (6, "note: exited")])]) == []
    assert differences(CASE, [ours], [Answer(end=KILLED, log=[(1, "BUG: b"), (6, "note: exited")])]) != []
    assert differences(CASE, [GOOD, ours], [GOOD, GOOD]) != []


def test_panic():
    """A panic ends every report: our machine must have ended in the same call, and no more is known."""
    panic = Answer(end=PANIC)
    assert differences(CASE, [Answer(end=KILLED, log=[(1, "BUG: a")])], [panic]) == []
    assert differences(CASE, [GOOD, GOOD], [GOOD, panic]) != []
    assert differences(CASE, [GOOD, Answer(end=KILLED)], [panic]) != []


def test_damage_that_is_said():
    """A file that is said to damage the kernel must have done so: it did not survive the call."""
    ours = Answer(value=-8, end=DAMAGE)
    assert differences(CASE, [ours], [Answer(end=KILLED)]) == []
    assert differences(CASE, [ours], [replace(GOOD, value=-8), GOOD]) != []


def test_missing_answers():
    """A case that ends early on one side only differs."""
    assert differences(CASE, [GOOD], [GOOD, GOOD]) != []


def test_judged_by_the_file_of_accepted_differences():
    """A difference that an entry accepts is no disagreement; an entry that nothing needs is found out."""
    other = replace(GOOD, log=[(6, "a: 12 MB/s")])
    answers = Answers([GOOD, GOOD], {"ours": [other, GOOD], "native": [GOOD, GOOD]})
    speed = Accepted("na*", r"ours: call 0 \w+: log line 0: .*MB/s", "measured")
    needless = Accepted("name", "native: ", "nothing")
    entry = judged("6.1", CASE, answers)
    assert entry["status"] == "disagreed"
    assert judge([entry], [speed, needless]) == [needless]
    assert entry["status"] == "accepted"
    assert judged("6.1", CASE, None)["status"] == "disagreed"


def test_failures_disagree():
    """A loader that gives no answer disagrees."""
    entry = judged("6.1", CASE, Answers([GOOD, GOOD], {"ours": [GOOD, GOOD]}, {"native": "SIGSEGV"}))
    assert (entry["status"], entry["lines"]) == ("disagreed", ["native: SIGSEGV"])


def test_file_text():
    """Text stays text; bytes become hexadecimal digits."""
    assert file_text(b"live\n") == "live\n"
    assert file_text(b"\x04\0\0\0") == "hex:04000000"
    assert file_text(b"\xff") == "hex:ff"
