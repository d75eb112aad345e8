from __future__ import annotations

import json
from enum import IntEnum

from kodojo.errors import LogRecord
from kodojo.loader.steps import Step
from kodojo.report.json import dumps


class Number(IntEnum):
    ENOENT = 2


def test_any_text_is_valid_json():
    """Bytes that are no UTF-8 come out as visible escapes, in names too."""
    text = dumps({"a\udcff": ["\udc80 ü"]})
    assert json.loads(text.encode("utf-8")) == {r"a\xff": [r"\x80 ü"]}


def test_numbers_that_doubles_cannot_hold():
    """Addresses among a step's facts become texts; sizes stay numbers, enumerations become them."""
    step = Step("live", "t", "s", {"size": 4096, "address": 0xFFFFFFFFC0000000, "largest": (1 << 53) - 1})
    facts = json.loads(dumps(step))["facts"]
    assert facts == {"size": 4096, "address": "0xffffffffc0000000", "largest": (1 << 53) - 1}
    assert dumps({"n": Number.ENOENT, "b": True, "z": None}).split() == [
        "{",
        '"n":',
        "2,",
        '"b":',
        "true,",
        '"z":',
        "null",
        "}",
    ]


def test_records_are_dictionaries():
    """Dataclasses come out by the names of their fields."""
    assert json.loads(dumps([LogRecord(6, "t", 1.5)])) == [{"level": 6, "text": "t", "time": 1.5}]
