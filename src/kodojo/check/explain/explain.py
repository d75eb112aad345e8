"""Which explanation belongs to which reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.check.explain import elf, parameters, signature, symbols, vermagic, versions
from kodojo.errors import Detail, KodojoError, Refusal

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.loader.verdict import Verdict

__all__ = ["explain", "notes"]

Explainer = Callable[["Case", Refusal], Refusal]

EXPLAINERS: dict[str, Explainer] = {
    "unknown-symbol": symbols.unknown_symbol,
    "gpl-only-symbol": symbols.gpl_only_symbol,
    "namespace-not-imported": symbols.namespace_not_imported,
    "symbol-version": versions.symbol_version,
    "module-layout-crc": versions.module_layout_crc,
    "vermagic-mismatch": vermagic.vermagic_mismatch,
    "vermagic-missing": vermagic.vermagic_missing,
    "struct-module-size": elf.struct_module_size,
    **dict.fromkeys(signature.SLUGS, signature.signature),
    **dict.fromkeys(elf.FIELDS, elf.header_field),
    **dict.fromkeys(parameters.SLUGS, parameters.parameter),
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
    """What else a person should know, whether it loads or not: taints, arguments that nobody looks at."""
    return (*parameters.ignored(case, verdict), *parameters.unchecked(verdict), *symbols.taints(verdict))
