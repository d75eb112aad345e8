"""The answers of ``kodojo check`` as JUnit XML, which systems for continuous integration read.

A kernel is a test suite, a module a test case. A refusal is a failure of the type of its reason, and so is what does
not build; what could not be checked is an error. What the kernel would print, and warnings about the file, is the
case's output.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kodojo.check.results import Matrix, Result, Status
from kodojo.report.matrix import verdict_lines
from kodojo.report.paint import Paint, clean

if TYPE_CHECKING:
    from kodojo.check.results import KernelColumn

__all__ = ["junit"]

_FAILURES = (Status.REFUSED, Status.NOT_BUILT)
_NO_CHARACTER = re.compile("[\ufffe\uffff]")  # clean() has seen to the rest of what XML cannot hold


def junit(matrix: Matrix) -> str:
    """The document."""
    root = ET.Element("testsuites", {"name": "kodojo check"} | _counts(list(matrix)))
    for kernel in matrix.kernels:
        results = [result for result in matrix if result.kernel == kernel.name]
        suite = ET.SubElement(root, "testsuite", {"name": _text(kernel.name)} | _counts(results))
        for result in results:
            _add_case(suite, result, kernel)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False)


def _counts(results: list[Result]) -> dict[str, str]:
    return {
        "tests": str(len(results)),
        "failures": str(sum(1 for result in results if result.status in _FAILURES)),
        "errors": str(sum(1 for result in results if result.status is Status.UNCHECKED)),
    }


def _add_case(suite: ET.Element, result: Result, kernel: KernelColumn) -> None:
    name = _text(result.module)
    case = ET.SubElement(suite, "testcase", name=name, classname=_text(kernel.name))
    if result.status is not Status.OK:
        kind = "failure" if result.status in _FAILURES else "error"
        trouble = ET.SubElement(case, kind, type=_text(result.slug), message=_text(result.why))
        trouble.text = _text("\n".join(verdict_lines(result, kernel.name, Paint(enabled=False))))
    log = result.verdict.log if result.verdict else ()
    if log or result.warnings:
        output = ET.SubElement(case, "system-out")
        lines = [*(record.text for record in log), *(f"warning: {sentence}" for sentence in result.warnings)]
        output.text = _text("\n".join(lines))


def _text(text: str) -> str:
    return _NO_CHARACTER.sub("?", clean(text))
