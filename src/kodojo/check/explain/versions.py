"""Version checksums: which differ, and what has changed that they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.errors import Detail

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal

__all__ = ["module_layout_crc", "symbol_version"]


def symbol_version(case: Case, problem: Refusal) -> Refusal:
    """Both checksums of every symbol, and what has changed."""
    return replace(
        problem, hint=_hint(case, problem), details=tuple(_with_checksums(detail) for detail in problem.details)
    )


def module_layout_crc(case: Case, problem: Refusal) -> Refusal:
    """The same for the function that stands for struct module and its friends."""
    return symbol_version(case, problem)


def _with_checksums(detail: Detail) -> Detail:
    facts = detail.facts
    owner = facts.get("owner", "vmlinux")
    whose = "the kernel" if owner == "vmlinux" else f"module {owner}"
    if "crc" not in facts:
        return replace(detail, text="the module has no checksum for it")
    return replace(detail, text=f"{facts['crc']:#010x} in the module, {facts['kernel crc']:#010x} in {whose}")


def _hint(case: Case, problem: Refusal) -> str:
    if not case.release or case.release == case.image.release:
        return problem.hint
    return f"Build the module for {case.image.release}: it was built for {case.release}."
