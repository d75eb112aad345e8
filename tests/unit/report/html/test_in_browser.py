"""The page in a real browser: what a person sees, clicks and types. See conftest.py for what holds in every test."""

from __future__ import annotations

import re
from dataclasses import replace

from kodojo.check.results import KernelColumn, Matrix, Result
from kodojo.report.check_json import matrix_json
from tests.support.page import GONE, LOADS, NEW, OLD, Postponed, example, names
from tests.support.results import REFUSED

# -- what is seen at once -----------------------------------------------------------------------------------


def test_refusals_come_first_with_their_cause(show):
    """Without a click: modules that are refused most come first; each has errno, reason, sentence and its kernels."""
    tab = show(example())
    assert tab.text("h1") == "2 of 5 modules are refused by at least one kernel"
    assert names(tab) == ["gamma.ko", "beta.ko", "delta.ko", "alpha.ko", "m10.ko"]
    causes = [re.split(r"\n+", text) for text in tab.texts("#rows > tr:first-child .cause")]
    assert causes == [
        ["ENOEXEC", "vermagic-mismatch", OLD, "built for 1.0"],
        ["ENOENT", "unknown-symbol", f"{NEW} (headers)", "the kernel has no gone_symbol"],
    ]
    assert tab.texts("#rows > tr:nth-child(2) .cause .why") == ["the kernel has no gone_symbol"]
    assert tab.run("document.querySelector('#rows .cause .why').getBoundingClientRect().bottom < innerHeight")


def test_heads(show):
    """Each column has a head: module, findings, and the kernels by names that tell them apart."""
    tab = show(example())
    assert tab.texts("#heads th") == ["Module", "Findings", OLD, f"{NEW} (headers)"]
    assert tab.each("#heads th", "Math.round(b.x)") == tab.each("#rows > tr:first-child > *", "Math.round(b.x)")


def test_heads_stay_in_sight(show):
    """Scrolled down, the filters and the heads are at the top, one below the other."""
    labels = tuple(f"m{number}.ko" for number in range(90))
    made = Matrix(labels, (KernelColumn(OLD),))
    made.add(Result(label, OLD, GONE) for label in labels)
    tab = show(made)
    tab.run("scrollTo(0, 2000)")
    tab.settle()
    (bar,), head = tab.each("#bar", "[b.top, b.bottom]"), tab.each("#heads th", "[b.top, b.bottom]")[0]
    assert bar[0] == 0
    assert abs(head[0] - bar[1]) < 1
    assert head[1] < 200


def test_kernels(show):
    """Each kernel has its counts, and what is wrong with it, at the top."""
    made = example()
    made.kernels = (*made.kernels, KernelColumn("lost.deb", problem="lost.deb: no such file"))
    tab = show(made)
    first, second, third = (re.split(r" (?=x86_64)|\n+", text) for text in tab.texts(".kernel"))
    assert first == [OLD, "x86_64", "✗ 1 would not load", "? 1 could not be checked", "✓ 3 load"]
    assert second[:3] == [f"{NEW} (headers)", "x86_64", f"{NEW} (./headers)"]
    assert second[3:] == ["✗ 2 would not load", "? 1 could not be checked", "✓ 1 loads", "no Module.symvers"]
    assert third == ["lost.deb", "lost.deb: no such file"]
    widths = tab.run(
        "[...document.querySelector('.share').children].map(e => Math.round(e.getBoundingClientRect().width))"
    )
    assert widths[0] == widths[1]
    assert abs(widths[2] - 3 * widths[0]) <= 4


def test_remarks_on_what_loads(show):
    """Notes, checks that were not made and parameters that nobody can judge are in the row."""
    tab = show(example())
    lines = dict(
        zip(names(tab), tab.run("[...document.querySelectorAll('#rows .of-why')].map(e => e.innerText)"), strict=True)
    )
    assert "note: beta needs itself" in lines["beta.ko"]
    assert "1 check could not be made" in lines["alpha.ko"]
    assert "only the module's own code can judge: speed" in lines["alpha.ko"]
    assert lines["m10.ko"] == ""


def test_module_that_a_tree_lacks(show):
    """A module that is not in a kernel's tree has a dash there, and is none that the kernel refuses."""
    tab = show(example())
    assert tab.text("#row-4 .of-kernel:last-child").endswith("not in its tree")


def test_status_of_another_day(show):
    """A status that the page does not know is shown by its name, filtered by, and worse than not checked."""
    made = example()
    made.add([Postponed("build/m10.ko", OLD, failure="error: implicit declaration")])
    tab = show(made)
    assert tab.texts("#statuses button") == [
        "✗ 2 would not load",
        "! 1 put off",
        "? 1 could not be checked",
        "✓ 1 loads everywhere",
    ]
    assert names(tab) == ["gamma.ko", "beta.ko", "m10.ko", "delta.ko", "alpha.ko"]
    tab.click("#statuses button:nth-child(2)")
    assert names(tab) == ["m10.ko"]
    assert "error: implicit declaration" in tab.text("#row-4")


