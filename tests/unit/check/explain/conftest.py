"""A kernel and modules that are written down, for explanations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kodojo.check.explain import Case
from kodojo.errors import Detail, Refusal
from kodojo.image.exports import Export
from kodojo.image.image import FACTS
from tests.support.elf_writer import module_writer
from tests.support.paper import Config, Kallsyms


class Exports(list):
    """Exports that can be asked by name."""

    def get(self, name: str) -> Export | None:
        return next((export for export in self if export.name == name), None)


def kernel(*names: str, release: str = "9.9-paper", **more: Any) -> SimpleNamespace:
    """A kernel that exports these names; hashable, as images are."""
    exports = Exports(Export(name, 0, None, False, None) for name in names)
    plain = {
        "describes": FACTS,
        "release": release,
        "vermagic": f"{release} SMP ",
        "exports": exports,
        "kallsyms": Kallsyms(),
    }
    return Image(**(plain | {"config": Config(), "modules": {}, "keyring": ()} | more))


class Image(SimpleNamespace):
    __hash__ = object.__hash__


def problem(slug: str, *details: Detail, why: str = "why", hint: str = "hint") -> Refusal:
    return Refusal(errno=8, step="", slug=slug, why=why, hint=hint, details=details)


def case(image: Any = None, built_for: Any = None, **info: Any) -> Case:
    """A module with this ``.modinfo``, on a kernel."""
    return Case(image or kernel(), module_writer(info=info).build(), built_for)


@pytest.fixture
def exporters(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[str]]:
    """(release, symbol) -> the modules that export it; to be filled by the test."""
    known: dict[tuple[str, str], list[str]] = {}

    def found(image: Any, symbol: str) -> list[str]:
        return known.get((image.release, symbol), [])

    monkeypatch.setattr("kodojo.check.explain.case.exporters", found)
    monkeypatch.setattr("kodojo.check.explain.symbols.exporters", found)
    return known
