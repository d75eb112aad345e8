"""The page in a real browser: keyboard, screens, paper, hostile texts, many rows. What holds always: conftest.py."""

from __future__ import annotations

import re

import pytest

from kodojo.check.results import KernelColumn, Matrix, Result
from tests.support.page import GONE, LOADS, NEW, OLD, ROWS, Postponed, example, names
from tests.support.results import refusal

PHONE = 390


def focused(tab) -> str:
    """What has the focus, in a word or two."""
    return tab.run("(e => e.id || e.dataset.order || e.innerText.trim() || e.tagName)(document.activeElement)")


# -- keyboard, screens, paper -------------------------------------------------------------------------------


def test_keyboard_alone(show):
    """Tab goes through everything in the order in which it is seen; the focus is visible; Enter and space press."""
    tab = show(example())
    order = []
    for _ in range(12):
        tab.press("Tab")
        order.append(focused(tab))
        assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none", order[-1]
    assert order[0] == "Skip to the answers"
    assert [text.split(" x86")[0] for text in order[1:3]] == [OLD, f"{NEW} (headers)"]
    assert order[3] == "text"
    assert order[7:] == ["reason", "name", "trouble", "0", "1"]
    tab.press("Tab")
    assert focused(tab) == "gamma.ko"
    tab.press("Enter")
    assert tab.count(".details") == 1
    tab.press(" ")
    assert tab.count(".details") == 0
    tab.press("ArrowDown", "ArrowDown")
    assert focused(tab) == "delta.ko"
    tab.press("ArrowUp", "ArrowUp", "ArrowUp")
    assert focused(tab) == "text"
    tab.press("Shift+Tab")
    assert focused(tab).startswith(NEW)


def test_keys_of_the_filter(show):
    """A slash goes to the filter, and is written there as any other character; Escape empties it."""
    tab = show(example())
    tab.press("/")
    assert focused(tab) == "text"
    assert tab.run("document.querySelector('#text').value") == ""
    tab.type("net")
    tab.press("/")
    assert tab.run("document.querySelector('#text').value") == "net/"
    assert names(tab) == ["beta.ko", "alpha.ko"]
    tab.press("Escape")
    assert tab.run("document.querySelector('#text').value") == ""
    assert len(names(tab)) == 5


def test_focus_stays_on_a_head(show):
    """Sorting by the keyboard leaves the focus where it was."""
    tab = show(example())
    tab.run("document.querySelector('th:nth-child(1) button').focus()")
    tab.press("Enter")
    assert focused(tab) == "name"
    tab.press("Enter")
    assert names(tab)[0] == "m10.ko"


def test_roles(show):
    """To a screen reader it is a table with heads for columns and rows, and its controls have names."""
    tab = show(example())
    roles = tab.run("[...document.querySelectorAll('#answers [role]')].map(e => e.role)")
    assert roles.count("columnheader") == 4
    assert roles.count("rowheader") == 5
    assert roles.count("cell") == 15
    assert all(tab.each("button, input, select", "e.innerText.trim() || e.ariaLabel"))


