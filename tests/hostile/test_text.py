"""Text of strangers: nothing turns around, hides or ends a line in any output."""

from __future__ import annotations

import json
import unicodedata

import pytest

from kodojo.kmod.modinfo import read_modinfo
from kodojo.report.check_json import matrix_json
from kodojo.report.html import page
from kodojo.report.json import dumps
from kodojo.report.junit import junit
from kodojo.report.matrix import summary, verdict_lines
from kodojo.report.modinfo import field_lines, modinfo_lines
from kodojo.report.paint import Paint, clean, clean_line
from kodojo.report.table import drawn_table, plain_table
from tests.support.checking import simple_module
from tests.support.results import matrix

BIDI = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x61C, 0x200E, 0x200F]
LINES = [0x2028, 0x2029, 0x85]
UNSEEN = [0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD, 0xFFF9, 0xE0041, 0x9B]
HARMFUL = "".join(map(chr, BIDI + LINES + UNSEEN))
LABEL = f"evil{HARMFUL}\x1b[2J.ko"


def harmless(text):
    return not set(text) & set(HARMFUL + "\x1b")


@pytest.mark.parametrize("code", BIDI + LINES + UNSEEN, ids=hex)
def test_one_by_one(code):
    """Each is shown by its number, in the way of its size."""
    shown = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    assert clean(f"a{chr(code)}b") == clean_line(f"a{chr(code)}b") == f"a{shown}b"


def test_by_what_they_are():
    """Whatever Unicode says to be a bidirectional control, or an end of lines, is among them."""
    controls = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.bidirectional(character) in controls or unicodedata.category(character) in ("Zl", "Zp"):
            assert clean(character) != character


def test_letters_stay():
    """Text in any script, written from whichever side, is as it was."""
    for text in ("Übung", "שלום", "مرحبا", "日本語", "emoji \U0001f980"):
        assert clean(text) == text


def test_a_check_in_every_form():
    """Table, answers, JUnit, page and JSON; what JSON says is what the module is called."""
    made = matrix(LABEL)
    plain = Paint(enabled=False)
    texts = [junit(made), summary(made), *plain_table(("a",), [[LABEL]]), page(made)]
    texts += [line for result in made for line in verdict_lines(result, LABEL, plain)]
    text = dumps(matrix_json(made))
    assert all(map(harmless, [*texts, text]))
    assert json.loads(text)["modules"] == [LABEL]
    drawn = drawn_table(("a",), [[LABEL]], 200)
    assert not set(drawn) & set(HARMFUL)


def test_what_a_module_says(tmp_path):
    """The texts of a module, in modinfo's lines and one by one."""
    (tmp_path / "evil.ko").write_bytes(simple_module("evil", description=f"see {HARMFUL}", author=HARMFUL))
    info = read_modinfo(tmp_path / "evil.ko")
    assert all(map(harmless, modinfo_lines(info)))
    assert all(map(harmless, field_lines(info, "description")))
    assert "\\u202e" in "".join(field_lines(info, "description"))
