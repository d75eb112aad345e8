"""Whole matrices on paper kernels: what comes out, here and by processes that die."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kodojo.check import work
from kodojo.check.examine import examine
from kodojo.check.matrix import Kernel, check_matrix, make_tasks
from kodojo.check.pool import run_in_processes
from kodojo.check.results import KernelColumn, Matrix, Result, Status
from kodojo.check.sources import Spool, find_modules, own_module
from kodojo.check.work import run_here
from kodojo.image.exports import Export
from kodojo.image.image import Image
from kodojo.image.tree import ModuleTree
from kodojo.loader.verdict import check
from tests.support import distribution
from tests.support.checking import paper_kernel, simple_module

SYMBOL = Export("only_in_new", 0xFFFFFFFF82001000, None, False, None)


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(contents: dict[str, bytes]):
        for name, content in contents.items():
            Path(name).write_bytes(content)
        (tmp_path / "spool").mkdir()
        spool = Spool(tmp_path / "spool")
        return examine(find_modules(contents, spool), spool)

    return make


def slugs(matrix: Matrix) -> dict[tuple[str, str], str]:
    return {(result.module, result.kernel): result.slug for result in matrix}


def test_modules_and_kernels(given):
    """Each module against each kernel: what loads, what does not, what cannot be checked; row by row."""
    examined = given(
        {
            "new.ko": simple_module("new", needs=("only_in_new",)),
            "any.ko": simple_module("any"),
            "bad.ko.xz": b"\xfd7zXZ\x00damaged",
        }
    )
    kernels = [Kernel("old", paper_kernel()), Kernel("new", paper_kernel(SYMBOL)), Kernel("none", None, "is broken")]
    matrix = check_matrix(kernels, examined, run_here)
    unchecked = "could-not-be-checked"
    assert slugs(matrix) == {
        ("new.ko", "old"): "unknown-symbol", ("new.ko", "new"): "ok", ("new.ko", "none"): unchecked,
        ("any.ko", "old"): "ok", ("any.ko", "new"): "ok", ("any.ko", "none"): unchecked,
        ("bad.ko.xz", "old"): "damaged-compression", ("bad.ko.xz", "new"): "damaged-compression",
        ("bad.ko.xz", "none"): unchecked,
    }  # fmt: skip
    assert [result.module for result in matrix][::3] == ["new.ko", "any.ko", "bad.ko.xz"]
    assert matrix.results["any.ko", "none"].failure == "is broken"


def test_given_modules_see_each_other(given):
    """An export of a given module is there for another one, and what was loaded first is said."""
    examined = given(
        {"user.ko": simple_module("user", needs=("it",)), "maker.ko": simple_module("maker", exports=("it",))}
    )
    matrix = check_matrix([Kernel("k", paper_kernel())], examined, run_here)
    assert set(slugs(matrix).values()) == {"ok"}
    assert matrix.results["user.ko", "k"].first == ("maker.ko",)


def test_a_dependency_that_fails(given):
    """Who needs a module that would not load is told which, and why."""
    examined = given(
        {
            "user.ko": simple_module("user", needs=("it",), depends="maker,gone"),
            "maker.ko": simple_module("maker", exports=("it",), needs=("gone",)),
        }
    )
    result = check_matrix([Kernel("k", paper_kernel())], examined, run_here).results["user.ko", "k"]
    assert result.slug == "unknown-symbol"
    absent, failed = result.notes
    assert "gone" in absent
    assert "maker.ko" in failed
    assert "unknown-symbol" in failed


def test_verdicts_do_not_depend_on_what_was_loaded_besides(given):
    """The first module from outside the tree taints the kernel and says so; each one is the first."""
    contents = {f"m{number}.ko": simple_module(f"m{number}", intree=None) for number in range(3)}
    examined = given(contents)
    image = paper_kernel()
    matrix = check_matrix([Kernel("k", image)], examined, run_here)
    for name, content in contents.items():
        alone = check(image, content)
        assert alone.log
        assert matrix.results[name, "k"].verdict == replace(alone, steps=())


def test_parameters(given):
    """Parameters are tried on the module, not on what it needs."""
    examined = given({"m.ko": simple_module("m")})
    matrix = check_matrix([Kernel("k", paper_kernel())], examined, run_here, parameters=("unknown=1",))
    (record,) = [r for r in matrix.results["m.ko", "k"].verdict.log if "unknown" in r.text]
    assert "unknown parameter 'unknown' ignored" in record.text


def test_exit_status():
    """Not checked weighs more than refused, and nothing at all was not checked either."""
    empty = Matrix(("a", "b"), (KernelColumn("k"),))
    assert empty.exit_status == 2
    verdict = check(paper_kernel(), simple_module())
    good = Result("a", "k", verdict=verdict)
    refused = Result("b", "k", verdict=replace(verdict, ok=False, errno=2, slug="unknown-symbol"))
    for results, status in (((good,), 0), ((good, refused), 1), ((refused, Result("a", "k")), 2)):
        matrix = Matrix(("a", "b"), (KernelColumn("k"),))
        matrix.add(results)
        assert matrix.exit_status == status


# -- processes ------------------------------------------------------------------------------------------


def many(given):
    return given({f"m{number}.ko": simple_module(f"m{number}") for number in range(20)})


def test_processes_say_the_same(given):
    """Two processes have the same results as one, whatever the order in which they come."""
    examined = many(given)
    kernels = [Kernel("a", paper_kernel()), Kernel("b", paper_kernel(SYMBOL))]
    here = check_matrix(kernels, examined, run_here)
    there = check_matrix(kernels, examined, lambda tasks: run_in_processes(tasks, 2), jobs=2)
    assert list(there) == list(here)
    assert len(list(here)) == 40


@pytest.mark.parametrize(
    ("misfortune", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "Killed"),
        (lambda: os._exit(3), "ended with status 3"),
        (lambda: time.sleep(1000), "did not come back"),
    ],
    ids=["killed", "exits", "hangs"],
)
def test_a_process_dies(given, monkeypatch, misfortune, words):
    """The module that took its process down is named; all others have their verdicts."""
    examined = many(given)
    judge = work.judge

    def fatal(image, payload, *rest):
        if b"\0name=m7\0" in payload.content or b"m7\0" in payload.content:
            misfortune()
        return judge(image, payload, *rest)

    monkeypatch.setattr(work, "judge", fatal)
    matrix = check_matrix(
        [Kernel("k", paper_kernel())], examined, lambda tasks: run_in_processes(tasks, 2, patience=0.5), jobs=2
    )
    assert matrix.counts() == {Status.OK: 19, Status.UNCHECKED: 1}
    assert words in matrix.results["m7.ko", "k"].failure


def test_a_bug_of_ours_is_one_result(given, monkeypatch):
    """An exception that nobody foresaw is the failure of one module, and asks for a report."""
    examined = given({"a.ko": simple_module("a"), "b.ko": simple_module("b") + b"tail"})
    judge = work.judge

    def buggy(image, payload, *rest):
        return judge(image, payload, *rest) if payload.content.endswith(b"tail") else 1 / 0

    monkeypatch.setattr(work, "judge", buggy)
    matrix = check_matrix([Kernel("k", paper_kernel())], examined, run_here)
    assert "ZeroDivisionError" in matrix.results["a.ko", "k"].failure
    assert matrix.results["a.ko", "k"].advice == work.REPORT
    assert matrix.results["b.ko", "k"].slug == "ok"


# -- real kernels ---------------------------------------------------------------------------------------

SAMPLE = 25


@pytest.mark.kernel
def test_modules_of_the_distribution(image):
    """Verdicts of modules that share their dependencies are those of modules that are checked alone."""
    names = sorted(image.modules)[3 :: len(image.modules) // SAMPLE]
    names.append("mt7915e")  # its static calls have keys in other modules
    modules = [own_module(image, name) for name in names]
    tasks = make_tasks("k", image, [], modules)
    results = {result.module: result for each in run_here(tasks) for result in each}
    for module in modules:
        assert results[module.label].verdict == replace(check(image, module.path), steps=())


@pytest.mark.kernel
def test_built_modules(image, built, tmp_path):
    """Modules that depend on each other, given together: kd_import needs what kd_export exports."""
    spool = Spool(tmp_path)
    paths = [str(built[name]) for name in ("kd_import", "kd_export")]
    matrix = check_matrix([Kernel("k", image)], examine(find_modules(paths, spool), spool), run_here)
    assert [result.slug for result in matrix] == ["ok", "ok"]
    alone = check_matrix([Kernel("k", image)], examine(find_modules(paths[:1], spool), spool), run_here)
    assert [result.slug for result in alone] == ["unknown-symbol"]


@pytest.mark.kernel
def test_kernels_that_are_only_described(series, built, tmp_path):
    """Headers are enough for modules that are given together, and what they do not tell is said."""
    (tmp_path / "index").mkdir()
    headers = Image.from_directory(distribution.kernel_of(series).build_directory, tmp_path / "index")
    spool = Spool(tmp_path)
    paths = [str(built[name]) for name in ("kd_import", "kd_export", "kd_unknown")]
    matrix = check_matrix([Kernel("k", headers)], examine(find_modules(paths, spool), spool), run_here)
    assert [result.slug for result in matrix] == ["ok", "ok", "unknown-symbol"]
    assert matrix.kernels[0].kind == "headers"
    (alone,) = check_matrix([Kernel("k", headers)], examine(find_modules(paths[:1], spool), spool), run_here)
    assert (alone.status, alone.verdict) == (Status.UNCHECKED, None)
    assert "kd_export" in alone.failure
    assert alone.advice.endswith(f"kodojo check {paths[0]} {paths[1]}")
    assert not any("kd_export" in sentence for sentence in matrix.results[paths[0], "k"].unmade)


def test_own_module_of_a_given_name(given, tmp_path):
    """A given file that is called as one of the kernel's own tree has a row of its own, and so has that."""
    root = tmp_path / "lib/9.9"
    root.mkdir(parents=True)
    for name in ("m", "other"):
        (root / f"{name}.ko").write_bytes(simple_module(name))
    (root / "modules.dep").write_text("m.ko:\nother.ko: m.ko\n")
    examined = given({"m.ko": simple_module("m", needs=("nowhere",))})
    kernels = [Kernel(name, paper_kernel(tree=ModuleTree(root))) for name in ("one", "two")]
    matrix = check_matrix(kernels, examined, run_here, own=True)
    for name in ("one", "two"):
        rows = {label: matrix.results[label, name].slug for label in matrix.modules}
        assert rows == {"m.ko": "unknown-symbol", "./m.ko": "ok", "other.ko": "ok"}


def test_what_lies_beside_and_was_not_given(given, tmp_path):
    """A file that a module needs, lies beside it and was not given is named, whether depends= names it or not."""
    modules = {
        "named.ko": simple_module("named", needs=("helper",), depends="part"),
        "unnamed.ko": simple_module("unnamed", needs=("helper",)),
        "part.ko": simple_module("part", exports=("helper",)),
    }
    for name, content in modules.items():
        Path(name).write_bytes(content)
    del modules["part.ko"]
    matrix = check_matrix([Kernel("k", paper_kernel())], given(modules), run_here)
    for name in modules:
        result = matrix.results[name, "k"]
        assert (result.status, result.slug) == (Status.REFUSED, "unknown-symbol")
        assert result.hint == f"part.ko lies beside it: give it too: kodojo check {name} part.ko"
