from __future__ import annotations

import ast
import inspect
from pathlib import Path

from kodojo import loader
from kodojo.loader import refusal, slugs

OURS = (
    "load_module", "module_list", "module_sections", "parameters", "relocate/__init__", "relocate/x86_64",
    "symbols", "syscalls",
)  # fmt: skip


def kebab_texts(source: str) -> set[str]:
    """Texts in lower case with dashes, as only slugs are written."""
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    return {
        text
        for text in texts
        if isinstance(text, str) and "-" in text[1:-1] and text.replace("-", "").isalpha() and text.islower()
    }


def test_every_slug_is_listed_and_used():
    """The list of reasons and the reasons in the code are the same."""
    directory = Path(inspect.getfile(loader)).parent
    used = set().union(*(kebab_texts((directory / f"{name}.py").read_text("utf-8")) for name in OURS))
    assert used - {"would-damage-kernel"} - slugs.SLUGS.keys() == set()
    assert slugs.SLUGS.keys() - used == set()


def test_slugs_of_both_lists_agree():
    """A reason that two parts of the loader give is the same reason."""
    both = slugs.SLUGS.keys() & refusal.SLUGS.keys()
    assert both <= {"out-of-memory"}
