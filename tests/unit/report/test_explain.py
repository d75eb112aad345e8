from __future__ import annotations

from kodojo.errors import Detail, LogRecord, Refusal
from kodojo.loader.verdict import Verdict
from kodojo.report.explain import MOST_LINES, verdict_lines
from kodojo.report.paint import Paint

PLAIN = Paint(enabled=False)


def test_long_lists_are_cut():
    """Of many log lines and details some are shown, and how many more there are."""
    log = tuple(LogRecord(4, f"line {number}") for number in range(MOST_LINES + 5))
    details = tuple(Detail(f"symbol {number}") for number in range(MOST_LINES + 3))
    problem = Refusal(22, "simplify_symbols", "symbol-version", log, "why", "hint", details)
    verdict = Verdict(ok=False, errno=22, log=log, slug=problem.slug, problems=(problem,))
    lines = verdict_lines("m.ko", "9.9", verdict, (), PLAIN)
    assert sum("symbol " in line for line in lines) == MOST_LINES
    assert sum("line " in line for line in lines) == MOST_LINES
    assert "   ... and 5 more lines" in lines
    assert "   ... and 3 more; --json has them all" in lines


def test_every_problem_is_numbered():
    """All problems come with their number, reason and advice."""
    problems = tuple(Refusal(8, "", slug, why=f"why {slug}", hint=f"do {slug}") for slug in ("one", "two"))
    lines = verdict_lines("m.ko", "9.9", Verdict(ok=False, errno=8, problems=problems), (), PLAIN)
    assert lines == [
        "m.ko: does not load into 9.9: ENOEXEC", "",
        "1. why one (one)", "   What to do: do one", "",
        "2. why two (two)", "   What to do: do two",
    ]  # fmt: skip


def test_colours():
    """On a terminal the answer has a colour; lines of a module cannot bring their own."""
    verdict = Verdict(ok=True, log=(LogRecord(6, "\x1b[31mred"),))
    lines = verdict_lines("m.ko", "9.9", verdict, (Detail("taint O", "why", more=("more",)),), Paint(enabled=True))
    assert "\x1b[1;32mloads\x1b[0m" in lines[0]
    assert any("\\x1b[31mred" in line for line in lines)
    assert lines[-1] == "      more"
