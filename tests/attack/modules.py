"""``python -m tests.attack.modules``: damaged modules into ``check``, ``modinfo`` and ``explain``; nothing runs.

The damage is that of :mod:`tests.damage`, done once more, and modules compressed and damaged once more.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import NamedTuple

from kodojo.check.explain import Case as Explained
from kodojo.check.explain import explain
from kodojo.errors import KodojoError, ModuleFileError, UnmodelledError
from kodojo.image.image import Image
from kodojo.kmod.modinfo import read_modinfo
from kodojo.loader.verdict import check
from kodojo.report.modinfo import modinfo_lines
from tests.attack.archives import damage, packed
from tests.attack.runner import Attack, main
from tests.damage.bases import Base, paper, tree_bases
from tests.damage.mutations import make_case
from tests.support import distribution

SERIES = "6.1"
EXPLAINED = 4  # one in so many


class Bases(NamedTuple):
    """A kernel, and modules of it."""

    image: Image
    modules: list[Base]


def prepare() -> Bases:
    """The distribution's kernel, with all that a check computes once."""
    files = distribution.kernel_of(SERIES)
    image = Image.from_directory(files.image_root, distribution.cache_directory() / SERIES / "index")
    modules = [*tree_bases(image), Base("paper", paper(image))]
    for base in modules:
        check(image, base.data)
    return Bases(image, modules)


def attempt(bases: Bases, seed: int, number: int, place: Path) -> tuple[str, str]:
    """Check one damaged module; look at it with modinfo, and at some with explain."""
    rng = random.Random(f"modules {seed} {number}")
    case = make_case(bases.modules, seed, number)
    data, kind = case.data, case.kind
    if rng.random() < 0.2:
        data, kind = damage(rng, data), f"{kind}, twice"
    if rng.random() < 0.1:
        data, kind = packed(rng, data)[1], "compressed"
    path = place / "x.ko"
    path.write_bytes(data)
    try:
        modinfo_lines(read_modinfo(path))
    except ModuleFileError:
        pass
    except KodojoError as error:
        if not error.message:
            raise AssertionError("a refusal without a word") from error
    try:
        verdict = check(bases.image, str(path), case.arguments)
    except UnmodelledError:
        return kind, "unmodelled"
    if not verdict.ok and not verdict.why:
        raise AssertionError(f"a refusal without a word: {verdict}")
    if not verdict.ok and number % EXPLAINED == 0:
        explain(Explained(bases.image, data), verdict)
    return kind, verdict.slug


ATTACK = Attack("modules", prepare, attempt, ("x.",))

if __name__ == "__main__":
    sys.exit(main(ATTACK))
