"""Results for people (text, page) and for programs (JSON, JUnit XML)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kodojo.check.results import KernelColumn, Matrix, NotBuilt, Result
from kodojo.loader.verdict import Verdict
from kodojo.report.check_json import matrix_json
from kodojo.report.html import page
from kodojo.report.json import dumps
from kodojo.report.junit import junit
from kodojo.report.matrix import drawn_matrix, matrix_rows, reason_lines, short_names, summary, verdict_lines
from kodojo.report.paint import Paint
from kodojo.report.table import plain_table
from tests.support.results import HOSTILE, REFUSED, matrix

PLAIN = Paint(enabled=False)

# -- text -------------------------------------------------------------------------------------------------


def test_verdict_at_length():
    """The kernel's own answer with errno, step, lines, why and hint; then the other problems."""
    lines = verdict_lines(matrix("m.ko").results["m.ko", "bad"], "bad.0", PLAIN)
    assert lines[0] == "✗ m.ko would not load into bad.0: ENOEXEC from check_modinfo"
    text = "\n".join(lines)
    parts = ["version magic '1.0'", "built for 1.0", "release: 1.0 is not 2.0", "more of it", "build it again"]
    places = [text.index(part) for part in [*parts, "nobody exports gone", "a note", "other.ko"]]
    assert places == sorted(places)


def test_verdict_without_a_refusal():
    """What loads is said in a line; what could not be checked has its reason."""
    results = matrix("m.ko").results
    assert verdict_lines(results["m.ko", "good"], "k", PLAIN) == ["✓ m.ko loads into k"]
    assert verdict_lines(results["m.ko", "gone"], "k", PLAIN)[:2] == [
        "? m.ko could not be checked against k",
        "why: no such file",
    ]


def test_rows_for_programs():
    """A row for each module with its whole label; a kernel's tree may lack a module."""
    made = matrix("a/b.ko")
    made.results.pop(("a/b.ko", "gone"))
    assert matrix_rows(made) == [("a/b.ko", "ok", "ENOEXEC vermagic-mismatch", "-")]


def test_summary():
    """Numbers of modules, kernels and answers."""
    assert summary(matrix("a", "b")) == "2 modules, 3 kernels: 2 load, 2 would not, 2 could not be checked"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["/x/y/a.ko"], ["a.ko"]),
        (["/x/y/a.ko", "/x/y/z/b.ko"], ["a.ko", "z/b.ko"]),
        (["/x/yy/a.ko", "/x/y/b.ko"], ["yy/a.ko", "y/b.ko"]),
        (["/x/a.ko", "/y/b.ko"], ["/x/a.ko", "/y/b.ko"]),
        (["a.ko", "b.ko"], ["a.ko", "b.ko"]),
    ],
)
def test_short_names(labels, names):
    """Directories that all have in common are left out."""
    assert short_names(labels) == names


def test_table_of_many():
    """Hundreds of modules with the same answers are one row; those with more problems come first."""
    labels = [f"m{number}.ko" for number in range(300)]
    made = matrix(*labels)
    made.add([Result("m7.ko", "good", REFUSED)])
    lines = drawn_matrix(made, 120).splitlines()
    assert len(lines) < 20
    text = re.sub("\x1b[^m]*m", "", "\n".join(lines))
    assert text.index("m7.ko") < text.index("299 modules:")


def test_reasons():
    """Each reason once: how often, an example in plain words, and what to do."""
    lines = reason_lines(matrix("a.ko", "b.ko"), PLAIN)
    assert lines[0] == "vermagic-mismatch (2 times), as in a.ko: built for 1.0"
    assert lines[1].strip() == "hint: build it again"


# -- what does not build ----------------------------------------------------------------------------------


def unbuilt(log: str = "") -> Matrix:
    """Two modules of one source, which loads into one kernel and does not build for another one."""
    made = Matrix(("a.deb:x.ko", "a.deb:y.ko"), (KernelColumn("old"), KernelColumn("new")))
    failed = NotBuilt("a.deb", "x.c:1:2: error: gone", ("x.c:1:2: error: gone", "x.c:3:4: error: more"), log)
    for label in made.modules:
        made.add([Result(label, "old", Verdict(ok=True)), Result(label, "new", not_built=failed)])
    return made


def test_a_table_with_what_does_not_build():
    """It stands beside what loads, and the first complaint is printed once for each source and kernel."""
    made = unbuilt()
    assert matrix_rows(made)[0] == ("a.deb:x.ko", "ok", "does not build")
    assert summary(made) == "2 modules, 2 kernels: 2 load, 2 do not build"
    lines = reason_lines(made, PLAIN)
    assert lines[:2] == ["does not build (2 times):", "  a.deb for new: x.c:1:2: error: gone"]
    assert "--build-log" in lines[2]
    assert len(lines) == 3
    assert made.exit_status == 1


def test_what_does_not_build_at_length():
    """All complaints that are kept, and where the log is."""
    lines = verdict_lines(unbuilt("logs/a.log").results["a.deb:x.ko", "new"], "new", PLAIN)
    assert lines[:3] == [
        "✗ a.deb:x.ko does not build for new",
        "| x.c:1:2: error: gone",
        "| x.c:3:4: error: more",
    ]
    assert "logs/a.log" in "\n".join(lines[3:])