def test_names_of_another_day(show, monkeypatch):
    """What a result has that the page does not know is among its details; warnings are seen without a click."""
    new = {
        "build": {"source": "dkms/thing", "complaints": ["error: one", "error: two"], "log": ""},
        "warnings": ["odd"],
    }

    def later(matrix):
        value = matrix_json(matrix)
        value["results"][0] |= new
        return value

    monkeypatch.setattr("kodojo.report.html.matrix_json", later)
    tab = show(example())
    assert "note: odd" in tab.text("#row-0")
    tab.click("#row-0")
    details = tab.text(".details")
    for part in ("build, source", "dkms/thing", "build, complaints", "error: one", "error: two"):
        assert part in details
    assert "build, log" not in details


# -- filters, order -----------------------------------------------------------------------------------------


def test_filter_by_status(show):
    """A status shows the modules that have it anywhere, or everywhere if it is good; once more, all."""
    tab = show(example())
    assert tab.texts("#statuses button") == ["✗ 2 would not load", "? 1 could not be checked", "✓ 2 load everywhere"]
    for place, expected in enumerate((["gamma.ko", "beta.ko"], ["delta.ko"], ["alpha.ko", "m10.ko"]), 1):
        tab.click(f"#statuses button:nth-child({place})")
        assert names(tab) == expected
        assert tab.texts("#statuses [aria-pressed=true]") == [tab.texts("#statuses button")[place - 1]]
    assert tab.text("#shown") == "2 of 5 modules"
    tab.click("#statuses button:nth-child(3)")
    assert len(names(tab)) == 5


def test_filter_by_kernel(show):
    """A kernel's card leaves that kernel's column, with its own order, counts and causes; a second one joins it."""
    tab = show(example())
    tab.click(".kernel:nth-child(1) button")
    assert tab.texts("#heads th") == ["Module", "Findings", OLD]
    assert names(tab) == ["gamma.ko", "delta.ko", "alpha.ko", "beta.ko", "m10.ko"]
    assert tab.texts(".cause .why") == ["built for 1.0", "delta.ko is cut off"]
    assert tab.texts("#statuses button") == ["✗ 1 would not load", "? 1 could not be checked", "✓ 3 load"]
    tab.click("#text")
    tab.type("gone_symbol")
    assert names(tab) == []  # what only the other kernel says is not found
    tab.press("Escape")
    tab.click(".kernel:nth-child(2) button")
    assert len(names(tab)) == 5
    tab.click(".kernel:nth-child(1) button")
    assert names(tab) == ["beta.ko", "gamma.ko", "delta.ko", "alpha.ko"]  # the other one is not in its tree
    tab.click("#all")
    assert len(names(tab)) == 5
    assert len(tab.texts("#heads th")) == 4


def test_filter_by_text(show):
    """Words, all of them, wherever they are: in names, reasons, sentences, details, the kernel's log, notes."""
    tab = show(example())
    tab.click("#text")
    for text, expected in {
        "GAMMA": ["gamma.ko"],
        "unknown-symbol": ["gamma.ko", "beta.ko"],
        "gone_symbol beta": ["beta.ko"],
        "more version magic": [],
        "version magic": ["gamma.ko"],
        "1.0 is not 2.0": ["gamma.ko"],
        "needs itself": ["beta.ko"],
        "cut off": ["delta.ko"],
        "no such thing": [],
    }.items():
        tab.run("document.querySelector('#text').select()")
        tab.type(text)
        assert names(tab) == expected, text
    assert tab.text("#nothing") == "No module matches these filters."
    tab.click("#all")
    assert len(names(tab)) == 5
    assert tab.texts("#nothing") == []


def test_filter_by_reason(show):
    """The list of reasons has those that occur with the number of their modules, and shows those modules."""
    tab = show(example())
    assert tab.run("[...document.querySelector('#reason').options].map(o => o.text)") == [
        "Any reason", "unknown-symbol (2)", "vermagic-mismatch (1)", "could-not-be-checked (1)",
    ]  # fmt: skip
    tab.choose("#reason", "vermagic-mismatch")
    assert names(tab) == ["gamma.ko"]


def test_filters_together(show):
    """Filters narrow each other down."""
    tab = show(example())
    tab.choose("#reason", "unknown-symbol")
    tab.click("#text")
    tab.type("beta")
    assert names(tab) == ["beta.ko"]
    tab.click("#statuses button:nth-child(2)")
    assert names(tab) == []


def test_filter_from_far_below(show):
    """Who filters after scrolling sees the answers from the first."""
    labels = tuple(f"m{number}.ko" for number in range(90))
    made = Matrix(labels, (KernelColumn(OLD),))
    made.add(Result(label, OLD, GONE) for label in labels)
    tab = show(made)
    tab.run("scrollTo(0, 4000)")
    tab.press("/")
    tab.type("m")
    assert abs(tab.each("#heads th", "b.bottom")[0] - tab.each("#rows > tr", "b.top")[0]) < 2


