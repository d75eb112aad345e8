from __future__ import annotations

import ast
import inspect
from pathlib import Path

from kodojo import loader
from kodojo.loader.slugs import SLUGS


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
    files = [path for path in directory.rglob("*.py") if path.name != "slugs.py"]
    used = set().union(*(kebab_texts(path.read_text("utf-8")) for path in files))
    assert used - SLUGS.keys() == set()
    assert SLUGS.keys() - used == set()