def test_what_does_not_build_for_programs():
    """JSON and JUnit have it as a failure of its own kind; a page is made of it."""
    made = unbuilt("logs/a.log")
    value = matrix_json(made)
    assert value["counts"] == {"ok": 2, "refused": 0, "not-built": 2, "unchecked": 0}
    result = value["results"][1]
    assert (result["status"], result["slug"], result["errno"]) == ("not-built", "does-not-build", 0)
    complaints = ["x.c:1:2: error: gone", "x.c:3:4: error: more"]
    assert result["build"] == {"source": "a.deb", "complaints": complaints, "log": "logs/a.log"}
    assert value["results"][0]["build"] is None
    failures = ET.fromstring(junit(made)).findall(".//failure")
    assert [failure.get("type") for failure in failures] == ["does-not-build"] * 2
    assert "<h1>2 of 2 modules are not built for at least one kernel</h1>" in page(made)


# -- JSON -------------------------------------------------------------------------------------------------

RESULT_NAMES = {
    "module", "kernel", "status", "ok", "errno", "errno_name", "step", "slug", "why", "hint", "log", "problems",
    "unchecked_parameters", "unmade_checks", "loaded_first", "warnings", "notes", "suitable_kernels", "build",
    "sha256", "size",
}  # fmt: skip


def test_json():
    """The shape that docs/check.md promises."""
    value = json.loads(dumps(matrix_json(matrix("m.ko"))))
    assert set(value) == {"schema", "ok", "exit_status", "counts", "kernels", "modules", "results"}
    assert (value["schema"], value["exit_status"]) == ("kodojo-check/1", 2)
    assert value["counts"] == {"ok": 1, "refused": 1, "not-built": 0, "unchecked": 1}
    assert value["kernels"][2] == {
        "name": "gone", "release": "", "architecture": "", "kind": "", "warnings": [], "problem": "no such file",
    }  # fmt: skip
    assert [set(result) for result in value["results"]] == [RESULT_NAMES] * 3
    refused = value["results"][1]
    assert (refused["errno_name"], refused["step"]) == ("ENOEXEC", "check_modinfo")
    assert [problem["slug"] for problem in refused["problems"]] == ["vermagic-mismatch", "unknown-symbol"]
    assert refused["problems"][0]["details"][0]["facts"] == {"module": "1.0"}


def test_json_is_documented():
    """Every name of the shape is in docs/check.md."""
    text = (Path(__file__).resolve().parents[3] / "docs/check.md").read_text(encoding="utf-8")
    value = matrix_json(matrix("m.ko"))
    problem = value["results"][1]["problems"][0]
    for name in (*value, *value["results"][0], *problem, "facts", "more", "subject"):
        assert re.search(rf"\b{name}\b", text), name


# -- JUnit XML --------------------------------------------------------------------------------------------

# The schema that Jenkins' xUnit plug-in checks (junit-10.xsd), for what we write: children, attributes that must
# be there, attributes that may.
SCHEMA = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": (
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
    ),
    "testcase": (
        {"skipped", "error", "failure", "system-out", "system-err"},
        {"name"},
        {"time", "classname", "group"},
    ),
    "failure": (set(), set(), {"type", "message"}),
    "error": (set(), set(), {"type", "message"}),
    "system-out": (set(), set(), set()),
}


def test_junit_follows_the_schema():
    """Elements, their order of nesting and their attributes are those that CI systems accept; numbers add up."""
    root = ET.fromstring(junit(matrix("m.ko", HOSTILE)))
    assert root.tag == "testsuites"
    for element in root.iter():
        children, must, may = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children
        assert must <= set(element.attrib) <= must | may
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
        assert suite.get("errors") == str(len(suite.findall("testcase/error")))


def test_junit_says_all():
    """A kernel is a suite; a refusal a failure of the type of its reason; the log is the output."""
    good, bad, gone = ET.fromstring(junit(matrix("m.ko")))
    assert [suite.get("name") for suite in (good, bad, gone)] == ["good", "bad", "gone"]
    assert list(good[0]) == []
    failure = bad.find("testcase/failure")
    assert (failure.get("type"), failure.get("message")) == ("vermagic-mismatch", "built for 1.0")
    assert "nobody exports gone" in failure.text
    assert bad.find("testcase/system-out").text == "m: version magic '1.0' should be '2.0'"
    assert gone.find("testcase/error").get("message") == "no such file"


def test_reasons_of_what_could_not_be_checked():
    """Each file that could not be read has its own reason, and a hint once for those that have the same."""
    failures = {"a": "a: is gone", "b": "b: is a pipe", "c": "c: is cut off"}
    kernels = (KernelColumn("1.0"), KernelColumn("2.0"))
    matrix = Matrix(tuple(failures), kernels)
    for name, failure in failures.items():
        advice = "fetch it again" if name == "c" else "give a file"
        matrix.add(Result(name, kernel.name, failure=failure, advice=advice) for kernel in kernels)
    assert reason_lines(matrix, Paint(enabled=False)) == [
        "could-not-be-checked (6 times):",
        "  a: is gone", "  b: is a pipe", "  hint: give a file", "  c: is cut off", "  hint: fetch it again",
    ]  # fmt: skip


def test_names_on_one_line():
    """A file or a kernel cannot pretend to be several rows by what it is called."""
    name = "a\n✓ b loads"
    matrix = Matrix((name,), (KernelColumn("1.0\n2.0"),))
    matrix.add([Result(name, "1.0\n2.0", failure=f"{name}: is cut off")])
    assert len(plain_table(("module", "1.0"), matrix_rows(matrix))) == 2
    assert len(reason_lines(matrix, Paint(enabled=False))) == 2
    (result,) = matrix
    assert verdict_lines(result, result.kernel, Paint(enabled=False))[0].startswith(r"? a\x0a✓ b loads could not")
