"""Which explanation belongs to which reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.check.explain.elf import FIELDS, header_field, struct_module_size
from kodojo.check.explain.parameters import SLUGS as PARAMETERS
from kodojo.check.explain.parameters import ignored, parameter, unchecked
from kodojo.check.explain.signature import SLUGS as SIGNATURES
from kodojo.check.explain.signature import signature, unverified
from kodojo.check.explain.symbols import gpl_only_symbol, namespace_not_imported, taints, unknown_symbol
from kodojo.check.explain.vermagic import vermagic_mismatch, vermagic_missing
from kodojo.check.explain.versions import module_layout_crc, symbol_version
from kodojo.errors import Detail, KodojoError, Refusal

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.loader.verdict import Verdict

__all__ = ["explain", "notes"]

Explainer = Callable[["Case", Refusal], Refusal]

EXPLAINERS: dict[str, Explainer] = {
    "unknown-symbol": unknown_symbol,
    "gpl-only-symbol": gpl_only_symbol,
    "namespace-not-imported": namespace_not_imported,
    "symbol-version": symbol_version,
    "module-layout-crc": module_layout_crc,
    "vermagic-mismatch": vermagic_mismatch,
    "vermagic-missing": vermagic_missing,
    "struct-module-size": struct_module_size,
    **dict.fromkeys(SIGNATURES, signature),
    **dict.fromkeys(FIELDS, header_field),
    **dict.fromkeys(PARAMETERS, parameter),
}


def explain(case: Case, verdict: Verdict) -> Verdict:
    """The verdict with all that can be told about its problems. Takes a while where structures are compared."""
    if verdict.ok:
        return verdict
    problems = tuple(_explained(case, problem) for problem in verdict.problems)
    return replace(verdict, why=problems[0].why, hint=problems[0].hint, problems=problems)


def _explained(case: Case, problem: Refusal) -> Refusal:
    explainer = EXPLAINERS.get(problem.slug)
    if explainer is None:
        return problem
    try:
        return explainer(case, problem)
    except KodojoError:  # what the explanation wanted to know is not there; the refusal itself is
        return problem


def notes(case: Case, verdict: Verdict) -> tuple[Detail, ...]:
    """What else a person should know: arguments that nobody looks at, signatures that do not count, taints."""
    return (*ignored(case, verdict), *unchecked(verdict), *unverified(case, verdict), *taints(verdict))