def test_order(show):
    """A head sorts by its column, once more the other way round; the head says so to whoever cannot see it."""
    tab = show(example())
    tab.click("th:nth-child(1) button")
    assert names(tab) == ["alpha.ko", "beta.ko", "delta.ko", "gamma.ko", "m10.ko"]
    orders = "[...document.querySelectorAll('#heads th')].map(e => e.ariaSort)"
    assert tab.run(orders) == ["ascending", "none", "none", "none"]
    tab.click("th:nth-child(1) button")
    assert names(tab) == ["m10.ko", "gamma.ko", "delta.ko", "beta.ko", "alpha.ko"]
    assert tab.run(orders) == ["descending", "none", "none", "none"]
    tab.click("th:nth-child(4) button")
    assert names(tab) == ["beta.ko", "gamma.ko", "delta.ko", "alpha.ko", "m10.ko"]
    assert tab.run(orders) == ["none", "none", "none", "descending"]
    tab.click("th:nth-child(2) button")
    assert names(tab)[0] == "gamma.ko"


def test_order_of_numbers(show):
    """In names, numbers count as numbers."""
    labels = tuple(f"m{number}.ko" for number in (10, 9, 100))
    made = Matrix(labels, (KernelColumn(OLD),))
    made.add(Result(label, OLD, LOADS) for label in labels)
    tab = show(made)
    tab.click("th:nth-child(1) button")
    assert names(tab) == ["m9.ko", "m10.ko", "m100.ko"]


# -- details, reasons ---------------------------------------------------------------------------------------


def test_click_opens_details(show):
    """A click anywhere in a row shows everything about its module below it; another one hides that."""
    tab = show(example())
    tab.click("#row-2 .of-why .why")
    details = tab.text(".details")
    for part in (
        "✗ would not load", "from check_modinfo", "release: 1.0 is not 2.0", "more of it", "build it again",
        "m: version magic '1.0' should be '2.0'", "What else is wrong", "nobody exports gone",
        "the kernel has no gone_symbol", "5.10",
    ):  # fmt: skip
        assert part in details
    assert tab.run("document.querySelector('#row-2').nextSibling.className") == "details"
    assert tab.run("document.querySelector('#row-2 .toggle').ariaExpanded") == "true"
    tab.click("#row-2 .of-kernel")
    assert tab.texts(".details") == []
    assert tab.run("document.querySelector('#row-2 .toggle').ariaExpanded") == "false"


def test_details_of_what_loads(show):
    """They have what was loaded first, what was not checked, size and checksum of the file."""
    tab = show(example())
    tab.click("#row-0")
    details = tab.text(".details")
    for part in (
        "beta.ko",
        "its signature: no keys are known",
        "speed",
        "build/net/alpha.ko",
        "4,711 bytes",
        "ab" * 32,
    ):
        assert part in details


def test_same_answers_once(show):
    """Kernels with the same answer have it once, with their names."""
    tab = show(example())
    tab.click("#row-3")
    assert tab.texts(".details h3 .name") == [f"{OLD}, {NEW} (headers)"]


def test_details_stay_open(show):
    """What was opened is open after sorting and filtering."""
    tab = show(example())
    tab.click("#row-2")
    tab.click("th:nth-child(1) button")
    assert tab.run("document.querySelector('#row-2').nextSibling.className") == "details"
    tab.click("#row-2")
    assert tab.count(".details") == 0


def test_long_lists_are_folded(show):
    """Of a long list the first are shown, and the others by one more click."""
    detail = replace(REFUSED.problems[0].details[0], more=tuple(f"line {number}" for number in range(100)))
    verdict = replace(REFUSED, problems=(replace(REFUSED.problems[0], details=(detail,)),))
    made = Matrix(("m.ko",), (KernelColumn(OLD),))
    made.add([Result("m.ko", OLD, verdict)])
    tab = show(made)
    tab.click("#row-0")
    assert "line 11" in tab.text(".details")
    assert "line 12" not in tab.text(".details")
    assert tab.text("summary") == "88 more"
    tab.click("summary")
    assert "line 99" in tab.text(".details > td")


def test_links_to_reasons(show):
    """A reason leads to its text in the page, without opening the row, and the text leads back."""
    tab = show(example())
    tab.click("#row-2 .cause a")
    assert tab.count(".details") == 0
    assert tab.text(":target h3") == "vermagic-mismatch"
    assert "Every module carries a text that says for which kernel it was built" in tab.text(":target")
    top, bottom = tab.run("(b => [b.top, b.bottom])(document.querySelector(':target h3').getBoundingClientRect())")
    bar = tab.run("document.querySelector('#bar').getBoundingClientRect().bottom")
    assert bar <= top < bottom < 800
    tab.click(":target p:last-child a")
    assert tab.run("document.querySelector('#answers').getBoundingClientRect().top") < 300
    # Those of details, too; a status that is no reason of a kernel's has no page and no link.
    assert set(tab.run("[...document.querySelectorAll('.cause a')].map(e => e.textContent)")) == {
        "vermagic-mismatch",
        "unknown-symbol",
    }
