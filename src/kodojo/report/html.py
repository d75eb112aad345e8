"""The answers of ``kodojo check`` as one page to look at: no network, nothing beside it.

The page is ``check.html`` in this directory, with the results as JSON in the middle. Whatever modules and kernels
call themselves is data there, never markup: the script puts texts into the page as texts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from importlib import resources
from typing import Any

from kodojo import __version__
from kodojo.check.results import Matrix, Result
from kodojo.report.check_json import result_json
from kodojo.report.matrix import short_names, summary
from kodojo.report.paint import clean

__all__ = ["page"]

_TEMPLATE = "check.html"
_DATA = '{"kodojo": "data"}'
"""What stands in the template where the data go; it makes the template a page that can be tried out, too."""
# What could end the script element, or is a line's end for some and not for others.
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def page(matrix: Matrix) -> str:
    """The page, complete."""
    template = resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8")
    before, _, after = template.partition(_DATA)
    return before + _embedded(_data(matrix)) + after


def _embedded(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE)


def _data(matrix: Matrix) -> Any:
    return _shown(
        {
            "version": __version__,
            "summary": summary(matrix),
            "kernels": [
                {
                    "name": each.name,
                    "release": each.release,
                    "architecture": each.architecture,
                    "problem": each.problem,
                }
                for each in matrix.kernels
            ],
            "modules": [
                {"label": label, "name": name, "cells": [_cell(result) for result in matrix.row(label)]}
                for label, name in zip(matrix.modules, short_names(matrix.modules), strict=True)
            ],
        }
    )


def _cell(result: Result | None) -> dict[str, Any] | None:
    """What the page shows of a result; the first problem repeats what the result says, and is left out."""
    if result is None:
        return None
    shape = result_json(result)
    shape["log"] = [record["text"] for record in shape["log"]]
    problems = shape.pop("problems")
    if problems:
        shape["details"] = _details(problems[0])
        shape["others"] = [
            problem | {"log": [record["text"] for record in problem["log"]], "details": _details(problem)}
            for problem in problems[1:]
        ]
    for repeated in ("module", "kernel", "ok", "errno"):
        del shape[repeated]
    return {name: value for name, value in shape.items() if value}


def _details(problem: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"subject": each.subject, "text": each.text, "more": each.more} for each in problem["details"]]


def _shown(value: Any) -> Any:
    """The same with all texts fit to be shown."""
    if isinstance(value, str):
        return clean(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _shown(asdict(value))
    if isinstance(value, dict):
        return {name: _shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return value
