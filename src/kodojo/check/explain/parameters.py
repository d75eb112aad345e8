"""Parameters: which there are, of what type, and which was meant."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from kodojo.check.explain.nearest import nearest_word
from kodojo.errors import Detail
from kodojo.kmod.modinfo import Modinfo

if TYPE_CHECKING:
    from kodojo.check.explain.case import Case
    from kodojo.errors import Refusal
    from kodojo.loader.verdict import Verdict

__all__ = ["SLUGS", "ignored", "parameter", "unchecked"]

SLUGS = (
    "parameter-without-value",
    "parameter-invalid",
    "parameter-out-of-range",
    "parameter-too-long",
    "parameter-locked-down",
)
IGNORED = re.compile(r": unknown parameter '(.*)' ignored$", re.DOTALL)

RANGES = {
    "byte": "0 to 255",
    "short": "-32768 to 32767",
    "ushort": "0 to 65535",
    "int": "-2147483648 to 2147483647",
    "uint": "0 to 4294967295",
    "hexint": "0 to 4294967295",
    "long": "a signed number of the machine's word size",
    "ulong": "an unsigned number of the machine's word size",
    "ullong": "0 to 18446744073709551615",
    "bool": "Y, N, 1, 0, on or off",
    "invbool": "Y, N, 1, 0, on or off",
    "bint": "Y, N, 1, 0, on or off",
    "charp": "a text of at most 1024 bytes",
}
"""Type as modinfo names it -> what it accepts (``kernel/params.c``)."""


def parameter(case: Case, problem: Refusal) -> Refusal:
    """The type of the parameter, and what that accepts."""
    types = _types(case)
    details = []
    for detail in problem.details:
        kind = types.get(detail.subject.replace("-", "_"), "")
        facts = detail.facts | ({"type": kind} if kind else {})
        details.append(replace(detail, text=_accepts(kind), facts=facts))
    return replace(problem, details=tuple(details))


def ignored(case: Case, verdict: Verdict) -> tuple[Detail, ...]:
    """Arguments that are no parameter of the module: the kernel only says so, and loads it."""
    found = [match[1] for record in verdict.log if (match := IGNORED.search(record.text))]
    return tuple(_ignored(case, name) for name in found)


def _ignored(case: Case, name: str) -> Detail:
    types = _types(case)
    meant = nearest_word(name, types)
    text = "the module has no such parameter; the kernel ignores it"
    if meant:
        text += f" (is {meant} meant?)"
    known = ", ".join(f"{other} ({kind})" if kind else other for other, kind in sorted(types.items()))
    return Detail(f"parameter {name}", text, {"nearest": meant}, (f"its parameters: {known or 'none'}",))


def unchecked(verdict: Verdict) -> tuple[Detail, ...]:
    """Values that only the module's own code can judge."""
    text = "its value is judged by the module's own code, which was not run"
    return tuple(Detail(f"parameter {name}", text) for name in verdict.unchecked)


def _types(case: Case) -> dict[str, str]:
    known = Modinfo("", "", tuple(case.modinfo)).parameters
    return {one.name: one.type or "" for one in known}


def _accepts(kind: str) -> str:
    if not kind:
        return "the module does not say of what type it is"
    if kind.startswith("array of "):
        of = kind.removeprefix("array of ")
        return f"is an {kind}: values separated by commas, each {RANGES.get(of, 'of that type')}"
    return f"is of type {kind}: {RANGES.get(kind, 'as the module itself defines it')}"
