"""What ``kodojo check --json`` prints: one value, whose shape is an interface (docs/check.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kodojo.check.results import Matrix, Result, Status
from kodojo.report.errnos import errno_name
from kodojo.report.json import record_list

if TYPE_CHECKING:
    from kodojo.loader.verdict import Problem

__all__ = ["SCHEMA", "matrix_json", "result_json"]

SCHEMA = "kodojo-check/1"
"""Names are only ever added under the same number."""


def matrix_json(matrix: Matrix) -> dict[str, Any]:
    """All results, row by row."""
    counts = matrix.counts()
    return {
        "schema": SCHEMA,
        "ok": matrix.exit_status == 0,
        "exit_status": matrix.exit_status,
        "counts": {status.value: counts[status] for status in Status},
        "kernels": [kernel._asdict() for kernel in matrix.kernels],
        "modules": list(matrix.modules),
        "results": [result_json(result) for result in matrix],
    }


def result_json(result: Result) -> dict[str, Any]:
    """One module and one kernel."""
    verdict = result.verdict
    return {
        "module": result.module,
        "kernel": result.kernel,
        "status": result.status.value,
        "ok": result.status is Status.OK,
        "errno": result.errno,
        "errno_name": errno_name(result.errno),
        "step": result.step,
        "slug": result.slug,
        "why": result.why,
        "hint": result.hint,
        "log": record_list(verdict.log) if verdict else [],
        "problems": [_problem(problem) for problem in verdict.problems] if verdict else [],
        "unchecked_parameters": list(verdict.unchecked) if verdict else [],
        "unmade_checks": list(result.unmade),
        "loaded_first": list(result.first),
        "warnings": list(result.warnings),
        "notes": list(result.notes),
        "suitable_kernels": list(result.suitable),
        "build": _build(result),
        "sha256": result.sha256,
        "size": result.size,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "slug": problem.slug,
        "errno": problem.errno,
        "errno_name": errno_name(problem.errno),
        "step": problem.step,
        "why": problem.why,
        "hint": problem.hint,
        "log": record_list(problem.log),
        "details": list(problem.details),
    }


def _build(result: Result) -> dict[str, Any] | None:
    found = result.not_built
    if found is None:
        return None
    return {"source": found.source, "complaints": list(found.complaints), "log": found.log}