@pytest.mark.parametrize("kernels", [1, 2, 6, 16])
def test_phone(show, kernels):
    """On a phone nothing is wider than the screen, text can be read, and what is touched is large enough."""
    labels = ("a-module-with-a-very-long-name-that-nobody-would-choose-but-somebody-did.ko", "b" * 200 + ".ko")
    columns = tuple(KernelColumn(f"6.{number}.0-with-a-long-name-amd64") for number in range(kernels))
    made = Matrix(labels, columns)
    made.add(
        Result(label, kernel.name, refusal("unknown-symbol", "x" * 300)) for label in labels for kernel in columns
    )
    tab = show(made, width=PHONE, height=844)
    assert tab.run("document.documentElement.scrollWidth") == PHONE
    tab.click("#row-0 .name")
    assert tab.count(".details") == 1
    assert tab.run("document.documentElement.scrollWidth") == PHONE
    assert (
        tab.run(
            "Math.min(...[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        >= 11.5
    )
    assert min(tab.each("#bar button, #bar select, #bar input, .toggle", "b.height")) >= 28


def test_order_on_a_phone(show):
    """Where no heads are seen, a list sorts."""
    tab = show(example(), width=PHONE)
    assert tab.texts("#heads th") == []
    tab.choose("#order", "name")
    assert names(tab)[0] == "alpha.ko"


@pytest.mark.parametrize("kernels", [6, 16, 40])
def test_many_kernels(show, kernels):
    """However many kernels there are, the page itself is not wider than the window, and findings have room."""
    columns = tuple(KernelColumn(f"6.{number}.0-amd64") for number in range(kernels))
    made = Matrix(("m.ko",), columns)
    made.add(Result("m.ko", kernel.name, GONE) for kernel in columns)
    tab = show(made)
    assert tab.run("document.documentElement.scrollWidth") == 1280
    assert tab.run("document.querySelector('#rows .of-why').offsetWidth") >= 250
    assert tab.run("Math.min(...[...document.querySelectorAll('#rows .of-kernel')].map(e => e.offsetWidth))") >= 36


CONTRASTS = """
(() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .map((e) => {
      const [one, other] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
      return [(one + 0.05) / (other + 0.05), e.className || e.tagName, e.textContent.slice(0, 40)];
    })
    .filter(([ratio]) => ratio < 4.5);
})()
"""  # https://www.w3.org/TR/WCAG22/#contrast-minimum


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(show, scheme):
    """In the light and in the dark all text stands out from what is behind it as WCAG's AA wants."""
    made = example()
    made.add([Postponed("build/m10.ko", OLD, failure="error")])
    tab = show(made, prefers_color_scheme=scheme)
    tab.click("#row-2")
    tab.click("#statuses button")
    assert tab.run(CONTRASTS) == []


def test_dark_and_light(show):
    """The page is dark where the system is."""
    back = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    tab = show(example(), prefers_color_scheme="dark")
    assert max(tab.run(back)) < 40
    tab.media(prefers_color_scheme="light")
    assert min(tab.run(back)) > 220


def test_paper(show):
    """Printed, all rows are there, those in trouble with details, and no controls; afterwards all is as before."""
    labels = tuple(f"m{number}.ko" for number in range(600))
    made = Matrix(labels, (KernelColumn(OLD),))
    made.add(Result(label, OLD, GONE if number < 3 else LOADS) for number, label in enumerate(labels))
    tab = show(made)
    tab.media("print")
    tab.settle()
    assert tab.count(ROWS) == 600
    assert len(tab.texts(".details")) == 3
    assert "do something" in tab.texts(".details")[0]
    assert tab.texts("#bar, .skip, #more") == []
    tab.media()
    tab.settle()
    assert (tab.count(ROWS), tab.count(".details")) == (100, 0)
    # Not every browser changes the medium while the page can still do something about it.
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert (tab.count(ROWS), tab.count(".details")) == (600, 3)
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert (tab.count(ROWS), tab.count(".details")) == (100, 0)


def test_printed_pages(show):
    """What is printed grows with the rows, also beyond those that the screen has."""

    def pages(number):
        made = Matrix(tuple(f"m{each}.ko" for each in range(number)), (KernelColumn(OLD),))
        made.add(Result(label, OLD, LOADS) for label in made.modules)
        return len(re.findall(rb"/Type\s*/Page\b", show(made).pdf()))

    assert pages(800) > 4 * pages(150)


def test_without_javascript(show):
    """A browser without JavaScript shows what came out, kernels, refusals and reasons, and no dead controls."""
    tab = show(example(), script=False)
    assert tab.text("h1") == "2 of 5 modules are refused by at least one kernel"
    rows = [text.split("\t") for text in tab.texts("noscript table:last-of-type tbody tr")]
    assert [row[0] for row in rows[:3]] == ["build/net/beta.ko", "build/gpu/gamma.ko", "build/gpu/gamma.ko"]
    assert rows[0][2:] == ["ENOENT", "unknown-symbol", "the kernel has no gone_symbol"]
    assert tab.texts("button, input, select") == []
    assert "nobody" in tab.text("#reason-unknown-symbol").lower()


# -- hostile, huge ------------------------------------------------------------------------------------------

MARKUP = "<img src=x onerror=alert(1)></script><script>alert(2)</script>&lt;<!--\u202emoc.exe\x1b[31m"
SHOWN = MARKUP.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")


@pytest.mark.parametrize("script", [True, False])
def test_markup_is_text(show, script):
    """Texts with markup, or with characters that turn text around, are shown as they are written."""
    verdict = refusal("unknown-symbol", MARKUP)
    made = Matrix((f"{MARKUP}.ko", f"dir/{MARKUP}"), (KernelColumn(MARKUP, warnings=(MARKUP,), problem=MARKUP),))
    made.add(
        Result(label, MARKUP, verdict, notes=(MARKUP,), first=(MARKUP,), suitable=(MARKUP,)) for label in made.modules
    )
    tab = show(made, script=script)
    if script:
        for place in (0, 1):
            tab.click(f"#row-{place} .toggle")
    assert tab.count("img, script:not([id]) + script") == 0
    assert tab.count("script") == 2
    text = tab.run("document.body.innerText")
    assert text.count(SHOWN) > 5
    assert "\u202e" not in text
    if script:
        assert SHOWN in tab.texts(".cause .why")
        assert f"m: {SHOWN}" in tab.texts(".details pre")


def test_nothing_inline_runs(show):
    """The page's policy stops scripts and event handlers that get into it all the same, and markup from texts."""
    tab = show(example())
    tab.run("window.ran = false")
    for attempt in (
        "document.body.append(Object.assign(document.createElement('script'), {text: 'ran = true'}))",
        "document.body.setAttribute('onclick', 'ran = true'); document.body.click()",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"ran = true\">')",
    ):
        tab.run(f"(() => {{ try {{ {attempt} }} catch {{}} }})()")
    tab.settle()
    assert tab.run("ran") is False
    assert len(tab.messages) >= 3
    tab.forget()


def test_four_thousand_modules(show):
    """Of 4,000 modules and 6 kernels only what can be seen, and a little more, is made, whatever one does."""
    labels = tuple(f"kernel/drivers/m{number}.ko" for number in range(4000))
    columns = tuple(KernelColumn(f"6.{number}.0-amd64") for number in range(6))
    made = Matrix(labels, columns)
    for number, label in enumerate(labels):
        made.add(
            Result(label, kernel.name, LOADS if number % 50 or place % 2 else GONE)
            for place, kernel in enumerate(columns)
        )
    tab = show(made)
    tab.run(
        "window.added = 0; new MutationObserver((all) => { for (const one of all) added += one.addedNodes.length; })"
        ".observe(document.querySelector('#rows'), {childList: true})"
    )
    assert tab.count(ROWS) == 100
    assert tab.count("*") < 4500
    assert tab.text("#shown") == "4,000 modules"
    assert names(tab)[:2] == ["m0.ko", "m50.ko"]
    tab.click("#text")
    tab.type("m39")
    assert tab.text("#shown") == "111 of 4,000 modules"
    tab.click("#all")
    tab.click("th:nth-child(1) button")
    assert tab.count(ROWS) == 100
    assert tab.run("added") <= 300
    # Going to a reason behind them brings none; coming near the end from above does, as long as there are more.
    tab.run("location.hash = 'reason-unknown-symbol'")
    tab.settle()
    assert tab.count(ROWS) == 100
    tab.run("scrollTo(0, 0)")
    tab.settle()
    tab.run("scrollBy(0, document.querySelector('#more').getBoundingClientRect().top - innerHeight - 300)")
    tab.settle()
    assert tab.count(ROWS) == 200
    assert tab.text("#more") == "Show more: 3,800 modules"
    tab.run("document.querySelector('#more').click()")
    assert tab.count(ROWS) == 300
